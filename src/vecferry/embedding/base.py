"""What all providers share: partial results, checks of what came back, the async form."""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vecferry.embedding.spaces import KNOWN
from vecferry.embedding.tokens import count_tokens
from vecferry.errors import FatalStoreError, RejectedRecord
from vecferry.model import EmbeddingSpace
from vecferry.ports import Embedder, ShouldStop
from vecferry.ports.progress import never_stop

Matrix: TypeAlias = NDArray[np.float32]
PLAIN_SLICE = 256


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


class LocalStateError(FatalStoreError):
    """The cache or the ledger cannot be read or written. No provider is to blame."""


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
    """What a running job tells its providers, and hears from them."""

    should_stop: ShouldStop = never_stop
    on_event: Callable[[str], None] = field(default=lambda _: None)


class BaseEmbedder(ABC):
    """The provider side of `vecferry.ports.Embedder`: a subclass yields parts, the rest is here.

    Attributes:
        provider: the name in ledger and price table, such as ``"openai"``.
        listener: set by the job; waits end early when it says stop.
        prompt: put before every text; ``query_prompt`` takes its place in `for_queries`.
        cuts_itself: whether the provider shortens long texts by itself.
    """

    provider = ""
    cuts_itself = False
    prompt = ""
    query_prompt = ""

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
        card = KNOWN.get(self.space.model)
        return card.max_tokens if card else None

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text with its prompt: exact where the tokenizer is at hand, else never too few."""
        return count_tokens(with_prompt(self.prompt, texts), self.space.model)

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
        """The same space for questions: ``query_prompt`` instead of ``prompt``."""
        return QueryView(self) if self.query_prompt != self.prompt else self

    def close(self) -> None:
        """Release connections and processes; the next call opens them again."""
        return

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.provider}:{getattr(self, 'name', '')})"


class QueryView:
    """An embedder of questions. The space is that of the documents they are compared with."""

    def __init__(self, inner: BaseEmbedder) -> None:
        self.inner = inner

    @property
    def space(self) -> EmbeddingSpace:
        return self.inner.space

    def embed(self, texts: Sequence[str]) -> Matrix:
        cut = self.inner.query_prompt
        return self.inner.embed([Prompted(cut + text) for text in texts])

    async def aembed(self, texts: Sequence[str]) -> Matrix:
        return await asyncio.to_thread(self.embed, texts)


class Prompted(str):
    """A text that carries its prompt already."""

    __slots__ = ()


def with_prompt(prompt: str, texts: Sequence[str]) -> list[str]:
    """The texts as the model sees them."""
    if not prompt:
        return list(texts)
    return [text if isinstance(text, Prompted) else prompt + text for text in texts]


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
    for part in own(texts) if own else _slices(embedder, texts):
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


def checked(vectors: Any, rows: int, space: EmbeddingSpace) -> Matrix:
    """``vectors`` as a float32 matrix of ``rows`` × ``space.dim``.

    Raises:
        FatalStoreError: if they have another shape; nothing may be written then.
    """
    matrix = np.ascontiguousarray(vectors, dtype=np.float32)
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


_SECRETS = re.compile(
    r"(sk-|hf_|Bearer\s+|(?:api[-_]?key|token|password|secret)['\"]?\s*[=:]\s*['\"]?)[^\s'\",;&]+|//[^/@\s]+@",
    re.IGNORECASE,
)


def clean(message: object, limit: int = 200) -> str:
    """A foreign message on one line, without anything that may be a secret."""
    text = " ".join(str(message).split())
    return _SECRETS.sub(lambda m: f"{m[1] or '//'}…", text)[:limit]


def _slices(embedder: Embedder, texts: Sequence[str]) -> Iterator[Part]:
    """For embedders that answer all or nothing: small slices, so that little is lost."""
    for start in range(0, len(texts), PLAIN_SLICE):
        rows = list(range(start, min(start + PLAIN_SLICE, len(texts))))
        yield from _whole(embedder, texts, rows)


def _whole(embedder: Embedder, texts: Sequence[str], rows: list[int]) -> Iterator[Part]:
    try:
        yield Part(rows, embedder.embed([texts[row] for row in rows]))
    except TextsRejected as error:
        good = [i for i in range(len(rows)) if i not in error.reasons]
        yield Part([rows[i] for i in good], error.vectors[good])
        yield from (Part([rows[i]], None, reason) for i, reason in error.reasons.items())
    except RejectedRecord as error:
        at_fault = {rows[i] for i in error.ids} or set(rows)
        yield Part(sorted(at_fault), None, clean(error))
        if rest := [row for row in rows if row not in at_fault]:
            yield from _whole(embedder, texts, rest)


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
