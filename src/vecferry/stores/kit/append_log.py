"""An append log with a committed length: what a file store writes before the file is built.

    pending/
    ├── about.json      the schema and the mode that `prepare` was given
    ├── marked          there once a job keeps a mark: what lies here is the work of a job
    ├── rows            the rows, in the store's own encoding, one after the other
    └── keys            25 bytes a row: its id's key, its length in ``rows``, the kind of its id

A row is in the log when its 25 bytes are complete. They are appended after the row itself, so that a
process may die at any instant and the log still tells how far it is whole.

A log that a job keeps a mark of is never begun over: another one is begun beside it, and the marks, which
name their log, tell them apart when the jobs go on.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import orjson

from vecferry.core.durable import fsync_folder, write_durably
from vecferry.core.locks import Lock
from vecferry.errors import CorruptDataError, NotFoundError
from vecferry.model import CollectionSchema
from vecferry.model.vectors import Array
from vecferry.stores.kit.keys import keys_of

ENTRY = np.dtype([("key", "S16"), ("length", "<u8"), ("kind", "u1")])
PENDING, BESIDE = "pending", "v-upsert-"
ID_KINDS = ("int", "str", "uuid", "mixed")


class AppendLog:
    """The rows written so far, durable up to each `mark`.

    Args:
        folder: where the three files lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._home = folder.parent
        self._is_mine = False
        self._lock: Lock | None = None
        self._rows: FileIO | None = None
        self._keys: FileIO | None = None

    @property
    def rows_path(self) -> Path:
        return self.folder / "rows"

    def begin(self, schema: CollectionSchema, **settings: Any) -> None:
        """Start anew. What a job left that keeps no mark of it is removed; else it stays beside."""
        self.close()
        self._acquire()
        self.folder = self._home / PENDING
        if self._is_marked:
            self.folder = self._home / f"{BESIDE}{uuid4().hex[:8]}"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self._open()
        self._is_mine = True
        about = {"schema": schema.model_dump(mode="json", exclude_none=True), **settings}
        write_durably(self.folder / "about.json", orjson.dumps(about))
        fsync_folder(self.folder.parent)

    def all(self) -> list[Path]:
        """The logs beside this target, the last begun first."""
        found = (self._home / PENDING, *self._home.glob(f"{BESIDE}*"))
        begun = [path for path in found if (path / "about.json").exists()]
        return sorted(begun, key=lambda path: -(path / "about.json").stat().st_mtime_ns)

    def resume(self, fits: Callable[[CollectionSchema], bool] = lambda _: True) -> None:
        """Go on with what is there, without a row that was cut short; with the last log that fits.

        Raises:
            NotFoundError: if nothing was begun.
        """
        if self._rows is None:
            logs = self.all()
            fitting = (path for path in logs if fits(_schema_in(path)))
            self.folder = next(fitting, next(iter(logs), self.folder))
        if not (self.folder / "about.json").exists():
            raise NotFoundError(f"{self.folder} holds nothing to resume; start the job again")
        self.resume_files()

    def resume_files(self) -> None:
        """Open the files of this log, cut back to their last whole row."""
        if self._rows is None:
            self._acquire()
            self._break_links()
            self._open()
        rows, keys = self._sizes()
        entries = np.fromfile(self.folder / "keys", ENTRY, count=keys // ENTRY.itemsize)
        ends = np.cumsum(entries["length"])
        whole = int(np.searchsorted(ends, rows, side="right"))
        self._truncate(int(ends[whole - 1]) if whole else 0, whole)

    @property
    def about(self) -> dict[str, Any]:
        """What `begin` was given, the schema as JSON."""
        about: dict[str, Any] = orjson.loads((self.folder / "about.json").read_bytes())
        return about

    @property
    def schema(self) -> CollectionSchema:
        return _schema_in(self.folder)

    def append(self, rows: bytes, lengths: Array, ids: Any, kind: str) -> None:
        """Add encoded rows: their bytes, the length of each (uint64), and their ids."""
        assert self._rows is not None and self._keys is not None
        entries = np.empty(len(lengths), dtype=ENTRY)
        entries["key"], entries["length"], entries["kind"] = keys_of(ids), lengths, ID_KINDS.index(kind)
        rows_before, keys_before = self._sizes()
        try:
            _write_all(self._rows, rows)
            _write_all(self._keys, entries.tobytes())
        except OSError:  # a full disk: the same batch may come again
            os.truncate(self.folder / "keys", keys_before)
            os.truncate(self.rows_path, rows_before)
            raise

    def mark(self) -> dict[str, int | str]:
        """Make all rows durable and name this point."""
        assert self._rows is not None and self._keys is not None
        for handle in (self._rows, self._keys):
            os.fsync(handle.fileno())
        if not self._is_marked:
            write_durably(self.folder / "marked", b"")
        rows, keys = self._sizes()
        return {"bytes": rows, "rows": keys // ENTRY.itemsize, "log": self.folder.name}

    def rewind(self, mark: Any) -> None:
        """Forget what came after ``mark``; ``None`` forgets everything.

        Raises:
            CorruptDataError: if the log is shorter than the mark says.
        """
        name = mark.get("log", PENDING) if mark else self.folder.name
        if name != self.folder.name or (not mark and self._is_marked and not self._is_mine):
            self._turn_to(name if mark else None)
        size, count = (mark["bytes"], mark["rows"]) if mark else (0, 0)
        rows, keys = self._sizes()
        if rows < size or keys < count * ENTRY.itemsize:
            raise CorruptDataError(
                f"{self.folder} holds {rows} bytes where {size} were committed; "
                "start the job again with a fresh target"
            )
        self._truncate(size, count)

    def entries(self) -> Array:
        """All entries, in order: 25 bytes a row."""
        return np.fromfile(self.folder / "keys", ENTRY)

    def chunks(self, entries: Array) -> Iterator[tuple[int, int, int, int]]:
        """Where encoded pieces lie: first row, next row, offset, length. Rows of length 0 share a piece."""
        starts = np.flatnonzero(entries["length"])
        offset = 0
        for first, following in zip(starts, np.append(starts, len(entries))[1:], strict=True):
            length = int(entries["length"][first])
            yield int(first), int(following), offset, length
            offset += length

    def close(self) -> None:
        """Close the files; what they hold stays."""
        self._close_files()
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    def _close_files(self) -> None:
        for handle in (self._rows, self._keys):
            if handle is not None:
                handle.close()
        self._rows = self._keys = None
        self._is_mine = False

    def _turn_to(self, name: str | None) -> None:
        """Go on with the log of that name, or with a new one where there is none (any more)."""
        about = self.about
        self._close_files()
        if name is not None and (self._home / name / "about.json").exists():
            self.folder = self._home / name
            self.resume_files()
            return
        settings = {key: value for key, value in about.items() if key != "schema"}
        self.begin(CollectionSchema(**about["schema"]), **settings)

    def remove(self) -> None:
        """Delete the log."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()

    # -- helpers ------------------------------------------------------------------------------

    def _open(self) -> None:
        self._keys = (self.folder / "keys").open("ab", buffering=0)
        self._rows = self.rows_path.open("ab", buffering=0)

    def _acquire(self) -> None:
        """One writer a target. The kernel lets go of the lock however the process ends."""
        if self._lock is None:
            self._lock = Lock(
                self._home / "writer",
                busy=f"another process is writing to {self._home}; wait until it ends or choose another "
                "target",
            )

    @property
    def _is_marked(self) -> bool:
        return (self.folder / "marked").exists()

    def _sizes(self) -> tuple[int, int]:
        return self.rows_path.stat().st_size, (self.folder / "keys").stat().st_size

    def _truncate(self, size: int, count: int) -> None:
        os.truncate(self.folder / "keys", count * ENTRY.itemsize)
        os.truncate(self.rows_path, size)

    def _break_links(self) -> None:
        """A finish that was cut short may have published ``rows`` itself: never change that file."""
        if self.rows_path.exists() and self.rows_path.stat().st_nlink > 1:
            copy = self.rows_path.with_name("rows.copy")
            shutil.copyfile(self.rows_path, copy)
            copy.replace(self.rows_path)


def _write_all(handle: FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[handle.write(view) :]


def _schema_in(folder: Path) -> CollectionSchema:
    return CollectionSchema(**orjson.loads((folder / "about.json").read_bytes())["schema"])
