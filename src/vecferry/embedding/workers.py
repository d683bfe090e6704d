"""Worker processes for local models, each with its share of the cores, so that they do not fight.

A worker is a process of its own that speaks frames on its standard input and output, never a pickle:

    8 bytes head length · 8 bytes body length (big-endian) · head (JSON) · body

It ends when its input ends, so that it never outlives the process that started it.
"""

from __future__ import annotations

import os
import queue
import signal
import struct
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
import orjson

from vecferry.core.redaction import clean
from vecferry.embedding.base import Matrix
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
            [sys.executable, "-c", "from vecferry.embedding.workers import serve; serve()"],
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

    def encode(self, texts: Sequence[str], prompt: str, batch_size: int, normalize: bool) -> Matrix:
        """float32 ``(len(texts), dim)``. The prompt goes apart: some models leave it out of the mean."""
        head, body = self._ask(
            {"texts": list(texts), "prompt": prompt, "batch_size": batch_size, "normalize": normalize}
        )
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


# -- inside the process ------------------------------------------------------------------------------


def serve() -> None:
    """Load the model named by the first frame, then answer texts with vectors."""
    # Ctrl-C reaches every process of the terminal; the owner decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, answers = _private_pipes()
    try:
        settings, _ = read_frame(requests)
        model = _load(settings)
    except Exception as error:  # noqa: BLE001 - told to the parent, which translates it
        write_frame(answers, {"error": _describe(error)})
        return
    write_frame(answers, _facts(model))
    while True:
        try:
            request, _ = read_frame(requests)
        except EOFError:
            return
        _answer(model, request, answers)


def _private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The protocol's own handles; whatever a library prints goes to standard error instead."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return sys.stdin.buffer, answers


def _load(settings: dict[str, Any]) -> Any:
    # Before torch is imported: its thread pools are sized once.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(settings["threads"])
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(settings["threads"])
    return SentenceTransformer(
        settings["path"],
        device=settings["device"],
        revision=settings["revision"],
        local_files_only=True,
        trust_remote_code=False,
        truncate_dim=settings["dimensions"],
    )


def _facts(model: Any) -> dict[str, Any]:
    # Measured rather than read from the configuration: this is what the vectors are.
    vector = model.encode("a probe", show_progress_bar=False)
    return {
        "dim": len(vector),
        "normalized": bool(abs(float((vector**2).sum()) - 1.0) < 1e-3),
        "max_tokens": getattr(model, "max_seq_length", None),
        "prompts": dict(getattr(model, "prompts", None) or {}),
        "device": str(model.device),
    }


def _answer(model: Any, request: dict[str, Any], answers: BinaryIO) -> None:
    try:
        if request.get("count"):
            write_frame(answers, {"tokens": _count(model, request["texts"])})
            return
        vectors = model.encode(
            request["texts"],
            batch_size=request["batch_size"],
            normalize_embeddings=request["normalize"],
            prompt=request["prompt"],
            show_progress_bar=False,
            convert_to_numpy=True,
        ).astype("<f4", copy=False)
        write_frame(answers, {"shape": vectors.shape}, vectors.tobytes())
    except Exception as error:  # noqa: BLE001 - told to the parent, which translates it
        write_frame(answers, {"error": _describe(error)})


def _count(model: Any, texts: list[str]) -> list[int]:
    return [len(ids) for ids in model.tokenizer(texts, truncation=False, verbose=False)["input_ids"]]


def _describe(error: BaseException) -> dict[str, Any]:
    return {"type": type(error).__name__, "message": str(error)[:500]}


# -- frames ---------------------------------------------------------------------------------------

_LENGTHS = struct.Struct(">QQ")


def write_frame(stream: BinaryIO, head: dict[str, Any], body: bytes | memoryview = b"") -> None:
    """Write one frame and flush."""
    text = orjson.dumps(head)
    stream.write(_LENGTHS.pack(len(text), len(body)))
    stream.write(text)
    stream.write(body)
    stream.flush()


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """Read one frame.

    Raises:
        EOFError: if the other side is gone.
    """
    head, body = _LENGTHS.unpack(_exactly(stream, _LENGTHS.size))
    return orjson.loads(_exactly(stream, head)), _exactly(stream, body)


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if data is None or len(data) < count:
        raise EOFError("the other side of the pipe is gone")
    return data
