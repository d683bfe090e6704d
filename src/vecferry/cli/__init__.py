"""The command line: a thin shell over the public API."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any


def main() -> None:
    """The entry point of ``vecferry`` and ``python -m vecferry``.

    What needs no command line parser is answered without one, and Ctrl-C while
    modules are imported ends without a traceback.
    """
    if sys.argv[1:] == ["--version"]:
        from vecferry import __version__

        sys.stdout.write(f"vecferry {__version__}\n")
        return
    signal.signal(signal.SIGINT, _leave)
    from vecferry.cli.tree import run

    run()


def _leave(number: int, frame: FrameType | None) -> None:
    """Ctrl-C before a job has begun, or where there is none; a running job has a handler of its own."""
    sys.stderr.write("stopped; run the same command again to go on\n")
    raise SystemExit(128 + number)


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vecferry.cli.tree import app

    return app


__all__ = ["app", "main"]
