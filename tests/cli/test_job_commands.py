"""Jobs, versions, quarantine and repair from the command line, on every store that can publish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import vecferry as vf
from servers.postgres import Postgres, postgres
from vecferry.cli import app
from vecferry.errors import JobStopped
from vecferry.testing import sample_records

__all__ = ["postgres"]

KINDS = ("jsonl", "parquet", "faiss", "qdrant", "pgvector")


def run(*words: str) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def ran(*words: str) -> Any:
    """The JSON of a command that must succeed."""
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECFERRY_HOME", str(tmp_path / "home"))


@pytest.fixture
def source(tmp_path: Path) -> str:
    url = f"jsonl:{tmp_path / 'in.jsonl'}"
    with vf.connect("memory:") as origin:
        origin.write(sample_records(60, unit=True))
        vf.migrate(origin, url, state_dir=tmp_path / "fill").check()
    return url


@pytest.fixture(params=KINDS)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    kind = request.param
    if kind == "pgvector":
        server: Postgres = request.getfixturevalue("postgres")
        return server.url("kb")
    return {"jsonl": f"jsonl:{tmp_path}/kb.jsonl", "qdrant": f"qdrant:{tmp_path}/q#kb"}.get(
        kind, f"{kind}:{tmp_path}/kb"
    )


def count(url: str) -> int:
    with vf.connect(url) as collection:
        return collection.count()


def test_replace_manually_publish_rollback_prune(source: str, target: str) -> None:
    ran("migrate", source, target, "--where", "n < 20")
    job = ran("migrate", source, target, "--mode", "replace", "--publish", "manual", "--where", "n < 40")[
        "job"
    ]
    assert count(target) == 20, "nothing is seen before it is published"
    assert ran("jobs", "show", job)["stage"] == "publish"
    ran("publish", job)
    assert count(target) == 40
    assert run("publish", job).exit_code == 2, "twice is refused: the job is done"
    ran("migrate", source, target, "--mode", "replace")
    assert count(target) == 60
    ran("rollback", target)
    assert count(target) == 40
    ran("rollback", target)
    assert count(target) == 20
    assert run("rollback", target).exit_code == 2, "there is none before"
    versions = ran("versions", target)
    assert [v["live"] for v in versions].count(True) == 1 and len(versions) == 3
    ran("prune", target)
    assert len(ran("versions", target)) == 1 and count(target) == 20


def test_resume_from_another_folder(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    calls = iter(range(100))
    with pytest.raises(JobStopped, match="vecferry jobs resume"):
        vf.migrate(
            "jsonl:./in.jsonl",
            "jsonl:out/kb.jsonl",
            batch_size=10,
            backup="copies",
            should_stop=lambda: next(calls) > 5,
        )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    [job] = [found for found in ran("jobs", "list") if found["stage"] == "stream"]
    report = ran("jobs", "resume", job["id"])
    assert report["resumed"] and report["read"] == 60
    assert count(f"jsonl:{tmp_path}/out/kb.jsonl") == 60
    assert not list(elsewhere.iterdir()), "nothing is left where it was resumed"
    assert run("jobs", "forget", job["id"]).exit_code == 0
    assert run("jobs", "forget", job["id"]).exit_code == 2


def test_quarantine_is_shown_and_replayed(tmp_path: Path) -> None:
    rows = [{"id": i, "text": f"t{i}", "vector": [1.0, float(i)]} for i in range(30)]
    rows[4]["vector"] = [1.0, float("inf")]
    bad, target = f"parquet:{tmp_path / 'bad.parquet'}", f"jsonl:{tmp_path / 'out.jsonl'}"
    vf.connect(bad).write(rows)
    result = run("migrate", bad, target, "--on-error", "quarantine", "--json")
    assert result.exit_code == 1, result.output
    job = json.loads(result.stdout)["job"]
    [row] = ran("quarantine", "show", job)
    assert (row["id"], row["stage"]) == ("i:4", "check")
    path = next((tmp_path / "home" / "jobs" / job).glob("quarantine.jsonl"))
    path.write_text(path.read_text().replace('"inf"', "2.5"))
    assert ran("quarantine", "replay", job) == {"written": 1, "left": 0}
    assert count(target) == 30
    assert ran("quarantine", "show", job) == []
    assert ran("quarantine", "replay", job) == {"written": 0, "left": 0}, "twice is as once"


def test_repair_copies_just_what_differs(source: str, target: str) -> None:
    ran("migrate", source, target)
    with vf.connect(target) as collection:
        collection.delete([3, 17])
        changed = sample_records(12, unit=True)[11].replace(text="something else")
        collection.write([changed])
        collection.write([sample_records(70, unit=True)[65]])
    proof = run("verify", source, target, "--json")
    assert proof.exit_code == 1
    found = json.loads(proof.stdout)
    assert sorted(found["missing"]) == ["i:17", "i:3"] and found["extra"] == ["i:65"]
    assert {d["id"] for d in found["different"]} == {"i:11"}
    assert ran("repair", source, target, "--delete-extra", "1")["ok"]
    assert count(target) == 60
    assert ran("repair", source, target)["ok"], "twice is as once"
