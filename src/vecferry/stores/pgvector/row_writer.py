"""A batch → the rows of a table: which columns get which cells, and which records cannot go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from psycopg.adapt import PyFormat, Transformer

from vecferry.errors import RejectedRecord, SchemaMismatchError
from vecferry.model import DenseColumn, Kind, MultiColumn, RecordBatch
from vecferry.model.ids import RecordId
from vecferry.stores.pgvector import encode
from vecferry.stores.pgvector.columns import VECTOR_TYPES, PgColumn, RowMap
from vecferry.stores.pgvector.ddl import MAX_SPARSE_DIM
from vecferry.stores.pgvector.encode import Cells
from vecferry.stores.pgvector.frameworks import CODECS
from vecferry.stores.pgvector.reading import code_id
from vecferry.stores.pgvector.reflect import Relation
from vecferry.stores.pgvector.values import (
    binary_dumper,
    exactly,
    fits_id,
    loosely,
    text_fault,
    writable_binary,
)

_INT_BYTES = {"int2": 2, "int4": 4, "int8": 8}


@dataclass(frozen=True, slots=True)
class Rows:
    """Encoded rows: the columns they fill, the columns left to be NULL, and COPY's bytes."""

    columns: tuple[str, ...]
    absent: tuple[str, ...]
    data: bytes | memoryview
    count: int


class RowWriter:
    """Encodes batches for one table."""

    def __init__(self, relation: Relation, rows: RowMap, made: bool) -> None:
        self.relation, self.map, self.made = relation, rows, made
        self._transformer = Transformer()
        self._codec = CODECS[rows.layout]() if rows.layout in CODECS else None
        columns = relation.columns
        self._typed = {key: columns[name] for key, name in rows.typed.items() if columns[name].writable}
        self.as_text = frozenset(
            [c.name for c in self._typed.values() if not writable_binary(c)]
            + [name for name in rows.id if columns[name].id_kind == "str" and columns[name].category != "S"]
        )

    def encode(self, batch: RecordBatch) -> Rows:
        """The rows of a batch whose ids are all different.

        Raises:
            RejectedRecord: naming the records that this table cannot hold.
            SchemaMismatchError: for a vector field that the table has not.
        """
        self._check_fields(batch)
        fast = self._fast(batch)
        if fast is not None:
            return fast
        try:
            cells = self._cells(self._as_rows(batch))
        except (UnicodeError, OverflowError, TypeError, ValueError, psycopg.Error) as error:
            raise self.rejected(batch, str(error)) from error
        absent = [name for name in self._columns() if name not in cells]
        return Rows(tuple(cells), tuple(absent), encode.rows(list(cells.values()), len(batch)), len(batch))

    def _as_rows(self, batch: RecordBatch) -> RecordBatch:
        """Ids as the key holds them, and texts and metadata as the layout does."""
        if self.map.coded_ids:
            batch = batch.replace(ids=[code_id(id_, self.map.coded_ids) for id_ in batch.id_list])
        else:
            wrong = [id_ for id_ in batch.id_list if not self._fits_key(id_)]
            if wrong:
                raise self._no_place(wrong)
        return self._codec.encode(batch) if self._codec else batch

    def _columns(self) -> list[str]:
        m, known = self.map, self.relation.columns
        parts = [*m.vectors.values(), *(column for column in (m.text, m.json) if column)]
        typed = [column.name for column in self._typed.values() if not column.defaulted]
        return [*m.id, *(name for name in parts if known[name].writable), *typed, *m.fixed]

    def _check_fields(self, batch: RecordBatch) -> None:
        for name, column in batch.columns():
            if name not in self.map.vectors:
                raise SchemaMismatchError(
                    f"{self.relation.table} has no vector field {name!r}, only {sorted(self.map.vectors)}"
                )
            if isinstance(column, MultiColumn):
                raise SchemaMismatchError(
                    f"pgvector has no multi-vectors (field {name!r}); choose another target"
                )

    def _fast(self, batch: RecordBatch) -> Rows | None:
        """An integer key and one vector: straight from numpy."""
        if (
            batch.texts is not None
            or batch.metadata is not None
            or len(batch.vectors) != 1
            or batch.sparse_vectors
        ):
            return None
        (name, column), id_ = next(iter(batch.vectors.items())), self.relation.columns[self.map.id[0]]
        target = self.relation.columns[self.map.vectors[name]]
        fits = (
            batch.ids.ints is not None
            and isinstance(column, DenseColumn)
            and (id_.type, len(self.map.id), target.type, self.map.fixed) == ("int8", 1, "vector", {})
            and target.writable
            and column.mask is None
            and column.values.dtype == np.float32
        )
        if not fits:
            return None
        self._check_widths(batch)
        data = encode.fixed_rows(np.asarray(batch.ids.ints), column)  # type: ignore[arg-type]
        columns = (self.map.id[0], target.name)
        return Rows(columns, tuple(c for c in self._columns() if c not in columns), data, len(batch))

    def _cells(self, batch: RecordBatch) -> dict[str, Cells]:
        self._check_widths(batch)
        self._check_homeless(batch)
        cells = self._id_cells(batch)
        for name, column in batch.columns():
            target = self.relation.columns[self.map.vectors[name]]
            if not target.writable:
                continue
            if VECTOR_TYPES[target.type][0] is Kind.SPARSE:
                cells[target.name] = encode.sparse_cells(column, target.dim or MAX_SPARSE_DIM)  # type: ignore[arg-type]
            else:
                cells[target.name] = encode.dense_cells(column, target.type, target.dim)  # type: ignore[arg-type]
        if self.map.text and batch.texts is not None and self.relation.columns[self.map.text].writable:
            cells[self.map.text] = encode.text_cells(batch.texts)
        if batch.metadata is not None:
            cells.update(self._metadata_cells(batch.metadata))
        for name, value in self.map.fixed.items():
            cells[name] = self._value_cells([value] * len(batch), self.relation.columns[name])
        return cells

    # -- ids ----------------------------------------------------------------------------------

    def _id_cells(self, batch: RecordBatch) -> dict[str, Cells]:
        names = self.map.id
        if (
            len(names) == 1
            and batch.ids.ints is not None
            and self.relation.columns[names[0]].type == "int8"
        ):
            return {names[0]: encode.int_cells(batch.ids.ints)}
        ids = batch.id_list
        parts = list(zip(*ids, strict=True)) if len(names) > 1 else [ids]
        return {
            n: self._id_part(list(p), self.relation.columns[n]) for n, p in zip(names, parts, strict=True)
        }

    def _id_part(self, values: list[Any], column: PgColumn) -> Cells:
        if column.id_kind == "int":
            return encode.int_cells(values, _INT_BYTES[column.type])
        if column.id_kind == "uuid":
            return [b"\0\0\0\x10" + value.bytes for value in values]
        return encode.text_cells(values)

    def _fits_key(self, id_: RecordId) -> bool:
        parts = id_ if isinstance(id_, tuple) else (id_,)
        if len(parts) != len(self.map.id):
            return False
        return all(
            fits_id(part, self.relation.columns[n]) for part, n in zip(parts, self.map.id, strict=True)
        )

    def _no_place(self, wrong: Sequence[RecordId]) -> RejectedRecord:
        key = ", ".join(f"{n} {self.relation.columns[n].sql_type}" for n in self.map.id)
        return RejectedRecord(
            f"ids such as {wrong[0]!r} do not fit the key ({key}) of {self.relation.table}; "
            "write to a new table, with id_type='mixed'",
            ids=wrong,
        )

    # -- metadata -----------------------------------------------------------------------------

    def _metadata_cells(self, metadata: Sequence[dict[str, Any]]) -> dict[str, Cells]:
        cells: dict[str, Cells] = {}
        if self.map.typed:
            metadata = [dict(row) for row in metadata]
        for key in self.map.typed.keys() - self._typed.keys():
            for row in metadata:
                row.pop(key, None)  # the server generates it anew
        for key, column in self._typed.items():
            values = [self._take(row, key, column) for row in metadata]
            if not (column.defaulted and all(value is None for value in values)):
                cells[column.name] = self._value_cells(values, column)
        if self.map.json:
            plain = encode.metadata_documents if self._codec is None else _documents
            documents = plain(metadata)
            binary = self.relation.columns[self.map.json].type == "jsonb"
            cells[self.map.json] = encode.json_cells(documents, binary=binary)
        return cells

    def _take(self, row: dict[str, Any], key: str, column: PgColumn) -> Any:
        """The value for a typed column; one that would change in it stays in the json column."""
        return row.pop(key) if self._goes(row.get(key), column) else None

    def _goes(self, value: Any, column: PgColumn) -> bool:
        keeps = exactly if self.made else loosely
        return value is not None and (not self.map.json or keeps(value, column))

    def alike(self, batch: RecordBatch) -> list[RecordBatch]:
        """Shares of a batch that leave the same columns to their defaults: a statement each."""
        defaulted = [(key, column) for key, column in self._typed.items() if column.defaulted]
        if batch.metadata is None or not defaulted:
            return [batch]
        shares: dict[tuple[bool, ...], list[int]] = {}
        for row, data in enumerate(batch.metadata):
            given = tuple(self._goes(data.get(key), column) for key, column in defaulted)
            shares.setdefault(given, []).append(row)
        return [batch] if len(shares) == 1 else [batch.take(share) for share in shares.values()]

    def _value_cells(self, values: list[Any], column: PgColumn) -> Cells:
        if column.is_json:
            documents = [None if v is None else encode.exact_json(v) for v in values]
            return encode.json_cells(documents, binary=column.type == "jsonb")
        if column.type in _INT_BYTES:
            return encode.int_cells(values, _INT_BYTES[column.type])
        if column.is_text or column.name in self.as_text:
            return encode.text_cells([None if v is None else self._server_text(v) for v in values])
        dumper = binary_dumper(column, self._transformer)
        return encode.value_cells(values, dumper)

    def _server_text(self, value: Any) -> str:
        """As psycopg writes a parameter in text form, arrays included."""
        if isinstance(value, str):
            return value
        dumped = self._transformer.get_dumper(value, PyFormat.TEXT).dump(value)
        return bytes(dumped).decode() if dumped is not None else ""

    # -- what cannot go -----------------------------------------------------------------------

    def _check_widths(self, batch: RecordBatch) -> None:
        for name, column in batch.vectors.items():
            target = self.relation.columns[self.map.vectors[name]]
            width = VECTOR_TYPES[target.type][1].width(target.dim) if target.dim else None
            if width is None or column.values.shape[1] == width:
                continue
            ids = [id_ for id_, there in zip(batch.id_list, column.present.tolist(), strict=True) if there]
            if ids:
                raise RejectedRecord(
                    f"field {name!r} of {self.relation.table} holds {target.dim} dimensions, "
                    f"not {column.values.shape[1]}; re-embed these records",
                    ids=ids,
                )

    def _check_homeless(self, batch: RecordBatch) -> None:
        """Where there is no json column, every metadata key needs a column of its own."""
        if self.map.json:
            return
        ids = batch.id_list
        homeless = {row: set(data) - self.map.typed.keys() for row, data in enumerate(batch.metadata_list)}
        rows = [row for row, keys in homeless.items() if keys]
        if rows:
            raise RejectedRecord(
                f"{self.relation.table} has no column for metadata {sorted(homeless[rows[0]])[0]!r}; "
                "add a jsonb column called metadata, or leave the key out",
                ids=[ids[row] for row in rows],
            )

    def rejected(self, batch: RecordBatch, reason: str) -> RejectedRecord:
        """The refusal with the ids at fault, found by looking at each record."""
        faults: dict[int, str] = dict.fromkeys(batch.non_finite(), "a vector holds NaN or an infinity")
        for row, fault in enumerate(map(text_fault, batch.text_list)):
            if fault:
                faults.setdefault(row, f"the text holds {fault}")
        for row, data in enumerate(batch.metadata_list):
            fault = _metadata_fault(data)
            if fault:
                faults.setdefault(row, f"the metadata holds {fault}")
            for key, column in self._typed.items():
                if data.get(key) is not None and not loosely(data[key], column):
                    type_ = column.sql_type
                    faults.setdefault(row, f"metadata {key!r} does not fit column {column.name} {type_}")
        faults.update(self._vector_faults(batch))
        for row, id_ in enumerate(batch.id_list):
            if not self.map.coded_ids and not self._fits_key(id_):
                faults.setdefault(row, "the id does not fit the key")
            if any(
                isinstance(p, str) and text_fault(p) for p in (id_ if isinstance(id_, tuple) else (id_,))
            ):
                faults.setdefault(row, "the id holds a NUL character or a lone surrogate")
        ids = batch.id_list
        detail = "; ".join(dict.fromkeys(faults.values())) or reason
        return RejectedRecord(
            f"{self.relation.table}: {detail}; correct or skip these records",
            ids=[ids[row] for row in sorted(faults)],
        )

    def _vector_faults(self, batch: RecordBatch) -> dict[int, str]:
        faults = {}
        for name, column in batch.vectors.items():
            target = self.relation.columns[self.map.vectors[name]]
            if target.type == "halfvec":
                with np.errstate(over="ignore"):
                    beyond = ~np.isfinite(column.values.astype(np.float16)).all(axis=1)
                for row in np.flatnonzero(beyond).tolist():
                    faults[row] = "a vector holds a number beyond float16"
        return faults


def _documents(metadata: Sequence[dict[str, Any]]) -> list[bytes]:
    """Of what the layout has already brought into pure JSON."""
    return [encode.json_document(row) for row in metadata]


def _metadata_fault(data: dict[str, Any]) -> str:
    try:
        document = encode.metadata_documents([data])[0]
    except (TypeError, ValueError) as error:
        return "a lone surrogate" if isinstance(error, UnicodeError) else str(error)
    return "a NUL character" if b"\\u0000" in document.replace(b"\\\\", b"") else ""
