"""A sign of life: a locked file, which the operating system lets go of when its process dies."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO
from uuid import uuid4


class Sign:
    """Says that its maker is alive, to every process that shares the folder.

    Args:
        folder: where the files lie; ``None`` for a sign that nobody else can see.
    """

    def __init__(self, folder: Path | None) -> None:
        self.name = uuid4().hex
        self._folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / self.name).open("ab")
            _lock(self._file, shared=False)

    def close(self) -> None:
        """Not alive any more. Twice is as once."""
        if self._folder is not None:
            (self._folder / self.name).unlink(missing_ok=True)
            self._file.close()

    def alive(self, name: str) -> bool:
        """Whether the maker of the sign ``name`` is."""
        if name == self.name or self._folder is None:
            return name == self.name
        path = self._folder / name
        try:
            with path.open("rb+") as file:
                if not _lock(file, shared=True):
                    return True
        except FileNotFoundError:
            return False
        path.unlink(missing_ok=True)
        return False


def _lock(file: BinaryIO, *, shared: bool) -> bool:
    """Whether the lock could be had. Where there are no locks (Windows) others count as gone."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
