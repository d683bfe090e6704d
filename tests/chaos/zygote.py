"""Runs migrations in forked children, so that a test can kill hundreds of them without paying for imports.

Reads one JSON object a line on stdin: ``{"source", "target", "options", "pause"}``; forks; the child runs
``vecferry.migrate`` and prints one line for each progress event, then its outcome. The pid comes first.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from typing import Any

for kit in ("faiss", "qdrant_client", "psycopg", "sqlalchemy", "pyarrow.parquet", "vecferry.migration"):
    import_module(kit)
for store in ("faiss", "qdrant", "pgvector", "parquet", "jsonl"):
    import_module(f"vecferry.stores.{store}")


def say(**event: Any) -> None:
    os.write(1, json.dumps(event).encode() + b"\n")


def child(order: dict[str, Any]) -> None:
    import vecferry as vf

    os.setsid()

    def listen(step: Any) -> None:
        say(stage=step.stage, done=step.done)
        time.sleep(order["pause"])

    try:
        report = vf.migrate(order["source"], order["target"], on_progress=listen, **order["options"])
    except Exception as error:  # noqa: BLE001 - told to the test
        say(outcome="error", type=type(error).__name__, message=str(error))
        os._exit(1)
    say(outcome="ok" if report.ok else "different", report=report.to_dict())
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
