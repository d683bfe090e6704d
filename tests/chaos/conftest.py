"""A driver for the zygote: start a migration, kill it at a chosen event, start it again."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Zygote:
    """Migrations in processes that can be killed."""

    process: subprocess.Popen[bytes]

    def run(
        self,
        source: str,
        target: str,
        *,
        kill: tuple[int, float] | None = None,
        pause: float = 0.0,
        **options: Any,
    ) -> dict[str, Any] | None:
        """Run a migration to its end and return its last word, or kill it and return ``None``.

        Args:
            kill: ``(event, delay)``: SIGKILL ``delay`` seconds after the progress event of that number.
            pause: seconds the child sleeps after each event, so that there is time to be killed.
        """
        order = {"source": source, "target": target, "options": options, "pause": pause}
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        pid, seen, last = 0, 0, None
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
                seen += 1
                if kill and pid and seen == kill[0]:
                    time.sleep(kill[1])
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        raise AssertionError("the zygote died")


@pytest.fixture(scope="module")
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
