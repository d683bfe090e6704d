"""The process that holds a sentence-transformers model: ``python -m vecferry.embedding.worker``.

It is started by `vecferry.embedding.workers`, speaks frames on its standard input and output, and
ends when its input ends, so that it never outlives the process that started it.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, BinaryIO

from vecferry.embedding.frames import read_frame, write_frame


def main() -> None:
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
            prompt="",
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


if __name__ == "__main__":
    main()
