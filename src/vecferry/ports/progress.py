"""Progress and cancellation are callables; the library itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


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
ShouldStop: TypeAlias = Callable[[], bool]


def ignore_progress(_: Progress) -> None:
    """The default listener."""


def never_stop() -> bool:
    """The default answer to `ShouldStop`."""
    return False
