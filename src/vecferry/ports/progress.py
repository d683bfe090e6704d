"""Progress and cancellation are callables; the library itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from vecferry.core.concurrency import ShouldStop, never_stop


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job stands. ``stage`` is ``plan``, ``stream``, ``finish``, ``verify`` or ``publish``.

    ``done`` and ``total`` count records of this stage; ``total`` is ``None`` where unknown.
    ``seconds`` is the time since the job began in this process.
    """

    stage: str
    done: int = 0
    total: int | None = None
    written: int = 0
    rejected: int = 0
    bytes: int = 0
    seconds: float = 0.0
    message: str = ""


OnProgress: TypeAlias = Callable[[Progress], None]


def ignore_progress(_: Progress) -> None:
    """The default listener."""


__all__ = ["OnProgress", "Progress", "ShouldStop", "ignore_progress", "never_stop"]
