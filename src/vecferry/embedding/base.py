"""What all providers share: partial results, checks of what came back, the async form, questions."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vecferry.core.concurrency import ShouldStop, never_stop
from vecferry.core.redaction import clean
from vecferry.embedding.space import known
from vecferry.embedding.tokens import count_tokens
from vecferry.errors import FatalStoreError, LocalStateError, RejectedRecord
from vecferry.model import EmbeddingSpace
from vecferry.ports import Embedder

Matrix: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Part:
    """One answer of a provider, as soon as it is there.

    Attributes:
        rows: positions in the texts that were asked for.
        vectors: float32 ``(len(rows), dim)``; ``None`` if these texts were refused.
        reason: why they were refused.
        tokens: what the provider counted, if it says so.
    """

    rows: list[int]
    vectors: Matrix | None
    reason: str = ""
    tokens: int | None = None


class TextsRejected(RejectedRecord):
    """Some texts cannot be embedded; the others were.

    Attributes:
        ids: positions of the refused texts.
        reasons: position → reason.
        vectors: float32 ``(n, dim)``; rows of refused texts hold zeros and must not be used.
    """

    def __init__(self, reasons: dict[int, str], vectors: Matrix) -> None:
        first = next(iter(reasons.values()))
        super().__init__(f"{len(reasons)} texts cannot be embedded: {first}", ids=sorted(reasons))
        self.reasons = reasons
        self.vectors = vectors


@dataclass(slots=True)
class Listener:
    """What a running job tells its providers, and hears from them.

    Attributes:
        should_stop: asked during waits.
        on_event: told of retries and switches.
        shorten: whether a text that a server refuses for its length is cut until it is taken; ``None``
            leaves it to what the provider does by itself.
    """

    should_stop: ShouldStop = never_stop
    on_event: Callable[[str], None] = field(default=lambda _: None)
    shorten: bool | None = None


class BaseEmbedder(ABC):
    """The provider side of `vecferry.ports.Embedder`: a subclass yields parts, the rest is here.

    Attributes:
        provider: the name in ledger and price table, such as ``"openai"``.
        name: the model as the provider calls it.
        listener: set by the job; waits end early when it says stop.
        cuts_itself: whether the provider shortens long texts by itself.
        probe: what it answered last to the probe text; see `vecferry.embedding.space.PROBE`.
    """

    provider = ""
    name = ""
    cuts_itself = False
    probe: Matrix | None = None

    def __init__(self) -> None:
        self.listener = Listener()

    @property
    @abstractmethod
    def space(self) -> EmbeddingSpace: ...

    @abstractmethod
    def embed_parts(self, texts: Sequence[str]) -> Iterator[Part]:
        """Answers in any order, each row once. A failure is raised after every answer already paid for."""

    @property
    def model(self) -> str:
        """The model's name in ledger and price table."""
        return self.space.model

    @property
    def max_tokens(self) -> int | None:
        """The longest text the model takes in full, in tokens; ``None`` if unknown."""
        info = known(self.space.model)
        return info.max_tokens if info else None

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text with its prompt: exact where the tokenizer is at hand, else never too few."""
        return count_tokens(texts, self.space.model)

    def embed(self, texts: Sequence[str]) -> Matrix:
        """float32 ``(len(texts), dim)``; see `vecferry.ports.Embedder.embed`.

        Raises:
            TextsRejected: with the vectors of the other texts.
        """
        return assemble(self, texts)

    async def aembed(self, texts: Sequence[str]) -> Matrix:
        """As `embed`, for event loops: the waiting happens in a thread."""
        return await asyncio.to_thread(self.embed, texts)

    def for_queries(self) -> Embedder:
        """The same space for questions; itself, if it treats them as it treats documents."""
        return self

    def close(self) -> None:
        """Release connections and processes; the next call opens them again."""
        return

    def __repr__(self) -> str:
        return f"{type(self).__name__}({clean(self.provider)}:{clean(self.name)})"


class PromptedEmbedder(BaseEmbedder):
    """An embedder of a model that wants a prompt before each text.

    Attributes:
        prompt: put before every document; ``query_prompt``: before every question.
    """

    prompt = ""
    query_prompt = ""

    @abstractmethod
    def prompted_parts(self, texts: Sequence[str], prompt: str) -> Iterator[Part]:
        """As `embed_parts`, with ``prompt`` before each text."""

    def embed_parts(self, texts: Sequence[str]) -> Iterator[Part]:
        return self.prompted_parts(texts, self.prompt)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return super().count_tokens([self.prompt + text for text in texts])

    def for_queries(self) -> Embedder:
        """The same space, with ``query_prompt`` instead of ``prompt``."""
        return QueryView(self) if self.query_prompt != self.prompt else self


class QueryView(PromptedEmbedder):
    """An embedder of questions. The space is that of the documents they are compared with."""

    def __init__(self, inner: PromptedEmbedder) -> None:
        super().__init__()
        self.inner = inner
        self.provider, self.name = inner.provider, inner.name
        self.prompt = self.query_prompt = inner.query_prompt

    @property
    def space(self) -> EmbeddingSpace:
        return self.inner.space

    @property
    def model(self) -> str:
        return self.inner.model

    @property
    def url(self) -> str:
        return str(getattr(self.inner, "url", ""))

    def prompted_parts(self, texts: Sequence[str], prompt: str) -> Iterator[Part]:
        return self.inner.prompted_parts(texts, prompt)


def sendable(texts: Sequence[str]) -> tuple[list[Part], list[int]]:
    """Refusals of the texts that UTF-8 cannot hold (lone surrogates), and the rows of the others."""
    refused, rows = [], []
    for row, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError:
            refused.append(Part([row], None, "a text with half a UTF-16 pair"))
        else:
            rows.append(row)
    return refused, rows


def parts_of(embedder: Embedder, texts: Sequence[str]) -> Iterator[Part]:
    """The parts of any embedder, checked: right shape, float32, finite, not zero.

    Raises:
        FatalStoreError: if the dimension is not that of the embedder's space.
    """
    if not texts:
        return
    own = getattr(embedder, "embed_parts", None)
    if own is None:
        from vecferry.embedding.requests import ObjectEmbedder

        own = ObjectEmbedder(embedder).embed_parts
    for part in own(texts):
        if part.vectors is None:
            yield part
            continue
        vectors = checked(part.vectors, len(part.rows), embedder.space)
        yield from _usable(replace(part, vectors=vectors))


def assemble(embedder: Embedder, texts: Sequence[str]) -> Matrix:
    """All parts as one matrix.

    Raises:
        TextsRejected: if some texts were refused.
    """
    result = np.zeros((len(texts), embedder.space.dim), dtype=np.float32)
    reasons: dict[int, str] = {}
    for part in parts_of(embedder, texts):
        if part.vectors is None:
            reasons.update(dict.fromkeys(part.rows, part.reason))
        else:
            result[part.rows] = part.vectors
    if reasons:
        raise TextsRejected(reasons, result)
    return result


def checked(vectors: ArrayLike, rows: int, space: EmbeddingSpace) -> Matrix:
    """``vectors`` as a float32 matrix of ``rows`` × ``space.dim``.

    Raises:
        FatalStoreError: if they have another shape; nothing may be written then.
    """
    try:
        matrix = np.ascontiguousarray(vectors, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise FatalStoreError(f"something else than vectors of one length came back for {space}") from error
    if matrix.shape != (rows, space.dim):
        raise FatalStoreError(
            f"vectors of shape {matrix.shape} came back where {(rows, space.dim)} is due for {space}; "
            "the provider serves another model"
        )
    return matrix


def listen(embedder: Any, listener: Listener) -> None:
    """Give ``listener`` to an embedder and to everything it is made of."""
    if hasattr(embedder, "listener"):
        embedder.listener = listener
    for inner in getattr(embedder, "hosts", ()):
        listen(inner, listener)
    if hasattr(embedder, "inner"):
        listen(embedder.inner, listener)


def _usable(part: Part) -> Iterator[Part]:
    """Rows with NaN, infinity or only zeros are no vectors."""
    assert part.vectors is not None
    good = np.isfinite(part.vectors).all(axis=1) & part.vectors.any(axis=1)
    if good.all():
        yield part
        return
    for row in np.flatnonzero(~good):
        yield Part([part.rows[row]], None, "the provider returned a vector of NaN, infinity or only zeros")
    keep = np.flatnonzero(good)
    if len(keep) or part.tokens:
        yield replace(part, rows=[part.rows[i] for i in keep], vectors=part.vectors[keep])


__all__ = [
    "BaseEmbedder",
    "Listener",
    "LocalStateError",
    "Matrix",
    "Part",
    "PromptedEmbedder",
    "QueryView",
    "TextsRejected",
    "assemble",
    "checked",
    "clean",
    "listen",
    "parts_of",
    "sendable",
]
