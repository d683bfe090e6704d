"""Files that change in one step: written aside, made durable, swapped in whole, the old ones kept.

A `StagingRoom` stands for one target path, a file or a folder, whether it exists or not. All that is
not yet seen, or no longer seen, lies in one hidden folder beside it, on the same file system::

    kb                          the target: always a plain file or folder, and always complete
    .kb.vecferry/
    ├── room.json               which version is live, which are kept, and a swap that is under way
    ├── lock                    held while versions change
    ├── v-TAG/kb                a version under construction, or one that was live before
    └── trash-…                 on its way out

The swap is one system call, ``renameat2(RENAME_EXCHANGE)`` on Linux or ``renamex_np(RENAME_SWAP)`` on
macOS; for a single file anywhere else a hard link and ``rename``. For a folder on a system that has none
of these it takes two renames, and a reader may find nothing for an instant. Before the swap its intent is
written down with the inode of what goes in; whoever comes next after a crash compares inodes and
completes what was begun. Inodes survive renames, so no marker is ever put into the user's folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from vecferry.core.durable import (
    as_store_error,
    exchange,
    fsync_folder,
    fsync_tree,
    link_or_copy,
    move_aside,
    rename_over,
    write_durably,
)
from vecferry.core.locks import locked
from vecferry.errors import ConfigurationError, NotFoundError
from vecferry.ports import Version
from vecferry.stores.kit.versions import before, surplus

_HOUSEKEEPING = frozenset({"room.json", "lock", "writer"})


@dataclass
class _Ledger:
    """What ``room.json`` holds. ``history`` is oldest first and contains ``live``."""

    live: str | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    swap: dict[str, Any] | None = None

    def tags(self) -> list[str]:
        return [str(entry["tag"]) for entry in self.history]

    def entry(self, tag: str) -> dict[str, Any]:
        return next(entry for entry in self.history if entry["tag"] == tag)


class StagingRoom:
    """The versions of one target path.

    Args:
        target: the path users see. A symbolic link is followed, so that the swap happens where it leads.
    """

    def __init__(self, target: Path) -> None:
        self.target = Path(os.path.realpath(target))
        self.folder = self.target.parent / f".{self.target.name}.vecferry"

    def path(self, tag: str) -> Path:
        """Where the version ``tag`` lies while it is not live. Its name is that of the target."""
        return self.folder / f"v-{quote(tag, safe='')}" / self.target.name

    def begin(self, tag: str) -> Path:
        """Make the place for a version under construction and return `path`. Twice is as once."""
        place = self.path(tag)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise as_store_error(error, self.target) from error
        return place

    def publish(self, tag: str, *, count: int | None = None) -> Version:
        """Make `path` durable and let it be the target, in one step. The previous one is kept.

        Twice is as once; a kept version may be published again.

        Raises:
            NotFoundError: if nothing was built for ``tag``.
        """
        with self._open() as ledger:
            if ledger.live != tag or self.path(tag).exists() or not self.target.exists():
                self._swap_in(ledger, tag, count)
        return next(version for version in self.versions() if version.tag == tag)

    def discard(self, tag: str) -> None:
        """Delete a version that was never live. No error if there is none."""
        if not self.path(tag).parent.exists():
            return
        with self._open() as ledger:
            if tag not in ledger.tags():
                self._trash(tag)

    def versions(self) -> list[Version]:
        """The live version, those kept, and those begun that were never live; newest first."""
        if not self.folder.exists():
            return [Version("original", live=True)] if self.target.exists() else []
        with self._open() as ledger:
            kept = [
                Version(e["tag"], e["tag"] == ledger.live, e.get("created", ""), e.get("count"))
                for e in reversed(ledger.history)
            ]
            places = (path.name.removeprefix("v-") for path in self.folder.glob("v-*"))
            begun = sorted({*places} - {*ledger.tags()}, reverse=True)
        return [*(Version(tag, live=False, published=False) for tag in begun), *kept]

    def rollback(self) -> Version:
        """Let the version before the live one be the target again, in one step.

        Raises:
            NotFoundError: if none is kept.
        """
        with self._open() as ledger:
            tag = before(ledger.tags(), ledger.live, self.target)
            self._swap_in(ledger, tag, None, move_to_end=False)
        return next(version for version in self.versions() if version.live)

    def roll_to(self, tag: str) -> Version:
        """Let the kept version ``tag`` be the target, in one step.

        Raises:
            NotFoundError: if it is not kept.
        """
        with self._open() as ledger:
            if tag not in ledger.tags():
                raise NotFoundError(f"{self.target} keeps no version {tag!r}")
            if tag != ledger.live:
                self._swap_in(ledger, tag, None, move_to_end=False)
        return next(version for version in self.versions() if version.live)

    def prune(self, keep: int = 0) -> list[str]:
        """Delete all but the live version and ``keep`` before it; returns the tags deleted."""
        if not self.folder.exists():
            return []
        with self._open() as ledger:
            gone = surplus(ledger.tags(), ledger.live, keep)
            ledger.history = [entry for entry in ledger.history if entry["tag"] not in gone]
            self._save(ledger)
            for tag in gone:
                self._trash(tag)
        return gone

    def sweep(self) -> None:
        """Remove the hidden folder if nothing in it is needed any more."""
        if not self.folder.exists():
            return
        with self._open() as ledger:
            kept = any(tag != ledger.live for tag in ledger.tags())
            if not kept and all(p.name in _HOUSEKEEPING for p in self.folder.iterdir()):
                shutil.rmtree(self.folder, ignore_errors=True)

    # -- how a swap survives a crash ----------------------------------------------------------

    def _swap_in(self, ledger: _Ledger, tag: str, count: int | None, *, move_to_end: bool = True) -> None:
        place = self.path(tag)
        if not place.exists():
            raise NotFoundError(f"{self.target} has no version {tag!r} to publish; write it first")
        fsync_tree(place)
        previous = ledger.live = self._name_live(ledger, tag)
        if tag not in ledger.tags():
            ledger.history.append({"tag": tag, "created": _now(), "count": count})
        elif move_to_end:
            ledger.history.append(ledger.history.pop(ledger.tags().index(tag)))
        ledger.swap = {"tag": tag, "previous": previous, "inode": place.stat().st_ino}
        self._save(ledger)
        self._carry_out(ledger)

    def _name_live(self, ledger: _Ledger, incoming: str) -> str | None:
        """The tag under which what is live now will be kept; ``None`` if nothing is there."""
        if not self.target.exists():
            ledger.history = [entry for entry in ledger.history if entry["tag"] != ledger.live]
            return None
        if ledger.live is None:
            ledger.live = _unused("original", ledger.tags())
            ledger.history.append({"tag": ledger.live, "created": _modified(self.target)})
        elif ledger.live == incoming:  # the same job built it anew
            entry = ledger.entry(incoming)
            ledger.live = entry["tag"] = _unused(f"{incoming}-before", ledger.tags())
        return ledger.live

    def _carry_out(self, ledger: _Ledger) -> None:
        """Do what is left to do of the swap that the ledger names. Any prefix may be done already."""
        assert ledger.swap is not None
        tag, previous, inode = (ledger.swap[key] for key in ("tag", "previous", "inode"))
        place = self.path(tag)
        if _inode(self.target) != inode:
            self._put_in_place(place, self.path(previous) if previous else None)
        # After an exchange the old version lies where the new one was built.
        if previous and place.exists() and _inode(place) != inode:
            move_aside(place, self.path(previous))
        if previous is None and place.exists() and _inode(place) != inode:
            self._trash(tag)
        if not self.path(tag).exists():
            shutil.rmtree(self.path(tag).parent, ignore_errors=True)
        fsync_folder(self.target.parent)
        ledger.live, ledger.swap = tag, None
        self._save(ledger)

    def _put_in_place(self, place: Path, keep: Path | None) -> None:
        if not self.target.exists():
            place.rename(self.target)
        elif exchange(place, self.target):
            pass
        elif place.is_dir() or self.target.is_dir():
            assert keep is not None
            move_aside(self.target, keep)
            place.rename(self.target)
        else:
            if keep is not None and not keep.exists():
                keep.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(self.target, keep)
            rename_over(place, self.target)
        fsync_folder(self.target.parent)

    def _trash(self, tag: str) -> None:
        place = self.path(tag).parent
        if place.exists():
            bin_ = self.folder / f"trash-{uuid4().hex[:8]}"
            place.rename(bin_)
            shutil.rmtree(bin_, ignore_errors=True)

    # -- the ledger ---------------------------------------------------------------------------

    @contextmanager
    def _open(self) -> Iterator[_Ledger]:
        """The ledger under the lock, after completing a swap that was cut short."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder / "lock"):
                ledger = self._load()
                if ledger.swap is not None:
                    self._carry_out(ledger)
                for left in self.folder.glob("trash-*"):
                    shutil.rmtree(left, ignore_errors=True)
                yield ledger
        except OSError as error:
            raise as_store_error(error, self.target) from error

    def _load(self) -> _Ledger:
        try:
            return _Ledger(**json.loads((self.folder / "room.json").read_bytes()))
        except FileNotFoundError:
            if self.target.exists():
                entry = {"tag": "original", "created": _modified(self.target)}
                return _Ledger(live="original", history=[entry])
            return _Ledger()
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                f"{self.folder}/room.json is damaged; if no older version is needed, remove {self.folder}"
            ) from error

    def _save(self, ledger: _Ledger) -> None:
        write_durably(self.folder / "room.json", json.dumps(ledger.__dict__, indent=1).encode())


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _unused(name: str, taken: list[str]) -> str:
    names = (name, *(f"{name}-{i}" for i in range(2, len(taken) + 3)))
    return next(candidate for candidate in names if candidate not in taken)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _modified(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")


__all__ = ["StagingRoom", "as_store_error", "fsync_folder", "fsync_tree", "write_durably"]
