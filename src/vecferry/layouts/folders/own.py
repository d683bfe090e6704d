"""vecferry's own folder: ``index.faiss``, ``records.jsonl`` or ``records.parquet``, ``vecferry.json``.

No pickle; row i of the sidecar belongs to the vector numbered i. In the Parquet form ``metadata`` and the
envelope (types that JSON lacks, ids that are no text) are JSON text, ``id`` is text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vecferry.errors import CorruptDataError, MissingDependencyError
from vecferry.layouts.folders.entries import (
    Columns,
    Entry,
    LineFile,
    Numbering,
    Sidecar,
    columns_of,
    from_row,
    in_row_order,
    to_row,
)
from vecferry.model import ENVELOPE, dump_json, parse_json
from vecferry.model.vectors import Array

JSONL = "records.jsonl"
PARQUET = "records.parquet"
_GROUP = 8192


def read_own(path: Path, numbering: Numbering) -> Sidecar:
    """The sidecar at ``path``.

    Raises:
        CorruptDataError: if it is damaged, or shorter or longer than the index.
    """
    entries = ParquetEntries(path) if path.suffix == ".parquet" else LineFile.open(path)
    return in_row_order(entries, numbering, str(path))


def write_parquet(path: Path, entries: Iterable[Entry]) -> None:
    """Write records as Parquet, one row group at a time."""
    pa, pq = _arrow()
    columns = [pa.field(name, pa.string()) for name in ("id", "text", "metadata", "envelope")]
    schema = pa.schema(columns)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        iterator = iter(entries)
        while group := list(islice(iterator, _GROUP)):
            writer.write_table(pa.Table.from_pylist([_columns(entry) for entry in group], schema=schema))


def _columns(entry: Entry) -> dict[str, str | None]:
    row = to_row(entry)
    envelope = dict(row.get(ENVELOPE, {}))
    if isinstance(row["id"], int):
        envelope["id"] = f"i:{row['id']}"
    return {
        "id": str(row["id"]),
        "text": row["text"],
        "metadata": dump_json(row["metadata"]).decode(),
        "envelope": dump_json(envelope).decode() if envelope else None,
    }


class ParquetEntries:
    """`Entries` in a Parquet file; the row group last read is kept."""

    def __init__(self, path: Path) -> None:
        pa, pq = _arrow()
        self._path = path
        try:
            self._file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise CorruptDataError(f"{path} is not a Parquet file ({error}); restore it") from error
        groups = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._edges = np.concatenate([[0], np.cumsum(groups)]).astype(np.int64)
        self._kept: tuple[int, list[dict[str, Any]]] = (-1, [])

    def __len__(self) -> int:
        return int(self._edges[-1])

    def read(self, rows: Array) -> list[Entry]:
        groups = np.searchsorted(self._edges, rows, side="right") - 1
        found: list[Entry | None] = [None] * len(rows)
        for group in np.unique(groups).tolist():
            content, base = self._group(group), int(self._edges[group])
            for at in np.flatnonzero(groups == group).tolist():
                found[at] = _parsed(content[int(rows[at]) - base])
        return [entry for entry in found if entry is not None]

    def columns(self, rows: Array, *, text: bool = True, metadata: bool = True) -> Columns:
        return columns_of(self.read(rows), text=text, metadata=metadata)

    def _group(self, group: int) -> Sequence[dict[str, Any]]:
        kept, content = self._kept
        if kept != group:
            content = self._file.read_row_group(group).to_pylist()
            self._kept = (group, content)
        return content

    def close(self) -> None:
        self._file.close()


def _parsed(columns: dict[str, Any]) -> Entry:
    row = {
        "id": columns["id"],
        "text": columns["text"],
        "metadata": parse_json(columns["metadata"].encode()),
    }
    if columns["envelope"]:
        row[ENVELOPE] = parse_json(columns["envelope"].encode())
    return from_row(row)


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingDependencyError("a Parquet sidecar", "parquet") from error
    return pa, pq
