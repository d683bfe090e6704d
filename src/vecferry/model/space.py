"""An embedding space: what makes two vectors comparable."""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from functools import cache
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

SAME_MODEL_COSINE = 0.999
"""Below it two answers to one text are of two models, whatever they are called: hosts of one model differ
by rounding (float16 and quantised servers stay above 0.9995), other models are far away."""
_SIGNATURE = 64


class EmbeddingSpace(BaseModel):
    """The model, and all that changes its numbers.

    Two vectors may be compared only if their spaces are the same (`same_as`). The host that computed them
    is not part of the space: two servers of one model serve one space.

    Attributes:
        model: the canonical model name, such as ``"text-embedding-3-small"`` or
            ``"sentence-transformers/all-MiniLM-L6-v2"``.
        dim: the number of components.
        normalized: whether the vectors have unit length.
        revision: a commit or version of the model, if pinned.
        prompt: the prefix put before each text, such as ``"passage: "``.
        probe: the `signature` of the model's vector of a fixed text, measured when a target was filled. It
            tells two models apart that go by one name; it is no part of ``fingerprint`` and of ``==``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str = Field(min_length=1)
    dim: int = Field(gt=0)
    normalized: bool = True
    revision: str | None = None
    prompt: str | None = None
    probe: str | None = None

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits (SHA-256 of the JSON form); equal exactly for equal spaces."""
        return sha256(self.model_dump_json(exclude={"probe"}).encode()).hexdigest()[:16]

    def same_as(self, other: EmbeddingSpace) -> bool:
        """Whether vectors of the two may be compared: one name, and one answer as far as measured."""
        if self.fingerprint != other.fingerprint:
            return False
        return not (self.probe and other.probe) or same_model(self.probe, other.probe)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EmbeddingSpace) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __str__(self) -> str:
        details = [f"{self.dim} d", "unit length" if self.normalized else "not normalised"]
        details += [f"rev {self.revision}"] if self.revision else []
        details += [f"prompt {self.prompt!r}"] if self.prompt else []
        return f"{self.model} ({', '.join(details)})"


def signature(vector: NDArray[Any]) -> str:
    """A probe vector in 172 characters, to be kept beside a space: 64 fixed random projections as float16.

    Projections of one model's answers agree as the answers do; those of two models differ by far
    (W. Johnson and J. Lindenstrauss, 1984).
    """
    projected = _unit_row(vector) @ _projection(int(np.size(vector)))
    return b64encode(projected.astype("<f2").tobytes()).decode()


def same_model(first: NDArray[Any] | str, second: NDArray[Any] | str) -> bool:
    """Whether two probe vectors, or signatures of such, are answers of one model."""
    if isinstance(first, str) != isinstance(second, str):
        first = first if isinstance(first, str) else signature(first)
        second = second if isinstance(second, str) else signature(second)
    # A projection of a small difference may be some tenths larger than the difference.
    slack = 2.0 if isinstance(first, str) else 1.0
    return 1.0 - probe_cosine(first, second) <= slack * (1.0 - SAME_MODEL_COSINE)


def probe_cosine(first: NDArray[Any] | str, second: NDArray[Any] | str) -> float:
    """The cosine of two probe vectors, or about that of two signatures."""
    left, right = (
        _read_signature(one) if isinstance(one, str) else _unit_row(one) for one in (first, second)
    )
    if left.shape != right.shape:
        return 0.0
    lengths = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(left @ right) / lengths if lengths else 0.0


def _row(one: NDArray[Any] | str) -> NDArray[np.float64]:
    return _read_signature(one) if isinstance(one, str) else _unit_row(one)


def _read_signature(text: str) -> NDArray[np.float64]:
    try:
        return np.frombuffer(b64decode(text, validate=True), "<f2").astype(np.float64)
    except (NotBase64, ValueError):
        return np.zeros(0)


def _unit_row(vector: NDArray[Any]) -> NDArray[np.float64]:
    row = np.asarray(vector, np.float64).ravel()
    length = float(np.linalg.norm(row))
    return row / length if length else row


@cache
def _projection(dim: int) -> NDArray[np.float64]:
    """Signs from a hash and not from a random generator, whose stream a library may change."""
    bits = np.arange(dim * _SIGNATURE, dtype=np.uint64)
    bits = (bits + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    signs = ((bits ^ (bits >> np.uint64(31))) & np.uint64(1)).astype(np.float64) * 2 - 1
    projection: NDArray[np.float64] = signs.reshape(dim, _SIGNATURE) / np.sqrt(_SIGNATURE)
    return projection
