"""Worker processes for local models, each with its share of the cores, so that they do not fight."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np

from vecferry.embedding.base import Matrix, clean
from vecferry.embedding.frames import read_frame, write_frame
from vecferry.errors import FatalStoreError, MissingDependencyError, RetryableError


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What a worker needs to load a model. ``path``: a folder, or a name in the Hugging Face cache."""

    path: str
    revision: str | None
    device: str | None
    dimensions: int | None
    threads: int


class Worker:
    """One process with one model. Used by one thread at a time.

    Raises:
        FatalStoreError: if the model does not load, with the reason.
        MissingDependencyError: if sentence-transformers is not installed.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        # A process of its own rather than multiprocessing's "spawn", which would run the user's
        # script a second time wherever it lacks the ``if __name__ == "__main__"`` line.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vecferry.embedding.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
        )
        self._finalizer = weakref.finalize(self, _end, self._process)
        self.facts, _ = self._ask({field: getattr(settings, field) for field in settings.__slots__})

    def encode(self, texts: Sequence[str], batch_size: int, normalize: bool) -> Matrix:
        """float32 ``(len(texts), dim)``."""
        head, body = self._ask({"texts": list(texts), "batch_size": batch_size, "normalize": normalize})
        return np.frombuffer(body, dtype="<f4").reshape(head["shape"])

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special ones included."""
        sent = [text.encode("utf-8", "replace").decode() for text in texts]  # half a UTF-16 pair
        head, _ = self._ask({"texts": sent, "count": True})
        return cast("list[int]", head["tokens"])

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        self._finalizer()

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        try:
            write_frame(cast(BinaryIO, self._process.stdin), request)
            head, body = read_frame(cast(BinaryIO, self._process.stdout))
        except (EOFError, OSError) as error:
            raise self._death() from error
        except BaseException:  # interrupted: its answer would be taken for that to the next request
            self.close()
            raise
        if "error" in head:
            raise _translate(head["error"])
        return head, body

    def _death(self) -> RetryableError:
        self.close()
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 2000))
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        code = self._process.returncode
        return RetryableError(
            f"the model's process ended ({code}): {clean(lines[-1] if lines else 'no word')}"
        )


class WorkerPool:
    """``count`` workers of one model, started at first use.

    Thread counts: the cores this process may use, shared evenly.
    """

    def __init__(self, settings: ModelSettings, count: int) -> None:
        self._settings = settings
        self.count = count
        self._free: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(count):
            self._free.put(None)
        self._lock = threading.Lock()
        self._facts: dict[str, Any] | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """Dimension, length and limits of the loaded model."""
        with self._lock:
            if self._facts is None:
                with self.borrow() as worker:
                    self._facts = worker.facts
            return self._facts

    @contextmanager
    def borrow(self) -> Iterator[Worker]:
        """A worker for this thread; a dead one is replaced at the next turn."""
        worker = self._free.get()
        try:
            if worker is None or not worker.alive:
                worker = Worker(self._settings)
            yield worker
        finally:
            self._free.put(worker if worker is not None and worker.alive else None)

    def close(self) -> None:
        """End the idle workers; they start again when they are needed."""
        idle = 0
        while idle < self.count and not self._free.empty():
            worker = self._free.get()
            idle += 1
            if worker is not None:
                worker.close()
        for _ in range(idle):
            self._free.put(None)


def cores() -> int:
    """The cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                continue
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _translate(error: dict[str, Any]) -> Exception:
    kind, message = error["type"], clean(error["message"])
    if kind in ("ModuleNotFoundError", "ImportError"):
        return MissingDependencyError("sentence-transformers:", "sentence-transformers")
    return FatalStoreError(f"the model failed with {kind}: {message}")
