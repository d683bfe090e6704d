"""A plan that runs twice, and the ends that a job can come to: each is left by the same call, or says
how.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vecferry as vf
from vecferry.errors import (
    JobChangedError,
    JobError,
    JobStopped,
    PlanError,
    RetryableError,
    TargetExistsError,
    VerificationError,
)
from vecferry.model import RecordBatch
from vecferry.pipeline import migration as run
from vecferry.pipeline.job import TRANSITIONS, JobFile, JobState, peek_job
from vecferry.ports import Partition
from vecferry.stores.jsonl import JsonlStore
from vecferry.stores.memory import MemoryStore
from vecferry.testing import sample_records


def lines(path: Path, n: int, start: int = 0) -> str:
    with path.open("a", encoding="utf-8") as file:
        for i in range(start, start + n):
            file.write(
                json.dumps({"id": i, "text": f"t{i}", "vector": [1.0, i], "metadata": {"n": i}}) + "\n"
            )
    return f"jsonl:{path}"


def ids(url: Any) -> list[Any]:
    return sorted(i for batch in vf.connect(url).scan() for i in batch.id_list)


class Killed(BaseException):
    """The process is gone, as far as the job can tell."""


# -- a plan -----------------------------------------------------------------------------------


def test_a_plan_with_a_backup_reads_its_source_at_every_run(tmp_path: Path) -> None:
    source, target = vf.Collection(MemoryStore()), MemoryStore()
    source.write(sample_records(3))
    plan = vf.plan(source, target, mode="upsert", backup=tmp_path / "backup", state_dir=tmp_path / "job")
    first = plan.run().check()
    source.write(sample_records(5))
    second = plan.run().check()
    assert (first.read, second.read, len(ids(target))) == (3, 5, 5)
    assert first.source == second.source == source.url
    assert len(list((tmp_path / "backup").glob("*.jsonl"))) >= 1


def test_a_plan_that_runs_again_looks_again(tmp_path: Path) -> None:
    path, target = tmp_path / "in.jsonl", MemoryStore()
    plan = vf.plan(lines(path, 4), target, mode="upsert")
    assert plan.run().check().read == 4
    lines(path, 2, start=4)
    assert plan.run().check().read == 6
    path.write_text("".join(json.dumps({"id": 1, "vector": [1.0, i]}) + "\n" for i in range(2)))
    with pytest.raises(PlanError, match="stands twice"):
        plan.run()


def test_the_source_is_read_once_for_a_plan(tmp_path: Path) -> None:
    class Counting(MemoryStore):
        seen = 0

        def scan(self, **options: Any) -> Iterator[RecordBatch]:
            for batch in super().scan(**options):
                self.seen += len(batch)
                yield batch

    source = Counting()
    vf.Collection(source).write(sample_records(5000))
    source.seen = 0
    plan = vf.plan(source, MemoryStore())
    assert source.seen == plan.count == 5000


def test_what_a_plan_refuses_it_says_and_a_run_raises(tmp_path: Path) -> None:
    source, target = lines(tmp_path / "in.jsonl", 3), MemoryStore()
    lines(tmp_path / "in.jsonl", 1)
    plan = vf.plan(source, target)
    assert "refused" in str(plan) and "stands twice" in str(plan.to_dict()["refusal"])
    with pytest.raises(PlanError, match="stands twice"):
        plan.run()
    assert not target.exists()


# -- filters ----------------------------------------------------------------------------------


def test_a_filter_that_cannot_match_is_an_error(tmp_path: Path) -> None:
    source = lines(tmp_path / "in.jsonl", 3)
    for where, words in (({"m": 1}, "has the key 'm'"), ({"n": "1"}, r"compares 'n' with '1'.*int")):
        with pytest.raises(PlanError, match=words):
            vf.plan(source, "memory:", where=where)
    with pytest.raises(PlanError, match="allow_empty"):
        vf.plan(source, "memory:", where={"n": 9}, mode="replace")
    assert vf.migrate(source, "memory:", where={"n": 9}, mode="replace", allow_empty=True).check().read == 0
    assert vf.migrate(source, "memory:", where={"n": {"$ne": 9}}).check().read == 3


# -- the source, counted by itself ------------------------------------------------------------


def stopped(source: Any, target: str, job: Path, **options: Any) -> None:
    """A job that is stopped after its first batch."""
    with pytest.raises(JobStopped):
        vf.migrate(source, target, batch_size=5, state_dir=job, should_stop=lambda: True, **options)
    assert peek_job(job)["stage"] == "stream"


@pytest.mark.parametrize("change", ["grown", "shrunk", "edited", "replaced"])
def test_a_file_that_changed_between_stop_and_resume_is_refused(change: str, tmp_path: Path) -> None:
    path, target = tmp_path / "in.jsonl", f"jsonl:{tmp_path / 'out.jsonl'}"
    source = lines(path, 20)
    stopped(source, target, tmp_path / "job")
    text = path.read_text(encoding="utf-8")
    if change == "grown":
        lines(path, 1, start=20)
    elif change == "shrunk":
        path.write_text("".join(text.splitlines(keepends=True)[:-1]))
    elif change == "edited":
        path.write_text(text.replace('"t19"', '"x19"'))
    else:
        path.rename(tmp_path / "old.jsonl")
        path.write_text(text)
    with pytest.raises(JobChangedError, match=r"source has changed since job .*\(--no-resume\)"):
        vf.migrate(source, target, state_dir=tmp_path / "job")
    again = vf.migrate(source, target, state_dir=tmp_path / "job", resume=False).check()
    assert again.read == len(ids(source)) == len(ids(target))


def test_a_file_that_grows_while_it_is_copied_is_a_fault(tmp_path: Path) -> None:
    path, target = tmp_path / "in.jsonl", f"jsonl:{tmp_path / 'out.jsonl'}"
    source = lines(path, 20)
    grown: list[bool] = []

    def grow(step: Any) -> None:
        if step.stage == "finish" and not grown:
            grown.append(True)
            lines(path, 3, start=20)

    report = vf.migrate(source, target, on_progress=grow, state_dir=tmp_path / "job")
    assert not report.ok and not report.published
    with pytest.raises(VerificationError, match=r"source has changed since the job began .*--no-resume"):
        report.check()


def test_records_that_a_source_keeps_to_itself_are_missed() -> None:
    class Shy(MemoryStore):
        def scan(self, **options: Any) -> Iterator[RecordBatch]:
            for batch in super().scan(**options):
                yield batch.take(range(max(0, len(batch) - 1)))

    source = Shy()
    vf.Collection(source).write(sample_records(10))
    with pytest.raises(VerificationError, match="source counts 10 records by itself, and 9 were read"):
        vf.migrate(source, MemoryStore()).check()


def test_the_report_names_what_the_source_said_of_itself(tmp_path: Path) -> None:
    report = vf.migrate(lines(tmp_path / "in.jsonl", 4), "memory:").check()
    stamps = report.source_stamps
    assert stamps["begin"] == stamps["verdict"] and stamps["begin"]["files"] == 1


# -- ends -------------------------------------------------------------------------------------


def test_a_job_killed_after_its_last_state_answers_with_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = lines(tmp_path / "in.jsonl", 9), f"jsonl:{tmp_path / 'out.jsonl'}"
    call: dict[str, Any] = {"state_dir": tmp_path / "job"}
    put = JobFile.put

    def die(self: JobFile, **values: Any) -> None:
        if "delivered" in values and self.state is JobState.DONE:
            raise Killed
        put(self, **values)

    monkeypatch.setattr(JobFile, "put", die)
    with pytest.raises(Killed):
        vf.migrate(source, target, **call)
    monkeypatch.undo()
    assert peek_job(tmp_path / "job")["stage"] == "done"
    again = vf.migrate(source, target, **call).check()
    assert (again.read, again.written, again.published) == (9, 9, True)
    with pytest.raises(TargetExistsError):
        vf.migrate(source, target, **call)  # its caller has heard of it


def test_a_dead_job_whose_target_was_changed_since_is_not_answered_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = lines(tmp_path / "in.jsonl", 9), f"jsonl:{tmp_path / 'out.jsonl'}"
    monkeypatch.setattr(run.Run, "_report", _dying(run.Run._report))
    with pytest.raises(Killed):
        vf.migrate(source, target, state_dir=tmp_path / "job")
    monkeypatch.undo()
    with JobFile(tmp_path / "job") as file:
        file.put(delivered=False)
    (tmp_path / "out.jsonl").write_text(json.dumps({"id": 1, "vector": [1.0, 2.0]}) + "\n")
    with pytest.raises(TargetExistsError):
        vf.migrate(source, target, state_dir=tmp_path / "job")


def _dying(report: Any) -> Any:
    def die(self: run.Run, *words: Any) -> Any:
        report(self, *words)
        raise Killed

    return die


def test_a_dropped_target_is_begun_anew(tmp_path: Path) -> None:
    source, target = vf.Collection(MemoryStore()), MemoryStore("dropped-while-stopped")
    source.write(sample_records(20))
    job: dict[str, Any] = {"state_dir": tmp_path / "job", "batch_size": 5}
    with pytest.raises(JobStopped):
        vf.migrate(source, target, should_stop=lambda: True, **job)
    assert target.count() == 5
    target.delete(list(range(20)))
    report = vf.migrate(source, target, **job).check()
    assert (report.read, target.count(), report.resumed) == (20, 20, None)
    assert "begun anew" in str(report)


def test_a_pending_log_that_was_deleted_is_begun_anew(tmp_path: Path) -> None:
    import shutil

    source, target = lines(tmp_path / "in.jsonl", 20), f"jsonl:{tmp_path / 'out.jsonl'}"
    stopped(source, target, tmp_path / "job")
    for left in tmp_path.glob(".*"):
        shutil.rmtree(left)
    assert vf.migrate(source, target, state_dir=tmp_path / "job").check().written == 20
    assert ids(target) == list(range(20))


def test_of_two_that_race_for_a_new_target_the_second_keeps_its_work_as_a_version(tmp_path: Path) -> None:
    source, target = lines(tmp_path / "in.jsonl", 9), f"jsonl:{tmp_path / 'out.jsonl'}"
    other = lines(tmp_path / "other.jsonl", 4)
    second: dict[str, Any] = {"state_dir": tmp_path / "second"}

    def first(step: Any) -> None:
        if step.stage == "verify" and not (tmp_path / "out.jsonl").exists():
            vf.migrate(other, target, state_dir=tmp_path / "first").check()

    with pytest.raises(TargetExistsError, match=r"kept as version .*vecferry publish second"):
        vf.migrate(source, target, on_progress=first, **second)
    assert ids(target) == list(range(4))
    assert peek_job(tmp_path / "second")["stage"] == "publish"
    from vecferry.api import jobs

    jobs.publish_job(tmp_path / "second", replace=True)
    assert ids(target) == list(range(9))


def test_what_ends_anyway_says_that_the_same_call_goes_on(tmp_path: Path) -> None:
    class Away(MemoryStore):
        def write(self, batch: RecordBatch) -> Any:
            raise RetryableError("the server is away")

    source = vf.Collection(MemoryStore())
    source.write(sample_records(5))
    with pytest.raises(RetryableError, match=r"same call goes on.*vecferry jobs resume job"):
        vf.migrate(source, Away(), retry_seconds=0.5, state_dir=tmp_path / "job")


def test_the_first_instant_of_the_verification_is_retried_too() -> None:
    class Shaky(MemoryStore):
        failures = 2

        def describe(self) -> Any:
            if self.count() and Shaky.failures:
                Shaky.failures -= 1
                raise RetryableError("just a moment")
            return super().describe()

    source = vf.Collection(MemoryStore())
    source.write(sample_records(5))
    vf.migrate(source, Shaky()).check()
    assert not Shaky.failures


def test_not_verified_is_a_verdict_of_its_own(tmp_path: Path) -> None:
    report = vf.migrate(lines(tmp_path / "in.jsonl", 3), "memory:", verify=False)
    assert report.unverified and not report.ok and str(report).startswith("NOT VERIFIED")


def test_a_negative_proof_says_the_next_command_and_is_not_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = lines(tmp_path / "in.jsonl", 9), f"jsonl:{tmp_path / 'out.jsonl'}"
    write = JsonlStore.write
    monkeypatch.setattr(
        JsonlStore, "write", lambda self, b: write(self, b.replace(texts=["lost"] * len(b)))
    )
    report = vf.migrate(source, target, state_dir=tmp_path / "job")
    assert report.verification.different_count == 9 and "--no-resume" in str(report)
    monkeypatch.undo()
    monkeypatch.setattr(run, "compare", lambda *a, **b: pytest.fail("verified anew"))
    again = vf.migrate(source, target, state_dir=tmp_path / "job")
    assert again.verification.different_count == 9 and "--no-resume" in str(again)
    monkeypatch.undo()
    assert vf.migrate(source, target, state_dir=tmp_path / "job", resume=False).check().written == 9


# -- states -----------------------------------------------------------------------------------


def test_every_state_but_the_last_can_be_left_and_no_other_way(tmp_path: Path) -> None:
    assert set(TRANSITIONS) == {None, *JobState}
    for state in JobState:
        reached = {state}
        for _ in JobState:
            reached |= {after for before in reached for after in TRANSITIONS[before]}
        assert JobState.DONE in reached, state
    with JobFile(tmp_path / "job") as file:
        with pytest.raises(JobError, match="cannot follow"):
            file.advance(JobState.FINISH)
        file.begin({}, {}, [Partition("0")])
        with pytest.raises(JobError, match="cannot follow"):
            file.advance(JobState.DONE)
        assert file.state is JobState.STREAM
