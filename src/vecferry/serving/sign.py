"""A sign of life: a locked file, which the operating system lets go of when its process dies."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout


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
            # Not of one thread: whichever closes the journal lets go.
            self._lock = FileLock(folder / self.name, thread_local=False)
            self._lock.acquire(timeout=0)

    def close(self) -> None:
        """Not alive any more. Twice is as once."""
        if self._folder is not None:
            self._lock.release()
            (self._folder / self.name).unlink(missing_ok=True)

    def alive(self, name: str) -> bool:
        """Whether the maker of the sign ``name`` is."""
        if name == self.name or self._folder is None:
            return name == self.name
        path = self._folder / name
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                pass  # nobody held it
        except Timeout:
            return True
        path.unlink(missing_ok=True)
        return False
