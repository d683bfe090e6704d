"""LlamaIndex's persist folders around a FAISS index or a `SimpleVectorStore`.

| file | holds |
|---|---|
| ``default__vector_store.json`` | a *binary* FAISS index, or the JSON of a SimpleVectorStore |
| ``index_store.json`` | ``nodes_dict``: row → node id (Faiss), node id → node id (Map, Simple) |
| ``id_map.json`` | number in the index → node id (Map) |
| ``docstore.json`` | the nodes |

Read from llama-index-core 0.14. Nodes go through `vecferry.layouts.llamaindex`, so that what a node knows
of its document stands under the same metadata key in every store.
"""

from __future__ import annotations

import ast
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vecferry.errors import CorruptDataError, NotFoundError
from vecferry.layouts.envelope import open_envelope
from vecferry.layouts.folders.jsonwalk import JsonWalk
from vecferry.layouts.folders.lines import Entry, LineFile, Spool, loads
from vecferry.layouts.folders.sidecar import Numbering, Sidecar, check_count, rows_of
from vecferry.layouts.llamaindex import read_node
from vecferry.model import ENVELOPE

VECTORS = "default__vector_store.json"
DOCSTORE = "docstore.json"
INDEX_STORE = "index_store.json"
IMAGES = "image__vector_store.json"
GRAPH = "graph_store.json"
ID_MAP = "id_map.json"


def read_llamaindex(folder: Path, numbering: Numbering) -> Sidecar:
    """The nodes of a FaissVectorStore folder, or of a FaissMapVectorStore with its ``id_map.json``.

    Raises:
        CorruptDataError: if nodes and vectors do not belong to each other.
        NotFoundError: if a file of the folder is missing.
    """
    if (folder / ID_MAP).exists():
        names = _mapped_names(folder, numbering)
    else:
        names = _row_names(folder, numbering)
    return sidecar_of(folder, names)


def sidecar_of(folder: Path, names: list[str]) -> Sidecar:
    """The nodes called ``names``, in that order, from the docstore.

    Raises:
        CorruptDataError: if one is not there.
    """
    entries, rows = read_docstore(folder)
    missing = next((name for name in names if name not in rows), None)
    if missing is not None:
        entries.close()
        raise CorruptDataError(
            f"{folder / DOCSTORE} lacks the node {missing!r} that the index names; "
            "restore the folder from a backup"
        )
    order = np.fromiter((rows[name] for name in names), dtype=np.int64, count=len(names))
    if len(order) == len(entries) and np.array_equal(order, np.arange(len(order))):
        return Sidecar(entries)
    return Sidecar(entries, order)


def read_docstore(folder: Path) -> tuple[LineFile, dict[str, int]]:
    """Every node of ``docstore.json``, and the row of each node id."""
    rows: dict[str, int] = {}
    path = folder / DOCSTORE
    with Spool() as spool:
        for section, key, value in JsonWalk(_there(path)).sections():
            if section == "docstore/data" and key is not None:
                rows[key] = spool.add(_entry(key, value, path))
        return spool.seal(), rows


def _entry(key: str, value: Any, path: Path) -> Entry:
    node = value.get("__data__", value) if isinstance(value, Mapping) else None
    if isinstance(node, str):
        node = loads(node.encode())
    if not isinstance(node, Mapping):
        raise CorruptDataError(f"{path}: the node {key!r} is not an object; restore the file")
    _, text, metadata = read_node(without_envelope(node))
    envelope = metadata.pop(ENVELOPE, None)
    original, metadata = open_envelope(metadata, envelope)
    silent = isinstance(envelope, Mapping) and envelope.get("no_text") is True and not text
    return Entry(key if original is None else original, None if silent else text, metadata)


EXCLUDED = ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")


def without_envelope(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node whose excluded keys do not name the envelope, which only vecferry puts there."""
    lists = {
        key: [k for k in node[key] if k != ENVELOPE] for key in EXCLUDED if isinstance(node.get(key), list)
    }
    return {**node, **lists}


def _row_names(folder: Path, numbering: Numbering) -> list[str]:
    """Node ids of a FaissVectorStore: ``nodes_dict`` is keyed by the row, as text."""
    nodes = _nodes_dict(folder, numbering.count)
    name = str(folder / INDEX_STORE)
    keys = list(nodes)
    try:
        numbers = np.array([int(key) for key in keys], dtype=np.int64)
    except ValueError as error:
        raise CorruptDataError(
            f"{name} is keyed by node ids, so its vectors are numbered in {ID_MAP}, which is missing; "
            "restore the folder from a backup"
        ) from error
    order = rows_of(numbers, numbering, name)
    values = [str(nodes[key]) for key in keys]
    return values if order is None else [values[at] for at in order.tolist()]


def _nodes_dict(folder: Path, count: int) -> dict[str, Any]:
    """``nodes_dict`` of the vector index in the index store: the one as long as the index."""
    path = folder / INDEX_STORE
    found = []
    for section, _, value in JsonWalk(_there(path)).sections():
        data = value.get("__data__") if isinstance(value, Mapping) else None
        if section != "index_store/data" or data is None:
            continue
        struct = loads(data.encode()) if isinstance(data, str) else data
        if isinstance(struct, Mapping) and isinstance(struct.get("nodes_dict"), dict):
            found.append(struct["nodes_dict"])
    fitting = [nodes for nodes in found if len(nodes) == count]
    if fitting:
        return dict(fitting[0])
    check_count(max(map(len, found), default=0), count, str(path))
    return {}


def _mapped_names(folder: Path, numbering: Numbering) -> list[str]:
    """Node ids of a FaissMapVectorStore.

    The store numbers new vectors by the size of the index, so that after a deletion two nodes may share a
    number. They were added in the order of ``node_id_to_faiss_id_map``, and so are told apart.
    """
    path = folder / ID_MAP
    numbers: dict[int, list[str]] = defaultdict(list)
    for node, number in _id_map(path).items():
        numbers[int(number)].append(node)
    check_count(sum(map(len, numbers.values())), numbering.count, str(path))
    queues = {number: iter(nodes) for number, nodes in numbers.items()}
    found = range(numbering.count) if numbering.ids is None else numbering.ids.tolist()
    try:
        return [next(queues[number]) for number in found]
    except (KeyError, StopIteration) as error:
        raise CorruptDataError(
            f"{path} does not name every vector of the index; restore the folder from a backup"
        ) from error


def others_in(folder: Path) -> str | None:
    """What a persist folder keeps beside its one vector index, in words; ``None`` if that is all."""
    held = {
        "several indexes": (INDEX_STORE, "index_store/data", 1),
        "vectors of images": (IMAGES, "embedding_dict", 0),
        "a graph": (GRAPH, "graph_dict", 0),
    }
    for what, (name, wanted, most) in held.items():
        path = folder / name
        sections = JsonWalk(path).sections() if path.is_file() else ()
        if sum(section == wanted and key is not None for section, key, _ in sections) > most:
            return f"{what} ({name})"
    return None


def _id_map(path: Path) -> dict[str, Any]:
    text = path.read_text("utf-8")
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        try:
            content = ast.literal_eval(text)  # as older versions wrote it
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise CorruptDataError(f"{path} is neither JSON nor a Python literal; restore it") from error
    names = content.get("node_id_to_faiss_id_map") if isinstance(content, dict) else None
    if not isinstance(names, dict):
        raise CorruptDataError(f"{path} has no node_id_to_faiss_id_map; restore the folder from a backup")
    return names


def read_simple(folder: Path, vectors: Path, spool_vectors: Any) -> tuple[Sidecar, int | None, int]:
    """The nodes of a SimpleVectorStore, its vectors written one after the other to a binary file.

    Returns:
        The sidecar in the order of ``embedding_dict``, the dimension (``None`` if empty), the count.

    Raises:
        CorruptDataError: if a vector is not a list of numbers, or the vectors differ in dimension.
    """
    names, dim = [], None
    for section, key, value in JsonWalk(_there(vectors)).sections():
        if section != "embedding_dict" or key is None:
            continue
        try:
            vector = np.asarray(value, dtype="<f4")
        except (TypeError, ValueError) as error:
            raise CorruptDataError(f"{vectors}: {key!r} is not a vector; restore the file") from error
        dim = dim or vector.size
        if vector.shape != (dim,):
            raise CorruptDataError(
                f"{vectors}: {key!r} has shape {vector.shape} where ({dim},) is due; restore the file"
            )
        spool_vectors.write(vector.tobytes())
        names.append(key)
    return sidecar_of(folder, names), dim, len(names)


def _there(path: Path) -> Path:
    if not path.is_file():
        raise NotFoundError(
            f"{path} is not there; a LlamaIndex folder is persisted with its storage context"
        )
    return path
