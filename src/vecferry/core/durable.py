"""Durable changes of files and folders: fsync, rename, exchange, and what a refusal means."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from vecferry.errors import ConfigurationError, FatalStoreError, NotFoundError

_RENAME_EXCHANGE = 2  # the same bit in Linux's renameat2 and macOS's renamex_np
_AT_FDCWD = -100


def fsync_file(path: Path) -> None:
    """Make the content of a file durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable. Does nothing where folders cannot be opened (Windows)."""
    if os.name == "posix":
        fsync_file(path)


def fsync_tree(path: Path) -> None:
    """Make a file, or a folder with everything in it, durable."""
    if not path.is_dir():
        fsync_file(path)
        return
    for root, _, files in os.walk(path):
        for name in files:
            fsync_file(Path(root, name))
        fsync_folder(Path(root))


def replace_durably(new: Path, target: Path) -> None:
    """Let the file ``new`` be ``target``: fsync, rename over it, fsync the folder."""
    fsync_file(new)
    new.replace(target)
    fsync_folder(target.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file such that a crash leaves the old content or the new, never a mixture."""
    draft = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        draft.write_bytes(data)
        replace_durably(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def replace_whole(new: Path, target: Path) -> None:
    """Let a durable file or folder be ``target`` in one step, keeping nothing of what was there."""
    fsync_tree(new)
    if not target.is_dir() and not new.is_dir():
        new.replace(target)
    elif not target.exists():
        new.rename(target)
    elif not exchange(new, target):
        aside = new.with_name(f"trash-{uuid4().hex[:8]}")
        target.rename(aside)
        new.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
    fsync_folder(target.parent)
    if new.is_dir():
        shutil.rmtree(new, ignore_errors=True)
    else:
        new.unlink(missing_ok=True)


def check_swappable(target: Path) -> None:
    """Whether a folder may be swapped for another.

    Raises:
        ConfigurationError: if it is the working folder, which would be taken from under this process.
    """
    if target.is_dir() and Path(os.path.realpath(target)) == Path.cwd():
        raise ConfigurationError(
            f"{target} is the working folder, which cannot be swapped for another one; run from elsewhere, "
            "or name a folder in it"
        )


def exchange(a: Path, b: Path) -> bool:
    """Swap two existing paths in one step; false where the system cannot do that."""
    call = _exchange_call()
    if call is None:
        return False
    if call(os.fsencode(a), os.fsencode(b)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(a))


@cache
def _exchange_call() -> Any:
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            swap = libc.renamex_np
            return lambda a, b: swap(a, b, _RENAME_EXCHANGE)
        swap = libc.renameat2
    except (OSError, AttributeError, TypeError):
        return None
    return lambda a, b: swap(_AT_FDCWD, a, _AT_FDCWD, b, _RENAME_EXCHANGE)


def as_store_error(error: OSError, path: Path) -> Exception:
    """The one table that turns an operating system's refusal into ours."""
    name = str(path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return FatalStoreError(f"no space is left for {name}; free some and run the same call again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return FatalStoreError(f"{name} may not be written; change its permissions or choose another path")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFoundError(f"{name} is not there, or a folder on the way to it is not")
    return FatalStoreError(f"{name}: {error.strerror or error}; see to the disk and run the call again")
