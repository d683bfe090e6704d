"""Where two records that belong together differ, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vecferry.model.canonical import parse_canonical

_SHOWN = 60


def explain_documents(expected: bytes, found: bytes) -> tuple[str, str]:
    """Where two canonical forms differ first, and how: ``("metadata/page", "3 (int) became …")``."""
    _, text, metadata, types = parse_canonical(expected)
    _, other_text, other_metadata, other_types = parse_canonical(found)
    if text != other_text:
        return "text", f"{_show(text)} became {_show(other_text)}"
    for pointer, reason in _differences(metadata, other_metadata, types, other_types, ""):
        return f"metadata{pointer}", reason
    return "metadata", "the types of its values differ"


def _differences(
    a: Any, b: Any, a_types: Mapping[str, str], b_types: Mapping[str, str], pointer: str
) -> Iterator[tuple[str, str]]:
    kind, other = a_types.get(pointer) or _kind(a), b_types.get(pointer) or _kind(b)
    if kind != other:
        yield pointer, f"{_show(a)} ({kind}) became {_show(b)} ({other})"
        return
    if isinstance(a, dict):
        for key in [*a, *(k for k in b if k not in a)]:
            place = f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}"
            if key not in b:
                yield place, f"{_show(a[key])} is gone"
            elif key not in a:
                yield place, f"{_show(b[key])} was not there before"
            else:
                yield from _differences(a[key], b[key], a_types, b_types, place)
    elif isinstance(a, list):
        if len(a) != len(b):
            yield pointer, f"{len(a)} items became {len(b)}"
        for i, (x, y) in enumerate(zip(a, b, strict=False)):
            yield from _differences(x, y, a_types, b_types, f"{pointer}/{i}")
    elif repr(a) != repr(b):
        yield pointer, f"{_show(a)} became {_show(b)}"


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
