"""Runs jobs in forked children, so that a test can kill hundreds of them without paying for imports.

Reads one JSON object a line on stdin, forks, and the child does what it says::

    {"do": "migrate", "source", "target", "options", "pause", "die"}
    {"do": "rollback" | "prune", "target", "die"}
    {"do": "repair", "source", "target", "die"}

The child prints one line for each progress event, then its outcome; the pid comes first. ``die`` is the
number of the step at which it kills itself: a step is the instant before, and the instant after, each
change that a job makes to its state or to the target. 0 only counts them.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

for kit in ("faiss", "qdrant_client", "psycopg", "sqlalchemy", "pyarrow.parquet", "vecferry.api.migration"):
    import_module(kit)
STORES = {
    name: import_module(f"vecferry.stores.{name}")
    for name in ("faiss", "qdrant", "pgvector", "parquet", "jsonl")
}

import vecferry as vf  # noqa: E402
from vecferry.core.registry import STORES as NAMES  # noqa: E402
from vecferry.core.state import StateFile  # noqa: E402
from vecferry.pipeline import stream as run  # noqa: E402

run.COMMIT_EVERY = 0.0  # after every batch, so that a resume begins in the middle
STEPS = ("prepare", "write", "mark", "rewind", "finish", "publish", "rollback", "prune", "delete")


def say(**event: Any) -> None:
    os.write(1, json.dumps(event).encode() + b"\n")


class Steps:
    """Counts, and dies at the one that was ordered."""

    def __init__(self, die: int) -> None:
        self.die, self.count, self.depth = die, 0, 0

    @contextmanager
    def around(self, name: str) -> Iterator[None]:
        self._step(f"before {name}")
        yield
        self._step(f"after {name}")

    def _step(self, name: str) -> None:
        self.count += 1
        if self.count == self.die:
            say(died=name)
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """Wrap every change that a job makes."""
        for name in STORES:
            module, _, cls = NAMES[name].partition(":")
            store = getattr(import_module(module), cls)
            for step in STEPS:
                if hasattr(store, step):
                    setattr(store, step, self._wrapped(getattr(store, step), f"{name}.{step}"))
        transaction = StateFile.transaction

        @contextmanager
        def watched(state: StateFile) -> Iterator[sqlite3.Connection]:
            ours = state.what == "the state file"
            with self.around("commit") if ours else nullcontext(), transaction(state) as connection:
                yield connection

        StateFile.transaction = watched  # type: ignore[method-assign,assignment]

    def _wrapped(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with self.around(name):
                return method(*args, **options)

        return call


def child(order: dict[str, Any]) -> None:
    os.setsid()
    steps = Steps(order.get("die") or 0)
    if "die" in order:
        steps.watch()

    def listen(step: Any) -> None:
        say(stage=step.stage, done=step.done)
        time.sleep(order.get("pause", 0))

    try:
        if order["do"] == "migrate":
            report = vf.migrate(order["source"], order["target"], on_progress=listen, **order["options"])
            say(outcome="ok" if report.ok else "different", resumed=report.resumed, steps=steps.count)
        else:
            sides = [order[side] for side in ("source", "target") if side in order]
            more = {"delete_extra": 1000} if order["do"] == "repair" else {}
            result = getattr(import_module("vecferry.api.jobs"), order["do"])(*sides, **more)
            say(outcome="ok" if getattr(result, "ok", True) else "different", steps=steps.count)
    except Exception as error:  # noqa: BLE001 - told to the test
        say(outcome="error", type=type(error).__name__, message=str(error))
        os._exit(1)
    os._exit(0)


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(order)
        say(pid=pid)
        _, status = os.waitpid(pid, 0)
        say(ended=status)


main()
