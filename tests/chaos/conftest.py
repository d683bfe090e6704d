"""A driver for the zygote: start a job, kill it at a chosen event, start it again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chaos.harbour import harbour, postgres, sources

__all__ = ["harbour", "postgres", "sources"]


@dataclass
class Zygote:
    """Jobs in processes that can be killed.

    Attributes:
        events: of the last run, as far as they were heard.
    """

    process: subprocess.Popen[bytes]
    events: list[dict[str, Any]] = field(default_factory=list)

    def migrate(self, source: str, target: str, **how: Any) -> dict[str, Any] | None:
        """See `do`; ``how`` also takes the options of ``vecferry.migrate``."""
        orders = {key: how.pop(key) for key in ("kill", "pause", "die") if key in how}
        return self.do("migrate", target, source=source, options=how, **orders)

    def do(
        self, what: str, target: str, *, kill: tuple[int, float] | None = None, **order: Any
    ) -> dict[str, Any] | None:
        """Run to the end and return the last word, or be killed and return ``None``.

        Args:
            kill: ``(event, delay)``: SIGKILL ``delay`` seconds after the progress event of that number;
                event 0 is the start of the process.
        """
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"do": what, "target": target, **order}).encode() + b"\n")
        self.process.stdin.flush()
        pid, last = 0, None
        self.events = []
        for line in self.process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # a line cut off by the kill
            if "pid" in event:
                pid = event["pid"]
            elif "ended" in event:
                return last if os.WIFEXITED(event["ended"]) else None
            elif "outcome" in event:
                last = event
            else:
                self.events.append(event)
            if kill and pid and len(self.events) >= kill[0]:
                time.sleep(kill[1])
                kill = None
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        raise AssertionError("the zygote died")


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    command = [sys.executable, str(Path(__file__).with_name("zygote.py"))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    yield Zygote(process)
    assert process.stdin
    process.stdin.close()
    process.wait(10)


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random:
    """Random, but the same for the same test."""
    return random.Random(request.node.name)
