"""JSON lines without their vectors, for whoever wants ids, texts and metadata only.

A line of 384 components is 8 kB, nearly all of it numbers that take longer to read than all else. What is
found here is checked: a line that is not exactly of the usual form makes its whole batch go the common way.
(To read wanted vectors from text, pyarrow's CSV reader and ``numpy.fromstring`` were not faster than orjson
and ``numpy.array``: 26 and 54 µs beside 46 µs for 384 components, but for the way there.)
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from vecferry.model.foreign import VECTOR_NAMES

_HEAD = b'"vector":'


def cut_vectors(lines: Sequence[bytes], name: str | None = None) -> list[bytes] | None:
    """The lines with ``"vector":null`` in place of their vectors; ``None`` if some line has none.

    Args:
        name: its key; by default the first of the usual names that the first line has.
    """
    names = VECTOR_NAMES if name is None else (name,)
    heads = [orjson.dumps(key) + b":" for key in names]
    head = next((head for head in heads if lines and head in lines[0]), None)
    if head is None:
        return None
    rest: list[bytes] = []
    for line in lines:
        at = line.rfind(head)
        start = at + len(head)
        end = line.find(b"]", start)
        text = line[start + 1 : end]
        if at < 0 or end < 0 or line[start : start + 1] != b"[" or not text or b"[" in text or b'"' in text:
            return None
        if head != _HEAD and _HEAD in line:
            return None
        rest.append(line[:at] + _HEAD + b"null" + line[end + 1 :])
    return rest if all(map(_is_cut, rest)) else None


def _is_cut(line: bytes) -> bool:
    """Whether it was the vector of the record itself, not one inside another value."""
    try:
        record = orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError:
        return False
    return isinstance(record, dict) and record.get("vector", record) is None
