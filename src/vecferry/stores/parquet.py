"""``parquet:PATH``: Apache Parquet, one file or a folder of part files.

A path that ends in ``.parquet`` (or ``.pq``) is a file, any other a folder. The columns are those of
`vecferry.model.arrow`; the collection's schema, with the embedding space of each field, is in the file's
key-value metadata. Foreign files are read by the names and types of their columns, or as the options
``id``, ``text``, ``vector`` and ``metadata`` say; columns that are none of these become metadata.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vecferry.core.wall import reading_foreign
from vecferry.errors import (
    CorruptDataError,
    MissingDependencyError,
    SchemaMismatchError,
)
from vecferry.model import CollectionSchema, Kind, Loss, RecordBatch, Where, type_name
from vecferry.model.foreign import VECTOR_NAMES
from vecferry.model.vectors import Array
from vecferry.ports import Cursor, Fields, Partition, StoreURL
from vecferry.stores.kit.checks import filtered, kind_of
from vecferry.stores.kit.files import FileStore, Pending
from vecferry.stores.kit.options import one_of

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from vecferry.model.arrow import Layout
else:
    try:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq
    except ImportError as error:  # pragma: no cover
        raise MissingDependencyError("parquet:", "parquet") from error

from vecferry.model.arrow import (
    arrow_numbers,
    arrow_schema,
    batch_from_arrow,
    batch_to_arrow,
    has_nanoseconds,
    layout_of,
    schema_from_arrow,
    sub_microseconds,
)

GROUP_BYTES = 16 << 20
"""About the size of a row group before compression; what is read and written at a time."""
GROUPS_PER_PART = 16
_FIRST_ROWS = 4096
_UNFOLDED = 64 << 20  # bytes of text a batch
_BUFFER = 1 << 20  # bytes read at a time, a column
_COMPRESSIONS = ("zstd", "snappy", "lz4", "gzip", "none")
_WIDE = ("double", "int32", "int64")
_ROW_EXTRA = 512  # text and metadata of a row, as a guess that decides nothing but the group size


class ParquetStore(FileStore):
    """Source, sink and every ability on Parquet files.

    Args:
        path: a file or a folder.
        id, text, vector, metadata: the columns of a foreign file; by default they are guessed.
        compression: ``zstd``, ``snappy``, ``lz4``, ``gzip`` or ``none``, for everything but the vectors,
            which hardly compress.
    """

    scheme = "parquet"
    suffixes = (".parquet", ".pq")

    def __init__(
        self,
        path: str | Path,
        *,
        id: str | None = None,
        text: str | None = None,
        vector: str | None = None,
        metadata: str | None = None,
        compression: str = "zstd",
    ) -> None:
        super().__init__(path)
        one_of("parquet", "compression", compression, _COMPRESSIONS)
        self._names = {"id": id, "text": text, "vector": vector, "metadata": metadata}
        self._compression = compression
        self._looked: tuple[Any, _Look] | None = None

    @classmethod
    def from_url(cls, url: StoreURL, **options: Any) -> ParquetStore:
        return cls(url.path or ".", **options)

    # -- source -------------------------------------------------------------------------------

    def describe(self) -> CollectionSchema:
        look = self._look()
        with self._open(self.files()[0]) as first:
            layout = self._layout(first.schema_arrow)
            known = schema_from_arrow(first.schema_arrow) if layout.own else None
            sample = next(self._read(first, 0, layout, Fields.ALL, 256), None)
        schema = known or self._guess(layout, sample)
        types = schema.metadata_types or (_metadata_types(sample) if sample is not None else {})
        return schema.model_copy(
            update={
                "name": schema.name or self.path.stem,
                "count": self.count(),
                "id_type": layout.id_kind,
                "ids_unique": layout.id is None,  # row numbers; all else is measured by whoever asks
                "metadata_types": types,
                "losses": look.losses,
            }
        )

    def _look(self) -> _Look:
        """What all files say of themselves, looked up once as long as they stay.

        Raises:
            SchemaMismatchError: if two files do not belong to one collection.
        """
        stamp = self._stamp()
        if self._looked is None or self._looked[0] != stamp:
            self._looked = None
            lists: set[str] = set()
            for path in self.files():
                with self._open(path) as file, reading_foreign(path):
                    lists |= set(self._ragged(file))
            self._looked = stamp, _Look(frozenset(lists))
            self._looked = stamp, _Look(frozenset(lists), self._compare_files())
        return self._looked[1]

    def _ragged(self, file: pq.ParquetFile) -> Iterator[str]:
        """Columns of float lists of differing lengths: they are no vectors, unless their name says so."""
        for place in layout_of(file.schema_arrow, lists=(), **self._names).vectors:
            sure = place.column in VECTOR_NAMES or place.column == self._names["vector"]
            if sure or place.dim or place.kind is not Kind.DENSE or place.field.name == "":
                continue
            if _is_ragged(file, place.column):
                yield place.column

    def _compare_files(self) -> tuple[Loss, ...]:
        """The losses of all files, after a look at whether they fit each other."""
        first: tuple[Path, Any] | None = None
        losses: dict[str, Loss] = {}
        for path in self.files():
            with self._open(path) as file, reading_foreign(path):
                arrow = file.schema_arrow
                layout = self._layout(arrow)
                own = schema_from_arrow(arrow) if layout.own else None
                fields = own.fields if own else tuple(place.field for place in layout.vectors)
                says = {"id": layout.id, "text": layout.text, "vectors": fields}
                if first is None:
                    first = path, says
                for part, value in says.items():
                    if value != first[1][part]:
                        raise SchemaMismatchError(
                            f"{path} has another {part} than {first[0]} ({_said(value)}, not "
                            f"{_said(first[1][part])}); read them one by one, or name the columns"
                        )
                for loss in () if layout.own else _losses(file, layout):
                    before = losses.get(loss.detail)
                    count = (loss.count or 0) + ((before.count or 0) if before else 0)
                    losses[loss.detail] = loss.model_copy(update={"count": count or None})
        return tuple(losses.values())

    def _guess(self, layout: Layout, sample: RecordBatch | None) -> CollectionSchema:
        fields = []
        for place in layout.vectors:
            column = sample.vectors.get(place.name) if sample is not None else None
            dim = place.dim or (column.values.shape[1] if column is not None else None) or None
            fields.append(place.field.model_copy(update={"dim": dim}))
        return CollectionSchema(fields=tuple(fields), has_text=layout.text is not None)

    def count(self) -> int:
        return sum(rows for _, rows in self._counts())

    def partitions(self, want: int) -> Sequence[Partition]:
        """Runs of row groups of about equal numbers of rows."""
        groups = self._groups()
        total = sum(rows for _, _, rows in groups)
        share = max(total / max(want, 1), 1)
        parts: list[Partition] = []
        start = rows = 0
        for at, (_, _, size) in enumerate(groups):
            rows += size
            if rows >= share * 0.999 or at == len(groups) - 1:
                parts.append(Partition(str(len(parts)), [start, at + 1], rows))
                start, rows = at + 1, 0
        return parts or [Partition("0", [0, 0], 0)]

    def scan(
        self,
        *,
        partition: Partition | None = None,
        after: Cursor | None = None,
        batch_size: int = 1024,
        fields: Fields = Fields.ALL,
        where: Where | None = None,
    ) -> Iterator[RecordBatch]:
        """A cursor is ``[row group, rows of it already read]``, groups counted over all files."""
        first, last = partition.bounds if partition else (0, None)
        group, skip = after or (first, 0)
        read = fields if where is None else Fields(fields.vectors, fields.text, metadata=True)
        for at, start, batch in self._batches(group, last, skip, batch_size, read):
            chosen = batch if where is None else filtered(batch, where, fields)
            yield chosen.replace(cursor=[at, start + len(batch)])

    def _batches(
        self, first: int, last: int | None, skip: int, batch_size: int, fields: Fields
    ) -> Iterator[tuple[int, int, RecordBatch]]:
        """``(group, first row in it, batch)`` from ``skip`` rows into group ``first`` up to ``last``."""
        base = number = 0
        for path, groups in self._files_and_groups():
            with self._open(path) as file:
                layout = self._layout(file.schema_arrow)
                for inner, rows in enumerate(groups):
                    at = base + inner
                    if first <= at and (last is None or at < last):
                        offset = skip if at == first else 0
                        for start, batch in self._group(file, inner, layout, fields, batch_size, offset):
                            yield at, start, _numbered(batch, layout, number + start)
                    number += rows
            base += len(groups)

    def _group(
        self, file: pq.ParquetFile, group: int, layout: Layout, fields: Fields, size: int, skip: int
    ) -> Iterator[tuple[int, RecordBatch]]:
        start = 0
        for batch in self._read(file, group, layout, fields, size):
            begin = max(skip - start, 0)
            if begin < len(batch):
                yield start + begin, batch.slice(begin, len(batch)) if begin else batch
            start += len(batch)

    def _pick(
        self, file: pq.ParquetFile, group: int, rows: Array, fields: Fields, start: int
    ) -> Iterator[tuple[Array, RecordBatch]]:
        """The given rows of a group: which of ``rows``, and their records. Others are never converted."""
        layout = self._layout(file.schema_arrow)
        first = 0
        for batch in self._arrow(file, group, layout, fields, 8192):
            inside = np.flatnonzero((rows >= first) & (rows < first + batch.num_rows))
            if len(inside):
                local = rows[inside] - first
                with reading_foreign(self.url, where=f"row group {group}"):
                    picked = batch_from_arrow(batch.take(arrow_numbers(np.asarray(local))), layout)
                yield inside, picked if layout.id else picked.replace(ids=start + first + local)
            first += batch.num_rows

    def _read(
        self, file: pq.ParquetFile, group: int, layout: Layout, fields: Fields, size: int
    ) -> Iterator[RecordBatch]:
        for batch in self._arrow(file, group, layout, fields, size):
            for piece in _unfolded(batch):
                with reading_foreign(self.url, where=f"row group {group}"):
                    made = batch_from_arrow(piece, layout)
                yield made

    def _arrow(
        self, file: pq.ParquetFile, group: int, layout: Layout, fields: Fields, size: int
    ) -> Iterator[pa.RecordBatch]:
        if group >= file.num_row_groups:
            return
        names = [place.name for place in layout.vectors if fields.wants(place.name)]
        columns = layout.columns(vectors=names, text=fields.text, metadata=fields.metadata)
        # Row numbers alone need some column to count.
        columns = columns or file.schema_arrow.names[:1]
        try:
            batches = file.iter_batches(size, row_groups=[group], columns=columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(group, error) from error
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError, MemoryError) as error:
                raise self._damaged(group, error) from error
            if batch is None:
                return
            yield batch

    def _damaged(self, group: int, error: Exception) -> CorruptDataError:
        return CorruptDataError(
            f"row group {group} of {self.url} cannot be read: {error}; restore the file"
        )

    def _open(self, path: Path) -> pq.ParquetFile:
        try:
            # A row group of a foreign file may be larger than memory: read its columns piece by piece.
            file = pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
            folded = _folded_columns(file)
            if not folded:
                return file
            file.close()
            # What a dictionary unfolds to is bounded by `_unfolded`, not by the size of the file.
            return pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False, read_dictionary=folded)
        except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
            raise CorruptDataError(f"{path} is not a whole Parquet file: {error}; restore it") from error

    def _layout(self, arrow: pa.Schema) -> Layout:
        lists = self._look().lists if self._looked is None else self._looked[1].lists
        return layout_of(arrow, lists=lists, **self._names)

    def _files_and_groups(self) -> Iterator[tuple[Path, list[int]]]:
        for path in self.files():
            with self._open(path) as file:
                about = file.metadata
                yield path, [about.row_group(i).num_rows for i in range(about.num_row_groups)]

    def _counts(self) -> list[tuple[Path, int]]:
        return [(path, sum(groups)) for path, groups in self._files_and_groups()]

    def _groups(self) -> list[tuple[Path, int, int]]:
        return [(path, i, n) for path, groups in self._files_and_groups() for i, n in enumerate(groups)]

    # -- what the common part asks for --------------------------------------------------------

    def _located(self, batch_size: int, fields: Fields) -> Iterator[tuple[RecordBatch, Array]]:
        row = 0
        for _, _, batch in self._batches(0, None, 0, batch_size, fields):
            yield batch, np.arange(row, row + len(batch))
            row += len(batch)

    def _at(self, positions: Array, fields: Fields) -> RecordBatch:
        groups = self._groups()
        ends = np.cumsum([rows for _, _, rows in groups])
        which = np.searchsorted(ends, positions, side="right")
        found: list[RecordBatch] = []
        order: list[Array] = []
        for group in np.unique(which).tolist():
            path, inner, rows = groups[group]
            asked = np.flatnonzero(which == group)
            start = int(ends[group]) - rows
            with self._open(path) as file:
                for local, batch in self._pick(file, inner, positions[asked] - start, fields, start):
                    found.append(batch)
                    order.append(asked[local])
        if not found:
            return RecordBatch(ids=[])
        return RecordBatch.concat(found).take(np.argsort(np.concatenate(order)))

    def _encode(self, batch: RecordBatch, schema: CollectionSchema) -> tuple[bytes, Array, str]:
        kind = kind_of(batch)
        arrow = batch_to_arrow(batch, schema, kind)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, arrow.schema) as writer:
            writer.write_batch(arrow)
        data = sink.getvalue()
        lengths = np.zeros(len(batch), dtype=np.uint64)
        lengths[:1] = data.size  # one piece for all the rows of the batch
        return data, lengths, kind

    def _build(self, place: Path, pending: Pending) -> None:
        arrow = arrow_schema(pending.schema, pending.id_kind())
        rows = group_rows(pending.schema)
        writer = _PartWriter(place, arrow, rows, self._compression, folder=self.is_folder)
        for piece in _regroup(_all_rows(pending, arrow), rows):
            writer.write(piece)
        writer.close()

    def _twin(self, path: Path) -> ParquetStore:
        return ParquetStore(path, compression=self._compression)


def group_rows(schema: CollectionSchema) -> int:
    """Rows a group: fixed by the schema alone, so that the same records give the same file."""
    width = sum(
        np.dtype(f.dtype.numpy).itemsize * f.dtype.width(f.dim or 64) * (1 if f.kind == "dense" else 32)
        for f in schema.fields
    )
    return max(GROUP_BYTES // (width + _ROW_EXTRA), 256)


class _PartWriter:
    """One file, or part files of `GROUPS_PER_PART` groups each."""

    def __init__(self, place: Path, arrow: pa.Schema, rows: int, compression: str, *, folder: bool) -> None:
        self._place, self._arrow, self._rows = place, arrow, rows
        self._folder = folder
        vectors = [name for name in arrow.names if name.startswith("vector")]
        others = [name for name in arrow.names if name not in vectors]
        self._options = {
            "compression": dict.fromkeys(others, compression) if compression != "none" else "none",
            "use_dictionary": [],
            "write_statistics": others,
        }
        self._parts = self._groups = 0
        self._writer = self._next()

    def write(self, table: pa.Table) -> None:
        if self._folder and self._groups == GROUPS_PER_PART:
            self._writer.close()
            self._writer = self._next()
        self._writer.write_table(table, row_group_size=self._rows)
        self._groups += 1

    def close(self) -> None:
        self._writer.close()

    def _next(self) -> pq.ParquetWriter:
        path = self._place
        if self._folder:
            path.mkdir(exist_ok=True)
            path = path / f"part-{self._parts:05d}.parquet"
        self._parts, self._groups = self._parts + 1, 0
        return pq.ParquetWriter(path, self._arrow, **self._options)


def _all_rows(pending: Pending, arrow: pa.Schema) -> Iterator[pa.Table]:
    """What survives of the old content, then the log, as tables of the final schema."""
    kind = layout_of(arrow).id_kind
    for batch in pending.survivors(4096):
        yield pa.Table.from_batches([batch_to_arrow(batch, pending.schema, kind)], arrow)
    with pending.log.rows_path.open("rb") as handle:
        for first, after, offset, length in pending.log.chunks(pending.entries):
            handle.seek(offset)
            with pa.ipc.open_stream(handle.read(length)) as stream:
                table = stream.read_all()
            keep = pending.keep[first:after]
            if not keep.all():
                table = table.filter(pa.array(keep))
            yield _with_ids(table, kind).cast(arrow)


def _with_ids(table: pa.Table, kind: str) -> pa.Table:
    """The same rows with their ids in the final form, where batches differ in the kind of their ids."""
    if layout_of(table.schema).id_kind == kind:
        return table
    batch = batch_from_arrow(table.select(["id"]))
    ids = batch_to_arrow(batch, CollectionSchema(), kind)
    return table.set_column(0, ids.schema.field(0), ids.column(0))


def _regroup(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Tables of exactly ``rows`` rows, the last one shorter."""
    held: list[pa.Table] = []
    have = 0
    for table in tables:
        held.append(table)
        have += table.num_rows
        while have >= rows:
            joined = pa.concat_tables(held)
            yield joined.slice(0, rows)
            held, have = [joined.slice(rows)], have - rows
    if have:
        yield pa.concat_tables(held)


def _numbered(batch: RecordBatch, layout: Layout, start: int) -> RecordBatch:
    """Row numbers as ids where the file has none."""
    if layout.id is not None:
        return batch
    return batch.replace(ids=np.arange(start, start + len(batch), dtype=np.int64))


def _metadata_types(sample: RecordBatch) -> dict[str, str]:
    return {key: type_name(value) for row in sample.metadata_list for key, value in row.items()}


@dataclass(frozen=True, slots=True)
class _Look:
    """What the files of a collection say of themselves.

    Attributes:
        lists: columns of numbers that are metadata, since their lengths differ.
        losses: what is not read as it is.
    """

    lists: frozenset[str]
    losses: tuple[Loss, ...] = ()


def _said(value: Any) -> str:
    if not isinstance(value, tuple):
        return repr(value)
    return ", ".join(f"{f.name or 'vector'}: {f.dim} d {f.dtype} {f.metric}" for f in value) or "none"


def _is_ragged(file: pq.ParquetFile, column: str) -> bool:
    """Told from the first rows of each row group. (What the footer says of columns is not asked for:
    a damaged one ends the process there.)"""
    found: set[int] = set()
    for group in range(file.num_row_groups):
        for batch in file.iter_batches(256, row_groups=[group], columns=[column], use_threads=False):
            found |= set(batch.column(0).value_lengths().drop_null().unique().to_pylist())
            break
        if len(found) > 1:
            return True
    return False


def _folded_columns(file: pq.ParquetFile) -> list[str]:
    """Text columns of which a small dictionary may unfold to very much."""
    if (file.schema_arrow.metadata or {}).get(b"vecferry"):
        return []
    texts = (pa.types.is_string, pa.types.is_binary)
    return [field.name for field in file.schema_arrow if any(is_(field.type) for is_ in texts)]


def _unfolded(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in pieces that stay small when their dictionaries are unfolded."""
    sizes = np.zeros(batch.num_rows, dtype=np.int64)
    for column in batch.columns:
        if pa.types.is_dictionary(column.type) and len(column.dictionary):
            lengths = pc.binary_length(column.dictionary).fill_null(0).to_numpy(zero_copy_only=False)
            codes = column.indices.fill_null(0).to_numpy(zero_copy_only=False)
            sizes += lengths.astype(np.int64)[codes]
    if not len(sizes) or int(sizes.sum()) <= _UNFOLDED:
        yield batch
        return
    start = 0
    while start < len(sizes):
        stop = start + max(int(np.searchsorted(np.cumsum(sizes[start:]), _UNFOLDED, side="right")), 1)
        yield batch.slice(start, stop - start)
        start = stop


def _losses(file: pq.ParquetFile, layout: Layout) -> Iterator[Loss]:
    """What a foreign file holds and is not read as it is."""
    arrow = file.schema_arrow
    for place in layout.vectors:
        for name in _WIDE:
            if name in str(arrow.field(place.column).type):
                wide = name.replace("double", "float64")
                detail = f"{wide} in {place.column!r} is read as float32"
                yield Loss(kind="vector", detail=detail, count=file.metadata.num_rows, where="source")
    beside = [name for name in (layout.metadata, *layout.extra) if name is not None]
    for name in beside:
        if not has_nanoseconds(arrow.field(name).type):
            continue
        batches = file.iter_batches(_FIRST_ROWS, columns=[name], use_threads=False)
        count = sum(sub_microseconds(batch.column(0)) for batch in batches)
        if count:
            detail = f"values of {name!r} are finer than a microsecond, to which they are cut"
            yield Loss(kind="metadata", detail=detail, count=count, where="source")
