"""Records without their vectors: how a sidecar is kept open, and which record belongs to which vector.

A sidecar of another application is read once, from front to back, into an unnamed temporary file
(`Spool`); from then on its records are found by row, and their metadata travels as the JSON bytes that
were written there. vecferry's own ``records.jsonl`` is read in place (`LineFile`)::

    {"id": 7, "text": "…", "metadata": {"lang": "en"}, "_vecferry": {"types": {"/when": "datetime"}}}

``id`` is the id itself where it is a string or a 64-bit integer, else its text, the original being in the
envelope (see `vecferry.layouts.envelope`).
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Protocol

import numpy as np

from vecferry.errors import CorruptDataError
from vecferry.layouts.envelope import open_envelope, seal
from vecferry.model import (
    ENVELOPE,
    JsonColumn,
    Loss,
    RecordId,
    decode_id,
    dump_json,
    encode_id,
    parse_json,
)
from vecferry.model.json_column import Unkeepable
from vecferry.model.vectors import Array

_INT64 = range(-(2**63), 2**63)
_CHUNK = 1 << 20
_SHOWN = 3
_HELD = 512


class Entry(NamedTuple):
    """One record without its vector."""

    id: RecordId
    text: str | None
    metadata: Mapping[str, Any]


class Columns(NamedTuple):
    """Some records without their vectors, column by column, as a `RecordBatch` takes them."""

    ids: list[RecordId] | Array
    texts: Sequence[str | None] | None = None
    metadata: Sequence[dict[str, Any]] | None = None


class Entries(Protocol):
    """Records without vectors, by row. Reading is stateless: threads may share one."""

    def __len__(self) -> int: ...

    def columns(self, rows: Array, *, text: bool = True, metadata: bool = True) -> Columns:
        """The records at ``rows`` (int64), in that order."""
        ...

    def close(self) -> None: ...


def is_native(id_: RecordId) -> bool:
    """Whether JSON holds the id as it is."""
    return isinstance(id_, str) or (type(id_) is int and id_ in _INT64)


# -- lines ------------------------------------------------------------------------------------


def to_row(entry: Entry) -> dict[str, Any]:
    """An entry as the JSON object of its line.

    Raises:
        TypeError: for a metadata value that cannot be kept, naming its place.
    """
    native = is_native(entry.id)
    body, envelope = seal(entry.metadata, id=None if native else entry.id)
    row = {"id": entry.id if native else str(entry.id), "text": entry.text, "metadata": body}
    if envelope:
        row[ENVELOPE] = envelope
    return row


def from_row(row: Mapping[str, Any]) -> Entry:
    """The inverse of `to_row`."""
    original, metadata = open_envelope(row.get("metadata") or {}, row.get(ENVELOPE))
    return Entry(row["id"] if original is None else original, row.get("text"), metadata)


def encode_lines(entries: Sequence[Entry]) -> list[bytes]:
    """The lines of some entries, each with its line break."""
    return [dump_json(to_row(entry)) + b"\n" for entry in entries]


def columns_of(entries: Sequence[Entry], *, text: bool, metadata: bool) -> Columns:
    """Entries as columns."""
    return Columns(
        [entry.id for entry in entries],
        [entry.text for entry in entries] if text else None,
        [dict(entry.metadata) for entry in entries] if metadata else None,
    )


class LineFile:
    """`Entries` in a file of lines, found by a table of offsets (8 bytes a record).

    Args:
        file: an open binary file; it is closed with this object.
        offsets: int64 ``(n + 1)``, where each line begins, and the end; ``None`` to look for line breaks.
        name: how messages call the file.
    """

    def __init__(self, file: IO[bytes], offsets: Array | None = None, *, name: str = "") -> None:
        self._file = file
        self._name = name
        self._offsets = find_lines(file) if offsets is None else offsets

    @classmethod
    def open(cls, path: Path) -> LineFile:
        return cls(path.open("rb"), name=str(path))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def read(self, rows: Array) -> list[Entry]:
        """The records at ``rows``."""
        try:
            return [from_row(parse_json(line)) for line in self.lines(rows)]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptDataError(
                f"{self._name or 'a sidecar'} holds a line that is not a record ({error}); "
                "restore the file from a backup"
            ) from error

    def columns(self, rows: Array, *, text: bool = True, metadata: bool = True) -> Columns:
        return columns_of(self.read(rows), text=text, metadata=metadata)

    def lines(self, rows: Array) -> list[bytes]:
        """The raw lines at ``rows``."""
        return _pieces(self._file, self._offsets, rows)

    def close(self) -> None:
        self._file.close()


def _pieces(file: IO[bytes], offsets: Array, rows: Array) -> list[bytes]:
    """What lies between two neighbouring offsets each, in one read where the rows follow each other."""
    if len(rows) == 0:
        return []
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 != len(rows) or (np.diff(rows) != 1).any():
        return [piece for row in rows.tolist() for piece in _span(file, offsets, row, row + 1)]
    return _span(file, offsets, first, last + 1)


def _span(file: IO[bytes], offsets: Array, first: int, stop: int) -> list[bytes]:
    edges = offsets[first : stop + 1].tolist()
    block = os.pread(file.fileno(), edges[-1] - edges[0], edges[0])
    base = edges[0]
    return [block[a - base : b - base] for a, b in pairwise(edges)]


def find_lines(file: IO[bytes]) -> Array:
    """Where each line of a file begins, and where the last one ends: int64 ``(lines + 1)``."""
    position, ends = 0, [np.zeros(1, dtype=np.int64)]
    while chunk := os.pread(file.fileno(), _CHUNK, position):
        ends.append(np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == ord("\n")) + position + 1)
        position += len(chunk)
    offsets = np.concatenate(ends)
    return offsets if offsets[-1] == position else np.append(offsets, position)


# -- spooled ----------------------------------------------------------------------------------


class IdList:
    """Many ids in two arrays instead of as many objects."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._ends = array("q", [0])
        self._texts_only = self._numbers_only = True

    def append(self, id_: RecordId) -> None:
        if type(id_) is not str and self._texts_only:
            self._texts_only = False
            self._rewrite()
        self._numbers_only = self._numbers_only and type(id_) is int and id_ in _INT64
        text = id_ if self._texts_only else encode_id(id_)
        self._data += text.encode("utf-8", "surrogatepass")  # type: ignore[union-attr]
        self._ends.append(len(self._data))

    def _rewrite(self) -> None:
        """Texts were kept as they are until another type came."""
        texts = [self._text(row) for row in range(len(self))]
        self._data, self._ends = bytearray(), array("q", [0])
        for text in texts:
            self._data += encode_id(text).encode("utf-8", "surrogatepass")
            self._ends.append(len(self._data))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _text(self, row: int) -> str:
        return self._data[self._ends[row] : self._ends[row + 1]].decode("utf-8", "surrogatepass")

    def __getitem__(self, row: int) -> RecordId:
        text = self._text(row)
        return text if self._texts_only else decode_id(text)

    def take(self, rows: Array) -> list[RecordId] | Array:
        """The ids of ``rows``; int64 where all ids are integers."""
        found = [self[row] for row in rows.tolist()]
        numbers = self._numbers_only and not self._texts_only
        return np.array(found, dtype=np.int64) if numbers else found


class Spool:
    """Entries written one after the other into an unnamed temporary file, then read as `Records`.

    The memory holds a buffer of them, their ids, and 24 bytes a record. Use it as a context manager, or
    call `seal` or `close`.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="vecferry-")  # noqa: SIM115 (lives on in the Records)
        self._ends = array("q", [0])
        self._held: list[Entry] = []
        self._plain = True
        self.ids = IdList()

    def add(self, entry: Entry, *, plain: bool = False) -> int:
        """Keep an entry and return its row.

        Args:
            plain: that its metadata came from JSON, so that nothing in it is a tuple, a date or a UUID.

        Raises:
            CorruptDataError: for a metadata value that no record can have.
        """
        self.ids.append(entry.id)
        self._held.append(entry)
        self._plain = self._plain and plain
        if len(self._held) == _HELD:
            self._write()
        return len(self.ids) - 1

    def _write(self) -> None:
        documents = [dict(entry.metadata) for entry in self._held]
        try:
            column = JsonColumn.of_parsed(documents) if self._plain else JsonColumn.of(documents)
        except Unkeepable as error:
            row = len(self.ids) - len(self._held) + error.row
            raise CorruptDataError(
                f"record {row} of a sidecar: {error}; load the file with its own application and "
                "save such values as text or numbers"
            ) from error
        pieces: list[bytes] = []
        for row, entry in enumerate(self._held):
            table = column.types(row)
            text = b"" if entry.text is None else b"t" + entry.text.encode("utf-8", "surrogatepass")
            pieces += (text, column.raw(row), dump_json(dict(table)) if table else b"")
        self._file.write(b"".join(pieces))
        end = self._ends[-1]
        for piece in pieces:
            end += len(piece)
            self._ends.append(end)
        self._held, self._plain = [], True

    def __len__(self) -> int:
        return len(self.ids)

    def seal(self) -> Records:
        """Everything added, for reading."""
        self._write()
        self._file.flush()
        return Records(self._file, np.frombuffer(self._ends, dtype=np.int64), self.ids)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.close()


class Records:
    """`Entries` as a `Spool` wrote them: of each record text, metadata, and the types that JSON lacks."""

    def __init__(self, file: IO[bytes], ends: Array, ids: IdList) -> None:
        self._file, self._ids = file, ids
        self._offsets, self._inner = ends[::3], ends

    def __len__(self) -> int:
        return len(self._ids)

    def columns(self, rows: Array, *, text: bool = True, metadata: bool = True) -> Columns:
        ids = self._ids.take(rows)
        if not text and not metadata:
            return Columns(ids)
        pieces = _pieces(self._file, self._offsets, rows)
        at = rows * 3
        starts = self._inner[at].tolist()
        cuts = [
            (a - start, b - start)
            for start, a, b in zip(
                starts, self._inner[at + 1].tolist(), self._inner[at + 2].tolist(), strict=True
            )
        ]
        texts = [_text(piece[:a]) for piece, (a, _) in zip(pieces, cuts, strict=True)] if text else None
        if not metadata:
            return Columns(ids, texts)
        bodies = [piece[a:b] for piece, (a, b) in zip(pieces, cuts, strict=True)]
        types = {
            row: parse_json(piece[b:])
            for row, (piece, (_, b)) in enumerate(zip(pieces, cuts, strict=True))
            if len(piece) > b
        }
        return Columns(ids, texts, JsonColumn(bodies, types))

    def close(self) -> None:
        self._file.close()


def _text(data: bytes) -> str | None:
    return data[1:].decode("utf-8", "surrogatepass") if data else None


class Renamed:
    """Entries under ids from elsewhere.

    Args:
        ids: by row.
        rows: the row of ``entries`` that each is; ``None`` where they agree.
        keep: whether ids that the entries have themselves go to the metadata.
    """

    def __init__(
        self, entries: Entries, ids: IdList | Array, rows: Array | None = None, *, keep: bool = False
    ) -> None:
        self._entries, self._ids, self._rows, self._keep = entries, ids, rows, keep

    def __len__(self) -> int:
        return len(self._ids)

    def columns(self, rows: Array, *, text: bool = True, metadata: bool = True) -> Columns:
        lines = rows if self._rows is None else self._rows[rows]
        found = self._entries.columns(lines, text=text, metadata=metadata)
        ids = self._ids.take(rows) if isinstance(self._ids, IdList) else self._ids[rows]
        if found.metadata is None or not self._keep:
            return found._replace(ids=ids)
        own = found.ids.tolist() if isinstance(found.ids, np.ndarray) else found.ids
        bodies = [
            body if id_ == NO_ID else {"id": id_, **body}
            for id_, body in zip(own, found.metadata, strict=True)
        ]
        return Columns(ids, found.texts, bodies)

    def close(self) -> None:
        self._entries.close()


NO_ID = "\x00"
"""Stands for the id of a row that has none of its own."""


# -- which record belongs to which vector -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sidecar:
    """Records for the vectors of an index.

    Attributes:
        entries: the records, in whatever order the file has them.
        order: int64 ``(n,)``, the entry that belongs to the vector at each position of the index;
            ``None`` where position and entry agree.
        losses: what was seen in the sidecar and is not carried.
        live: the positions that have a record, ascending, where only these are read.
    """

    entries: Entries
    order: Array | None = None
    losses: tuple[Loss, ...] = ()
    live: Array | None = None

    def columns(self, positions: Array, *, text: bool = True, metadata: bool = True) -> Columns:
        """The records of the vectors at ``positions`` (int64)."""
        rows = positions if self.order is None else self.order[positions]
        return self.entries.columns(rows, text=text, metadata=metadata)

    def read(self, positions: Array) -> list[Entry]:
        """The records at ``positions``, one by one."""
        ids, texts, metadata = self.columns(positions)
        assert texts is not None and metadata is not None
        known = ids.tolist() if isinstance(ids, np.ndarray) else ids
        return [Entry(*row) for row in zip(known, texts, metadata, strict=True)]

    def close(self) -> None:
        self.entries.close()


@dataclass(frozen=True, slots=True)
class Numbering:
    """How an index numbers its vectors.

    Attributes:
        count: of vectors.
        ids: int64 ``(n,)`` by position; ``None`` where the number is the position.
        in_order: whether positions follow the order in which vectors were added (not so in an IVF).
        live: whether vectors without a record, and all but the last of those with one, are left out.
    """

    count: int
    ids: Array | None = None
    in_order: bool = True
    live: bool = False

    @property
    def numbers(self) -> Array:
        """The number of the vector at each position, int64 ``(n,)``."""
        return np.arange(self.count) if self.ids is None else self.ids

    @property
    def has_own_numbers(self) -> bool:
        """Whether the numbers were given by whoever added the vectors, rather than counted from 0."""
        if self.ids is None:
            return False
        counted = np.arange(self.count)
        return not np.array_equal(self.ids if self.in_order else np.sort(self.ids), counted)

    @property
    def rows(self) -> Array | None:
        """The row of each position in a list written beside the index; ``None`` where they agree.

        Raises:
            LookupError: if the numbers do not tell.
        """
        if self.ids is None:
            return None
        if np.array_equal(np.sort(self.ids), np.arange(self.count)):
            return None if np.array_equal(self.ids, np.arange(self.count)) else self.ids
        if not self.in_order:
            raise LookupError
        return None


def pair(entries: Entries, keys: Array, rows: Array, numbering: Numbering, name: str) -> Sidecar:
    """The sidecar in which the vector numbered ``keys[i]`` has the record ``rows[i]``.

    Raises:
        CorruptDataError: if the sidecar and the index do not hold the same numbers, unless the numbering
            asks for the live part only.
    """
    count, numbers = numbering.count, numbering.numbers
    order = np.argsort(keys, kind="stable")
    if len(keys) > 1 and (np.diff(keys[order]) == 0).any():
        twice = keys[order][np.flatnonzero(np.diff(keys[order]) == 0)[0]]
        raise CorruptDataError(f"{name} has two records for the vector numbered {twice}; mend it")
    at = np.searchsorted(keys, numbers, sorter=order)
    inside = at < len(keys)
    found = np.full(count, -1, dtype=np.int64)
    candidates = order[np.minimum(at, max(len(keys) - 1, 0))] if len(keys) else np.zeros(count, np.int64)
    if len(keys):
        hit = inside & (keys[candidates] == numbers)
        found[hit] = rows[candidates[hit]]
    surplus = keys[~np.isin(keys, numbers)]
    return settle(entries, found, len(surplus), numbering, name)


def settle(entries: Entries, found: Array, surplus: int, numbering: Numbering, name: str) -> Sidecar:
    """The sidecar in which the vector at position i has the record ``found[i]``, −1 where it has none.

    Args:
        surplus: records that no vector has.

    Raises:
        CorruptDataError: if there are such, or vectors without a record, unless the numbering asks for
            the live part only.
    """
    if numbering.live:
        return _live_part(entries, found, surplus, name)
    missing = np.flatnonzero(found < 0)
    if len(missing) or surplus:
        have = numbering.count - len(missing) + surplus
        check_count(have, numbering.count, name)
        raise CorruptDataError(
            f"{name} has no record for the vector numbered {numbering.numbers[missing[0]]}; "
            "restore the folder from a backup, or read the others with ?live=1"
        )
    return Sidecar(entries, None if np.array_equal(found, np.arange(numbering.count)) else found)


def _live_part(entries: Entries, found: Array, surplus: int, name: str) -> Sidecar:
    positions = np.flatnonzero(found >= 0)
    # Of several vectors with one record the last one added counts.
    _, last = np.unique(found[positions][::-1], return_index=True)
    live = np.sort(positions[len(positions) - 1 - last])
    holes, doubles = len(found) - len(positions), len(positions) - len(live)
    return Sidecar(
        entries,
        found[live],
        (
            *_left_out(holes, f"vectors have no record in {name}: left out, as live= asks"),
            *_left_out(doubles, f"vectors belong to a record that has a later one in {name}: left out"),
            *_left_out(surplus, f"records of {name} have no vector: left out"),
        ),
        live,
    )


def _left_out(count: int, detail: str) -> tuple[Loss, ...]:
    return (Loss(kind="field", detail=detail, count=count, where="source"),) if count else ()


def check_count(have: int, want: int, name: str) -> None:
    """Whether a sidecar is as long as the index.

    Raises:
        CorruptDataError: with both numbers.
    """
    if have != want:
        raise CorruptDataError(
            f"{name} holds {have:,} records for an index of {want:,} vectors; restore the folder from a "
            "backup, read what fits with ?live=1, or the index alone with ?layout=none"
        )


def in_row_order(
    entries: Entries, numbering: Numbering, name: str, losses: tuple[Loss, ...] = ()
) -> Sidecar:
    """The sidecar of a list that was written in the order of the vectors.

    Raises:
        CorruptDataError: if it is shorter or longer, or if the index numbers its vectors otherwise.
    """
    check_count(len(entries), numbering.count, name)
    try:
        return Sidecar(entries, numbering.rows, losses)
    except LookupError as error:
        raise CorruptDataError(
            f"the index beside {name} numbers its vectors in a way that a list cannot follow; "
            "write the records as a JSON object keyed by these numbers"
        ) from error
