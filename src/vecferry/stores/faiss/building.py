"""A staged collection made into a folder that FAISS, LangChain or LlamaIndex opens."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid5

import numpy as np

from vecferry.errors import ConfigurationError
from vecferry.layouts.folders import (
    DOCSTORE,
    JSONL,
    MANIFEST,
    PARQUET,
    VECTORS,
    Entry,
    write_langchain,
    write_llamaindex,
    write_parquet,
    write_raw,
    write_simple_vectors,
)
from vecferry.model import CollectionSchema, Loss, Metric, RecordId, encode_id, uuid_of
from vecferry.model.ids import ID_NAMESPACE
from vecferry.model.vectors import Array
from vecferry.stores.faiss.flat import flat_header, id_block, mapped_header
from vecferry.stores.faiss.stage import Stage
from vecferry.stores.faiss.vectors import import_faiss

_TEXT_IDS = ("langchain", "llamaindex", "llamaindex-map", "llamaindex-simple")
_LOSSY = re.compile(
    r"(?<![A-Za-z])(SQ|PQ|OPQ|PCA|RQ|PRQ|LSQ|PLSQ|Residual|LSH|ITQ|SH|RR|RaBitQ|ZnLattice|L2norm)"
)
_TRAIN_PER_LIST = 64


def file_names(layout: str, stem: str = "index") -> tuple[str, str]:
    """What the index and the sidecar are called in a new folder; ``stem`` counts for LangChain's."""
    if layout == "langchain":
        return f"{stem}.faiss", f"{stem}.pkl"
    if layout.startswith("llamaindex"):
        return VECTORS, DOCSTORE
    if layout.startswith("raw-"):
        return "faiss.index", f"metadata.{layout[4:]}"
    return "index.faiss", JSONL


def index_metric(metric: Metric, layout: str) -> Metric:
    """The metric the index file gets. FAISS has no cosine: the vectors are stored as they are, under the
    inner product, or in the frameworks' folders under L2, which is what the frameworks make themselves."""
    if metric is not Metric.COSINE:
        return metric
    return Metric.L2 if layout in _TEXT_IDS else Metric.IP


def header_of(metric: Metric, layout: str, dim: int, count: int) -> bytes:
    """What stands before the vectors of a Flat index in this layout."""
    chosen = index_metric(metric, layout)
    flat = flat_header(dim, chosen, count, bits=chosen is Metric.HAMMING)
    return (mapped_header(dim, chosen, count) if layout == "llamaindex-map" else b"") + flat


def is_flat(factory: str) -> bool:
    return factory == "Flat"


def losses_of(factory: str) -> tuple[Loss, ...]:
    """What an index of this factory string loses of the vectors by itself."""
    if not _LOSSY.search(factory) or factory.endswith((",RFlat", ",Refine(Flat)")):
        return ()
    return (Loss(kind="vector", detail=f"a FAISS index {factory!r} stores vectors inexactly"),)


def build(stage: Stage, folder: Path) -> int:
    """Write the whole collection into the empty ``folder`` and return its number of records.

    The memory stays that of a block for Flat; any other index is held in memory by FAISS.

    Raises:
        ConfigurationError: if there are too few records to train the index.
    """
    kept = stage.kept()
    count = stage.rows if kept is None else len(kept)
    layout, name_of = stage.plan.layout, namer(stage.id_types())
    index_name, sidecar_name = stage.plan.files or file_names(layout)
    index, sidecar = folder / index_name, folder / sidecar_name

    def entries() -> Iterator[Entry]:
        return stage.entries(kept)

    if layout == "llamaindex-simple":
        write_simple_vectors(folder, entries, name_of, lambda: stage.blocks(kept))
    elif is_flat(stage.plan.factory):
        _write_flat(stage, kept, count, index)
    else:
        _write_index(stage, kept, count, index)
    if layout.startswith("llamaindex"):
        write_llamaindex(folder, entries, name_of, layout)
    elif layout == "langchain":
        write_langchain(sidecar, entries, name_of)
    elif layout.startswith("raw-"):
        write_raw(sidecar, entries)
    else:
        _write_own(stage, kept, folder, entries)
    (folder / MANIFEST).write_bytes(_manifest(stage, count))
    return count


def namer(id_types: set[str]) -> Callable[[RecordId], str]:
    """How a framework that knows text ids only calls a record: by its text, else by its UUID.

    Where texts and other ids meet, a UUID gets one of its own, too, so that it is not taken for its text.
    """
    mixed = "str" in id_types and len(id_types) > 1

    def name_of(id_: RecordId) -> str:
        if isinstance(id_, str):
            return id_
        return str(uuid5(ID_NAMESPACE, encode_id(id_)) if mixed else uuid_of(id_))

    return name_of


def _manifest(stage: Stage, count: int) -> bytes:
    schema = CollectionSchema.model_validate(stage.plan.schema)
    types = stage.id_types()
    known = {
        "count": count,
        "id_type": types.pop() if len(types) == 1 else schema.id_type,
        "ids_unique": True,
    }
    manifest = {
        "vecferry": 1,
        "layout": stage.plan.layout,
        "index": stage.plan.factory,
        "schema": schema.model_copy(update=known).model_dump(mode="json", exclude_defaults=True),
    }
    return json.dumps(manifest, indent=1, ensure_ascii=False, sort_keys=True).encode() + b"\n"


def _write_own(
    stage: Stage, kept: Array | None, folder: Path, entries: Callable[[], Iterator[Entry]]
) -> None:
    if stage.plan.sidecar == "parquet":
        write_parquet(folder / PARQUET, entries())
    elif kept is None:
        _link(stage.folder / JSONL, folder / JSONL)
    else:
        with (folder / JSONL).open("wb") as file:
            file.writelines(stage.raw_lines(kept))


def _write_flat(stage: Stage, kept: Array | None, count: int, path: Path) -> None:
    field, layout = stage.plan.field, stage.plan.layout
    header = header_of(field.metric, layout, field.dim or 0, count)
    if kept is None:
        # The staged file becomes the index: its gap is the header's place.
        _link(stage.folder / "vectors", path)
        with path.open("r+b") as file:
            file.write(header)
            file.truncate(len(header) + count * stage.width)
    else:
        with path.open("wb") as file:
            file.write(header)
            for block in stage.blocks(kept):
                file.write(block.data)
    if layout == "llamaindex-map":
        with path.open("ab") as file:
            file.write(id_block(np.arange(count)))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _write_index(stage: Stage, kept: Array | None, count: int, path: Path) -> None:
    faiss = import_faiss()
    field, factory = stage.plan.field, stage.plan.factory
    index = make_index(factory, field.dim or 1, index_metric(field.metric, stage.plan.layout))
    try:
        if not index.is_trained:
            index.train(_sample(stage, kept, count, _train_rows(index, count)))
        if stage.plan.layout == "llamaindex-map":
            index = faiss.IndexIDMap2(index)
        start = 0
        for block in stage.blocks(kept):
            _add(faiss, index, block, start)
            start += len(block)
    except RuntimeError as error:
        reason = str(error).rsplit(": ", 1)[-1][:200]
        raise ConfigurationError(
            f"FAISS cannot build {factory!r} from {count:,} records ({reason}); choose another index="
        ) from error
    faiss.write_index(index, str(path))


def _add(faiss: Any, index: Any, block: Array, start: int) -> None:
    if isinstance(index, faiss.IndexIDMap):
        index.add_with_ids(block, np.arange(start, start + len(block), dtype=np.int64))
    else:
        index.add(block)


def make_index(factory: str, dim: int, metric: Metric) -> Any:
    """An empty index.

    Raises:
        ConfigurationError: if FAISS does not know the factory string.
    """
    faiss = import_faiss()
    if metric is Metric.HAMMING:
        raise ConfigurationError("bit vectors go into a Flat index; leave index= out")
    numbers = {
        Metric.IP: faiss.METRIC_INNER_PRODUCT,
        Metric.L2: faiss.METRIC_L2,
        Metric.L1: faiss.METRIC_L1,
    }
    try:
        return faiss.index_factory(dim, factory, numbers[metric])
    except RuntimeError as error:
        raise ConfigurationError(
            f"FAISS does not know the index {factory!r} for {dim} dimensions; "
            "write for example Flat, HNSW32 or IVF256,Flat"
        ) from error


def _train_rows(index: Any, count: int) -> int:
    faiss = import_faiss()
    try:
        lists = int(faiss.extract_index_ivf(index).nlist)
    except RuntimeError:
        lists = 0
    if count < lists:
        raise ConfigurationError(
            f"{lists} lists cannot be trained from {count:,} records; choose fewer lists "
            f"(about {max(int(count**0.5), 1)}) or index=Flat"
        )
    return min(count, max(_TRAIN_PER_LIST * lists, 256 * 256))


def _sample(stage: Stage, kept: Array | None, count: int, want: int) -> Array:
    """``want`` rows spread evenly over the collection, float32 ``(want, dim)``."""
    chosen = np.unique(np.linspace(0, count - 1, want).astype(np.int64))
    if kept is not None:
        chosen = kept[chosen]
    return np.concatenate(list(stage.blocks(chosen)))


__all__ = ["build", "header_of", "index_metric", "losses_of", "make_index", "namer"]
