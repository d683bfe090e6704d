"""Texts that are longer than the model reads: cut, split into several records, or refused.

A chunk is a record of its own. Its metadata says where it comes from:

| key | value |
|---|---|
| ``vecferry_parent`` | the id of the whole record |
| ``vecferry_chunk`` | its number, from 0 |
| ``vecferry_chunks`` | how many there are |
| ``vecferry_start`` | where it begins in the whole text, in characters; −1 if the splitter changed it |

Its id is the UUIDv5 of the parent's id and its number, so that a second run overwrites the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from uuid import UUID, uuid5

from vecferry.embedding.tokens import byte_bound, cut
from vecferry.errors import ConfigurationError, MissingDependencyError
from vecferry.model import RecordBatch, RecordId, uuid_of

LongText: TypeAlias = Literal["truncate", "split", "quarantine", "refuse"]
Splitter: TypeAlias = Callable[[str], list[str]]
PARENT, NUMBER, COUNT, START = "vecferry_parent", "vecferry_chunk", "vecferry_chunks", "vecferry_start"


@dataclass(frozen=True, slots=True)
class TextLimit:
    """How long a text may be for a model, and how that is measured.

    Attributes:
        tokens: the limit; ``None`` if unknown, then no text is too long.
        count: tokens of each text as the model sees it, with prompt and special tokens.
        overhead: ``count`` of an empty text.
        model: the space's model name, for cutting.
        exact: whether ``count`` is; else it may be too high.
    """

    tokens: int | None
    count: Callable[[Sequence[str]], list[int]] = field(repr=False)
    overhead: int
    model: str
    exact: bool = True

    def too_long(self, texts: Sequence[str]) -> list[int]:
        """Positions of texts that do not fit."""
        if self.tokens is None:
            return []
        # No text has more tokens than bytes: most texts need no counting.
        room = self.tokens - self.overhead
        doubtful = [row for row, text in enumerate(texts) if byte_bound(text) > room]
        counted = self.count([texts[row] for row in doubtful]) if doubtful else []
        return [row for row, tokens in zip(doubtful, counted, strict=True) if tokens > self.tokens]

    def cut(self, text: str) -> str:
        """The beginning that fits."""
        return text if self.tokens is None else cut(text, self.tokens - self.overhead, self.model)

    def splitter(self, overlap: int) -> Splitter:
        """Whole sentences up to the limit; see `sentence_splitter`.

        Raises:
            ConfigurationError: if the limit is not known.
        """
        if self.tokens is None:
            raise ConfigurationError(
                "the model's limit is not known: say chunk_size=… for long_text='split'"
            )
        room = self.tokens - self.overhead
        if not self.exact:  # a bound would make the chunks too small: LlamaIndex's own tokenizer counts
            return sentence_splitter(room, overlap)
        return sentence_splitter(room, overlap, lambda text: self.count([text])[0] - self.overhead)


def chunk_id(parent: RecordId, number: int) -> UUID:
    """The id of a chunk: always the same for the same parent and number."""
    return uuid5(uuid_of(parent), f"chunk/{number}")


def sentence_splitter(size: int, overlap: int = 0, count: Callable[[str], int] | None = None) -> Splitter:
    """LlamaIndex's ``SentenceSplitter``: whole sentences, at most ``size`` tokens, ``overlap`` shared.

    Args:
        size, overlap: in tokens.
        count: counts them; else LlamaIndex's own tokenizer does.

    Raises:
        MissingDependencyError: if llama-index-core is not installed.
        ConfigurationError: if the overlap is not smaller than the size.
    """
    if not 0 <= overlap < size:
        raise ConfigurationError(f"chunk_overlap={overlap} must be smaller than the chunk size, {size}")
    try:
        from llama_index.core.node_parser import SentenceSplitter
    except ImportError as error:
        raise MissingDependencyError("long_text='split'", "llamaindex") from error
    tokenizer = None if count is None else (lambda text: range(count(text)))
    parser = SentenceSplitter(chunk_size=size, chunk_overlap=overlap, tokenizer=tokenizer)
    return parser.split_text  # type: ignore[no-any-return]


def as_splitter(splitter: Any) -> Splitter:
    """A function from a text to its chunks, from a function or a LlamaIndex or LangChain splitter.

    Raises:
        ConfigurationError: for anything else.
    """
    if hasattr(splitter, "split_text"):
        return splitter.split_text  # type: ignore[no-any-return]
    if hasattr(splitter, "get_nodes_from_documents"):
        return lambda text: _through_nodes(splitter, text)
    if callable(splitter):
        return splitter  # type: ignore[no-any-return]
    raise ConfigurationError(f"a splitter is a function or a node parser, not {type(splitter).__name__}")


def split_rows(batch: RecordBatch, rows: Sequence[int], splitter: Splitter) -> RecordBatch:
    """The batch with the texts of ``rows`` split; other rows and the order stay."""
    chosen = set(rows)
    pieces: list[list[str] | None] = [None] * len(batch)
    texts = batch.text_list
    for row in chosen:
        found = [piece for piece in splitter(texts[row] or "") if piece.strip()]
        pieces[row] = found if len(found) > 1 else None
    sources = [row for row, parts in enumerate(pieces) for _ in parts or (None,)]
    wide = batch.take(sources)
    ids, new_texts = list(wide.id_list), list(wide.text_list)
    metadata = [dict(m) for m in wide.metadata_list]
    place = 0
    for parts in pieces:
        if parts is not None:
            _write_chunks(place, parts, ids, new_texts, metadata)
        place += len(parts or (None,))
    return wide.replace(ids=ids, texts=new_texts, metadata=metadata)


def _write_chunks(
    place: int,
    parts: list[str],
    ids: list[RecordId],
    texts: list[str | None],
    metadata: list[dict[str, Any]],
) -> None:
    parent, whole, cursor = ids[place], texts[place] or "", 0
    for number, part in enumerate(parts):
        start = whole.find(part, cursor)
        cursor = start + 1 if start >= 0 else cursor
        ids[place + number] = chunk_id(parent, number)
        texts[place + number] = part
        metadata[place + number] |= {PARENT: parent, NUMBER: number, COUNT: len(parts), START: start}


def _through_nodes(parser: Any, text: str) -> list[str]:
    from llama_index.core import Document

    return [node.get_content() for node in parser.get_nodes_from_documents([Document(text=text)])]
