"""Which version comes back, and which may go: the same arithmetic in every store that keeps versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from vecferry.errors import NotFoundError

V = TypeVar("V")


def before(history: Sequence[V], live: V | None, where: object) -> V:
    """The version that a rollback brings back: the one before the live one.

    Args:
        history: what was ever live and is kept, oldest first.
        where: how the message calls the collection.

    Raises:
        NotFoundError: if none is kept.
    """
    at = history.index(live) if live in history else 0
    if at == 0:
        raise NotFoundError(f"{where} keeps no earlier version to roll back to")
    return history[at - 1]


def surplus(history: Sequence[V], live: V | None, keep: int) -> list[V]:
    """What a prune deletes, oldest first: all but the live version and ``keep`` others. Those that were
    rolled back go first, then the oldest.
    """
    at = history.index(live) if live in history else len(history)
    others = [*history[at + 1 :], *history[:at]]
    return sorted(others[: max(len(others) - keep, 0)], key=history.index)
