"""Writing LlamaIndex's persist folders: in passes over the records, so that the memory stays flat.

Only ``ref_doc_info`` is collected in memory: the ids of the nodes that know their document.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid5

import orjson

from vecferry.layouts.envelope import seal
from vecferry.layouts.folders.entries import Entry
from vecferry.layouts.folders.llamaindex import (
    DOCSTORE,
    EXCLUDED,
    GRAPH,
    ID_MAP,
    IMAGES,
    INDEX_STORE,
    VECTORS,
)
from vecferry.layouts.llamaindex import NODE_KEY, build_node, document_of, read_node
from vecferry.model import ENVELOPE, dump_json
from vecferry.model.ids import ID_NAMESPACE
from vecferry.model.vectors import Array

_INDEX_ID = str(uuid5(ID_NAMESPACE, "llamaindex index struct"))
_EMPTY: dict[str, dict[str, Any]] = {
    GRAPH: {"graph_dict": {}},
    IMAGES: {
        "embedding_dict": {},
        "text_id_to_ref_doc_id": {},
        "metadata_dict": {},
    },
}
_TYPES = {"ImageNode": "2", "IndexNode": "3", "Document": "4", "ImageDocument": "4", "Node": "5"}
"""LlamaIndex's ``ObjectType`` of a class, by which it chooses the class to load."""

Entries = Callable[[], Iterable[Entry]]
NameOf = Callable[[Any], str]


class _Node(NamedTuple):
    name: str
    body: dict[str, Any]

    @property
    def document(self) -> str | None:
        return document_of(self.body)


def write_llamaindex(folder: Path, entries: Entries, name_of: NameOf, kind: str) -> None:
    """Write everything but the vectors.

    Args:
        entries: gives the records in the order of the index, each time it is called.
        name_of: the node id of a record's id.
        kind: ``"llamaindex"``, ``"llamaindex-map"`` or ``"llamaindex-simple"``.
    """

    def nodes() -> Iterator[_Node]:
        return (_node(entry, name_of(entry.id)) for entry in entries())

    def names() -> Iterator[str]:
        return (name_of(entry.id) for entry in entries())

    for name, content in _EMPTY.items():
        (folder / name).write_bytes(dump_json(content))
    _write_docstore(folder / DOCSTORE, nodes)
    _write_index_store(folder / INDEX_STORE, names, by_row=kind == "llamaindex")
    if kind == "llamaindex-map":
        _write_sections(
            folder / ID_MAP,
            {
                "node_id_to_faiss_id_map": ((name, row) for row, name in enumerate(names())),
                "faiss_id_to_node_id_map": ((str(row), name) for row, name in enumerate(names())),
            },
        )


def write_simple_vectors(
    folder: Path, entries: Entries, name_of: NameOf, blocks: Callable[[], Iterable[Array]]
) -> None:
    """Write ``default__vector_store.json`` of a SimpleVectorStore. Floats are written so that they come
    back as the same float32."""

    def vectors() -> Iterator[tuple[str, Any]]:
        rows = (row for block in blocks() for row in block)
        for entry, row in zip(entries(), rows, strict=True):
            yield name_of(entry.id), orjson.Fragment(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY))

    def nodes() -> Iterator[_Node]:
        return (_node(entry, name_of(entry.id)) for entry in entries())

    _write_sections(
        folder / VECTORS,
        {
            "embedding_dict": vectors(),
            "text_id_to_ref_doc_id": ((n.name, n.document or "None") for n in nodes()),
            "metadata_dict": ((n.name, _flat_metadata(n)) for n in nodes()),
        },
    )


def _flat_metadata(node: _Node) -> dict[str, Any]:
    document = node.document or "None"
    keys = {"_node_type": node.body["class_name"], "document_id": document}
    return {**node.body["metadata"], **keys, "doc_id": document, "ref_doc_id": document}


def _node(entry: Entry, name: str) -> _Node:
    original = None if name == entry.id else entry.id
    reserved: tuple[str, ...]
    for reserved in ((), (NODE_KEY,)):
        body, envelope = seal(entry.metadata, id=original, no_text=entry.text is None, reserved=reserved)
        node = build_node(name, entry.text, body)
        # What stands under this key by hand may not survive as a node: then it goes aside.
        if NODE_KEY not in body or read_node(node)[2] == body:
            break
    if envelope:
        # The envelope must not reach a prompt or an embedding.
        node["metadata"] = {**node["metadata"], ENVELOPE: envelope}
        for key in EXCLUDED:
            node[key] = [*node[key], ENVELOPE]
    return _Node(name, node)


def _write_docstore(path: Path, nodes: Callable[[], Iterator[_Node]]) -> None:
    documents: dict[str, list[str]] = {}

    def data() -> Iterator[tuple[str, Any]]:
        for node in nodes():
            if node.document is not None:
                documents.setdefault(node.document, []).append(node.name)
            kind = _TYPES.get(str(node.body["class_name"]), "1")
            yield node.name, {"__data__": node.body, "__type__": kind}

    def info() -> Iterator[tuple[str, Any]]:
        for document, ids in documents.items():
            yield document, {"node_ids": ids, "metadata": {}}

    _write_sections(
        path,
        {
            "docstore/data": data(),
            "docstore/metadata": ((node.name, _doc_hash(node)) for node in nodes()),
            "docstore/ref_doc_info": info(),
        },
    )


def _doc_hash(node: _Node) -> dict[str, Any]:
    """As ``TextNode.hash`` has it: SHA-256 of the text and the metadata's ``repr``."""
    identity = f"{node.body.get('text') or ''}{node.body['metadata']}"
    found = {"doc_hash": sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()}
    return found if node.document is None else {**found, "ref_doc_id": node.document}


def _write_index_store(path: Path, names: Callable[[], Iterator[str]], *, by_row: bool) -> None:
    """The struct lies in a JSON string, so that each of its pieces is escaped once more."""
    head = f'{{"index_id": "{_INDEX_ID}", "summary": null, "nodes_dict": {{'
    with path.open("wb") as file:
        file.write(f'{{"index_store/data": {{"{_INDEX_ID}": {{"__type__": "vector_store", '.encode())
        file.write(b'"__data__": "' + _escape(head))
        for row, name in enumerate(names()):
            key = str(row) if by_row else name
            comma = ", " if row else ""
            file.write(_escape(f"{comma}{json.dumps(key)}: {json.dumps(name)}"))
        file.write(_escape('}, "doc_id_dict": {}, "embeddings_dict": {}}') + b'"}}}')


def _escape(text: str) -> bytes:
    return json.dumps(text)[1:-1].encode()


def _write_sections(path: Path, sections: dict[str, Iterable[tuple[str, Any]]]) -> None:
    with path.open("wb") as file:
        for at, (name, items) in enumerate(sections.items()):
            file.write((b", " if at else b"{") + dump_json(name) + b": {")
            for row, (key, value) in enumerate(items):
                file.write((b", " if row else b"") + dump_json(key) + b": " + dump_json(value))
            file.write(b"}")
        file.write(b"}")
