"""Which version an interrupted save on this machine had begun, so that the next one goes on with it."""

from __future__ import annotations

import time
from collections.abc import Container
from datetime import UTC, datetime
from hashlib import sha256
from types import TracebackType
from uuid import uuid4

from filelock import FileLock, Timeout

from vecferry.core.home import home

_EXPIRES = 20 * 3600.0
"""Seconds; less than the day after which an abandoned version is swept."""


class Journal:
    """The name of the version that a save of ``source`` to ``store`` builds.

    While another save of the same pair runs, or without a place to write, it remembers nothing.

    Args:
        wanted: the name the caller chose; default the time and a random end.
        known: versions that are complete, which no save may touch again.

    Attributes:
        version: the name to be used: that of an interrupted save, if there is one to go on with.
        resumes: whether files of that name may be there already.
    """

    def __init__(self, store: str, source: str, wanted: str | None, known: Container[str]) -> None:
        self.version = wanted or f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid4().hex[:8]}"
        self._wanted, self._known = wanted, known
        self.resumes = wanted is not None
        name = sha256(f"{store}\n{source}".encode()).hexdigest()
        self._path = home() / "snapshots" / name[:24]
        self._lock = FileLock(self._path.with_suffix(".lock"))

    def __enter__(self) -> Journal:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except (Timeout, OSError):
            return self
        begun = self._begun()
        if begun and not self._wanted and begun not in self._known:
            self.version, self.resumes = begun, True
        self._path.write_text(self.version, encoding="utf-8")
        return self

    def _begun(self) -> str | None:
        if not self._path.exists() or time.time() - self._path.stat().st_mtime > _EXPIRES:
            return None
        return self._path.read_text(encoding="utf-8").strip() or None

    def done(self) -> None:
        """The version is there."""
        if self._lock.is_locked:
            self._path.unlink(missing_ok=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lock.is_locked:
            self._lock.release()
