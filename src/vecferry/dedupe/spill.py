"""What grows, in temporary files, so that memory stays bounded by the batch."""

from __future__ import annotations

import tempfile
from array import array
from typing import Any

import numpy as np

from vecferry.model.vectors import Array

_FIRST_MAP = 1 << 20


class Rows:
    """Rows of one width and dtype, appended and read by number. The file has no name and cannot leak."""

    def __init__(self, dtype: Any, width: int) -> None:
        self.dtype, self.width = np.dtype(dtype), width
        self._row = self.dtype.itemsize * width
        # It lives with the object, hence no `with`.
        self._file = tempfile.TemporaryFile(prefix="vecferry-rows-", buffering=0)  # noqa: SIM115
        self._count = 0
        self._map: Array = np.empty((0, width), self.dtype)

    def __len__(self) -> int:
        return self._count

    def append(self, values: Array) -> int:
        """Add rows and return the number of the first."""
        first = self._count
        self._file.seek(first * self._row)
        rest = memoryview(np.ascontiguousarray(values, dtype=self.dtype).tobytes())
        while rest:
            rest = rest[self._file.write(rest) or 0 :]
        self._count += len(values)
        return first

    def view(self) -> Array:
        """All rows ``(n, width)``, memory-mapped: pages are read when touched and can be dropped."""
        if self._count > len(self._map):
            # Mapped ahead of what is written (the rest is a hole), so that pages once mapped stay so.
            rows = max(2 * self._count, _FIRST_MAP // max(1, self._row))
            self._file.truncate(rows * self._row)
            self._map = np.memmap(self._file, dtype=self.dtype, mode="r", shape=(rows, self.width))
        return self._map[: self._count]

    def take(self, rows: Array) -> Array:
        """A copy of the given rows."""
        return np.asarray(self.view()[rows]) if self._count else np.empty((0, self.width), self.dtype)

    def ascending(self, rows: Array) -> Array:
        """Rows of ascending numbers, not copied where they lie side by side."""
        if len(rows) and int(rows[-1]) - int(rows[0]) == len(rows) - 1:
            return np.asarray(self.view()[int(rows[0]) : int(rows[-1]) + 1])
        return self.take(rows)


class Blobs:
    """As `Rows`, of bytes of any lengths; 8 bytes a row stay in memory."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="vecferry-blobs-")  # noqa: SIM115
        self._ends = array("q", [0])

    def append(self, value: bytes) -> None:
        """Add a row."""
        self._file.seek(self._ends[-1])
        self._file.write(value)
        self._ends.append(self._ends[-1] + len(value))

    def __getitem__(self, row: int) -> bytes:
        self._file.seek(self._ends[row])
        return self._file.read(self._ends[row + 1] - self._ends[row])
