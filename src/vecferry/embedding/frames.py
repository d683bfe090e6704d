"""Frames between a process and its worker: lengths, a JSON head, and raw bytes. Never a pickle.

8 bytes head length · 8 bytes body length (big-endian) · head (JSON) · body
"""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

import orjson

_LENGTHS = struct.Struct(">QQ")


def write_frame(stream: BinaryIO, head: dict[str, Any], body: bytes | memoryview = b"") -> None:
    """Write one frame and flush."""
    text = orjson.dumps(head)
    stream.write(_LENGTHS.pack(len(text), len(body)))
    stream.write(text)
    stream.write(body)
    stream.flush()


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """Read one frame.

    Raises:
        EOFError: if the other side is gone.
    """
    head, body = _LENGTHS.unpack(_exactly(stream, _LENGTHS.size))
    return orjson.loads(_exactly(stream, head)), _exactly(stream, body)


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if data is None or len(data) < count:
        raise EOFError("the other side of the pipe is gone")
    return data
