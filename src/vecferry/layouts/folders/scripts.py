"""What hand-written scripts and smaller libraries leave beside an index.

| shape | such as |
|---|---|
| a list of records or of texts, in row order | ``metadata.json``, ``chunks.jsonl``, ``docs.pkl`` |
| records under the index's numbers | ``{"0": {…}, "1": {…}}``, ``{-5: {…}}`` |
| records under their ids, in row order | ``{"doc-1": {…}}`` (only where the index counts from 0) |
| parallel lists | ``{"texts": […], "metadatas": […], "ids": […]}``; ``texts.json`` beside ``ids.npy`` |
| one list among other things | ``{"documents": […], "model": "…"}`` |
| ids in row order, records by id | ``{"vector_ids": […], "metadata": {…}}`` (semantica) |
| records by id, ids by number | ``({id: payload}, {number: id})`` (mem0) |
| a table | ``meta.csv``, a Parquet file, haystack's SQLite file |

The usual names (`vecferry.model.foreign`) say what is what in a record. Its id, which ``id=`` may name, is
the id if every record has one, else the number of its vector is; ``id="row"`` takes the number in any case.
"""

from __future__ import annotations

import csv
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vecferry.errors import ConfigurationError, CorruptDataError, MissingDependencyError
from vecferry.layouts.envelope import open_envelope, seal
from vecferry.layouts.folders.entries import (
    NO_ID,
    Entries,
    Entry,
    IdList,
    Numbering,
    Renamed,
    Sidecar,
    Spool,
    check_count,
    in_row_order,
    is_native,
    pair,
)
from vecferry.layouts.folders.inert import Documents
from vecferry.layouts.folders.jsonwalk import JsonWalk
from vecferry.layouts.folders.pickle_write import pickle_piece
from vecferry.layouts.folders.pickles import check_size, read_pickle
from vecferry.model import ENVELOPE, Loss, dump_json, encode_id, parse_json
from vecferry.model.foreign import ID_NAMES, METADATA_NAMES, TEXT_NAMES, join_metadata, pop_part
from vecferry.model.ids import check_id
from vecferry.model.vectors import Array

SUFFIXES = (".pkl", ".pickle", ".json", ".jsonl", ".ndjson", ".csv", ".parquet", ".db", ".sqlite")
_TEXTS = (*TEXT_NAMES, "data")  # as mem0 calls it
_ROW_LISTS: tuple[str, ...] = (
    "documents",
    "docs",
    "chunks",
    "texts",
    "records",
    "passages",
    "contents",
    "rows",
    "data",
)
_ROW_LISTS += (
    "rows",
    "data",
    "items",
    "entries",
    "nodes",
    "points",
    "sentences",
    "metadata",
    "metadatas",
    "metas",
)
_META_LISTS = ("metadatas", "metadata", "metas", "meta", "payloads")
_ID_LISTS = ("vector_ids", "ids", "doc_ids", "chunk_ids", "uuids")
_NUMBERED_IDS = ("index_to_id", "index_to_docstore_id", "index_to_doc_id", "id_map")
_MOST_KEYS = 16
_HAYSTACK_META = "SELECT document_id, name, value FROM meta_document"
_HAYSTACK_DOCUMENTS = "SELECT vector_id, id, content FROM document WHERE vector_id IS NOT NULL"
_TAKEN = object()
Rows = Iterator[tuple[Any, Any]]


def read_script(path: Path, numbering: Numbering, *, id: str | None = None) -> Sidecar:
    """The records of an index so numbered.

    Args:
        id: the key of a record that holds its id; ``"row"`` for the number of its vector.

    Raises:
        CorruptDataError: if they are fewer or more than the vectors, or do not say which belongs to which.
        UnsafePickleError: if a pickle asks for anything but plain values.
    """
    reader = {
        ".pkl": _Pickled,
        ".pickle": _Pickled,
        ".json": _Json,
        ".csv": _Csv,
        ".parquet": _Parquet,
        ".db": _Haystack,
        ".sqlite": _Haystack,
    }.get(path.suffix, _Lines)
    with Spool() as spool:
        records = _Reader(path, numbering, spool, id)
        return records.read(reader(path) if reader is not _Pickled else _Pickled(path, records.take))


class _Shape(NamedTuple):
    """How the parts of an outer object belong together.

    Attributes:
        rows: the key of the records.
        ids: the key of the ids, in row order or by number.
        metadata: the key of a list parallel to ``rows``.
        more: further parallel lists.
        ignored: keys that are not read.
    """

    rows: str
    ids: str | None = None
    metadata: str | None = None
    more: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def _shape_of(outline: Mapping[str, tuple[str, int]]) -> _Shape | None:
    """The shape of an object with few keys; ``None`` if it is a mapping of records."""

    def first(names: Iterable[str], opening: str) -> str | None:
        return next((name for name in names if outline.get(name, ("", 0))[0] == opening), None)

    objects = first(("docstore", *_META_LISTS, *_ROW_LISTS), "{")
    ids = first(_NUMBERED_IDS, "{") or first(_ID_LISTS, "[")
    if objects is not None and ids is not None:
        return _Shape(objects, ids, ignored=tuple(k for k in outline if k not in (objects, ids)))
    rows = first(_ROW_LISTS, "[")
    if rows is None:
        return None
    count = outline[rows][1]
    parallel = [name for name, (kind, n) in outline.items() if kind == "[" and n == count and name != rows]
    metadata = next((name for name in _META_LISTS if name in parallel), None)
    ids = next((name for name in _ID_LISTS if name in parallel), None)
    more = [k for k in parallel if k not in (metadata, ids) and not k.startswith(("embed", "vector"))]
    used = {rows, ids, metadata, *more}
    return _Shape(rows, ids, metadata, tuple(more), tuple(k for k in outline if k not in used))


# -- what the files hold ----------------------------------------------------------------------


class _Lines:
    """One JSON value a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.shape: _Shape | None = None

    def rows(self, _: str | None = None) -> Rows:
        with self._path.open("rb") as file:
            for line in filter(bytes.strip, file):
                try:
                    yield None, parse_json(line)
                except (ValueError, RecursionError) as error:
                    raise CorruptDataError(
                        f"{self._path} holds a line that is not JSON; restore it"
                    ) from error


class _Json:
    """A JSON file, read in bounded memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        outline = JsonWalk(path).outline(_MOST_KEYS)
        self.shape = _shape_of(outline) if outline else None

    def rows(self, key: str | None = None) -> Rows:
        if key is None:
            return JsonWalk(self._path).items()
        return ((k, row) for section, k, row in JsonWalk(self._path).members() if section == key)


class _Pickled:
    """A pickle. The rows of a list are taken out of it while it is read, so that it never is in memory as
    a whole; those of an array, or of a list that began with its items, are still there at the end."""

    def __init__(self, path: Path, take: Callable[[Any, Any], Any]) -> None:
        def keep(row: Any) -> Any:
            take(None, row)
            return _TAKEN

        self._path = path
        self._value = read_pickle(path, keep=keep)
        if isinstance(self._value, tuple) and len(self._value) == 2:
            one, other = self._value
            if isinstance(one, Documents):
                one = one.by_id
            if isinstance(one, dict) and isinstance(other, dict):
                self._value = {"docstore": one, "index_to_id": other}
        outline = None
        if isinstance(self._value, dict) and 0 < len(self._value) <= _MOST_KEYS:
            outline = {key: _opening(value) for key, value in self._value.items() if isinstance(key, str)}
            outline = outline if len(outline) == len(self._value) else None
        self.shape = _shape_of(outline) if outline else None

    def rows(self, key: str | None = None) -> Rows:
        value = self._value if key is None else self._value[key]
        if isinstance(value, dict):
            return iter(value.items())
        if isinstance(value, list | tuple):
            return ((None, row) for row in value if row is not _TAKEN)
        raise CorruptDataError(
            f"{self._path} holds a {type(value).__name__}, not a list or dict of records"
        )


def _opening(value: Any) -> tuple[str, int]:
    if isinstance(value, dict):
        return "{", len(value)
    return ("[", len(value)) if isinstance(value, list | tuple) else ("", 0)


class _Csv:
    """A table with a line of names; every value is a text."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.shape: _Shape | None = None

    def rows(self, _: str | None = None) -> Rows:
        try:
            with self._path.open(encoding="utf-8-sig", newline="") as file:
                for row in csv.DictReader(file):
                    if None in row or None in row.values():
                        raise ValueError("a line has more or fewer fields than the first")
                    yield None, row
        except (csv.Error, ValueError) as error:
            raise CorruptDataError(f"{self._path} is not a CSV table ({error}); restore it") from error


class _Parquet:
    """A Parquet table, a row a vector."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.shape: _Shape | None = None

    def rows(self, _: str | None = None) -> Rows:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise MissingDependencyError("a Parquet sidecar", "parquet") from error
        try:
            with pq.ParquetFile(self._path) as file:
                for batch in file.iter_batches(4096):
                    yield from zip(repeat(None), batch.to_pylist())
        except (pa.ArrowException, OSError) as error:
            raise CorruptDataError(f"{self._path} is not a Parquet file ({error}); restore it") from error


class _Haystack:
    """The SQLite file of haystack's FAISSDocumentStore: documents under the numbers of their vectors."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.shape: _Shape | None = None

    def rows(self, _: str | None = None) -> Rows:
        try:
            with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as db:
                meta: dict[str, dict[str, Any]] = {}
                for document, name, value in db.execute(
                    "SELECT document_id, name, value FROM meta_document"
                ):
                    meta.setdefault(document, {})[name] = value
                found = db.execute(
                    "SELECT vector_id, id, content FROM document WHERE vector_id IS NOT NULL"
                )
                for number, id_, content in found:
                    yield number, {"id": id_, "text": content, "metadata": meta.get(id_, {})}
        except sqlite3.Error as error:
            raise CorruptDataError(
                f"{self._path} is not haystack's document store ({error}); name another file with ?sidecar="
            ) from error


# -- pairing ----------------------------------------------------------------------------------


class _Reader:
    """One sidecar on its way into a spool."""

    def __init__(self, path: Path, numbering: Numbering, spool: Spool, id: str | None) -> None:
        self._path, self._name, self._numbering, self._spool = path, str(path), numbering, spool
        self._from_json = path.suffix in (".json", ".jsonl", ".ndjson", ".csv")
        self._by_row = id == "row"
        self._id_keys = ID_NAMES if id in (None, "row") else (str(id),)
        self._given = id not in (None, "row")
        self._without = 0

    def read(self, file: Any) -> Sidecar:
        shape = file.shape
        if shape is None:
            return self._plain(file)
        ignored = Loss.not_carried(f"keys of {self._name}", shape.ignored)
        if shape.ids in _NUMBERED_IDS:
            sidecar = self._by_number_of_id(file, shape)
        elif shape.ids is not None and shape.metadata is None and _keyed(file, shape):
            sidecar = self._by_listed_id(file, shape)
        else:
            sidecar = self._parallel(file, shape)
        return replace(sidecar, losses=(*sidecar.losses, *ignored))

    def _plain(self, file: Any) -> Sidecar:
        keys = [self.take(key, row) for key, row in file.rows()]
        if keys and keys[0] is not None:
            return self._mapping(keys)  # a list gives no keys, and a pickled one may be taken already
        beside = self._path.with_name("ids.npy")
        ids = _listed(np.load(beside, allow_pickle=False)) if beside.is_file() else None
        if ids is not None and self._without == len(self._spool) == len(ids):
            return in_row_order(
                Renamed(self._spool.seal(), _id_list(ids, self._name)), self._numbering, self._name
            )
        return self._numbered(in_row_order(self._spool.seal(), self._numbering, self._name))

    def _mapping(self, keys: list[Any]) -> Sidecar:
        if all(_is_number(key) for key in keys):
            rows = np.arange(len(keys))
            return self._numbered(
                pair(self._spool.seal(), _numbers(keys, self._path), rows, self._numbering, self._name)
            )
        if self._numbering.has_own_numbers:
            raise CorruptDataError(
                f"{self._name} is keyed by ids where the index has numbers of its own; write the records "
                "as a JSON object keyed by these numbers, or as a list in the order of the vectors"
            )
        check_count(len(keys), self._numbering.count, self._name)
        entries: Entries = self._spool.seal()
        if self._without or self._by_row:
            # The keys are the ids; an id that only some records have stays in the metadata.
            entries = Renamed(entries, _id_list(keys, self._name), keep=True)
            lost: list[str] = []
        else:
            lost = [str(key) for row, key in enumerate(keys) if key != self._spool.ids[row]]
        detail = f"nothing in {self._name} says which vector a record has: the order of the file is taken"
        loss = Loss(kind="id", detail=detail, count=len(keys), where="source")
        losses = (loss, *Loss.not_carried(f"keys of {self._name} beside the records' own ids", lost))
        return in_row_order(entries, self._numbering, self._name, losses)

    def _by_number_of_id(self, file: Any, shape: _Shape) -> Sidecar:
        at = {key: row for row, key in enumerate([self.take(k, r) for k, r in file.rows(shape.rows)])}
        names = [(key, name) for key, name in file.rows(shape.ids)]
        if not all(_is_number(key) for key, _ in names):
            raise CorruptDataError(f"{self._name}: {shape.ids} is not keyed by numbers; restore it")
        known = [(key, name) for key, name in names if name in at]
        if len(known) < len(names) and not self._numbering.live:
            lost = next(name for _, name in names if name not in at)
            raise CorruptDataError(
                f"{self._name}: {shape.rows} lacks {lost!r}; restore it, or read the others with ?live=1"
            )
        entries = Renamed(self._spool.seal(), _id_list(list(at), self._name), keep=True)
        rows = np.array([at[name] for _, name in known], dtype=np.int64)
        keys = _numbers([key for key, _ in known], self._path)
        sidecar = pair(entries, keys, rows, self._numbering, self._name)
        left = sorted(str(name) for name in at.keys() - {name for _, name in known})
        return replace(
            sidecar,
            losses=(*sidecar.losses, *Loss.not_carried(f"records of {self._name} without a vector", left)),
        )

    def _by_listed_id(self, file: Any, shape: _Shape) -> Sidecar:
        keys = [self.take(key, row) for key, row in file.rows(shape.rows)]
        at = {key: row for row, key in enumerate(keys)}
        names = [str(name) if name not in at else name for _, name in file.rows(shape.ids)]
        check_count(len(names), self._numbering.count, self._name)
        missing = next((name for name in names if name not in at), None)
        if missing is not None:
            raise CorruptDataError(f"{self._name}: {shape.rows} lacks {missing!r}; restore the file")
        entries = Renamed(
            self._spool.seal(),
            _id_list(names, self._name),
            np.array([at[name] for name in names], dtype=np.int64),
            keep=True,
        )
        left = sorted(str(name) for name in at.keys() - set(names))
        losses = Loss.not_carried(f"records of {self._name} without a vector", left)
        return in_row_order(entries, self._numbering, self._name, losses)

    def _parallel(self, file: Any, shape: _Shape) -> Sidecar:
        def column(key: str | None) -> Iterator[Any]:
            return repeat(None) if key is None else (row for _, row in file.rows(key))

        more = [column(key) for key in shape.more]
        columns = (column(shape.ids), column(shape.rows), column(shape.metadata), *more)
        for id_, row, metadata, *values in zip(*columns, strict=False):
            body = dict(row) if isinstance(row, Mapping) else {"text": row}
            body |= dict(zip(shape.more, values, strict=True))
            if isinstance(metadata, Mapping):
                body |= {key: value for key, value in metadata.items() if key not in body}
            if id_ is not None:
                body = {self._id_keys[0]: id_, **body}
            self.take(None, body)
        return self._numbered(in_row_order(self._spool.seal(), self._numbering, self._name))

    def _numbered(self, sidecar: Sidecar) -> Sidecar:
        """With the numbers of the vectors as ids, where the records have none, or not all of them."""
        if not self._without and not self._by_row:
            return sidecar
        if self._given and self._without:
            raise ConfigurationError(
                f"{self._name}: {self._without:,} records have no {self._id_keys[0]!r} that can be an id; "
                "name another with ?id=, or take the row numbers with ?id=row"
            )
        numbers = self._numbering.numbers
        numbers = numbers if sidecar.live is None else numbers[sidecar.live]
        by_row = np.full(len(sidecar.entries), -1, dtype=np.int64)
        by_row[np.arange(len(numbers)) if sidecar.order is None else sidecar.order] = numbers
        some = len(sidecar.entries) - self._without
        detail = (
            f"ids of {self._name} go to the metadata, since not all records have one; row numbers are ids"
        )
        loss = Loss(kind="id", detail=detail, count=some, reversible=True, where="source")
        losses = (*sidecar.losses, *((loss,) if some and not self._by_row else ()))
        return replace(sidecar, entries=Renamed(sidecar.entries, by_row, keep=True), losses=losses)

    def take(self, key: Any, row: Any) -> Any:
        """Keep a record and return its key."""
        entry = self._entry(row)
        self._without += entry.id == NO_ID
        self._spool.add(entry, plain=self._from_json and not (isinstance(row, dict) and ENVELOPE in row))
        return key

    def _entry(self, row: Any) -> Entry:
        """One row; the id is `NO_ID` where the row has none that could be one."""
        if not self._from_json:  # JSON cannot share a value, and its parser bounds the depth
            check_size(row, self._name)
        if isinstance(row, str) or row is None:
            return Entry(NO_ID, row, {})
        if not isinstance(row, Mapping):
            raise CorruptDataError(
                f"{self._name} holds a {type(row).__name__} where a record is due: a dict or a text; "
                "name the layout"
            )
        rest = _text_keys(row, self._name)
        envelope = rest.pop(ENVELOPE, None)
        id_ = self._take_id(rest)
        text = pop_part(rest, None, _TEXTS, str)
        if "text" in rest and rest["text"] is None:
            del rest["text"]
        name = next((name for name in METADATA_NAMES if isinstance(rest.get(name), dict)), None)
        body = rest if name is None else join_metadata(name, rest.pop(name), rest)
        original, metadata = open_envelope(body, envelope)
        return Entry(id_ if original is None else original, text, metadata)

    def _take_id(self, row: dict[str, Any]) -> Any:
        for key in self._id_keys:
            if key in row:
                try:
                    id_ = check_id(row[key])
                except TypeError:
                    continue
                del row[key]
                return id_
        return NO_ID


def _text_keys(row: Mapping[Any, Any], name: str) -> dict[str, Any]:
    """The row with texts as keys.

    Raises:
        CorruptDataError: if two keys would become one.
    """
    rest = {key if isinstance(key, str) else str(key): value for key, value in row.items()}
    if len(rest) != len(row):
        raise CorruptDataError(
            f"{name} holds a record with keys that differ in their type only, such as 1 and '1'; "
            "rename one of them"
        )
    return rest


def _keyed(file: Any, shape: _Shape) -> bool:
    return next(iter(file.rows(shape.rows)), (None, None))[0] is not None


def _is_number(key: Any) -> bool:
    if isinstance(key, str):
        return key.removeprefix("-").isdecimal()
    return type(key) is int


def _numbers(keys: list[Any], path: Path) -> Array:
    try:
        return np.array([int(key) for key in keys], dtype=np.int64)
    except (OverflowError, ValueError) as error:
        raise CorruptDataError(
            f"{path} is keyed by numbers beyond 64 bits, which no index has; write the records as a list, "
            "each with its id"
        ) from error


def _listed(ids: Array) -> list[Any]:
    found: list[Any] = ids.reshape(-1).tolist()
    return found


def _id_list(ids: Iterable[Any], name: str) -> IdList:
    found = IdList()
    for id_ in ids:
        try:
            found.append(check_id(id_))
        except TypeError as error:
            raise CorruptDataError(f"{name} holds {id_!r:.40} where an id is due; restore it") from error
    return found


# -- writing ----------------------------------------------------------------------------------


def write_raw(path: Path, entries: Callable[[], Iterable[Entry]]) -> None:
    """Write ``metadata.pkl``, ``.json`` or ``.jsonl`` (by the path's suffix): a list in row order."""
    opening, separator, closing = _FRAMES[path.suffix]
    write = _pickled_row if path.suffix == ".pkl" else _json_row
    with path.open("wb") as file:
        file.write(opening)
        for row, entry in enumerate(entries()):
            file.write((separator if row else b"") + write(entry))
        file.write(closing)


_FRAMES = {
    ".jsonl": (b"", b"\n", b"\n"),
    ".json": (b"[\n", b",\n", b"\n]\n"),
    ".pkl": (b"\x80\x04]", b"", b"."),
}
_OWN = frozenset({*ID_NAMES, *_TEXTS, *METADATA_NAMES, ENVELOPE})


def _row(entry: Entry, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Flat, as scripts write it; nested where metadata has a key that would be taken for another."""
    head = {"id": entry.id, "text": entry.text}
    return {**head, "metadata": metadata} if _OWN & metadata.keys() else {**head, **metadata}


def _json_row(entry: Entry) -> bytes:
    native = is_native(entry.id)
    metadata, envelope = seal(entry.metadata, id=None if native else entry.id)
    row = _row(entry if native else entry._replace(id=str(entry.id)), metadata)
    if envelope:
        row[ENVELOPE] = envelope
    return dump_json(row)


def _pickled_row(entry: Entry) -> bytes:
    """The row, and the opcode that appends it."""
    row = _row(entry, entry.metadata)
    if isinstance(entry.id, tuple):
        row |= {"id": str(entry.id), ENVELOPE: {"id": encode_id(entry.id)}}
    return pickle_piece(row) + b"a"
