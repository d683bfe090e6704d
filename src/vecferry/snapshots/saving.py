"""What goes into a version: its files, its entry in the catalog, the progress of moving it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from vecferry import __version__
from vecferry.errors import ConfigurationError
from vecferry.model import CollectionSchema
from vecferry.ports import OnProgress, Progress
from vecferry.snapshots import catalog
from vecferry.snapshots.catalog import MANIFEST, Snapshot, SnapshotFile


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
