"""One part of an upload: its body as botocore reads it, its checksums."""

from __future__ import annotations

import os
import threading
from base64 import b64encode
from hashlib import sha256
from zlib import crc32

_PIECE = 1 << 18


class Body:
    """Bytes as a file that is read in pieces of 256 KiB, none of them copied.

    botocore makes a file of bytes anyway, of which the connection would copy 16 KiB at a time.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = memoryview(data), 0

    def __len__(self) -> int:
        return len(self._data)

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self)}[whence]
        return self._at

    def read(self, _size: int = -1) -> memoryview:
        """The next piece, empty at the end, whatever size is asked for."""
        piece = self._data[self._at : self._at + _PIECE]
        self._at += len(piece)
        return piece


class Digest:
    """The SHA-256 of parts that come in any order, each read once. Nobody waits for anybody."""

    def __init__(self) -> None:
        self._sha, self._next, self._busy = sha256(), 0, False
        self._waiting: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def add(self, number: int, data: bytes) -> None:
        """Take in part ``number``, now or when those before it have come."""
        with self._lock:
            self._waiting[number] = data
            if self._busy:
                return
            self._busy = True
        while (due := self._due()) is not None:
            self._sha.update(due)

    def _due(self) -> bytes | None:
        with self._lock:
            part = self._waiting.pop(self._next, None)
            self._busy = part is not None
            self._next += self._busy
            return part

    def hexdigest(self) -> str:
        """Of all the parts, when all have been added."""
        return self._sha.hexdigest()


def crc32_of(data: bytes) -> str:
    """As S3 writes it: base64 of the big-endian sum."""
    return b64encode(crc32(data).to_bytes(4, "big")).decode()


__all__ = ["Body", "Digest", "crc32_of"]
