"""What goes into a version: its files, its entry in the catalog, the progress of moving it."""

from __future__ import annotations

import threading
import time
from collections.abc import Container
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

from vecferry import __version__
from vecferry.core.home import home
from vecferry.core.locks import Lock
from vecferry.errors import ConfigurationError, JobLockedError
from vecferry.model import CollectionSchema
from vecferry.ports import OnProgress, Progress
from vecferry.snapshots import catalog
from vecferry.snapshots.catalog import MANIFEST, Snapshot, SnapshotFile

_EXPIRES = 20 * 3600.0
"""Seconds; less than the day after which an abandoned version is swept."""


class ByteCounter:
    """Turns bytes moved into progress."""

    def __init__(self, stage: str, total: int, on_progress: OnProgress) -> None:
        self._stage, self._total, self._on_progress = stage, total, on_progress
        self._done = 0
        self._lock = threading.Lock()

    def __call__(self, size: int) -> None:
        with self._lock:
            self._done += size
            self._on_progress(Progress(self._stage, self._done, self._total, bytes=self._done))


def visible_files(folder: Path) -> list[Path]:
    """The files of a folder but hidden ones.

    Raises:
        ConfigurationError: if there is a link, which is not followed out of the folder: without what it
            leads to the version might not be whole.
    """
    seen = [
        path
        for path in sorted(folder.rglob("*"))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    link = next((path for path in seen if path.is_symlink()), None)
    if link:
        raise ConfigurationError(
            f'{link} is a link; put the file itself there, or save with format="parquet"'
        )
    found = [path for path in seen if path.is_file()]
    if any(path.relative_to(folder).as_posix() == MANIFEST for path in found):
        raise ConfigurationError(f'{folder} holds a {MANIFEST} of its own; save it with format="parquet"')
    return found


def entry_of(
    version: str,
    note: str,
    source: str,
    scheme: str,
    schema: CollectionSchema,
    count: int,
    files: tuple[SnapshotFile, ...],
    dedupe: Any,
) -> Snapshot:
    """The catalog's entry of a saved version."""
    field = schema.fields[0] if schema.fields else None
    statistics = dedupe.to_dict() if hasattr(dedupe, "to_dict") else dedupe
    return Snapshot(
        version=version,
        created=catalog.now(),
        note=note,
        source=source,
        format=scheme,
        count=count,
        dim=field.dim if field else None,
        metric=str(field.metric) if field else None,
        dtype=str(field.dtype) if field else None,
        space=field.space.model_dump() if field and field.space else None,
        layout=schema.layout,
        bytes=sum(file.bytes for file in files),
        files=files,
        dedupe=statistics,
        library=__version__,
    )


class Journal:
    """Which version an interrupted save of ``source`` to ``store`` on this machine had begun, so that the
    next one goes on with it.

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
        self._lock: Lock | None = None

    def __enter__(self) -> Journal:
        try:
            self._lock = Lock(self._path.with_suffix(".lock"))
        except (JobLockedError, OSError):
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
        if self._lock is not None:
            self._path.unlink(missing_ok=True)

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()
