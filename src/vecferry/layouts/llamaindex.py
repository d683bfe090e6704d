"""``llamaindex``: as LlamaIndex's vector stores lay nodes out (read from llama-index-core 0.14).

    {"lang": "en", "_node_content": "{…the node as JSON…}", "_node_type": "TextNode",
     "doc_id": "d1", "document_id": "d1", "ref_doc_id": "d1"}

Metadata stands twice: at the top, for filters, and in ``_node_content``, which is what counts on reading.

What a node has beyond id, text and metadata (its document, its neighbours, character offsets, templates)
travels in the record's metadata under `NODE_KEY`, so that a chunk still knows its document in any store::

    {"_llamaindex": {"ref_doc_id": "d1", "relationships": {…}, "start_char_idx": 0, …}}

`NODE_KEY` holds only what differs from LlamaIndex's defaults, and is absent where nothing does; so a
record that never was a node comes back without it. ``relationships`` maps LlamaIndex's relation numbers
(1 source, 2 previous, 3 next, 4 parent, 5 child) to related-node objects; it is left out where it says no
more than ``ref_doc_id``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from vecferry.layouts.base import Columns, RecordByRecord, norms_of
from vecferry.layouts.envelope import PAYLOAD_KEY, Payload, open_envelope, seal
from vecferry.model import ENVELOPE, RecordId

NODE_KEY = "_llamaindex"
RESERVED = ("_node_content", "_node_type", "document_id", "doc_id", "ref_doc_id")
_SOURCE = "1"
_OF_THE_RECORD = ("id_", "embedding", "metadata", "text")
"""Attributes of a node that the record itself has; they are never taken from `NODE_KEY`."""
_TEXT_CLASSES = ("TextNode", "IndexNode", "ImageNode")

_DEFAULTS: dict[str, Any] = {
    "class_name": "TextNode",
    "excluded_embed_metadata_keys": [],
    "excluded_llm_metadata_keys": [],
    "relationships": {},
    "metadata_template": "{key}: {value}",
    "metadata_separator": "\n",
    "text_template": "{metadata_str}\n\n{content}",
}
_TEXT_DEFAULTS: dict[str, Any] = {"mimetype": "text/plain", "start_char_idx": None, "end_char_idx": None}
_MEDIA_DEFAULTS: dict[str, Any] = {"image_resource": None, "audio_resource": None, "video_resource": None}
_ALL_DEFAULTS = {**_DEFAULTS, **_TEXT_DEFAULTS, **_MEDIA_DEFAULTS}
_RESOURCE = {"embeddings": None, "text": None, "path": None, "url": None, "mimetype": None}


def build_node(node_id: str, text: str | None, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A node as LlamaIndex's ``model_dump(mode="json")`` writes it, without an embedding.

    Args:
        metadata: pure JSON; what stands under `NODE_KEY` becomes the node's own attributes.
    """
    user, extra = dict(metadata), metadata.get(NODE_KEY)
    if isinstance(extra, Mapping):
        del user[NODE_KEY]
    known = extra.items() if isinstance(extra, Mapping) else ()
    extra = {key: value for key, value in known if key not in _OF_THE_RECORD}
    document = extra.pop("ref_doc_id", None)
    resource = extra.pop("text_resource", None)
    plain = extra.get("class_name", "TextNode") in _TEXT_CLASSES
    defaults = {**_DEFAULTS, **(_TEXT_DEFAULTS if plain else _MEDIA_DEFAULTS)}
    node = {"id_": node_id, "embedding": None, "metadata": user, **defaults, **extra}
    if "relationships" not in extra and isinstance(document, str):
        node["relationships"] = _source_only(document)
    if node["class_name"] != "Node":
        node["text"] = text or ""
    if resource is not None or (not plain and text is not None):
        kept = resource if isinstance(resource, Mapping) else {}
        node["text_resource"] = {**_RESOURCE, **kept, "text": text}
    elif not plain:
        node["text_resource"] = None
    return node


def read_node(node: Mapping[str, Any]) -> tuple[str | None, str | None, dict[str, Any]]:
    """The inverse of `build_node`: node id, text, and metadata with `NODE_KEY` where it says something.

    Also reads a docstore's ``__data__`` and older nodes; unknown attributes are kept.
    """
    rest = dict(node)
    node_id = rest.pop("id_", None)
    rest.pop("embedding", None)
    user = rest.pop("metadata", None)
    metadata = dict(user) if isinstance(user, Mapping) else {}
    resource = rest.pop("text_resource", None)
    text = rest.pop("text", None)
    if isinstance(resource, Mapping):
        text = text or resource.get("text")
        kept = {key: value for key, value in resource.items() if value is not None and key != "text"}
        if kept or rest.get("class_name", "TextNode") in _TEXT_CLASSES:
            rest["text_resource"] = kept
    extra = {key: value for key, value in rest.items() if not _is_default(key, value)}
    _shorten_relations(extra)
    if extra:
        metadata[NODE_KEY] = extra
    return node_id, text, metadata


def document_of(node: Mapping[str, Any]) -> str | None:
    """The id of the document that a node was cut from."""
    relations = node.get("relationships")
    source = relations.get(_SOURCE) if isinstance(relations, Mapping) else None
    found = source.get("node_id") if isinstance(source, Mapping) else None
    return found if isinstance(found, str) else None


def _is_default(key: str, value: Any) -> bool:
    return key in _ALL_DEFAULTS and value == _ALL_DEFAULTS[key]


def _source_only(document: str) -> dict[str, Any]:
    related: Payload = {"node_id": document, "node_type": None, "metadata": {}, "hash": None}
    return {_SOURCE: {**related, "class_name": "RelatedNodeInfo"}}


def _shorten_relations(extra: dict[str, Any]) -> None:
    document = document_of(extra)
    if document is None:
        return
    extra["ref_doc_id"] = document
    if extra["relationships"] == _source_only(document):
        del extra["relationships"]


class LlamaIndexLayout(RecordByRecord):
    """Readable by LlamaIndex's vector stores.

    Args:
        remove_text: leave the text out of ``_node_content``, for stores that keep it in a column.
    """

    name = "llamaindex"
    text_ids = True
    indexes: Mapping[str, str] = {"doc_id": "keyword"}

    def __init__(self, *, remove_text: bool = False) -> None:
        self.remove_text = remove_text

    def path(self, key: str) -> tuple[str, ...]:
        return (key,)

    def encode_one(
        self,
        id_: RecordId,
        text: str | None,
        metadata: Mapping[str, Any],
        foreign: bool,
        norms: Mapping[str, float] | None,
    ) -> Payload:
        # A LlamaIndex id is a string and stands in the node itself; the envelope remembers any other.
        original = None if isinstance(id_, str) else id_
        special = [key for key in (NODE_KEY, PAYLOAD_KEY) if key in metadata]
        for reserved in ((), special):
            body, envelope = seal(
                metadata, id=original, norms=norms, no_text=text is None, reserved=reserved
            )
            payload = self._payload(_node_id(id_), text, dict(body))
            # What an app put under these keys by hand may not survive as a node: then it goes aside.
            if not special or reserved or self._read(payload)[2] == body:
                break
        if envelope:
            payload[ENVELOPE] = envelope
        return payload

    def _payload(self, node_id: str, text: str | None, body: Payload) -> Payload:
        beside = body.get(PAYLOAD_KEY)
        beside = body.pop(PAYLOAD_KEY) if isinstance(beside, dict) else {}
        node = build_node(node_id, "" if self.remove_text else text, body)
        document = document_of(node) or "None"
        return {
            **beside,
            **node["metadata"],
            **self._more(text, node["metadata"]),
            "_node_content": _dumps(node),
            "_node_type": node["class_name"],
            "document_id": document,
            "doc_id": document,
            "ref_doc_id": document,
        }

    def _more(self, text: str | None, body: Payload) -> Payload:
        """Further keys at the top of the payload."""
        return {}

    def decode(self, payloads: Sequence[Mapping[str, Any]]) -> Columns:
        columns = Columns([], [], [], [])
        for payload in payloads:
            envelope = payload.get(ENVELOPE)
            node_id, text, body = self._read(payload)
            id_, metadata = open_envelope(body, envelope)
            silent = isinstance(envelope, Mapping) and envelope.get("no_text") is True and not text
            columns.ids.append(node_id if id_ is None else id_)
            columns.texts.append(None if silent else text)
            columns.metadata.append(metadata)
            columns.norms.append(norms_of(payload))
        return columns

    def _read(self, payload: Mapping[str, Any]) -> tuple[str | None, str | None, Payload]:
        content = payload.get("_node_content")
        try:
            node = json.loads(content) if isinstance(content, str) else content
        except json.JSONDecodeError:
            node = None
        if not isinstance(node, Mapping):
            return self._read_without_node(payload)
        node_id, text, body = read_node(node)
        own = {*RESERVED, ENVELOPE, *body, *self._more("", {})}
        if beside := {key: value for key, value in payload.items() if key not in own}:
            body[PAYLOAD_KEY] = beside
        return node_id, text, body

    def _read_without_node(self, payload: Mapping[str, Any]) -> tuple[str | None, str | None, Payload]:
        body = {key: value for key, value in payload.items() if key != ENVELOPE}
        text = body.pop("text") if isinstance(body.get("text"), str) else None
        return None, text, body

    def recognise(self, payloads: Sequence[Mapping[str, Any]]) -> float:
        return sum(map(self._fits, payloads)) / len(payloads) if payloads else 0.0

    def _fits(self, payload: Mapping[str, Any]) -> bool:
        return isinstance(payload.get("_node_content"), str)


def _node_id(id_: RecordId) -> str:
    return json.dumps([str(part) for part in id_]) if isinstance(id_, tuple) else str(id_)


def _dumps(node: Mapping[str, Any]) -> str:
    try:
        return orjson.dumps(node).decode()
    except TypeError:  # what orjson refuses: lone surrogates, integers beyond 64 bits
        return json.dumps(node)
