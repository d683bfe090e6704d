"""Durable changes of files and folders: write aside, fsync, swap in whole.

| | Linux | macOS | Windows |
|---|---|---|---|
| durable file | fsync | F_FULLFSYNC: fsync leaves data in the drive | FlushFileBuffers |
| durable names | fsync of the folder | the same | the file system's own journal |
| file over file | rename | rename | rename; waits for readers that have the old file open |
| folder over folder | renameat2(EXCHANGE) | renamex_np(SWAP) | two renames |

Where an exchange is not to be had (some file systems, Windows) a folder takes two renames, and a reader
may find nothing for an instant; killed between them, the old content lies beside the target under a name
that begins with ``.old-``, and the next swap of that target puts it back first (`put_back`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from glob import escape
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from vecferry.errors import ConfigurationError, FatalStoreError, NotFoundError

_RENAME_EXCHANGE = 2  # the same bit in Linux's renameat2 and macOS's renamex_np
_AT_FDCWD = -100
_WINDOWS = os.name == "nt"
_PATIENCE = 5.0  # seconds to wait on Windows for readers that have a file open
_TRIES = (13, 5, 32)  # EACCES, ERROR_ACCESS_DENIED, ERROR_SHARING_VIOLATION


# -- durable --------------------------------------------------------------------------------------


def sync_descriptor(descriptor: int) -> None:
    """Make what was written through an open file durable."""
    if sys.platform == "darwin":
        import fcntl

        with suppress(OSError):  # network mounts know fsync only
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def fsync_file(path: Path) -> None:
    """Make the content of a file durable."""
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0) if _WINDOWS else os.O_RDONLY)
    try:
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable. Does nothing where folders cannot be opened (Windows)."""
    if not _WINDOWS:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Make a file, or a folder with everything in it, durable."""
    if not path.is_dir():
        fsync_file(path)
        return
    for root, _, files in os.walk(path):
        for name in files:
            fsync_file(Path(root, name))
        fsync_folder(Path(root))


# -- files ----------------------------------------------------------------------------------------


def replace_durably(new: Path, target: Path) -> None:
    """Let the file ``new`` be ``target``: fsync, rename over it, fsync the folder."""
    fsync_file(new)
    rename_over(new, target)
    fsync_folder(target.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file such that a crash leaves the old content or the new, never a mixture."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that becomes ``path``, durably and whole, when the block ends well.

    If it does not, what was there before stays as it is.
    """
    draft = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        with draft.open("wb") as file:
            yield file
        replace_durably(draft, path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def rename_over(new: Path, target: Path) -> None:
    """Rename a file over another one, or to a free name; on Windows wait for readers of the old one.

    Raises:
        FatalStoreError: if another program keeps the old one open there.
    """
    _patiently(lambda: new.replace(target), target)


def move_aside(source: Path, target: Path) -> None:
    """Rename a file or a folder to a free name, whose folder is made, durably."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _patiently(lambda: source.rename(target), source)
    fsync_folder(target.parent)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file's content, or a durable copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
        fsync_file(target)


# -- swaps ----------------------------------------------------------------------------------------


def put_back(target: Path) -> bool:
    """Undo a swap that was killed between its two renames, or clear up behind one; true if undone."""
    left = sorted(target.parent.glob(f".old-????????-{escape(target.name)}"))
    undone = bool(left) and not os.path.lexists(target)
    if undone:
        left.pop().rename(target)
        fsync_folder(target.parent)
    for path in left:
        remove(path)
    return undone


def swap_in(new: Path, target: Path, *, keep: Path | None = None) -> None:
    """Let a file or folder be ``target``, in one step where the system can; durable when it returns.

    Both lie on one file system. A symbolic link at ``target`` is replaced itself, not what it leads to.

    Args:
        new: what goes in; its content is made durable first.
        target: where it goes.
        keep: where what was there is kept; else it is removed.

    Raises:
        FatalStoreError: on Windows, if another program has files of either side open.
        OSError: whatever else the system refuses; the target is as it was.
    """
    fsync_tree(new)
    put_back(target)
    if not os.path.lexists(target):
        _patiently(lambda: new.rename(target), new)
    elif not _is_folder(target) and not _is_folder(new):
        if keep is not None and not keep.exists():
            keep.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(target, keep)
        rename_over(new, target)
    else:
        _swap_folders(new, target, keep)
    fsync_folder(target.parent)


def _swap_folders(new: Path, target: Path, keep: Path | None) -> None:
    if keep is not None:
        keep.parent.mkdir(parents=True, exist_ok=True)
    if not target.is_symlink() and exchange(new, target):
        old = new
    else:
        old = keep or target.with_name(f".old-{uuid4().hex[:8]}-{target.name}")
        _patiently(lambda: target.rename(old), target)
        try:
            _patiently(lambda: new.rename(target), new)
        except BaseException:
            old.rename(target)
            raise
    if keep is None:
        remove(old)
    elif old != keep:
        move_aside(old, keep)


def replace_whole(new: Path, target: Path) -> None:
    """`swap_in` that keeps nothing of what was there."""
    swap_in(new, target)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it, as far as the system lets it."""
    if _is_folder(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


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
def _exchange_call() -> Callable[[bytes, bytes], int] | None:
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            swap = libc.renamex_np
            return lambda a, b: int(swap(a, b, _RENAME_EXCHANGE))
        swap = libc.renameat2
    except (OSError, AttributeError, TypeError):
        return None
    return lambda a, b: int(swap(_AT_FDCWD, a, _AT_FDCWD, b, _RENAME_EXCHANGE))


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _patiently(step: Callable[[], object], what: Path) -> None:
    """Do a rename; on Windows, where an open file cannot be renamed, wait a little for its readers.

    Raises:
        FatalStoreError: if they do not let go.
    """
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            step()
        except PermissionError as error:
            if not _WINDOWS or getattr(error, "winerror", error.errno) not in _TRIES:
                raise
            if time.monotonic() > end:
                raise FatalStoreError(
                    f"{what} is open in another program, and Windows lets nobody replace it meanwhile; "
                    "close it there and run the same call again"
                ) from error
            time.sleep(0.05)
        else:
            return


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
