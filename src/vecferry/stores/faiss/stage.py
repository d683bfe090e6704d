"""A collection under construction: three files that only grow, and a card that says what they are.

    stage/
    ├── stage.json     schema, layout, index factory; where an upsert's old records end
    ├── vectors        the header of a Flat index (written at the end), then the vectors row by row
    ├── records.jsonl  a line a record (`vecferry.layouts.folders.lines`)
    └── rows           25 bytes a record: key of the id, end of its line, type of its id

A record that is staged twice counts as it was staged last; that is settled at the end, from the keys.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from vecferry.core.locks import Lock
from vecferry.errors import CorruptDataError, RejectedRecord, SchemaMismatchError
from vecferry.layouts.folders import Entry, LineFile, encode_lines
from vecferry.model import CollectionSchema, DenseColumn, RecordBatch, VectorField, id_type
from vecferry.model.vectors import Array
from vecferry.stores.kit.keys import KEY_TYPE, keys_of, last_of_each
from vecferry.stores.kit.staging import as_store_error, fsync_folder, write_durably

ROW = np.dtype([("key", KEY_TYPE), ("end", "<i8"), ("kind", "u1")])
_KINDS = ("int", "str", "uuid", "tuple")
_BLOCK = 4096


@dataclass
class Plan:
    """What is being built.

    Attributes:
        schema: of the collection, with one dense field.
        layout: how the folder will look.
        factory: FAISS's factory string.
        gap: bytes left free before the first vector, for the header of a Flat index.
        files: the names of index and sidecar, where they are not the usual ones of the layout.
        base: the mark behind the records an upsert began with; ``None`` until they are copied.
        over: the stamp of the collection an upsert began with, by which it knows that it is still there.
        token: tells this stage from every other; marks name it.
        marked: whether a job keeps a mark of it.
    """

    schema: dict[str, Any]
    layout: str
    factory: str
    sidecar: str
    gap: int
    base: dict[str, int] | None = None
    files: tuple[str, str] | None = None
    over: str = ""
    token: str = field(default_factory=lambda: uuid4().hex[:8])
    marked: bool = False

    @property
    def field(self) -> VectorField:
        return CollectionSchema.model_validate(self.schema).fields[0]


class Stage:
    """The staged files in ``folder``. One process writes them at a time."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        self._lock = _locked(folder)
        self.rows = 0
        self._text_bytes = 0
        self._files = {
            name: (folder / name).open("ab", buffering=0) for name in ("vectors", "records.jsonl", "rows")
        }
        self._recount()

    @classmethod
    def create(cls, folder: Path, plan: Plan) -> Stage:
        """An empty stage; what was there before is forgotten."""
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            for path in folder.iterdir():
                path.unlink()
        (folder / "vectors").write_bytes(bytes(plan.gap))
        stage = cls(folder, plan)
        stage.save()
        fsync_folder(folder.parent)
        return stage

    @classmethod
    def open(cls, folder: Path) -> Stage | None:
        """What an earlier process left, cut back to its last whole record; ``None`` if there is none."""
        try:
            return cls(folder, Plan(**json.loads((folder / "stage.json").read_bytes())))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise CorruptDataError(f"{folder} is damaged; remove it and start the job again") from error

    def save(self) -> None:
        """Make the plan durable."""
        write_durably(self.folder / "stage.json", json.dumps(asdict(self.plan)).encode())

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._lock.release()

    # -- growing ------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """Bytes a vector."""
        vectors = self.plan.field
        return vectors.dtype.width(vectors.dim or 0) * (1 if vectors.dtype == "bit" else 4)

    def append(self, batch: RecordBatch) -> int:
        """Add records and return the bytes written.

        Raises:
            RejectedRecord: if some lack a vector, hold NaN or infinity, or metadata that cannot be kept.
            SchemaMismatchError: if the vectors have another dimension.
        """
        if not len(batch):
            return 0
        column = self._column(batch)
        ids = batch.id_list
        entries = [Entry(*row) for row in zip(ids, batch.text_list, batch.metadata_list, strict=True)]
        lines = _encode(entries)
        table = np.empty(len(ids), dtype=ROW)
        table["key"] = keys_of(ids)
        table["end"] = self._text_bytes + np.cumsum([len(line) for line in lines])
        table["kind"] = [_KINDS.index(id_type(id_)) for id_ in ids]
        vectors = (
            column.values if self.plan.field.dtype == "bit" else column.values.astype("<f4", copy=False)
        )
        for name, data in (
            ("vectors", vectors.data if vectors.size else b""),
            ("records.jsonl", b"".join(lines)),
            ("rows", table.tobytes()),
        ):
            self._add(name, data)
        self.rows += len(ids)
        self._text_bytes = int(table["end"][-1])
        return int(vectors.nbytes) + sum(map(len, lines))

    def _add(self, name: str, data: Any) -> None:
        file = self._files[name]
        try:
            view = memoryview(data).cast("B") if len(data) else memoryview(b"")
            while view:
                view = view[file.write(view) :]
        except OSError as error:  # a full disk: the same batch may come again
            self._cut(self.rows, self._text_bytes)
            raise as_store_error(error, self.folder / name) from error

    def _column(self, batch: RecordBatch) -> DenseColumn:
        field = self.plan.field
        column = batch.vectors.get(field.name)
        if column is None and len(batch.vectors) == 1:
            column = next(iter(batch.vectors.values()))
        if not isinstance(column, DenseColumn):
            raise RejectedRecord("a FAISS index holds one vector for each record", ids=batch.id_list)
        if field.dim is None:
            self._settle_dim(field, column)
        elif column.values.shape[1] != field.dtype.width(field.dim):
            raise SchemaMismatchError(
                f"the vectors have {column.values.shape[1]} components where {field.dim} are due; "
                "write them to another target"
            )
        self._check(batch, column)
        return column

    def _check(self, batch: RecordBatch, column: DenseColumn) -> None:
        missing = np.flatnonzero(~column.present).tolist()
        if missing:
            raise RejectedRecord(
                "a FAISS index holds one vector for each record; these have none",
                ids=[batch.id_list[row] for row in missing],
            )
        if column.values.dtype.kind == "f" and not np.isfinite(column.values).all():
            bad = np.flatnonzero(~np.isfinite(column.values).all(axis=1)).tolist()
            raise RejectedRecord(
                "a vector holds NaN or infinity, which has no neighbours; embed the record again",
                ids=[batch.id_list[row] for row in bad],
            )

    def _settle_dim(self, field: VectorField, column: DenseColumn) -> None:
        """The dimension was not known before the first vector."""
        schema = CollectionSchema.model_validate(self.plan.schema)
        width = column.values.shape[1]
        dim = width * 8 if field.dtype == "bit" else width
        known = schema.model_copy(update={"fields": (field.model_copy(update={"dim": dim}),)})
        self.plan.schema = known.model_dump(mode="json")
        self.save()

    def mark(self) -> dict[str, int | str]:
        """Make everything staged durable, and where it ends."""
        if not self.plan.marked:
            self.plan.marked = True
            self.save()
        return {**self._end(), "stage": self.plan.token}

    def _end(self) -> dict[str, int]:
        for file in self._files.values():
            os.fsync(file.fileno())
        return {"rows": self.rows, "bytes": self._text_bytes}

    def rewind(self, mark: dict[str, Any] | None) -> None:
        """Cut back to ``mark``; to where the job began if it is ``None``.

        Raises:
            CorruptDataError: if less is there than the mark says.
        """
        mark = mark or self.plan.base or {"rows": 0, "bytes": 0}
        if mark["rows"] > self.rows or mark["bytes"] > self._text_bytes:
            raise CorruptDataError(
                f"{self.folder} holds {self.rows:,} records where {mark['rows']:,} were marked; "
                "discard the job's state and start again"
            )
        self._cut(int(mark["rows"]), int(mark["bytes"]))

    def settle_base(self) -> None:
        """What is staged now is what an upsert began with."""
        self.plan.base = self._end()
        self.save()

    def _cut(self, rows: int, text_bytes: int) -> None:
        sizes = (self.plan.gap + rows * self.width, text_bytes, rows * ROW.itemsize)
        for file, size in zip(self._files.values(), sizes, strict=True):
            file.truncate(size)
            file.seek(0, os.SEEK_END)
        self.rows, self._text_bytes = rows, text_bytes

    def _recount(self) -> None:
        """Find the last record of which all three parts are there: a kill may have come between them."""
        sizes = {name: os.fstat(file.fileno()).st_size for name, file in self._files.items()}
        table = self.table()
        fitting = int(np.searchsorted(table["end"], sizes["records.jsonl"], side="right"))
        whole = (sizes["vectors"] - self.plan.gap) // self.width if self.width else 0
        rows = max(min(len(table), fitting, whole), 0)
        self._cut(rows, int(table["end"][rows - 1]) if rows else 0)

    # -- reading what was staged --------------------------------------------------------------

    def table(self) -> Array:
        """A row a record, see `ROW`."""
        size = (self.folder / "rows").stat().st_size
        return np.fromfile(self.folder / "rows", dtype=ROW, count=size // ROW.itemsize)

    def kept(self) -> Array | None:
        """The rows that count, ascending: of those with one id the last. ``None`` if that is all."""
        last = last_of_each(self.table()["key"][: self.rows])
        return None if last.all() else np.flatnonzero(last)

    def id_types(self) -> set[str]:
        """The types of the ids staged."""
        return {_KINDS[kind] for kind in np.unique(self.table()["kind"][: self.rows]).tolist()}

    def blocks(self, kept: Array | None) -> Iterator[Array]:
        """The vectors in blocks: float32 ``(n, dim)``, or packed bits."""
        bits = self.plan.field.dtype == "bit"
        if not self.rows:
            return
        shape = (self.rows, self.width if bits else self.width // 4)
        mapped = np.memmap(
            self.folder / "vectors", np.uint8 if bits else "<f4", "r", offset=self.plan.gap, shape=shape
        )
        for rows in _spans(self.rows, kept):
            contiguous = len(rows) == rows[-1] - rows[0] + 1
            yield np.array(mapped[rows[0] : rows[-1] + 1] if contiguous else mapped[rows])

    def entries(self, kept: Array | None) -> Iterator[Entry]:
        """The records without their vectors."""
        for rows, lines in self._lines(kept):
            yield from lines.read(rows)

    def raw_lines(self, kept: Array | None) -> Iterator[bytes]:
        """The lines of the records."""
        for rows, lines in self._lines(kept):
            yield from lines.lines(rows)

    def _lines(self, kept: Array | None) -> Iterator[tuple[Array, LineFile]]:
        ends = self.table()["end"][: self.rows]
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), ends])
        lines = LineFile((self.folder / "records.jsonl").open("rb"), offsets)
        try:
            for rows in _spans(self.rows, kept):
                yield rows, lines
        finally:
            lines.close()


def _locked(folder: Path) -> Lock:
    place = folder.parent
    return Lock(
        place / "stage.lock",
        busy=f"another process writes to {place}; wait for it, or stop it, and run the same call again",
    )


def _spans(count: int, kept: Array | None) -> Iterator[Array]:
    total = count if kept is None else len(kept)
    for low in range(0, total, _BLOCK):
        high = min(low + _BLOCK, total)
        yield np.arange(low, high) if kept is None else kept[low:high]


def _encode(entries: list[Entry]) -> list[bytes]:
    try:
        return encode_lines(entries)
    except (TypeError, RecursionError):
        bad = {entry.id: reason for entry in entries if (reason := _reason(entry))}
        raise RejectedRecord(next(iter(bad.values()), "a record"), ids=list(bad)) from None


def _reason(entry: Entry) -> str:
    try:
        encode_lines([entry])
    except (TypeError, RecursionError) as error:
        return f"{error}; change it in transform="
    return ""
