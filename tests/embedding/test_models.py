"""Comparing models, and the commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import vecferry as vf
from servers.openai_faults import FaultServer
from vecferry.cli.costs import app as costs_app
from vecferry.cli.models import app as models_app
from vecferry.embedding import (
    Budget,
    CallableEmbedder,
    Ledger,
    Question,
    SentenceTransformersEmbedder,
    bench_models,
    sample_texts,
)
from vecferry.errors import ConfigurationError
from vecferry.model import EmbeddingSpace, RecordBatch

TEXTS = [
    "Bread rises because yeast turns sugar into gas that the dough cannot let go.",
    "The moon pulls the oceans twice a day, so harbours fill and empty again.",
    "A violin has four strings, and its bow is made of horse hair and wood.",
    "Volcanoes leave fertile black soil where vines and lemon trees grow well.",
    "Bees tell each other the way to flowers by dancing in the dark hive.",
    "Trains need long flat curves because steel wheels slide on steel rails.",
    "Salt water freezes later than fresh water, which is why roads get salted.",
    "The old library keeps its maps in flat drawers away from any sunlight.",
    "Chess players castle early to bring the king to a safer corner.",
    "Wool keeps you warm even when it is wet, unlike a cotton shirt.",
    "Penguins carry their eggs on their feet through the polar winter night.",
    "A lighthouse flashes its own pattern so that sailors know which one it is.",
    "Doctors listen to the heart for sounds that a healthy valve does not make.",
    "Glass is sand and ash, melted together in a furnace for many hours.",
    "The lawyer asked the court for another week to read the new contract.",
    "Rice grows in flooded fields because weeds drown there and it does not.",
]


runner = CliRunner()


def noise(texts: list[str]) -> np.ndarray:
    return np.stack([np.random.default_rng(list(t.encode())).standard_normal(16) for t in texts])


NOISE = CallableEmbedder(noise, space=EmbeddingSpace(model="noise", dim=16), name="noise")


def test_a_real_model_beats_noise(minilm: SentenceTransformersEmbedder, tmp_path: Path) -> None:
    result = bench_models([minilm, NOISE, "ollama:m?base_url=http://127.0.0.1:9"], TEXTS, k=3)
    real, random, absent = result.scores
    assert (real.dim, real.overlap, real.usd_per_million) == (384, 1.0, 0.0)
    assert (real.recall or 0) > 0.9 > 0.5 > (random.recall or 0)
    assert (random.overlap or 0) < 0.6
    assert (random.mb_per_million, (random.texts_per_second or 0) > 0) == (64.0, True)
    assert "ollama" in absent.error
    assert absent.recall is None
    text = str(result)
    assert "recall@3" in text
    assert "overlap with" in text
    result.plot(tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 5000


def test_stored_vectors_are_the_reference() -> None:
    stored = noise(TEXTS).astype(np.float32)
    result = bench_models([NOISE], TEXTS, vectors=stored, questions=[Question(TEXTS[4], (4,))], k=5)
    assert result.reference == "the stored vectors"
    assert (result.scores[0].overlap, result.scores[0].recall, result.questions) == (1.0, 1.0, 1)
    with pytest.raises(ConfigurationError, match="too few"):
        bench_models([NOISE], TEXTS[:3])


def test_a_sample_is_even_and_keeps_rows_together() -> None:
    def batches() -> list[RecordBatch]:
        texts: list[str | None] = [f"t{i}" for i in range(1000)]
        texts[::10] = [None] * 100
        rows = [{"id": i, "text": t, "vector": [i, 1.0]} for i, t in enumerate(texts)]
        return list(RecordBatch.from_records(rows).split(64))

    ids, texts, vectors = sample_texts(batches(), 200)
    assert texts == [f"t{i}" for i in ids]
    assert vectors is not None
    assert vectors[:, 0].tolist() == ids
    assert len(set(ids)) == 200
    assert 400 < np.mean(ids) < 600
    assert len(sample_texts(batches(), 5000)[0]) == 900


def test_the_bench_command(server: FaultServer, tmp_path: Path) -> None:
    url = f"jsonl:{tmp_path / 'kb.jsonl'}"
    vf.connect(url).write(
        [{"id": i, "text": text, "vector": [1.0, float(i)]} for i, text in enumerate(TEXTS)]
    )
    queries = tmp_path / "q.jsonl"
    queries.write_text(json.dumps({"query": TEXTS[3], "ids": [3]}) + "\n\n")
    model = f"openai:m?base_url={server.url}&api_key=k"
    options = ["bench", url, "--models", model, "--queries", str(queries), "-k", "5", "--json"]
    run = runner.invoke(models_app, [*options, "--plot", str(tmp_path / "b.svg")])
    assert run.exit_code == 0, run.output
    answer = json.loads(run.stdout)
    assert answer["scores"][0]["recall"] == 1.0
    assert answer["reference"] == "the stored vectors"
    assert "<svg" in (tmp_path / "b.svg").read_text()
    queries.write_text("nonsense")
    assert runner.invoke(models_app, options).exit_code == 2


def test_the_costs_command(tmp_path: Path) -> None:
    assert "nothing has been embedded" in runner.invoke(costs_app, []).output
    ledger = Ledger()
    number = ledger.reserve("openai", "text-embedding-3-small", "move", 3, 100, 9.0, Budget())
    ledger.settle(number, 3, 90, 1.25)
    run = runner.invoke(costs_app, ["--plot", str(tmp_path / "costs.png")])
    assert run.exit_code == 0, run.output
    assert "1.2500" in run.output
    assert (tmp_path / "costs.png").stat().st_size > 5000
    (line,) = json.loads(runner.invoke(costs_app, ["--json"]).stdout)
    assert (line["texts"], line["tokens"], line["usd"], line["job"]) == (3, 90, 1.25, "move")
    assert json.loads(runner.invoke(costs_app, ["--json", "--since", "2999-01"]).stdout) == []


def test_a_failed_fetch_is_one_line() -> None:
    run = runner.invoke(models_app, ["fetch", "x/y"], env={"HF_HUB_OFFLINE": "1"})
    assert run.exit_code == 2
    assert len(run.output.strip().splitlines()) == 1
