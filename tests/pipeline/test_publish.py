"""Versions: forward and back, what a prune takes, what was begun and nobody goes on with; repair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import vecferry as vf
from vecferry.api import jobs
from vecferry.cli import app
from vecferry.errors import ConfigurationError, JobStopped, NotFoundError, PlanError
from vecferry.pipeline.publish import prunable
from vecferry.ports import StoreURL, Version
from vecferry.testing import sample_records


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECFERRY_HOME", str(tmp_path / "home"))


def run(*words: Any) -> Any:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code in (0, 1, 2), done.exception
    return done


def source(tmp_path: Path, rows: int) -> str:
    url = f"parquet:{tmp_path / f'in-{rows}.parquet'}"
    vf.connect(url).write(sample_records(rows))
    return url


def three_versions(tmp_path: Path, scheme: str) -> str:
    url = f"{scheme}:{tmp_path / ('out.jsonl' if scheme == 'jsonl' else 'out')}"
    for rows in (2, 3, 4):
        vf.migrate(source(tmp_path, rows), url, mode="replace").check()
    return url


@pytest.mark.parametrize("scheme", ["jsonl", "faiss"])
def test_a_version_can_be_gone_back_to_and_forward_again(scheme: str, tmp_path: Path) -> None:
    url = three_versions(tmp_path, scheme)
    newest, middle, oldest = [version.tag for version in vf.versions(url)]
    for tag, rows in ((oldest, 2), (newest, 4), (middle, 3), (middle, 3)):
        assert vf.rollback(url, tag).tag == tag
        assert vf.connect(url).count() == rows
    assert run("rollback", url, "--to", newest).exit_code == 0 and vf.connect(url).count() == 4
    with pytest.raises(NotFoundError, match=f"no version 'x'; there are {newest}"):
        vf.rollback(url, "x")
    assert len(vf.versions(url)) == 3


def test_a_prune_says_what_it_would_take(tmp_path: Path) -> None:
    url = three_versions(tmp_path, "jsonl")
    tags = [version.tag for version in vf.versions(url)]
    said = json.loads(run("prune", url, "--keep", 1, "--dry-run", "--json").stdout)
    assert said == {"would_be_deleted": tags[2:]} and len(vf.versions(url)) == 3
    assert json.loads(run("prune", url, "--keep", 1, "--json").stdout) == {"deleted": tags[2:]}


def test_what_a_prune_takes_is_what_is_farthest_from_the_live_version() -> None:
    versions = [Version(tag, live=tag == "c") for tag in "edcba"]
    assert prunable(versions, 0) == ["a", "b", "d", "e"]
    assert prunable(versions, 2) == ["d", "e"], "one that was rolled back goes first"
    assert prunable([*versions, Version("f", live=False, published=False)], 4) == []


def test_what_was_begun_and_nobody_goes_on_with_is_listed_and_goes(tmp_path: Path) -> None:
    origin, url = source(tmp_path, 9), f"jsonl:{tmp_path / 'out.jsonl'}"
    vf.migrate(source(tmp_path, 2), url).check()
    with pytest.raises(JobStopped):
        vf.migrate(origin, url, mode="replace", batch_size=3, should_stop=lambda: True)
    [job] = [job for job in jobs.list_jobs() if job["stage"] == "stream"]
    assert [v.published for v in vf.versions(url)] == [False, True], "unfinished work is shown"
    assert jobs.orphans() == [] and jobs.prune_unfinished(url) == [], "its job can go on with it"
    jobs.forget_job(job["id"])
    [piece] = jobs.orphans()
    assert (piece["tag"], piece["target"]) == (job["tag"], job["target"])
    assert job["tag"] in run("jobs", "list", "--orphans").stdout
    assert jobs.prune_unfinished(url, dry_run=True) == [job["tag"]] and jobs.orphans()
    assert run("prune", url, "--unfinished").exit_code == 0
    assert jobs.orphans() == [] and vf.connect(url).count() == 2


def test_the_report_is_kept_and_can_be_had_in_three_forms(tmp_path: Path) -> None:
    report = vf.migrate(source(tmp_path, 5), f"jsonl:{tmp_path / 'out.jsonl'}").check()
    assert json.loads((Path(str(report.folder)) / "report.json").read_text())["verification"]["ok"]
    assert jobs.job_report(report.job).to_dict() == report.to_dict()
    for name, words in (("a.html", "<table>"), ("a.md", "| read | 5 |"), ("a.json", '"written": 5')):
        assert run("jobs", "show", report.job, "--report", tmp_path / name).exit_code == 0
        assert words in (tmp_path / name).read_text(encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"\.html, \.json, \.md"):
        jobs.write_report(report.job, tmp_path / "a.pdf")


def test_a_repair_deletes_nothing_unasked(tmp_path: Path) -> None:
    origin, url = source(tmp_path, 5), f"jsonl:{tmp_path / 'out.jsonl'}"
    vf.migrate(origin, url).check()
    with vf.connect(url) as target:
        target.write([*sample_records(ids=[500, 501]), *sample_records(1, seed=9)])
    dry = vf.repair(origin, url, dry_run=True)
    assert (dry.copied, dry.left, dry.ok) == (("i:0",), ("i:500", "i:501"), False)
    assert vf.verify(origin, url).different_count == 1
    done = vf.repair(origin, url)
    assert (done.copied, done.deleted, done.ok) == (("i:0",), (), False)
    assert "--delete-extra 2" in str(done) and vf.connect(url).count() == 7
    with pytest.raises(PlanError, match=r"2 records .* more than delete_extra=1"):
        vf.repair(origin, url, delete_extra=1)
    assert run("repair", origin, url).exit_code == 1
    assert run("repair", origin, url, "--delete-extra", 2).exit_code == 0
    assert vf.connect(url).count() == 5


@pytest.mark.parametrize("url", ["pgvector://h/db#wn?layout=langchain", "faiss:./kb#wn?layout=langchain"])
def test_options_behind_the_collection_are_put_right(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"\?layout=langchain#wn"):
        StoreURL.parse(url)
    assert StoreURL.parse("faiss:./kb#a%3Fb").fragment == "a?b"


def test_what_a_caller_handles_can_be_imported_from_the_package() -> None:
    for name in ("JobStopped", "PlanError", "RetryableError", "TargetExistsError", "VerificationError"):
        assert issubclass(getattr(vf, name), vf.VecferryError)
    assert vf.jobs is jobs and vf.publish is jobs.publish_job
