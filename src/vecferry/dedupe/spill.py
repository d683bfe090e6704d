"""`Rows`: a growing matrix in a temporary file, so that memory stays bounded by the batch."""

from __future__ import annotations

import tempfile
from typing import Any, cast

import numpy as np

from vecferry.records.vectors import Array


class Rows:
    """Rows of one width and dtype, appended and read by number. The file has no name and cannot leak."""

    def __init__(self, dtype: Any, width: int) -> None:
        self.dtype, self.width = np.dtype(dtype), width
        self._file = tempfile.TemporaryFile(prefix="vecferry-rows-")  # noqa: SIM115 - lives with the object
        self._count = 0
        self._view: Array = np.empty((0, width), self.dtype)

    def __len__(self) -> int:
        return self._count

    def append(self, values: Array) -> int:
        """Add rows and return the number of the first."""
        first = self._count
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(values, dtype=self.dtype).tobytes())
        self._count += len(values)
        return first

    def view(self) -> Array:
        """All rows ``(n, width)``, memory-mapped: pages are read when touched and can be dropped."""
        if len(self._view) != self._count:
            self._file.flush()
            shape = (self._count, self.width)
            self._view = cast(Array, np.memmap(self._file, dtype=self.dtype, mode="r", shape=shape))
        return self._view

    def take(self, rows: Array) -> Array:
        """A copy of the given rows."""
        return np.asarray(self.view()[rows]) if self._count else np.empty((0, self.width), self.dtype)
