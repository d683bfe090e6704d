"""An embedding space: what makes two vectors comparable."""

from __future__ import annotations

from hashlib import sha256

from pydantic import BaseModel, ConfigDict, Field


class EmbeddingSpace(BaseModel):
    """The model, and all that changes its numbers.

    Two vectors may be compared only if the fingerprints of their spaces are equal. The host that
    computed them is not part of the space: two servers of one model serve one space.

    Attributes:
        model: the canonical model name, such as ``"text-embedding-3-small"`` or
            ``"sentence-transformers/all-MiniLM-L6-v2"``.
        dim: the number of components.
        normalized: whether the vectors have unit length.
        revision: a commit or version of the model, if pinned.
        prompt: the prefix put before each text, such as ``"passage: "``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str = Field(min_length=1)
    dim: int = Field(gt=0)
    normalized: bool = True
    revision: str | None = None
    prompt: str | None = None

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits (SHA-256 of the JSON form); equal exactly for equal spaces."""
        return sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def __str__(self) -> str:
        details = [f"{self.dim} d", "unit length" if self.normalized else "not normalised"]
        details += [f"rev {self.revision}"] if self.revision else []
        details += [f"prompt {self.prompt!r}"] if self.prompt else []
        return f"{self.model} ({', '.join(details)})"
