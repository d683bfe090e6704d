"""Lines of a text file with their byte offsets, gzipped or not, from any offset on."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from vecferry.errors import CorruptDataError

MAX_LINE = 256 << 20
"""No record is that long; a longer line means that this is no line-based file."""
_BLOCK = 1 << 20


def open_lines(path: Path) -> BinaryIO:
    """The file, unzipped if its name ends in ``.gz``."""
    if path.name.endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb", buffering=_BLOCK)


def lines(path: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
    """``(offset, line)`` of every line that begins in ``[start, stop)``; blank ones are passed over.

    Raises:
        CorruptDataError: for a truncated gzip file or a line beyond `MAX_LINE`.
    """
    try:
        with open_lines(path) as handle:
            handle.seek(start)
            offset = start
            while stop is None or offset < stop:
                line = handle.readline(MAX_LINE)
                if not line:
                    return
                if len(line) == MAX_LINE:
                    raise CorruptDataError(
                        f"{path} has a line of over {MAX_LINE >> 20} MiB at byte {offset}"
                    )
                if not line.isspace():
                    yield offset, line
                offset += len(line)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CorruptDataError(f"{path} is not a whole gzip file: {error}; restore it") from error


def line_number(path: Path, offset: int) -> int:
    """The number, from 1 on, of the line that begins at ``offset``. Reads the file up to there."""
    count, left = 1, offset
    with open_lines(path) as handle:
        while left > 0 and (block := handle.read(min(_BLOCK, left))):
            count += block.count(b"\n")
            left -= len(block)
    return count


def align(path: Path, offset: int) -> int:
    """The first beginning of a line at or after ``offset``, or the end of the file."""
    if offset <= 0:
        return 0
    with path.open("rb") as handle:
        handle.seek(offset - 1)
        handle.readline()
        return handle.tell()
