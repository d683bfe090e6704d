"""``jsonl:PATH``: one JSON object a line, for people, ``jq`` and ``head``.

A path that ends in ``.jsonl`` or ``.ndjson`` (with ``.gz`` also) is a file, any other a folder of such
files. Every line is a record, see `vecferry.model.json_record`; the first one also carries the
collection's schema under ``_vecferry``, so that a file is complete in itself and no line of it is anything
else. Foreign files are read by their usual key names, or as the options ``id``, ``text``, ``vector`` and
``metadata`` say.
"""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import compress, islice, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson

from vecferry.core.wall import reading_foreign
from vecferry.errors import CorruptDataError, NotFoundError, SchemaMismatchError
from vecferry.model import (
    ENVELOPE,
    CollectionSchema,
    Kind,
    RecordBatch,
    Where,
    schema_of,
    type_name,
)
from vecferry.model.json_column import JsonColumn, Unkeepable
from vecferry.model.json_record import (
    BadRow,
    JsonRecord,
    columns_of,
    dump_rows,
    header_of,
    load_row,
    metadata_of,
    with_header,
    without_mark,
)
from vecferry.model.vectors import Array
from vecferry.ports import Cursor, Fields, Partition, StoreURL
from vecferry.stores.kit.checks import filtered, kind_of
from vecferry.stores.kit.documents import DocumentLines, document_lines
from vecferry.stores.kit.files import FileStore, Pending
from vecferry.stores.kit.lines import align, line_number, lines, open_lines
from vecferry.stores.kit.options import one_of
from vecferry.stores.kit.vector_text import cut_vectors

_BATCH_BYTES = 64 << 20
_COUNT_BATCH = 1024
_HEADER = 1 << 20  # bytes; a header that stands alone is shorter
_FILE_SHIFT = 44  # a position is the number of the file, then 44 bits of byte offset
_Line = tuple[int, int, bytes]


class JsonlStore(FileStore):
    """Source, sink and every ability on lines of JSON.

    Args:
        path: a file or a folder.
        id, text, vector, metadata: the keys of a foreign file; by default the usual ones are tried.
        on_bad_line: ``stop`` raises `CorruptDataError` with the line's number; ``skip`` passes it over.
    """

    scheme = "jsonl"
    suffixes = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")

    def __init__(
        self,
        path: str | Path,
        *,
        id: str | None = None,
        text: str | None = None,
        vector: str | None = None,
        metadata: str | None = None,
        on_bad_line: str = "stop",
    ) -> None:
        super().__init__(path)
        one_of("jsonl", "on_bad_line", on_bad_line, ("stop", "skip"))
        self._names = {"id": id, "text": text, "vector": vector, "metadata": metadata}
        self._skip_bad = on_bad_line == "skip"
        self._counted: tuple[Any, int] | None = None
        self._known: tuple[Any, list[CollectionSchema | None]] | None = None
        self._documents: dict[Any, DocumentLines | None] = {}

    @classmethod
    def from_url(cls, url: StoreURL, **options: Any) -> JsonlStore:
        return cls(url.path or ".", **options)

    # -- source -------------------------------------------------------------------------------

    def describe(self) -> CollectionSchema:
        known = self._schema()
        sample = next(self._batches(self._spans(None, None), Fields.ALL, 256), None)
        batch = sample[0] if sample else RecordBatch(ids=[])
        schema = known or _undeclared(schema_of(batch))
        kind = kind_of(batch) if len(batch) else schema.id_type
        types = {key: type_name(v) for row in batch.metadata_list for key, v in row.items()}
        return schema.model_copy(
            update={
                "name": schema.name or self.path.name.split(".")[0],
                "count": self.count(),
                "id_type": schema.id_type if known else kind,
                "ids_unique": False,  # measured by whoever asks
                "metadata_types": schema.metadata_types or types,
                "has_text": schema.has_text if known else any(t is not None for t in batch.text_list),
            }
        )

    def _schema(self) -> CollectionSchema | None:
        """What the first lines say; ``None`` if all files are foreign.

        Raises:
            SchemaMismatchError: if the files do not belong to one collection.
        """
        stamp = self._stamp()
        if self._known is None or self._known[0] != stamp:
            self._known = stamp, [_schema_of_file(path) for path in self._paths()]
        said = [(path, s) for path, s in zip(self.files(), self._known[1], strict=True) if s is not None]
        if not said:
            return None
        path, schema = said[0]
        for other, found in said[1:]:
            if found.fields != schema.fields:
                raise SchemaMismatchError(
                    f"{other} holds {_said(found)} where {path} holds {_said(schema)}; read them one by one"
                )
        kinds = {s.id_type for _, s in said}
        return schema.model_copy(
            update={
                "metadata_types": {key: name for _, s in said for key, name in s.metadata_types.items()},
                "has_text": any(s.has_text for _, s in said),
                "id_type": kinds.pop() if len(kinds) == 1 else "mixed",
            }
        )

    def _is_foreign(self, file: int) -> bool:
        if self._known is None:
            self._schema()
        return self._known is None or self._known[1][file] is None

    # -- documents of JSON --------------------------------------------------------------------

    def files(self) -> list[Path]:
        """The data files; JSON documents where there are no lines."""
        try:
            return super().files()
        except NotFoundError:
            found = sorted(self.path.glob("*.json")) if self.path.is_dir() else []
            if not found:
                raise
            return found

    def _paths(self) -> list[Path]:
        """The files of lines: the data files, or what was made of the JSON documents among them."""
        return [self._lines_of(path) for path in self.files()]

    def _lines_of(self, path: Path) -> Path:
        if path.name.endswith(self.suffixes):
            return path
        found = path.stat()
        key = (str(path), found.st_ino, found.st_size, found.st_mtime_ns)
        if key not in self._documents:
            with reading_foreign(path):
                self._documents[key] = document_lines(path)
        made = self._documents[key]
        return path if made is None else made.path

    def count(self) -> int:
        """Counted once as long as the files stay."""
        stamp = self._stamp()
        if self._counted is None or self._counted[0] != stamp:
            if self._skip_bad:  # which lines are records shows when they are read
                count = sum(len(batch) for batch, _ in self._located(_COUNT_BATCH, Fields.ALL))
            else:
                count = sum(_count(path) for path in self._paths())
            self._counted = stamp, count
        return self._counted[1]

    def partitions(self, want: int) -> Sequence[Partition]:
        """Byte ranges that begin and end with a line; a gzipped file is one range."""
        files = self._paths()
        sizes = [path.stat().st_size for path in files]
        share = max(sum(sizes) // max(want, 1), 1)
        groups: list[list[list[int]]] = [[]]
        filled = 0
        for at, (path, size) in enumerate(zip(files, sizes, strict=True)):
            for start, stop in _ranges(path, size, share):
                if filled >= share:
                    groups.append([])
                    filled = 0
                groups[-1].append([at, start, stop])
                filled += stop - start
        return [Partition(str(i), spans) for i, spans in enumerate(groups) if spans or i == 0]

    def scan(
        self,
        *,
        partition: Partition | None = None,
        after: Cursor | None = None,
        batch_size: int = 1024,
        fields: Fields = Fields.ALL,
        where: Where | None = None,
    ) -> Iterator[RecordBatch]:
        """A cursor is ``[number of the file, byte offset of the next line]``."""
        spans = self._spans(partition, after)
        read = fields if where is None else Fields(fields.vectors, fields.text, metadata=True)
        for batch, _ in self._batches(spans, read, batch_size):
            yield batch if where is None else filtered(batch, where, fields)

    def _spans(
        self, partition: Partition | None, after: Cursor | None
    ) -> list[tuple[int, int, int | None]]:
        """``(file, start, stop)`` still to be read."""
        spans: list[Any] = [(i, 0, None) for i in range(len(self.files()))]
        if partition is not None:
            spans = [(i, start, None if stop < 0 else stop) for i, start, stop in partition.bounds]
        if after is None:
            return spans
        at, offset = after
        left = [(i, max(start, offset) if i == at else start, stop) for i, start, stop in spans if i >= at]
        return [(i, start, stop) for i, start, stop in left if stop is None or start < stop]

    def _batches(
        self, spans: Sequence[Any], fields: Fields, size: int
    ) -> Iterator[tuple[RecordBatch, Array]]:
        """Batches with their cursors set, and the position of each row."""
        held: list[_Line] = []
        held_bytes = 0
        paths, schema = self._paths(), self._schema()
        for at, start, stop in spans:
            for offset, line in lines(paths[at], start, stop):
                held.append((at, offset, line))
                held_bytes += len(line)
                if len(held) == size or held_bytes > _BATCH_BYTES:
                    yield self._walled(paths, held, schema, fields)
                    held, held_bytes = [], 0
        if held:
            yield self._walled(paths, held, schema, fields)

    def _walled(
        self, paths: Sequence[Path], held: Sequence[_Line], schema: CollectionSchema | None, fields: Fields
    ) -> tuple[RecordBatch, Array]:
        at, offset, _ = held[0]
        with reading_foreign(self.files()[at], where=f"byte {offset}"):
            return self._batch(paths, held, schema, fields)

    def _batch(
        self, paths: Sequence[Path], held: Sequence[_Line], schema: CollectionSchema | None, fields: Fields
    ) -> tuple[RecordBatch, Array]:
        rows, kept = [], []
        for entry in self._without_vectors(held, schema, fields):
            row = self._row(paths, entry)
            if row is None:
                continue
            if not self._skip_bad:  # else a bad vector tells that the line is bad
                # A parsed number takes eight times its bytes: what nobody wants goes at once.
                for side in (row.vectors, row.sparse):
                    for name in [name for name in side if not fields.wants(name)]:
                        del side[name]
            rows.append(row)
            kept.append(entry)
        columns = self._columns(paths, rows, kept, schema or CollectionSchema(), fields)
        last = held[-1]
        batch = RecordBatch(
            **columns,
            texts=[row.text for row in rows] if fields.text else None,
            metadata=self._metadata(paths, rows, kept) if fields.metadata else None,
            cursor=[last[0], last[1] + len(last[2])],
        )
        return batch, np.array([_position(entry) for entry in kept], dtype=np.int64)

    def _without_vectors(
        self, held: Sequence[_Line], schema: CollectionSchema | None, fields: Fields
    ) -> Sequence[_Line]:
        """The lines, those of the unnamed field's vectors cut out that nobody wants."""
        if self._skip_bad or fields.wants("") or (schema is None and fields.vectors):
            return held
        field = next((f for f in schema.fields if f.name == ""), None) if schema is not None else None
        if schema is not None and (field is None or field.kind is not Kind.DENSE):
            return held
        name = self._names["vector"] if schema is None else "vector"
        rest = cut_vectors([line for _, _, line in held], name)
        if rest is None:
            return held
        return [(at, start, line) for (at, start, _), line in zip(held, rest, strict=True)]

    def _columns(
        self,
        paths: Sequence[Path],
        rows: list[JsonRecord],
        kept: list[_Line],
        schema: CollectionSchema,
        fields: Fields,
    ) -> dict[str, Any]:
        """The columns of ``rows``; those that are bad are taken out of ``rows`` and ``kept``, or raised."""
        while True:
            try:
                columns = columns_of(rows, schema, (lambda _: True) if self._skip_bad else fields.wants)
                break
            except BadRow as error:
                if error.relative or not self._skip_bad:
                    raise self._complaint(paths, kept[error.row], error) from error
                del rows[error.row], kept[error.row]
        for side in ("vectors", "sparse_vectors"):
            columns[side] = {name: c for name, c in columns[side].items() if fields.wants(name)}
        return columns

    def _metadata(self, paths: Sequence[Path], rows: list[JsonRecord], kept: list[_Line]) -> JsonColumn:
        try:
            return metadata_of(rows)
        except Unkeepable as error:
            raise self._complaint(paths, kept[error.row], error) from error

    def _row(self, paths: Sequence[Path], entry: _Line) -> JsonRecord | None:
        try:
            names = self._names if self._is_foreign(entry[0]) else {}
            return load_row(entry[2], names, _position(entry))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if self._skip_bad:
                return None
            raise self._complaint(paths, entry, error) from error

    def _complaint(self, paths: Sequence[Path], entry: _Line, reason: Exception) -> CorruptDataError:
        at, offset, _ = entry
        what = "line" if paths[at] == self.files()[at] else "record"
        or_skip = "" if isinstance(reason, BadRow) and reason.relative else " or pass on_bad_line='skip'"
        return CorruptDataError(
            f"{self.files()[at]} {what} {line_number(paths[at], offset)} is not a record: {reason}; "
            f"repair the {what}{or_skip}"
        )

    # -- what the common part asks for --------------------------------------------------------

    def _located(self, batch_size: int, fields: Fields) -> Iterator[tuple[RecordBatch, Array]]:
        yield from self._batches(self._spans(None, None), fields, batch_size)

    def _at(self, positions: Array, fields: Fields) -> RecordBatch:
        paths, schema = self._paths(), self._schema()
        order = np.argsort(positions, kind="stable")
        held: list[_Line] = []
        handle: IO[bytes] | None = None
        current = -1
        for position in positions[order].tolist():
            at, offset = position >> _FILE_SHIFT, position & ((1 << _FILE_SHIFT) - 1)
            if at != current:
                if handle is not None:
                    handle.close()
                handle, current = open_lines(paths[at]), at
            assert handle is not None
            handle.seek(offset)
            held.append((at, offset, handle.readline()))
        if handle is None:
            return RecordBatch(ids=[])
        handle.close()
        batch, _ = self._batch(paths, held, schema, fields)
        return batch.take(np.argsort(order)).replace(cursor=None)

    def _encode(self, batch: RecordBatch, schema: CollectionSchema) -> tuple[bytes, Array, str]:
        first = not self._log.rows_path.stat().st_size and not self._log.about["keep"]
        rows = list(dump_rows(batch, _header(schema) if first else None))
        return b"".join(rows), np.array([len(row) for row in rows], dtype=np.uint64), kind_of(batch)

    def _build(self, place: Path, pending: Pending) -> None:
        target = place
        if self.is_folder:
            place.mkdir()
            target = place / "part-00000.jsonl"
        if pending.untouched and len(pending.entries) and not target.name.endswith(".gz"):
            _link(self._log.rows_path, target)
            return
        with _create(target) as out:
            wrote = False
            for line in self._surviving_lines(pending):
                out.write(line if wrote else _with_header(line, pending.schema))
                wrote = True
            if not wrote:
                out.write(orjson.dumps({ENVELOPE: _header(pending.schema)}) + b"\n")

    def _surviving_lines(self, pending: Pending) -> Iterator[bytes]:
        """The lines of the old content that stay, then those of the log."""
        if pending.base is not None:
            yield from self._old_lines(pending)
        with self._log.rows_path.open("rb") as handle:
            for length, keep in zip(pending.entries["length"].tolist(), pending.keep.tolist(), strict=True):
                line = handle.read(length)
                if keep:
                    yield line

    def _old_lines(self, pending: Pending) -> Iterator[bytes]:
        paths = self._paths()
        found = (
            (at, offset, line)
            for at, start, stop in self._spans(None, None)
            for offset, line in lines(paths[at], start, stop)
        )
        while held := list(islice(found, 1024)):
            read = [(entry, self._row(paths, entry)) for entry in held]
            rows = [(entry, row) for entry, row in read if row is not None]
            stays = pending.stays([row.id for _, row in rows])
            pending.rows += int(stays.sum())
            for entry, row in compress(rows, stays):
                yield self._kept(entry, row, named=self._is_foreign(entry[0]) and any(self._names.values()))

    def _kept(self, entry: _Line, row: JsonRecord, *, named: bool) -> bytes:
        """The line as it is, unless what it says hangs on its place in the file or on an option."""
        if named or row.id == _position(entry):
            columns = columns_of([row], CollectionSchema(), lambda _: True)
            batch = RecordBatch(**columns, texts=[row.text], metadata=metadata_of([row]))
            return next(dump_rows(batch))
        line = without_mark(entry[2])
        return line if line.endswith(b"\n") else line + b"\n"

    def _twin(self, path: Path) -> JsonlStore:
        return JsonlStore(path)


def _schema_of_file(path: Path) -> CollectionSchema | None:
    """What the first line says; ``None`` in a foreign file."""
    for _, line in lines(path):
        try:
            envelope, _ = header_of(line)
            return CollectionSchema(**envelope["schema"]) if "schema" in envelope else None
        except (ValueError, TypeError, RecursionError):
            return None  # the scan tells what is wrong with the line
    return None


def _said(schema: CollectionSchema) -> str:
    fields = ", ".join(
        f"{f.name or 'vector'}: {f.dim} d {f.dtype} {f.metric}" + (f" of {f.space}" if f.space else "")
        for f in schema.fields
    )
    return fields or "no vectors"


def _undeclared(schema: CollectionSchema) -> CollectionSchema:
    """A foreign file states no metric."""
    fields = tuple(field.model_copy(update={"metric_declared": False}) for field in schema.fields)
    return schema.model_copy(update={"fields": fields})


def _position(line: _Line) -> int:
    return line[0] << _FILE_SHIFT | line[1]


def _header(schema: CollectionSchema) -> dict[str, Any]:
    return {"schema": schema.model_dump(mode="json", exclude_none=True)}


def _count(path: Path) -> int:
    """Lines that are records: not blank, and not a header that stands alone."""
    total, first = 0, b""
    for _, line in lines(path):
        first = first or line
        total += 1
    return total - (len(first) < _HEADER and _is_header(first))


def _is_header(line: bytes) -> bool:
    try:
        return header_of(line)[1]
    except ValueError:
        return False


def _with_header(line: bytes, schema: CollectionSchema) -> bytes:
    """The line with the schema in its envelope."""
    return line if "schema" in header_of(line)[0] else with_header(line, _header(schema))


def _ranges(path: Path, size: int, share: int) -> Iterator[tuple[int, int]]:
    if path.name.endswith(".gz"):
        yield 0, -1
        return
    edges = sorted({align(path, at) for at in range(0, size, share)} | {size})
    yield from pairwise(edges)


def _create(path: Path) -> IO[bytes]:
    if path.name.endswith(".gz"):
        return gzip.GzipFile(path, "wb", compresslevel=6, mtime=0)  # type: ignore[return-value]
    return path.open("wb")


def _link(source: Path, target: Path) -> None:
    """The log is the file already; a link leaves it in place until all is done."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
