"""What hand-written scripts leave beside an index: ``metadata.pkl``, ``.json`` or ``.jsonl``.

Read are: a list of dicts in row order; a list of texts; a dict by row (or by the index's own number) or by
id, in row order. In a dict of a row, ``id`` or ``_id`` is the record's id if every row has one and no two
are equal, else the row's number is; the text stands under one of the usual keys; ``metadata``, if it is the
only other key, is the metadata, else all the other keys are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vecferry.errors import CorruptDataError
from vecferry.layouts.envelope import open_envelope, seal
from vecferry.layouts.folders.jsonwalk import JsonWalk
from vecferry.layouts.folders.lines import Entries, Entry, Spool, dumps, is_native
from vecferry.layouts.folders.measure import check_size
from vecferry.layouts.folders.pickle_write import pickle_piece
from vecferry.layouts.folders.pickles import read_pickle
from vecferry.layouts.folders.sidecar import Numbering, Sidecar, check_count, rows_of
from vecferry.model import ENVELOPE, encode_id, id_key
from vecferry.model.foreign import TEXT_NAMES
from vecferry.model.ids import RecordId, check_id
from vecferry.model.vectors import Array

_ID_KEYS = ("id", "_id")
_TAKEN = object()


def read_raw(path: Path, numbering: Numbering) -> Sidecar:
    """The sidecar ``metadata.*`` of an index so numbered.

    Raises:
        CorruptDataError: if it is shorter or longer than the index, or not a list or dict of records.
        UnsafePickleError: if a pickle asks for anything but plain values.
    """
    keys: list[Any] = []
    census = _Census()
    with Spool() as spool:

        def take(key: Any, row: Any) -> None:
            entry = _entry(row, path)
            census.see(entry.id)
            spool.add(entry)
            keys.append(key)

        _feed(path, take)
        check_count(len(spool), numbering.count, str(path))
        order = _order(keys, numbering, path)
        return Sidecar(_Identified(spool.seal(), census.ids(keys, order, numbering)), order)


def _feed(path: Path, take: Callable[[Any, Any], None]) -> None:
    """Hand over ``(key, row)`` of every row; the key is ``None`` in a list."""
    if path.suffix == ".pkl":
        _feed_pickled(path, take)
        return
    if path.suffix == ".json":
        for key, row in JsonWalk(path).items():
            take(key, row)
        return
    with path.open("rb") as file:
        for line in filter(bytes.strip, file):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise CorruptDataError(f"{path} holds a line that is not JSON; restore it") from error
            take(None, row)


def _feed_pickled(path: Path, take: Callable[[Any, Any], None]) -> None:
    # The rows of a list are taken out of it while it is read, so that it never is in memory as a whole.
    # Those of an array, or of a list that began with its items, are still there at the end.
    def keep(row: Any) -> Any:
        take(None, row)
        return _TAKEN

    value = read_pickle(path, keep=keep)
    if isinstance(value, dict):
        for key, row in value.items():
            take(key, row)
    elif isinstance(value, list):
        for row in value:
            if row is not _TAKEN:
                take(None, row)
    else:
        raise CorruptDataError(f"{path} holds a {type(value).__name__}, not a list or dict of records")


def _entry(row: Any, path: Path) -> Entry:
    """One row; the id is ``None`` where the row has none that could be one."""
    check_size(row, str(path))
    if isinstance(row, str):
        return Entry(_no_id(), row, {})
    if row is None:
        return Entry(_no_id(), None, {})
    if not isinstance(row, Mapping):
        raise CorruptDataError(
            f"{path} holds a {type(row).__name__} where a record is due: a dict or a text; name the layout"
        )
    rest = {str(key) if not isinstance(key, str) else key: value for key, value in row.items()}
    envelope = rest.pop(ENVELOPE, None)
    id_ = _take_id(rest)
    text = _take_text(rest)
    nested = rest.get("metadata")
    body = dict(nested) if len(rest) == 1 and isinstance(nested, dict) else rest
    original, metadata = open_envelope(body, envelope)
    return Entry(id_ if original is None else original, text, metadata)


def _no_id() -> Any:
    return _NO_ID


_NO_ID = "\x00"


def _take_id(row: dict[str, Any]) -> Any:
    for key in _ID_KEYS:
        if key in row:
            try:
                id_ = check_id(row[key])
            except TypeError:
                return _NO_ID
            del row[key]
            return id_
    return _NO_ID


def _take_text(row: dict[str, Any]) -> str | None:
    for key in TEXT_NAMES:
        if isinstance(row.get(key), str):
            return str(row.pop(key))
    if "text" in row and row["text"] is None:
        del row["text"]
    return None


class _Census:
    """Whether every row brought an id of its own; 16 bytes a row."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._unique = True

    def see(self, id_: RecordId) -> None:
        if not self._unique:
            return
        key = id_key(id_)
        self._unique = id_ != _NO_ID and key not in self._seen
        self._seen.add(key)
        if not self._unique:
            self._seen.clear()

    def ids(self, keys: list[Any], order: Array | None, numbering: Numbering) -> list[Any] | Array | None:
        """By row, the ids that stand for those in the rows; ``None`` if those in the rows are good."""
        if self._unique:
            return None
        if keys and keys[0] is not None and not _by_number(keys):
            return keys
        if order is None:
            return np.arange(numbering.count) if numbering.ids is None else numbering.ids
        by_row = np.empty(numbering.count, dtype=np.int64)
        by_row[order] = np.arange(numbering.count) if numbering.ids is None else numbering.ids
        return by_row


def _by_number(keys: list[Any]) -> bool:
    return bool(keys) and all(type(k) is int or (isinstance(k, str) and k.isdecimal()) for k in keys)


def _order(keys: list[Any], numbering: Numbering, path: Path) -> Array | None:
    if _by_number(keys):
        return rows_of(_numbers(keys, path), numbering, str(path))
    try:
        return numbering.rows
    except LookupError as error:
        raise CorruptDataError(
            f"the index beside {path} numbers its vectors in a way that a list cannot follow; "
            "write the records as a JSON object keyed by these numbers"
        ) from error


def _numbers(keys: list[Any], path: Path) -> Array:
    try:
        return np.array([int(key) for key in keys], dtype=np.int64)
    except OverflowError as error:
        raise CorruptDataError(
            f"{path} is keyed by numbers beyond 64 bits, which no index has; write the records as a list, "
            "each with its id"
        ) from error


class _Identified:
    """Rows with ids from elsewhere where their own are not good for it; those go to the metadata."""

    def __init__(self, entries: Entries, ids: list[Any] | Array | None) -> None:
        self._entries = entries
        self._ids = ids

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, rows: Array) -> list[Entry]:
        found = self._entries.read(rows)
        if self._ids is None:
            return found
        taken = [self._ids[row] for row in rows.tolist()]
        return [self._renamed(entry, id_) for entry, id_ in zip(found, taken, strict=True)]

    def _renamed(self, entry: Entry, id_: Any) -> Entry:
        own = {} if entry.id == _NO_ID else {"id": entry.id}
        return Entry(check_id(id_), entry.text, {**own, **entry.metadata})

    def close(self) -> None:
        self._entries.close()


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
_OWN = frozenset({*_ID_KEYS, *TEXT_NAMES, "metadata", ENVELOPE})


def _row(entry: Entry, metadata: dict[str, Any]) -> dict[str, Any]:
    """Flat, as scripts write it; nested where metadata has a key that would be taken for another."""
    head = {"id": entry.id, "text": entry.text}
    return {**head, "metadata": metadata} if _OWN & metadata.keys() else {**head, **metadata}


def _json_row(entry: Entry) -> bytes:
    native = is_native(entry.id)
    metadata, envelope = seal(entry.metadata, id=None if native else entry.id)
    row = _row(entry if native else entry._replace(id=str(entry.id)), metadata)
    if envelope:
        row[ENVELOPE] = envelope
    return dumps(row)


def _pickled_row(entry: Entry) -> bytes:
    """The row, and the opcode that appends it."""
    row = _row(entry, entry.metadata)
    if isinstance(entry.id, tuple):
        row |= {"id": str(entry.id), ENVELOPE: {"id": encode_id(entry.id)}}
    return pickle_piece(row) + b"a"
