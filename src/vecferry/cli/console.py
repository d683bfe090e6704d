"""What every command shares: output as text or JSON, progress bars, signals, exit status."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console

from vecferry.connecting import denied
from vecferry.core.redaction import redact
from vecferry.errors import JobStopped, VecferryError
from vecferry.ports import OnProgress, ignore_progress
from vecferry.reporting import ProgressBar

OK, DIFFERENT, FAILED, UNVERIFIED, STOPPED = 0, 1, 2, 3, 130
"""Exit statuses: proved; a difference was found; the command could not do it; done, but not verified
(``--no-verify``); stopped, resumable."""

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a record could do to a terminal; shown as an escape instead."""

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Workers = Annotated[int, typer.Option(min=1, help="Threads that read the target at once to compare it.")]


def emit(value: Any, *, as_json: bool) -> None:
    """Print a result: ``to_dict()`` or the value itself as JSON, or its text."""
    if not as_json:
        out.print(_CONTROL.sub(lambda found: repr(found[0])[1:-1], str(value)), markup=False)
        return
    data = value.to_dict() if hasattr(value, "to_dict") else value
    data = data.model_dump(mode="json") if hasattr(data, "model_dump") else data
    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    sys.stdout.write(json.dumps(data, ensure_ascii=plain, indent=2, default=str) + "\n")


@contextmanager
def errors_as_text(*, as_json: bool = False) -> Iterator[None]:
    """Turn vecferry's errors into one line and an exit status; bugs keep their traceback."""
    try:
        yield
    except JobStopped as error:
        _fail(error, STOPPED, as_json)
    except VecferryError as error:
        _fail(error, FAILED, as_json)
    except PermissionError as error:
        _fail(denied(error), FAILED, as_json)


def _fail(error: VecferryError, status: int, as_json: bool) -> None:
    message = redact(str(error))
    if as_json:
        sys.stdout.write(
            json.dumps({"ok": False, "error": type(error).__name__, "message": message}) + "\n"
        )
    else:
        err.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        err.print(message, markup=False)
    raise typer.Exit(status)


class StopFlag:
    """True once SIGINT or SIGTERM came; a second signal ends the process at once. Both are resumable."""

    def __init__(self) -> None:
        self.stopped = False

    def __call__(self) -> bool:
        return self.stopped

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stopped:
            # At once, whatever a thread is waiting for. What is committed is on disk already.
            os.write(2, b"stopped; run the same command again to go on\n")
            os._exit(STOPPED)
        self.stopped = True
        err.print("stopping at the next checkpoint; once more to stop at once", markup=False)


@contextmanager
def graceful_stop() -> Iterator[StopFlag]:
    """Install the signal handlers for the time of a job."""
    flag = StopFlag()
    before = {n: signal.signal(n, flag._on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def bars(*, quiet: bool) -> Iterator[OnProgress]:
    """A progress listener; silent with ``quiet`` or where stderr is no terminal."""
    if quiet or not err.is_terminal:
        yield ignore_progress
        return
    with ProgressBar(err) as bar:
        yield bar
