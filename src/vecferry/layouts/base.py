"""What a layout promises, and how one is found by name or by looking at payloads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Protocol

from vecferry.errors import ConfigurationError
from vecferry.layouts.envelope import Payload
from vecferry.model import ENVELOPE, Loss, RecordId
from vecferry.model.foreign import TEXT_NAMES

NAMES = ("plain", "langchain", "llamaindex", "both")


@dataclass(frozen=True, slots=True)
class Columns:
    """What n payloads hold, column by column.

    Attributes:
        ids: the original ids; ``None`` where the payload knows none, so the store's own id is it.
        texts: n strings or ``None``.
        metadata: n dicts, types restored, without anything the layout added.
        norms: n dicts ``{field: length}``, mostly empty.
    """

    ids: list[RecordId | None]
    texts: list[str | None]
    metadata: list[dict[str, Any]]
    norms: list[Mapping[str, float]]


class Layout(Protocol):
    """Turns records without vectors into payloads and back; ``decode(encode(x))`` is ``x``."""

    @property
    def name(self) -> str: ...

    @property
    def text_ids(self) -> bool:
        """Whether the framework keeps the id as text in the payload, so that a UUID comes back as text."""
        ...

    @property
    def indexes(self) -> Mapping[str, str]:
        """Payload path → index type that the apps of this layout rely on."""
        ...

    def path(self, key: str) -> tuple[str, ...]:
        """The steps from the payload's root to the metadata ``key``, for filters and indexes."""
        ...

    def encode(
        self,
        ids: Sequence[RecordId],
        texts: Sequence[str | None],
        metadata: Sequence[Mapping[str, Any]],
        *,
        foreign: Sequence[bool] | None = None,
        norms: Sequence[Mapping[str, float]] | None = None,
    ) -> list[Payload]:
        """n payloads of pure JSON.

        Args:
            foreign: true where the store cannot hold the id itself, so the payload must keep it.
            norms: lengths to keep with each record.

        Raises:
            TypeError: for a metadata value that cannot be kept, naming its place.
        """
        ...

    def decode(self, payloads: Sequence[Mapping[str, Any]]) -> Columns:
        """The inverse; also reads what the framework itself wrote."""
        ...

    def recognise(self, payloads: Sequence[Mapping[str, Any]]) -> float:
        """The share of ``payloads`` that lie in this layout, 0 to 1."""
        ...


def find_layout(name: str, **options: Any) -> Layout:
    """The layout called ``name``; ``text_key=`` and ``metadata_key=`` as far as it has such keys.

    Raises:
        ConfigurationError: naming the layouts there are.
    """
    from vecferry.layouts.both import BothLayout
    from vecferry.layouts.langchain import LangChainLayout
    from vecferry.layouts.llamaindex import LlamaIndexLayout
    from vecferry.layouts.plain import PlainLayout

    options = {key: value for key, value in options.items() if value}
    if name == "plain":
        return PlainLayout(options.get("text_key", "text"))
    if name == "langchain":
        return LangChainLayout(
            options.get("text_key", "page_content"), options.get("metadata_key", "metadata")
        )
    if name == "llamaindex":
        return LlamaIndexLayout()
    if name == "both":
        return BothLayout()
    raise ConfigurationError(f"there is no layout {name!r}; choose one of {', '.join(NAMES)}")


def recognise_layout(payloads: Sequence[Mapping[str, Any]]) -> Layout:
    """The layout in which all sampled payloads lie; plain, with its text key guessed, where none does."""
    for name in ("both", "llamaindex", "langchain"):
        layout = find_layout(name)
        if payloads and layout.recognise(payloads) == 1.0:
            return layout
    return find_layout("plain", text_key=guess_text_key(payloads))


def differing_copies(layout: Layout, payloads: Sequence[Mapping[str, Any]]) -> tuple[Loss, ...]:
    """Of payloads in which a framework keeps a value twice, those whose two copies differ, as a loss.

    LlamaIndex keeps metadata and the document's id at the top of the payload, for filters, and in
    ``_node_content``, which it reads, and so do we.
    """
    if not layout.name.startswith(("llamaindex", "both")):
        return ()
    found = [
        key
        for payload, metadata, text in zip(payloads, *_decoded(layout, payloads), strict=True)
        if (key := _differing(payload, metadata, text)) is not None
    ]
    if not found:
        return ()
    detail = "payloads say one thing at the top and another in _node_content, which is taken"
    return (Loss(kind="metadata", detail=detail, count=len(found), example=found[0], where="source"),)


def _decoded(layout: Layout, payloads: Sequence[Mapping[str, Any]]) -> tuple[Any, Any]:
    columns = layout.decode([{**payload, ENVELOPE: None} for payload in payloads])
    return columns.metadata, columns.texts


def _differing(payload: Mapping[str, Any], metadata: Mapping[str, Any], text: str | None) -> str | None:
    """The first key whose copies differ."""
    if not isinstance(payload.get("_node_content"), str):
        return None
    for key, value in metadata.items():
        if key in payload and not key.startswith("_") and payload[key] != value:
            return key
    for key in ("page_content", "text"):
        copy = payload.get(key)
        if key not in metadata and isinstance(copy, str) and text and copy != text:
            return key
    node = metadata.get("_llamaindex")
    document = node.get("ref_doc_id") if isinstance(node, Mapping) else None
    for key in ("ref_doc_id", "doc_id", "document_id"):
        copy = payload.get(key)
        if isinstance(copy, str) and copy not in ("None", document) and key not in metadata:
            return key
    return None


def guess_text_key(payloads: Sequence[Mapping[str, Any]]) -> str:
    """The usual key that holds a string in most of the payloads; ``"text"`` if there is none."""

    def share(key: str) -> int:
        return sum(isinstance(payload.get(key), str) for payload in payloads)

    best = max(TEXT_NAMES, key=share)
    return best if share(best) * 2 > len(payloads) else "text"


def norms_of(payload: Mapping[str, Any]) -> Mapping[str, float]:
    """The lengths kept in a payload's envelope; empty if there are none."""
    envelope = payload.get(ENVELOPE)
    norms = envelope.get("norms") if isinstance(envelope, Mapping) else None
    return norms if isinstance(norms, Mapping) else {}


class RecordByRecord:
    """`Layout.encode` for layouts that write each record by itself."""

    def encode(
        self,
        ids: Sequence[RecordId],
        texts: Sequence[str | None],
        metadata: Sequence[Mapping[str, Any]],
        *,
        foreign: Sequence[bool] | None = None,
        norms: Sequence[Mapping[str, float]] | None = None,
    ) -> list[Payload]:
        rows = zip(ids, texts, metadata, foreign or repeat(False), norms or repeat(None), strict=False)
        return [self.encode_one(*row) for row in rows]

    def encode_one(
        self,
        id_: RecordId,
        text: str | None,
        metadata: Mapping[str, Any],
        foreign: bool,
        norms: Mapping[str, float] | None,
    ) -> Payload:
        """The payload of one record; see `Layout.encode`."""
        raise NotImplementedError
