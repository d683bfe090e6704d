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
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vecferry.errors import CorruptDataError, NotFoundError
from vecferry.layouts.envelope import open_envelope
from vecferry.layouts.folders.entries import (
    Entry,
    Numbering,
    Records,
    Sidecar,
    Spool,
    check_count,
    pair,
    settle,
)
from vecferry.layouts.folders.jsonwalk import JsonWalk
from vecferry.layouts.llamaindex import read_node
from vecferry.model import ENVELOPE, Loss, parse_json
from vecferry.model.vectors import Array

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
    store = Docstore(folder)
    if (folder / ID_MAP).exists():
        keys, names = _mapped_names(folder / ID_MAP, numbering)
        where = str(folder / ID_MAP)
    else:
        keys, names = _row_names(folder, numbering)
        where = str(folder / INDEX_STORE)
    if numbering.live:
        known = [i for i, name in enumerate(names) if name in store.rows]
        keys, names = keys[known], [names[i] for i in known]
    rows = store.rows_of(names)
    sidecar = _paired(store.entries, keys, rows, numbering, where)
    return replace(sidecar, losses=(*sidecar.losses, *store.losses(names)))


class Docstore:
    """Every node of ``docstore.json``.

    Attributes:
        entries: the nodes, in the order of the file.
        rows: node id → row.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / DOCSTORE
        self.rows: dict[str, int] = {}
        self._twice: list[str] = []
        self._other_ids: list[str] = []
        with Spool() as spool:
            self._spool = spool
            for section, key, value in JsonWalk(_there(self._path)).sections():
                if section == "docstore/data" and key is not None:
                    if key in self.rows:
                        self._twice.append(key)
                    self.rows[key] = self._add(key, value)
            self.entries: Records = spool.seal()

    def rows_of(self, names: list[str]) -> Array:
        """The row of each name.

        Raises:
            CorruptDataError: if one is not there.
        """
        missing = next((name for name in names if name not in self.rows), None)
        if missing is not None:
            self.entries.close()
            raise CorruptDataError(
                f"{self._path} lacks the node {missing!r} that the index names; restore the folder from a "
                "backup, or read the others with ?live=1"
            )
        return np.fromiter((self.rows[name] for name in names), dtype=np.int64, count=len(names))

    def losses(self, names: Collection[str]) -> tuple[Loss, ...]:
        """What is in the docstore and is not carried; what stands there twice and differs."""
        orphans = sorted(self.rows.keys() - set(names))
        return (
            *Loss.not_carried(f"nodes of {self._path} without a vector", orphans),
            *Loss.not_carried(f"earlier nodes of {self._path} under an id that comes again", self._twice),
            *(
                Loss(
                    kind="id",
                    detail=f"nodes of {self._path} stand under another id than their own; the key is taken",
                    count=len(self._other_ids),
                    example=self._other_ids[0],
                    where="source",
                )
                for _ in self._other_ids[:1]
            ),
        )

    def _add(self, key: str, value: Any) -> int:
        node = value.get("__data__", value) if isinstance(value, Mapping) else None
        if isinstance(node, str):
            node = parse_json(node.encode("utf-8", "surrogatepass"))
        if not isinstance(node, Mapping):
            raise CorruptDataError(f"{self._path}: the node {key!r} is not an object; restore the file")
        own, text, metadata = read_node(without_envelope(node))
        if own is not None and own != key:
            self._other_ids.append(f"{key!r} and {own!r}")
        envelope = metadata.pop(ENVELOPE, None)
        original, metadata = open_envelope(metadata, envelope)
        silent = isinstance(envelope, Mapping) and envelope.get("no_text") is True and not text
        entry = Entry(key if original is None else original, None if silent else text, metadata)
        return self._spool.add(entry, plain=envelope is None)


def _paired(entries: Records, keys: Array, rows: Array, numbering: Numbering, where: str) -> Sidecar:
    """As `pair`, but a number that stands several times in the index takes its nodes in their order.

    FaissMapVectorStore numbers new vectors by the size of the index, so that after a deletion two nodes
    may share a number. They were added in the order of ``node_id_to_faiss_id_map``, and so are told apart;
    where a number has fewer vectors than nodes, the last ones are those that are still there.
    """
    if len(np.unique(keys)) == len(keys):
        return pair(entries, keys, rows, numbering, where)
    queues: dict[int, list[int]] = defaultdict(list)
    for key, row in zip(keys.tolist(), rows.tolist(), strict=True):
        queues[key].append(row)
    numbers = numbering.numbers.tolist()
    counts, surplus = Counter(numbers), 0
    for number, held in queues.items():
        surplus += max(len(held) - counts[number], 0)
        queues[number] = held[max(len(held) - counts[number], 0) :]
    found = [queues[number].pop(0) if queues.get(number) else -1 for number in numbers]
    return settle(entries, np.array(found, dtype=np.int64), surplus, numbering, where)


EXCLUDED = ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")


def without_envelope(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node whose excluded keys do not name the envelope, which only vecferry puts there."""
    lists = {
        key: [k for k in node[key] if k != ENVELOPE] for key in EXCLUDED if isinstance(node.get(key), list)
    }
    return {**node, **lists} if lists else dict(node)


def _row_names(folder: Path, numbering: Numbering) -> tuple[Array, list[str]]:
    """Rows and node ids of a FaissVectorStore: ``nodes_dict`` is keyed by the row, as text."""
    nodes = _nodes_dict(folder, numbering)
    name = str(folder / INDEX_STORE)
    try:
        numbers = np.array([int(key) for key in nodes], dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise CorruptDataError(
            f"{name} is keyed by node ids, so its vectors are numbered in {ID_MAP}, which is missing; "
            "restore the folder from a backup"
        ) from error
    return numbers, [str(value) for value in nodes.values()]


def _nodes_dict(folder: Path, numbering: Numbering) -> dict[str, Any]:
    """``nodes_dict`` of the vector index in the index store: the one as long as the index."""
    path = folder / INDEX_STORE
    found: list[dict[str, Any]] = []
    for section, _, value in JsonWalk(_there(path)).sections():
        data = value.get("__data__") if isinstance(value, Mapping) else None
        if section != "index_store/data" or data is None:
            continue
        struct = parse_json(data.encode("utf-8", "surrogatepass")) if isinstance(data, str) else data
        if isinstance(struct, Mapping) and isinstance(struct.get("nodes_dict"), dict):
            found.append(struct["nodes_dict"])
    fitting = [nodes for nodes in found if len(nodes) == numbering.count]
    if fitting or (numbering.live and found):
        longest: dict[str, Any] = max(found, key=len)
        return fitting[0] if fitting else longest
    check_count(max(map(len, found), default=0), numbering.count, str(path))
    return {}


def _mapped_names(path: Path, numbering: Numbering) -> tuple[Array, list[str]]:
    """Numbers and node ids of a FaissMapVectorStore, in the order in which they were added."""
    found = _id_map(path)
    try:
        return np.array([int(number) for number in found.values()], dtype=np.int64), list(found)
    except (ValueError, TypeError, OverflowError) as error:
        raise CorruptDataError(f"{path} maps a node to what is no number; restore it") from error


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
    try:
        text = path.read_text("utf-8")
        try:
            content = json.loads(text)
        except json.JSONDecodeError:
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
    names: list[str] = []
    dim = None
    for section, key, value in JsonWalk(_there(vectors), exact=False).sections():
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
    store = Docstore(folder)
    rows = store.rows_of(names)
    return Sidecar(store.entries, rows, store.losses(names)), dim, len(names)


def _there(path: Path) -> Path:
    if not path.is_file():
        raise NotFoundError(
            f"{path} is not there; a LlamaIndex folder is persisted with its storage context"
        )
    return path
