"""A bound on what one record of a pickle may unfold to."""

from __future__ import annotations

from typing import Any

from vecferry.errors import CorruptDataError

_MOST = 64 * 1024 * 1024
_DEEPEST = 100


def check_size(metadata: Any, where: str) -> None:
    """Refuse metadata that refers to itself, is nested beyond 100 levels, or unfolds to more than 64 MiB.

    A pickle may share one value many times over; written as JSON, each place gets a copy of its own.

    Raises:
        CorruptDataError: naming ``where`` it was found.
    """
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
