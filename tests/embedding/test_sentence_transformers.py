"""The local provider with the real, packaged all-MiniLM-L6-v2."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecferry.embedding import SentenceTransformersEmbedder, TextsRejected, resolve
from vecferry.embedding.hub import find_model
from vecferry.embedding.workers import cores
from vecferry.errors import FatalStoreError, NotFoundError
from vecferry.ports import for_queries

TEXTS = [
    "hello",
    "a much longer text about cats, dogs, boats and the sea " * 12,
    "한국어 문장입니다",
    "a cat",
] * 9


@pytest.fixture(scope="module")
def truth(minilm_path: str) -> np.ndarray:
    """What the library itself says, in this process."""
    from sentence_transformers import SentenceTransformer

    return np.asarray(SentenceTransformer(minilm_path, device="cpu").encode(TEXTS))


def test_vectors_are_those_of_the_library(minilm: SentenceTransformersEmbedder, truth: np.ndarray) -> None:
    vectors = minilm.embed(TEXTS)
    assert vectors.dtype == np.float32
    assert np.abs(vectors - truth).max() < 1e-5
    assert np.array_equal(asyncio.run(minilm.aembed(TEXTS)), vectors)


def test_the_space_is_recognised_by_its_weights(minilm: SentenceTransformersEmbedder) -> None:
    space = minilm.space
    assert (space.model, space.dim, space.normalized) == (
        "sentence-transformers/all-MiniLM-L6-v2",
        384,
        True,
    )
    assert (space.revision, minilm.max_tokens) == (None, 256)


def test_a_folder_of_unknown_weights_is_a_space_of_its_own(minilm_path: str, tmp_path: Path) -> None:
    folder = tmp_path / "all-MiniLM-L6-v2"
    shutil.copytree(minilm_path, folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x42")
    local = find_model(str(folder))
    assert local.name == "all-MiniLM-L6-v2"
    assert (local.revision or "").startswith("weights:")


def test_a_text_that_is_no_unicode_is_refused_alone(minilm: SentenceTransformersEmbedder) -> None:
    with pytest.raises(TextsRejected) as caught:
        minilm.embed(["good", "half a pair \ud800"])
    assert caught.value.ids == (1,)
    assert np.allclose(caught.value.vectors[0], minilm.embed(["good"])[0], atol=1e-5)


def test_tokens_are_counted_by_the_model_itself(minilm: SentenceTransformersEmbedder) -> None:
    assert minilm.count_tokens(["", "hello world"]) == [2, 4]


@pytest.mark.slow
def test_two_workers_share_the_cores_and_prompts_count(
    minilm_path: str, minilm: SentenceTransformersEmbedder
) -> None:
    options: dict[str, Any] = {
        "workers": 2,
        "batch_size": 4,
        "prompt": "passage: ",
        "query_prompt": "query: ",
    }
    provider = SentenceTransformersEmbedder(minilm_path, **options)
    try:
        assert provider._load().pool._settings.threads == max(1, cores() // 2)
        plain = minilm.embed([f"passage: {text}" for text in TEXTS])
        assert np.allclose(provider.embed(TEXTS), plain, atol=1e-5)
        questions = provider.for_queries()
        assert np.allclose(questions.embed(["a cat"]), minilm.embed(["query: a cat"]), atol=1e-5)
        assert questions.space == provider.space
        assert provider.space.prompt == "passage: "
        assert provider.space.fingerprint != minilm.space.fingerprint
    finally:
        provider.close()


def test_a_killed_worker_is_replaced(minilm: SentenceTransformersEmbedder, truth: np.ndarray) -> None:
    with minilm._load().pool.borrow() as worker:
        os.kill(worker._process.pid, signal.SIGKILL)
    assert np.abs(minilm.embed(TEXTS) - truth).max() < 1e-5


@pytest.mark.slow
def test_no_worker_outlives_its_owner(minilm_path: str) -> None:
    # No "if __name__" line: a script as users write them, run while it has a worker.
    code = (
        "import os, sys\n"
        "from vecferry.embedding import resolve\n"
        f"e = resolve('sentence-transformers:{minilm_path}')\n"
        "e.embed(['a'])\n"
        "with e._load().pool.borrow() as worker: print(worker._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    pid = int(run.stdout)
    import psutil

    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=10)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="holds no model"):
        resolve(f"sentence-transformers:{tmp_path}").embed(["a"])


def test_a_broken_model_says_why(minilm_path: str, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(minilm_path, folder)
    (folder / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(FatalStoreError, match="the model failed with"):
        resolve(f"sentence-transformers:{folder}").embed(["a"])


def test_the_prompt_is_the_models_own_matter(minilm_path: str, tmp_path: Path) -> None:
    """A model that leaves the prompt out of the mean of its tokens, as its pooling says (INSTRUCTOR)."""
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "model"
    shutil.copytree(minilm_path, folder)
    settings = json.loads((folder / "1_Pooling" / "config.json").read_text())
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({**settings, "include_prompt": False}))
    configuration = folder / "config_sentence_transformers.json"
    prompts = {"prompts": {"query": "question: ", "document": "text: ", "passage": "never: "}}
    configuration.write_text(json.dumps({**json.loads(configuration.read_text()), **prompts}))
    theirs = SentenceTransformer(str(folder), device="cpu")
    provider = SentenceTransformersEmbedder(str(folder), truncate_dim=128)
    try:
        texts = ["ships on the sea", "a lighthouse"]
        expected = theirs.encode_document(texts)[:, :128]
        assert np.allclose(provider.embed(texts), expected, atol=1e-5)
        assert provider.space.prompt == "text: " and provider.space.dim == 128
        asked = for_queries(provider).embed(texts)
        assert np.allclose(asked, theirs.encode_query(texts)[:, :128], atol=1e-5)
        assert not np.allclose(asked, theirs.encode([f"question: {t}" for t in texts])[:, :128], atol=1e-3)
    finally:
        provider.close()
