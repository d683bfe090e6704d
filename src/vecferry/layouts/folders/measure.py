"""A bound on what one record of a pickle may unfold to."""

from __future__ import annotations

from typing import Any

from vecferry.errors import CorruptDataError

_MOST = 64 * 1024 * 1024
_DEEPEST = 100
_FEW = 10_000
_SCALARS = frozenset({int, float, bool, type(None)})


def check_size(metadata: Any, where: str) -> None:
    """Refuse metadata that refers to itself, is nested beyond 100 levels, or unfolds to more than 64 MiB.

    A pickle may share one value many times over; written as JSON, each place gets a copy of its own.

    Raises:
        CorruptDataError: naming ``where`` it was found.
    """
    if type(metadata) is dict and _is_small(metadata):
        return
    left, waiting = _MOST, [(metadata, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, str | bytes):
            left -= len(value)
        elif isinstance(value, dict):
            waiting += [(item, depth + 1) for pair in value.items() for item in pair]
            left -= 16 * len(value)
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += [(item, depth + 1) for item in value]
            left -= 8 * len(value)
        if left < 0 or depth > _DEEPEST:
            raise CorruptDataError(
                f"{where} holds a record whose metadata unfolds without bound; load the file with its own "
                "application and save the records as JSON"
            )


def _is_small(metadata: dict[Any, Any]) -> bool:
    """Whether it holds scalars, and lists of scalars, only: nearly all metadata does."""
    size = 0
    for value in metadata.values():
        kind = type(value)
        if kind is list:
            if len(value) > _FEW:
                return False
            for item in value:
                if type(item) is str:
                    size += len(item)
                elif type(item) not in _SCALARS:
                    return False
        elif kind is str:
            size += len(value)
        elif kind not in _SCALARS:
            return False
    return size < _MOST and len(metadata) < _FEW and all(type(key) is str for key in metadata)
