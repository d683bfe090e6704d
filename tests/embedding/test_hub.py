"""Fetching models with the real client from a hub that serves, refuses and vanishes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers.hub_faults import COMMIT, HubServer
from vecferry.embedding import resolve
from vecferry.embedding.hub import (
    ORIGIN,
    explain,
    find_model,
    list_models,
    needed_files,
    remove_model,
)
from vecferry.errors import NotFoundError, RetryableError

NAME = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture
def hub(minilm_path: str) -> Iterator[HubServer]:
    with HubServer({NAME: Path(minilm_path)}) as server:
        yield server


def fetch(
    hub_url: str, home: Path, name: str = "all-MiniLM-L6-v2", **environment: str
) -> tuple[str, float]:
    """Fetch in a fresh process, since the client reads its settings when it is imported."""
    code = (
        "import sys\n"
        "from vecferry.embedding import fetch_model\n"
        "try: print(fetch_model(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    settings = {"HF_ENDPOINT": hub_url, "HF_HOME": str(home / "hf"), "VECFERRY_HOME": str(home)}
    start = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", code, name],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": "src", **settings, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return run.stdout.strip() or run.stderr, time.monotonic() - start


def test_a_fetched_model_is_found_and_works_offline(
    hub: HubServer, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, _ = fetch(hub.url, own_home)
    assert f"name='{NAME}'" in answer
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    local = find_model("all-MiniLM-L6-v2")
    assert Path(local.path).is_relative_to(own_home)
    assert f'"revision":"{COMMIT}"' in (Path(local.path) / "vecferry-model.json").read_text()
    provider = resolve("sentence-transformers:all-MiniLM-L6-v2")
    try:
        assert provider.embed(["a cat"]).shape == (1, 384)
        assert provider.space.model == NAME
    finally:
        provider.close()  # type: ignore[attr-defined]


def test_the_token_is_sent_under_either_name(hub: HubServer, tmp_path: Path) -> None:
    hub.fault = (404, {"X-Error-Code": "RepoNotFound"})
    fetch(hub.url, tmp_path, HUGGINGFACE_API_TOKEN="hf_secret")
    assert hub.tokens[-1] == "Bearer hf_secret"


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        ((429, {}), "RetryableError", "429 (rate limit)"),
        ((503, {}), "RetryableError", "answers 503"),
        ((403, {"X-Error-Code": "GatedRepo"}), "NotFoundError", "is gated"),
        ((404, {"X-Error-Code": "RepoNotFound"}), "NotFoundError", "knows no model"),
        ((401, {}), "NotFoundError", "knows no model"),
    ],
)
def test_one_line_at_once_says_what_happened(
    fault: tuple[int, dict[str, str]], kind: str, says: str, hub: HubServer, tmp_path: Path
) -> None:
    hub.fault = fault
    answer, seconds = fetch(hub.url, tmp_path, HF_TOKEN="hf_verysecret")
    assert answer.startswith(kind), answer
    assert says in answer
    assert "\n" not in answer
    assert "hf_verysecret" not in answer
    assert len([path for path in hub.asked if NAME in path]) == 1  # no silent retries
    assert seconds < 15


def test_no_network_is_said_at_once(tmp_path: Path) -> None:
    answer, seconds = fetch("http://127.0.0.1:9", tmp_path)
    assert answer.startswith("RetryableError"), answer
    assert "cannot be reached" in answer
    assert seconds < 15


def test_offline_never_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NotFoundError, match="vecferry models fetch intfloat/e5-small-v2"):
        find_model("intfloat/e5-small-v2")


def test_causes_are_searched_for_the_status() -> None:
    """sentence-transformers wraps a 429 into an OSError that says nothing about it."""

    class Response:
        status_code = 429

    class HfHubHTTPError(Exception):
        response = Response()

    outer = OSError("We couldn't connect to 'https://huggingface.co' to load the files")
    outer.__cause__ = HfHubHTTPError("429")
    assert isinstance(explain(outer, "m"), RetryableError)
    assert "429" in str(explain(outer, "m"))


def test_each_module_folder_gets_its_own_weights() -> None:
    """A transformer as safetensors and the dense layer behind it as a pickle: both are needed."""
    names = [
        "modules.json", "config.json", "model.safetensors", "pytorch_model.bin", "README.md",
        "tokenizer.json",
        "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/pytorch_model.bin", "onnx/model.onnx",
        "onnx/config.json", "openvino/openvino_model.bin", "tf_model.h5", "0_Transformer/sub/vocab.txt",
    ]  # fmt: skip
    assert set(needed_files(names)) == {
        "modules.json", "config.json", "model.safetensors", "README.md", "tokenizer.json",
        "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/pytorch_model.bin",
        "0_Transformer/sub/vocab.txt",
    }  # fmt: skip


def test_fetched_models_are_listed_and_removed(own_home: Path) -> None:
    folder = own_home / "models" / "intfloat--e5-small-v2"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    (folder / ORIGIN).write_text('{"name": "intfloat/e5-small-v2", "revision": null}')
    [(model, size)] = list_models()
    assert model.name == "intfloat/e5-small-v2" and size > 1000
    with pytest.raises(NotFoundError, match="there is intfloat/e5-small-v2"):
        remove_model("another")
    assert remove_model("intfloat/e5-small-v2").name == "intfloat/e5-small-v2"
    assert list_models() == [] and not folder.exists()
