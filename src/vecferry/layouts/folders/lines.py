"""Records without their vectors, one JSON object a line: the form every sidecar is read into.

    {"id": 7, "text": "…", "metadata": {"lang": "en"}, "_vecferry": {"types": {"/when": "datetime"}}}

``id`` is the id itself where it is a string or a 64-bit integer, else its text, the original being in the
envelope (see `vecferry.layouts.envelope`). It is also the format of vecferry's own ``records.jsonl``.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
import orjson

from vecferry.errors import CorruptDataError
from vecferry.layouts.envelope import open_envelope, seal
from vecferry.model import ENVELOPE, RecordId
from vecferry.model.vectors import Array

_INT64 = range(-(2**63), 2**63)
_CHUNK = 1 << 20


class Entry(NamedTuple):
    """One record without its vector."""

    id: RecordId
    text: str | None
    metadata: dict[str, Any]


class Entries(Protocol):
    """Records without vectors, by row. Reading is stateless: threads may share one."""

    def __len__(self) -> int: ...

    def read(self, rows: Array) -> list[Entry]:
        """The records at ``rows`` (int64), in that order."""
        ...

    def close(self) -> None: ...


def is_native(id_: RecordId) -> bool:
    """Whether JSON holds the id as it is."""
    return isinstance(id_, str) or (type(id_) is int and id_ in _INT64)


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


def dumps(value: Any) -> bytes:
    """JSON in UTF-8 without a line break; lone surrogates and huge integers are written as well."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value).encode()


def loads(data: bytes) -> Any:
    """The inverse of `dumps`.

    Raises:
        ValueError: if ``data`` is not JSON.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return json.loads(data)


def encode_lines(entries: Sequence[Entry]) -> list[bytes]:
    """The lines of some entries, each with its line break."""
    return [dumps(to_row(entry)) + b"\n" for entry in entries]


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
        try:
            return [from_row(loads(line)) for line in self.lines(rows)]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptDataError(
                f"{self._name or 'a sidecar'} holds a line that is not a record ({error}); "
                "restore the file from a backup"
            ) from error

    def lines(self, rows: Array) -> list[bytes]:
        """The raw lines at ``rows``."""
        if len(rows) == 0:
            return []
        first, last = int(rows[0]), int(rows[-1])
        if last - first + 1 != len(rows) or (np.diff(rows) != 1).any():
            return [line for row in rows.tolist() for line in self._span(row, row + 1)]
        return self._span(first, last + 1)

    def _span(self, first: int, stop: int) -> list[bytes]:
        edges = self._offsets[first : stop + 1].tolist()
        block = os.pread(self._file.fileno(), edges[-1] - edges[0], edges[0])
        base = edges[0]
        return [block[a - base : b - base] for a, b in pairwise(edges)]

    def close(self) -> None:
        self._file.close()


def find_lines(file: IO[bytes]) -> Array:
    """Where each line of a file begins, and where the last one ends: int64 ``(lines + 1)``."""
    position, ends = 0, [np.zeros(1, dtype=np.int64)]
    while chunk := os.pread(file.fileno(), _CHUNK, position):
        ends.append(np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == ord("\n")) + position + 1)
        position += len(chunk)
    offsets = np.concatenate(ends)
    return offsets if offsets[-1] == position else np.append(offsets, position)


class TextColumn:
    """Many short texts in two arrays instead of as many objects.

    Args:
        texts: in order.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        data, ends = bytearray(), [0]
        for text in texts:
            data += text.encode("utf-8", "surrogatepass")
            ends.append(len(data))
        self._data, self._ends = bytes(data), np.array(ends, dtype=np.int64)

    def __getitem__(self, row: int) -> str:
        return self._data[self._ends[row] : self._ends[row + 1]].decode("utf-8", "surrogatepass")


class Spool:
    """Entries written one after the other into an unnamed temporary file, then read as a `LineFile`.

    Foreign sidecars that can only be read from front to back pass through one, so that the memory holds
    no more than a buffer of them. Use it as a context manager, or call `seal` or `close`.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="vecferry-")  # noqa: SIM115 (lives on in the LineFile)
        self._ends: list[int] = [0]
        self._blocks: list[Array] = []
        self._count = 0

    def add(self, entry: Entry) -> int:
        """Keep an entry and return its row.

        Raises:
            CorruptDataError: for a metadata value that no record can have.
        """
        try:
            line = dumps(to_row(entry)) + b"\n"
        except TypeError as error:
            raise CorruptDataError(
                f"record {self._count} of a sidecar: {error}; load the file with its own application and "
                "save such values as text or numbers"
            ) from error
        self._file.write(line)
        self._ends.append(self._ends[-1] + len(line))
        self._count += 1
        if len(self._ends) > _CHUNK // 8:
            self._blocks.append(np.array(self._ends[:-1], dtype=np.int64))
            self._ends = self._ends[-1:]
        return self._count - 1

    def __len__(self) -> int:
        return self._count

    def seal(self) -> LineFile:
        """Everything added, for reading."""
        self._file.flush()
        offsets = np.concatenate([*self._blocks, np.array(self._ends, dtype=np.int64)])
        return LineFile(self._file, offsets)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.close()
