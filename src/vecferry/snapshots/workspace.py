"""Temporary folders that are cleaned up, also after a kill, and checked for space before they fill."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from uuid import uuid4

from vecferry.core.locks import Lock
from vecferry.errors import FatalStoreError, JobLockedError

_MARGIN = 1.02


class Workspace:
    """A temporary folder that lives as long as this object, and no longer than the next one's beginning.

    Args:
        name: two workspaces of one name share their content: what a killed process had downloaded is found
            again by the next one. While another process holds it, a fresh one is made.
        parent: default the system's folder for temporary files (``TMPDIR``).
    """

    def __init__(self, name: str = "", parent: Path | None = None) -> None:
        self.home = (parent or Path(tempfile.gettempdir())) / _own_name()
        try:
            self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise FatalStoreError(
                f"cannot make {self.home}: {error.strerror}; set TMPDIR (temp_dir=) to another folder"
            ) from error
        self._name = name or uuid4().hex
        try:
            self._lock: Lock | None = Lock(self.home / f"{self._name}.lock")
        except JobLockedError:
            self._name = uuid4().hex
            self._lock = Lock(self.home / f"{self._name}.lock")
        self._sweep()
        self.folder = self.home / self._name
        self.folder.mkdir(exist_ok=True)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folder and everything in it. Twice is as once."""
        lock, self._lock = self._lock, None
        if lock is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            lock.path.unlink(missing_ok=True)
            lock.release()

    def _sweep(self) -> None:
        """Remove what killed processes left: the folders whose lock nobody holds."""
        for path in self.home.iterdir():
            if not path.is_dir() or path.name == self._name:
                continue
            with suppress(JobLockedError, OSError), Lock(self.home / f"{path.name}.lock") as lock:
                shutil.rmtree(path, ignore_errors=True)
                lock.path.unlink(missing_ok=True)


def _own_name() -> str:
    """One for each user: the folder for temporary files is shared by all of them."""
    return f"vecferry-snapshots-{os.getuid()}" if hasattr(os, "getuid") else "vecferry-snapshots"


def check_space(folder: Path, needed: int) -> None:
    """Whether ``needed`` bytes fit.

    Raises:
        FatalStoreError: with both numbers.
    """
    free = shutil.disk_usage(folder).free
    if free < needed * _MARGIN:
        raise FatalStoreError(
            f"{folder} has {free:,} bytes free where {needed:,} are needed; "
            "make room, or set TMPDIR (temp_dir=) to a larger disk"
        )
