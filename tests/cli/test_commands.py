"""Every command, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import vecferry as vf
from vecferry.cli import app
from vecferry.stores.jsonl import JsonlStore
from vecferry.testing import sample_records
from vecferry.verifying import reading


def run(*words: str) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def source(tmp_path: Path) -> str:
    url = f"jsonl:{tmp_path / 'in.jsonl'}"
    with vf.connect("memory:") as origin:
        origin.write(sample_records(30))
        vf.migrate(origin, url).check()
    return url


def test_migrate_prints_plan_and_report_and_exits_zero(source: str, tmp_path: Path) -> None:
    result = run("migrate", source, f"parquet:{tmp_path / 'out'}")
    assert result.exit_code == 0, result.output
    assert "30 records" in result.output and "verified" in result.output


def test_migrate_speaks_json(source: str, tmp_path: Path) -> None:
    result = run("migrate", source, f"parquet:{tmp_path / 'out'}", "--where", "even == True", "--json")
    data = json.loads(result.stdout)
    assert data["ok"] and data["written"] == 15 and data["verification"]["ok"]


def test_a_difference_exits_with_one(source: str, tmp_path: Path) -> None:
    target = f"jsonl:{tmp_path / 'out.jsonl'}"
    assert run("migrate", source, target).exit_code == 0
    assert run("verify", source, target).exit_code == 0
    with vf.connect(target) as collection:
        collection.delete([3])
    result = run("verify", source, target, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["missing"] == ["i:3"]
    assert run("repair", source, target).exit_code == 0
    assert run("verify", source, target).exit_code == 0


def test_several_threads_may_compare(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words reach the threads: in small batches and another order, the target comes in eight shares."""
    monkeypatch.setattr(reading, "BATCH", 3)
    target = f"jsonl:{tmp_path / 'out.jsonl'}"
    with vf.connect(source) as origin, vf.connect(target) as goal:
        goal.write(list(origin.fetch(list(range(30))[::-1])))
    asked: list[int] = []
    partitions = JsonlStore.partitions

    def counted(store: JsonlStore, want: int) -> Any:
        asked.append(want)
        return partitions(store, want)

    monkeypatch.setattr(JsonlStore, "partitions", counted)
    for command in ("verify", "repair"):
        result = run(command, source, target, "--workers", "2")
        assert result.exit_code == 0, result.output
        assert asked.count(2 * 4) == 1, asked
        asked.clear()
    again = tmp_path / "again.jsonl"
    assert run("migrate", source, f"jsonl:{again}", "--workers", "2").exit_code == 0
    assert run("verify", source, target, "--workers", "0").exit_code == 2


def test_an_impossible_call_exits_with_two_and_names_the_next_move(source: str, tmp_path: Path) -> None:
    result = run("migrate", "qdrnt:./x#y", f"parquet:{tmp_path / 'out'}")
    assert result.exit_code == 2
    assert "did you mean 'qdrant'?" in result.output
    assert "Traceback" not in result.output
    result = run("migrate", source, source.replace("in", "nowhere/in"), "--mode", "append", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"] == "ConfigurationError"


@pytest.mark.parametrize(
    "words",
    [
        ("migrate", "SOURCE", "jsonl:TMP/b.jsonl", "--max-rejected", "nan"),
        ("migrate", "SOURCE", "jsonl:TMP/b.jsonl", "--max-rejected", "inf"),
        ("sync", "SOURCE", "SOURCE", "--where", "n =="),
        ("jobs", "forget", ""),
        ("jobs", "forget", ".."),
        ("jobs", "forget", "TMP"),
        ("quarantine", "show", "nobody"),
    ],
)
def test_what_cannot_be_done_is_said_in_json(source: str, tmp_path: Path, words: tuple[str, ...]) -> None:
    kept = sorted(tmp_path.rglob("*"))
    result = run(*(w.replace("SOURCE", source).replace("TMP", str(tmp_path)) for w in words), "--json")
    assert result.exit_code == 2, result.output
    assert json.loads(result.stdout)["ok"] is False
    assert sorted(tmp_path.rglob("*")) == kept


def test_a_verification_that_is_stopped_is_no_difference(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vecferry.cli.migrate.graceful_stop", lambda: nullcontext(lambda: True))
    result = run("verify", source, source, "--json")
    assert result.exit_code == 130 and json.loads(result.stdout)["error"] == "JobStopped"


def test_a_record_cannot_play_with_the_terminal(tmp_path: Path) -> None:
    url = f"jsonl:{tmp_path / 'hostile.jsonl'}"
    with vf.connect(url) as collection:
        hostile = {"id": "\x1b[31m", "text": "one\ntwo\x1b[2J", "vector": [1.0, 2.0]}
        collection.write([{**hostile, "metadata": {"\x1b]0;": 1}}])
    shown = run("search", url, "--like", "\x1b[31m").stdout + run("inspect", url).stdout
    assert "\x1b" not in shown and "one two\\x1b[2J" in shown


def test_a_terminal_without_unicode_is_enough(source: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vecferry", "plan", source, f"jsonl:{tmp_path / 'é.jsonl'}"]
    for more in ([], ["--json"]):
        done = subprocess.run(
            [*command, *more], env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True
        )
        assert done.returncode == 0, done.stderr
    assert "é.jsonl" in json.loads(done.stdout)["target"]


def test_plan_writes_nothing(source: str, tmp_path: Path) -> None:
    result = run("plan", source, f"parquet:{tmp_path / 'out'}", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["count"] == 30
    assert not (tmp_path / "out").exists()


def test_inspect_shows_schema_types_and_norms(source: str) -> None:
    text = run("inspect", source).output
    assert "30 records" in text and "8 d float32" in text and "decimal" in text
    data = json.loads(run("inspect", source, "--json").stdout)
    assert data["count"] == 30 and data["duplicate_ids"] == 0 and data["norms"][""]["max"] > 1


def test_search_like_a_record_and_by_text(source: str) -> None:
    hits = json.loads(run("search", source, "--like", "4", "-k", "3", "--json").stdout)
    assert hits[0]["id"] == "i:4" and len(hits) == 3
    assert "4" in run("search", source, "--like", "4").output
    assert run("search", source, "--like", "nobody").exit_code == 2
    assert run("search", source).exit_code == 2
    assert run("search", source, "a text without a model").exit_code == 2


def test_replace_versions_rollback_prune(source: str, tmp_path: Path) -> None:
    target = f"jsonl:{tmp_path / 'kb.jsonl'}"
    run("migrate", source, target)
    assert run("migrate", source, target, "--where", "n < 5", "--mode", "replace").exit_code == 0
    found = json.loads(run("versions", target, "--json").stdout)
    assert [v["live"] for v in found] == [True, False]
    assert run("rollback", target).exit_code == 0
    with vf.connect(target) as collection:
        assert collection.count() == 30
    assert run("prune", target).exit_code == 0
    assert len(json.loads(run("versions", target, "--json").stdout)) == 1


def test_jobs_are_listed_shown_and_forgotten(source: str, tmp_path: Path) -> None:
    target = f"jsonl:{tmp_path / 'kb.jsonl'}"
    job = json.loads(run("migrate", source, target, "--publish", "manual", "--json").stdout)["job"]
    assert job in run("jobs", "list").output
    shown = json.loads(run("jobs", "show", job, "--json").stdout)
    assert shown["stage"] == "publish" and shown["counters"]["written"] == 30
    assert run("publish", job).exit_code == 0
    assert run("jobs", "resume", job).exit_code == 2, "it is done"
    assert run("quarantine", "show", job).exit_code == 0
    assert run("jobs", "forget", job).exit_code == 0
    assert run("jobs", "show", job).exit_code == 2


def test_module_and_script_say_their_version() -> None:
    for command in ([sys.executable, "-m", "vecferry"], [str(Path(sys.executable).with_name("vecferry"))]):
        result = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        assert result.stdout.strip() == f"vecferry {vf.__version__}"


def test_every_command_explains_itself() -> None:
    names = ["migrate", "plan", "verify", "inspect", "search", "jobs", "quarantine", "versions", "rollback"]
    top = run("--help").output
    for name in names:
        assert name in top
        assert run(name, "--help").exit_code == 0
