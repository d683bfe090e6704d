"""Documents and chunks of the service as records, records as documents, and filters as its filters.

What a chunk knows of its document and its neighbours lies in the metadata as in the ``llamaindex``
layout (`vecferry.layouts.llamaindex.NODE_KEY`), so that it is still a node in any store it goes to.
What only LlamaCloud knows of a document (where its pages begin) lies under `CLOUD_KEY`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from vecferry.errors import CorruptDataError, RejectedRecord
from vecferry.layouts import open_envelope, seal
from vecferry.layouts.llamaindex import NODE_KEY, read_node
from vecferry.model import ENVELOPE, FilterVisitor, RecordId, VectorRecord, Where, tree_of, uuid_of

CLOUD_KEY = "_llamacloud"
_EXCLUDED = ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")
_NOT_A_SEGMENT = ("", ".", "..")
"""Ids that a URL path cannot hold."""


def document_record(document: Mapping[str, Any]) -> tuple[RecordId, str, dict[str, Any]]:
    """Id, text and metadata of a ``CloudDocument``.

    Raises:
        CorruptDataError: if it has no id.
    """
    metadata = dict(document.get("metadata") or {})
    kept = open_envelope(metadata, metadata.pop(ENVELOPE, None))
    id_, metadata = kept[0], kept[1]
    excluded = {key: document[key] for key in _EXCLUDED if document.get(key)}
    if excluded:
        metadata[NODE_KEY] = {**_mapping(metadata.get(NODE_KEY)), **excluded}
    if document.get("page_positions") is not None:
        metadata[CLOUD_KEY] = {"page_positions": list(document["page_positions"])}
    return _id(document, "id") if id_ is None else id_, document.get("text") or "", metadata


def chunk_record(node: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Id, text and metadata of a ``TextNode`` as the service spells it.

    Raises:
        CorruptDataError: if it has no id.
    """
    metadata = {**_mapping(node.get("extra_info")), **_mapping(node.get("metadata"))}
    metadata.pop(ENVELOPE, None)  # of the document the chunk was cut from
    known = {
        key: value
        for key, value in node.items()
        if value is not None and key not in ("extra_info", "metadata_seperator", "embedding")
    }
    separator = node.get("metadata_separator", node.get("metadata_seperator"))
    if separator is not None:
        known["metadata_separator"] = separator
    _, text, metadata = read_node({**known, "metadata": metadata})
    return _id(node, "id_"), text or "", metadata


def hit_record(hit: Mapping[str, Any]) -> VectorRecord:
    """A retrieved node with its score."""
    id_, text, metadata = chunk_record(hit.get("node") or {})
    score = hit.get("score")
    return VectorRecord(id=id_, text=text, metadata=metadata, score=None if score is None else float(score))


def record_document(id_: RecordId, text: str | None, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The ``CloudDocumentCreate`` that `document_record` reads back as the same record.

    Raises:
        RejectedRecord: if the record has no text, or metadata that JSON cannot hold.
    """
    if text is None:
        raise RejectedRecord(f"record {id_!r} has no text, and LlamaCloud indexes texts", ids=[id_])
    foreign = not isinstance(id_, str) or id_ in _NOT_A_SEGMENT
    try:
        body, envelope = seal(metadata, id=id_ if foreign else None)
    except TypeError as error:
        raise RejectedRecord(f"record {id_!r}: {error}", ids=[id_]) from None
    excluded = _take_excluded(body, metadata)
    positions = _take_positions(body, metadata)
    if envelope:
        body[ENVELOPE] = envelope
    document = {"id": document_id(id_), "text": text, "metadata": body, **excluded}
    return document if positions is None else {**document, "page_positions": positions}


def document_id(id_: RecordId) -> str:
    """How the service knows a record: by the id itself if it is usable text, else by a UUID made of it."""
    return id_ if isinstance(id_, str) and id_ not in _NOT_A_SEGMENT else str(uuid_of(id_))


def chunk_id(place: Mapping[str, Any], number: int) -> str:
    """A stable id for a chunk that the service does not name: file and position, else the rank."""
    file = place.get("parsed_directory_file_id")
    return f"{file}#{place.get('chunk_index', number)}" if file else f"hit-{number}"


def _take_excluded(body: dict[str, Any], metadata: Mapping[str, Any]) -> dict[str, list[str]]:
    """The two lists, out of the body where they are proper ones; anything else stays as it is.

    The metadata is asked, since other values than texts are texts in the body.
    """
    node = metadata.get(NODE_KEY)
    given = {key: node.get(key) for key in _EXCLUDED} if isinstance(node, Mapping) else {}
    lists = {key: value for key, value in given.items() if value and _list_of(value, str)}
    if lists and isinstance(node, Mapping):
        body[NODE_KEY] = {key: value for key, value in body[NODE_KEY].items() if key not in lists}
        if not body[NODE_KEY]:
            del body[NODE_KEY]
    return {key: list(lists.get(key) or []) for key in _EXCLUDED}


def _take_positions(body: dict[str, Any], metadata: Mapping[str, Any]) -> list[int] | None:
    cloud = metadata.get(CLOUD_KEY)
    if not isinstance(cloud, Mapping) or set(cloud) != {"page_positions"}:
        return None
    if not _list_of(cloud["page_positions"], int):
        return None
    del body[CLOUD_KEY]
    return list(cloud["page_positions"])


def _list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


def _id(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key)
    if not isinstance(found, str):
        raise CorruptDataError(f"the service sent an object without {key!r}; its keys are {sorted(value)}")
    return found


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


# -- filters ----------------------------------------------------------------------------------------

_OPERATORS = {"$eq": "==", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_OPPOSITE = {"==": "!=", "!=": "==", "in": "nin", "nin": "in"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What the service is asked for: ``node`` lets through at least what is wanted, ``None`` everything.

    ``exact`` says that it lets nothing else through.
    """

    node: dict[str, Any] | None
    exact: bool


class _ToService(FilterVisitor[Asked]):
    """What the service cannot be asked (a date, a decimal, ``None``) is left out."""

    def all_of(self, parts: list[Asked]) -> Asked:
        nodes = [part.node for part in parts if part.node is not None]
        whole = all(part.exact for part in parts)
        if len(nodes) <= 1:
            return Asked(nodes[0] if nodes else None, whole)
        return Asked({"filters": nodes, "condition": "and"}, whole)

    def any_of(self, parts: list[Asked]) -> Asked:
        nodes = [part.node for part in parts if part.node is not None]
        if len(nodes) < len(parts) or not parts or not all(part.exact for part in parts):
            return Asked(None, exact=False)
        return Asked({"filters": nodes, "condition": "or"}, exact=True)

    def negation(self, part: Asked) -> Asked:
        if part.node is None or not part.exact:
            return Asked(None, exact=False)
        opposite = _OPPOSITE.get(part.node.get("operator", ""))
        if opposite:
            return Asked({**part.node, "operator": opposite}, exact=True)
        return Asked({"filters": [part.node], "condition": "not"}, exact=True)

    def compare(self, key: str, operator: str, operand: Any) -> Asked:
        if not _plain(operand):
            return Asked(None, exact=False)
        return Asked({"key": key, "value": operand, "operator": _OPERATORS[operator]}, exact=True)

    def one_of(self, key: str, options: Sequence[Any]) -> Asked:
        if not all(map(_plain, options)):
            return Asked(None, exact=False)
        return Asked({"key": key, "value": list(options), "operator": "in"}, exact=True)

    def exists(self, key: str, wanted: bool) -> Asked:
        empty = {"key": key, "value": None, "operator": "is_empty"}
        return Asked({"filters": [empty], "condition": "not"} if wanted else empty, exact=True)


def to_service(where: Where) -> dict[str, Any]:
    """A ``MetadataFilters`` object that lets through at least what ``where`` does.

    The answer is filtered here.
    """
    node = _ToService().visit(tree_of(where)).node
    if node is None:
        return {"filters": [], "condition": "and"}
    return node if node.get("condition") == "and" else {"filters": [node], "condition": "and"}


def _plain(operand: Any) -> bool:
    """Whether JSON holds it as it is."""
    return isinstance(operand, str | bool | int) or (isinstance(operand, float) and isfinite(operand))
