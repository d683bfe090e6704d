"""Locks between processes: files that the operating system lets go of when their holder dies.

The same on Linux, macOS and Windows (``filelock``). A file system that has no locks (some network mounts)
is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from vecferry.errors import ConfigurationError, JobLockedError


class Lock:
    """A lock held until `release`, by whichever thread, or until this process dies.

    Args:
        path: the lock's file; its folder is made. The file may stay behind: it says nothing by being there.
        busy: the message where another process holds it.
        wait: seconds to wait for it; ``None`` waits for ever.

    Raises:
        JobLockedError: with ``busy``, if it is still held.
        ConfigurationError: if the file system has no locks.
        OSError: if the file cannot be made.
    """

    def __init__(self, path: Path, *, busy: str = "", wait: float | None = 0.0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = FileLock(path, thread_local=False)
        try:
            self._lock.acquire(timeout=-1 if wait is None else wait)
        except Timeout:
            raise JobLockedError(
                busy or f"another process holds {path}; wait for it to end, and run the same call again"
            ) from None
        except NotImplementedError as error:
            raise ConfigurationError(
                f"the file system of {path.parent} has no locks, without which two processes could "
                "write at once; choose a folder on a local disk"
            ) from error

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let go. Idempotent."""
        self._lock.release(force=True)


@contextmanager
def locked(path: Path, *, busy: str = "", wait: float | None = None) -> Iterator[None]:
    """Hold the lock ``path`` for the block; by default wait for it as long as it takes. See `Lock`."""
    lock = Lock(path, busy=busy, wait=wait)
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether some process holds ``path`` now."""
    if not path.exists():
        return False
    try:
        Lock(path).release()
    except JobLockedError:
        return True
    return False


class Liveness:
    """Says that its maker is alive, to every process that shares the folder.

    Args:
        folder: where the files lie; ``None`` if nobody else can look.
    """

    def __init__(self, folder: Path | None) -> None:
        self.name = uuid4().hex
        self._folder = folder
        self._lock = Lock(folder / self.name) if folder is not None else None

    def close(self) -> None:
        """Not alive any more. Idempotent."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()
            _remove(lock.path)

    def alive(self, name: str) -> bool:
        """Whether the maker of the lock ``name`` is."""
        if name == self.name or self._folder is None:
            return name == self.name
        path = self._folder / name
        if is_locked(path):
            return True
        _remove(path)
        return False


def _remove(path: Path) -> None:
    with suppress(OSError):  # Windows: somebody is just looking at it
        path.unlink(missing_ok=True)
