"""Comparing two collections, and the commands and metrics around serving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

import vecferry as vf
from vecferry.cli.bench import bench, read_queries
from vecferry.cli.sync import sync as sync_command
from vecferry.contrib.prometheus import PrometheusMetrics
from vecferry.errors import ConfigurationError, NotFoundError, PlanError, RetryableError
from vecferry.ports import Progress
from vecferry.serving import Counters, DualWriter, FallbackCollection, compare, sync
from vecferry.serving.comparing import Run

from .conftest import Moody, WordEmbedder, contents, fill, record

TEXTS = [f"record number n{n} about topic t{n % 7}" for n in range(0, 30, 3)]


def test_equal_sides_agree_and_a_slow_one_shows(words: WordEmbedder, tmp_path: Path) -> None:
    fast, slow = fill(Moody(), words), fill(Moody(), words)
    slow.pause = 0.01
    found = compare(
        vf.connect(fast),
        vf.connect(slow),
        TEXTS,
        k=5,
        embedders=(words, words),
        prices=(0.0, 0.002),
        repeat=2,
    )
    assert (found.overlap, found.same_first) == (1.0, 1.0)
    assert len(found.a.seconds) == len(found.b.seconds) == 20
    assert found.b.percentile(50) > found.a.percentile(50) + 0.005
    data = found.to_dict()
    assert data["sides"]["b"]["cost_per_query"] == 0.002
    assert "overlap@5 1.000" in str(found)
    for suffix, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        found.plot(tmp_path / f"plot{suffix}")
        assert (tmp_path / f"plot{suffix}").read_bytes().startswith(magic)


def test_overlap_counts_what_both_name(words: WordEmbedder) -> None:
    whole, half = fill(Moody(), words), fill(Moody(), words, range(0, 30, 2))
    vectors = list(words.embed(TEXTS))
    found = compare(vf.connect(whole), vf.connect(half), vectors, k=4)
    expected = []
    for vector in vectors:
        left, right = ({h.id for h in side.search(vector, 4)} for side in (whole, half))
        expected.append(len(left & right) / 4)
    assert found.overlaps == expected
    assert 0 < found.overlap < 1
    assert 0 < found.same_first < 1


def test_failed_queries_are_counted(words: WordEmbedder) -> None:
    good, bad = fill(Moody(), words), fill(Moody(), words)
    bad.error = RetryableError("down")
    found = compare(vf.connect(good), vf.connect(bad), list(words.embed(TEXTS)))
    assert (found.a.errors, found.b.errors, found.b.reason) == (0, 10, "RetryableError: down")
    assert "nan" in str(found)
    with pytest.raises(PlanError):
        compare(good, bad, [])


def test_percentiles_are_nearest_rank() -> None:
    run = Run("x", [float(n) for n in range(1, 101)])
    assert [run.percentile(p) for p in (1, 50, 90, 99, 100)] == [1.0, 50.0, 90.0, 99.0, 100.0]


# -- commands -----------------------------------------------------------------------------------------


def run(command: Any, *arguments: str) -> Any:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(arguments))


def test_bench_reads_queries_in_every_form(tmp_path: Path) -> None:
    lines = tmp_path / "q.txt"
    lines.write_text('what is it\n\n{"text": "as json"}\n{"vector": [1, 2]}\n{not json\n')
    assert read_queries(lines) == ["what is it", "as json", [1, 2], "{not json"]
    np.save(tmp_path / "q.npy", np.ones((3, 2)))
    assert len(read_queries(tmp_path / "q.npy")) == 3
    lines.write_text('{"other": 1}')
    with pytest.raises(ConfigurationError, match="line 1"):
        read_queries(lines)
    with pytest.raises(NotFoundError):
        read_queries(tmp_path / "nothing")


def test_the_bench_command(words: WordEmbedder, tmp_path: Path) -> None:
    for name in ("bench-a", "bench-b"):
        fill(vf.connect(f"memory:{name}").store, words)
    np.save(tmp_path / "q.npy", words.embed(TEXTS))
    arguments = ["memory:bench-a", "memory:bench-b", "--queries", str(tmp_path / "q.npy")]
    result = run(bench, *arguments, "--plot", str(tmp_path / "p.png"), "--json", "-k", "3")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["overlap"] == 1.0
    assert (tmp_path / "p.png").exists()
    assert run(bench, *arguments[:2], "--queries", "nowhere").exit_code == 2


def test_the_sync_command(words: WordEmbedder, tmp_path: Path) -> None:
    source = fill(vf.connect("memory:sync-a").store, words)
    target = fill(vf.connect("memory:sync-b").store, words, [])
    arguments = ["memory:sync-a", "memory:sync-b", "--state", str(tmp_path / "s"), "--json"]
    first = run(sync_command, *arguments)
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["added"] == 30
    source.delete([1])
    assert json.loads(run(sync_command, *arguments).stdout)["deleted"] == 1
    assert contents(source) == contents(target)
    assert run(sync_command, *arguments, "--by", "magic").exit_code == 2
    assert run(sync_command, *arguments, "--untrack").exit_code == 2


# -- metrics ------------------------------------------------------------------------------------------


def test_prometheus_counts_what_the_plain_figures_count(words: WordEmbedder, tmp_path: Path) -> None:
    registry = CollectorRegistry()
    metrics = PrometheusMetrics(registry)
    local, cloud = fill(Moody(), words), fill(Moody(), words)
    kb = FallbackCollection(local, cloud, embedder=words, listeners=[metrics])
    kb.search(TEXTS[0])
    local.error = RetryableError("down")
    kb.search(TEXTS[0])
    with DualWriter(local, cloud, tmp_path / "j", listeners=[metrics]) as writer:
        cloud.write_error = RetryableError("down")
        writer.write([record(1, words, "x")])
        cloud.write_error = None
        writer.replay()
    local.error = None
    local.delete([3])
    sync(local, cloud, state=tmp_path / "s", listeners=[metrics])

    def value(name: str, **labels: str) -> float | None:
        found: float | None = registry.get_sample_value(f"vecferry_{name}", labels)
        return found

    assert value("searches_total", side="primary") == 1
    assert value("searches_total", side="secondary") == 1
    assert value("fallbacks_total", side="primary", cause="error") == 1
    assert value("errors_total", side="primary", error="RetryableError") == 1
    assert value("search_seconds_count", side="secondary") == 1
    assert value("initialisations_total", side="primary", result="ok") == 1
    assert value("dual_writes_total", side="new", result="missed") == 1
    assert value("replayed_total") == 1
    assert value("synced_records_total", action="deleted") == 1


def test_prometheus_counts_migrations() -> None:
    registry = CollectorRegistry()
    heard: list[Progress] = []
    listen = PrometheusMetrics(registry).progress("job", heard.append)
    for done in (10, 30, 5):
        listen(Progress("stream", done, 100, written=done, bytes=done * 4))
    labels = {"job": "job", "stage": "stream"}
    assert registry.get_sample_value("vecferry_migration_records_total", labels) == 35
    assert registry.get_sample_value("vecferry_migration_bytes_total", labels) == 140
    assert registry.get_sample_value("vecferry_migration_expected", labels) == 100
    assert len(heard) == 3


def test_every_event_is_in_the_dashboard_and_in_prometheus() -> None:
    from vecferry.contrib import prometheus as metrics

    documented = {line.split("``")[1] for line in (Counters.__doc__ or "").splitlines() if "``" in line[:8]}
    of_queries = {"query_embeddings", "query_embedding_usd"}  # what a `QueryEmbedder` tells
    assert documented == {*metrics._COUNTERS, "search_seconds"} - of_queries
    dashboard = (Path(__file__).parents[2] / "examples" / "grafana-dashboard.json").read_text()
    json.loads(dashboard)
    for name, *_ in metrics._COUNTERS.values():
        assert f"vecferry_{name}" in dashboard
    assert "vecferry_search_seconds_bucket" in dashboard
    assert f"vecferry_{metrics._QUERY_LATENCY}_bucket" in dashboard
    assert "vecferry_migration_records_total" in dashboard
