"""Let a fetched file or folder be the target, in one step."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from uuid import uuid4


def place_whole(new: Path, target: Path) -> None:
    """Move ``new`` to ``target``, on the same file system, and remove what was there.

    A file is replaced atomically. A folder takes two renames: killed between them, the old content lies
    beside the target under a name that begins with ``.old-``.
    """
    _make_durable(new)
    if not os.path.lexists(target) or not (target.is_dir() or new.is_dir()):
        new.replace(target)
        return
    aside = target.with_name(f".old-{uuid4().hex[:8]}-{target.name}")
    target.rename(aside)
    try:
        new.rename(target)
    except OSError:
        aside.rename(target)
        raise
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    else:
        aside.unlink()


def _make_durable(place: Path) -> None:
    """fsync a file, or every file and folder below a folder."""
    for path in [place, *(place.rglob("*") if place.is_dir() else ())]:
        if path.is_dir() and os.name != "posix":
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
