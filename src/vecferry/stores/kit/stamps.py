"""What tells one state of some files from another without reading them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

_TAIL = 64 << 10


def stamp_of_files(paths: Iterable[Path]) -> dict[str, Any]:
    """A JSON value that changes when a file is added, taken away, replaced, or written to.

    A file that was only appended to has the same inode and more bytes.
    """
    stats = [(path, path.stat()) for path in sorted(paths)]
    identity, tail = blake2b(digest_size=8), blake2b(digest_size=8)
    for path, found in stats:
        identity.update(f"{path.name}\0{found.st_dev}\0{found.st_ino}\0".encode("utf-8", "surrogateescape"))
        with path.open("rb") as file:
            file.seek(max(found.st_size - _TAIL, 0), os.SEEK_SET)
            tail.update(file.read(_TAIL))
    return {
        "kind": "files",
        "files": len(stats),
        "bytes": sum(found.st_size for _, found in stats),
        "mtime_ns": max((found.st_mtime_ns for _, found in stats), default=0),
        "inodes": identity.hexdigest(),
        "tail": tail.hexdigest(),
    }
