"""The whole story, over stores that need no server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecferry as vf
from migration.faulty import BreakingSource, PickySink, TamperingJsonl
from vecferry.errors import (
    ConfigurationError,
    CorruptDataError,
    FatalStoreError,
    JobChangedError,
    JobStopped,
    LossRefusedError,
    NotFoundError,
    PlanError,
    RejectedRecord,
    RetryableError,
    SchemaMismatchError,
    TargetExistsError,
    UnknownSchemeError,
    UnsupportedError,
    VecferryError,
    VerificationError,
)
from vecferry.pipeline.quarantine import read_quarantine
from vecferry.stores.memory import MemoryStore
from vecferry.testing import sample_records


def fill(n: int = 100) -> vf.Collection:
    collection = vf.Collection(MemoryStore())
    collection.write(sample_records(n))
    return collection


def ids(collection: Any) -> list[Any]:
    return [i for batch in vf.connect(collection).scan() for i in batch.id_list]


# -- the good way -----------------------------------------------------------------------------


def test_a_migration_is_planned_written_and_proved(tmp_path: Path) -> None:
    seen: list[str] = []
    target = f"jsonl:{tmp_path / 'out.jsonl'}"
    plan = vf.plan(fill(), target)
    assert not (tmp_path / "out.jsonl").exists(), "a plan writes nothing"
    assert "100 records, 8 d cosine" in plan.sentence
    report = plan.run(lambda step: seen.append(step.stage))
    assert report.check() is report
    assert (report.read, report.written, report.rejected) == (100, 100, 0)
    assert report.verification.ok and report.published
    assert list(dict.fromkeys(seen)) == ["stream", "finish", "verify", "publish"]
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    np.testing.assert_array_equal(np.float32(first["vector"]), sample_records(1)[0].vector)


def test_reports_and_plans_read_as_text_json_and_html(tmp_path: Path) -> None:
    plan = vf.plan(fill(), f"jsonl:{tmp_path / 'out.jsonl'}")
    assert json.loads(plan.to_json())["count"] == 100
    assert "<table>" in plan._repr_html_()
    report = plan.run()
    assert json.loads(report.to_json())["written"] == 100
    assert "100" in report._repr_html_() and "ok" in str(report)


def test_where_and_transform_choose_and_change(tmp_path: Path) -> None:
    def shout(record: vf.VectorRecord) -> vf.VectorRecord | None:
        if record.metadata["n"] == 2:
            return None
        return record.replace(text=(record.text or "").upper())

    target = MemoryStore()
    report = vf.migrate(fill(10), target, where={"even": True}, transform=shout).check()
    assert (report.read, report.written, report.dropped) == (5, 4, {"transform": 1})
    assert ids(target) == [0, 4, 6, 8]
    assert all(r.text == r.text.upper() for r in vf.connect(target).records() if r.text)


def test_a_transform_of_batches_is_recognised() -> None:
    def halve(batch: vf.RecordBatch) -> vf.RecordBatch:
        return batch.take(range(0, len(batch), 2))

    target = MemoryStore()
    vf.migrate(fill(10), target, transform=halve, batch_size=10).check()
    assert ids(target) == [0, 2, 4, 6, 8]


def test_upsert_adds_and_replaces() -> None:
    target = MemoryStore()
    vf.Collection(target).write([*sample_records(3, seed=9), *sample_records(ids=[500])])
    report = vf.migrate(fill(10), target, mode="upsert").check()
    assert report.verification.ok
    assert sorted(ids(target)) == [*range(10), 500]


def test_replace_builds_beside_and_can_be_rolled_back(tmp_path: Path) -> None:
    target = f"jsonl:{tmp_path / 'kb.jsonl'}"
    vf.migrate(fill(10), target).check()
    vf.migrate(fill(4), target, mode="replace").check()
    assert vf.connect(target).count() == 4
    from vecferry.api import jobs

    jobs.rollback(target)
    assert vf.connect(target).count() == 10


def test_fields_are_chosen_and_renamed() -> None:
    source = vf.Collection(MemoryStore())
    source.write([{"id": i, "vectors": {"a": [1.0, i], "b": [1.0, 2.0, i]}} for i in range(5)])
    target = MemoryStore()
    vf.migrate(source, target, fields={"b": ""}).check()
    assert [f.name for f in target.describe().fields] == [""]
    assert target.describe().fields[0].dim == 3
    with pytest.raises(SchemaMismatchError, match="no vector field 'c'"):
        vf.plan(source, MemoryStore(), fields=["c"])


def test_duplicates_are_dropped_by_a_rule() -> None:
    source = vf.Collection(MemoryStore())
    source.write([{"id": i, "text": f"t{i % 5}", "vector": [1.0, i]} for i in range(20)])
    target = MemoryStore()
    report = vf.migrate(source, target, dedupe="text").check()
    assert (report.read, report.written) == (20, 5)
    assert report.dropped == {"dedupe": 15}
    assert sorted(ids(target)) == [0, 1, 2, 3, 4]


def test_texts_are_embedded_on_the_way(tmp_path: Path) -> None:
    source = vf.Collection(MemoryStore())
    source.write([{"id": i, "text": f"text {i}", "vector": [1.0, 0.0]} for i in range(200)])
    calls: list[int] = []

    def model(texts: list[str]) -> list[list[float]]:
        calls.append(len(texts))
        return [[float(len(t)), float(ord(t[-1])), 1.0] for t in texts]

    from vecferry.embedding import CallableEmbedder

    space = vf.EmbeddingSpace(model="toy", dim=3, normalized=False)
    target = f"jsonl:{tmp_path / 'new.jsonl'}"
    report = vf.migrate(source, target, embed=CallableEmbedder(model, space=space), metric="l2").check()
    assert report.verification.ok
    assert 200 <= sum(calls) < 300, "once in the plan to time a few, once for all; the proof is cached"
    field = vf.connect(target).describe().field("")
    assert (field.dim, field.space) == (3, space)


# -- what is refused before anything is written -----------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "options", "error"),
    [
        ("faisss:./x", "memory:", {}, UnknownSchemeError),
        ("nonsense", "memory:", {}, ConfigurationError),
        ("jsonl:/nowhere/at/all.jsonl", "memory:", {}, NotFoundError),
        ("parquet:/nowhere/at/all", "memory:", {}, NotFoundError),
        ("memory:", "memory:", {"mode": "append"}, ConfigurationError),
        ("memory:", "memory:", {"bogus": 1}, ConfigurationError),
        ("memory:", "memory:", {"where": {"a": {"$regex": "x"}}}, ConfigurationError),
        ("memory:", "memory:", {"target_options": {"colour": "red"}}, ConfigurationError),
    ],
)
def test_bad_calls_name_the_next_move(source: str, target: str, options: Any, error: type) -> None:
    with pytest.raises(error) as caught:
        vf.migrate(source, target, **options)
    assert len(str(caught.value)) > 20


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_nothing_is_proved_too(tmp_path: Path, name: str) -> None:
    target = f"{name.partition('.')[2]}:{tmp_path / name}"
    for mode, found in (("create", 0), ("replace", 0), ("upsert", 3)):
        if found:
            vf.connect(target).write(sample_records(found))
        report = vf.migrate(fill(3), target, mode=mode, where={"n": -1}, allow_empty=True).check()
        assert (report.written, vf.connect(target).count()) == (0, found)


@pytest.mark.parametrize("mode", ["create", "upsert", "replace"])
def test_records_that_a_transform_gives_one_id_are_missed(tmp_path: Path, mode: str) -> None:
    def merge(record: vf.VectorRecord) -> vf.VectorRecord:
        return record.model_copy(update={"id": int(record.id) // 2})

    target = f"jsonl:{tmp_path / 'a.jsonl'}"
    report = vf.migrate(fill(10), target, mode=mode, transform=merge, batch_size=3)
    assert report.verification.collided_count == 5 and report.published == (mode == "upsert")
    with pytest.raises(VerificationError, match="5 under the id of another"):
        report.check()
    other = f"jsonl:{tmp_path / 'b.jsonl'}"
    assert vf.migrate(fill(10), other, transform=merge, dedupe="id").check().written == 5


def test_a_transform_that_raises_rejects_its_record(tmp_path: Path) -> None:
    def parse(record: vf.VectorRecord) -> vf.VectorRecord | None:
        return None if 10 // (int(record.id) - 7) == 10 else record

    with pytest.raises(
        RejectedRecord, match=r"transform rejected 1 record\(s\) \(7\): ZeroDivision"
    ) as caught:
        vf.migrate(fill(10), MemoryStore(), transform=parse)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    report = vf.migrate(
        fill(10), MemoryStore(), transform=parse, on_error="quarantine", state_dir=tmp_path / "job"
    )
    assert (report.read, report.written, report.rejected) == (10, 8, 1) and report.verification.ok
    assert json.loads((tmp_path / "job" / "quarantine.jsonl").read_text())["stage"] == "transform"


def doubled(folder: Path) -> str:
    """Record ``a`` stands twice, first as ``n=0`` and then as ``n=1``; ``b`` once."""
    rows = [{"id": i, "vector": [n + 1, 1], "metadata": {"n": n}} for n, i in enumerate("aab")]
    path = folder / "doubled.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return f"jsonl:{path}"


def test_of_two_copies_one_may_be_rejected_and_the_other_proved(tmp_path: Path) -> None:
    def refuse(record: vf.VectorRecord) -> vf.VectorRecord:
        if record.metadata["n"] == 0:
            raise ValueError("not this copy")
        return record

    target = MemoryStore()
    options: Any = {"dedupe": "id", "on_error": "quarantine", "state_dir": tmp_path / "job"}
    report = vf.migrate(doubled(tmp_path), target, transform=refuse, **options)
    assert (report.written, report.rejected) == (2, 1) and report.verification.ok, report.verification
    assert report.verification.expected_count == 2


def test_a_backup_of_doubled_ids_keeps_one_of_each(tmp_path: Path) -> None:
    target = MemoryStore()
    vf.migrate(
        doubled(tmp_path), target, dedupe=vf.Dedupe(by="id", keep="last"), backup=tmp_path / "backup"
    ).check()
    assert {r.id: r.metadata["n"] for r in vf.connect(target).records()} == {"a": 1, "b": 2}


@pytest.mark.parametrize("backup", ["~/backup", "jsonl:~/backup/all.jsonl"])
def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backup: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    vf.migrate(fill(3), "jsonl:~/a.jsonl", state_dir="~/job", backup=backup).check()
    assert {path.name for path in tmp_path.glob("[!.]*")} == {"a.jsonl", "backup", "job"}


def test_what_is_written_again_counts_once(tmp_path: Path) -> None:
    call = (f"parquet:{tmp_path / 'in.parquet'}", f"qdrant:{tmp_path / 'q'}#kb")
    nan = float("nan")
    vf.connect(call[0]).write([{"id": i, "vector": [1.0, nan if i == 3 else i]} for i in range(9)])
    for options, error in (
        ({}, RejectedRecord),
        ({"on_error": "quarantine", "max_rejected": 0}, VecferryError),
    ):
        with pytest.raises(error):
            vf.migrate(*call, state_dir=tmp_path / "job", **options)
    report = vf.migrate(*call, state_dir=tmp_path / "job", on_error="quarantine")
    assert (report.read, report.written, report.rejected) == (9, 8, 1)


def test_a_line_mended_into_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    for line in ("garbage", "[]", "{}", '{"id": "i:x"}'):
        path.write_text(f"\n{line}\n")
        with pytest.raises(CorruptDataError, match=r"line 2 is no quarantined record.*mend or remove"):
            list(read_quarantine(path))


def test_a_transform_whose_records_make_no_batch_is_named() -> None:
    with pytest.raises(PlanError, match="transform returned records that make no batch"):
        vf.migrate(
            fill(3), MemoryStore(), transform=lambda r: vf.VectorRecord(id=r.id, vector=[1.0] * (1 + r.id))
        )


@pytest.mark.parametrize("options", [{"where": "page >= 3"}, {"where": len}, {"fields": "vector"}])
def test_an_option_of_another_type_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"^(filter|{next(iter(options))}|.*filter)"):
        vf.migrate(fill(3), MemoryStore(), **options)


def test_an_existing_target_is_left_alone() -> None:
    target = MemoryStore()
    vf.Collection(target).write(sample_records(3))
    with pytest.raises(TargetExistsError, match=r'mode="upsert".*mode="replace"'):
        vf.migrate(fill(), target)
    assert target.count() == 3


def test_source_and_target_must_differ(tmp_path: Path) -> None:
    same = f"jsonl:{tmp_path / 'a.jsonl'}"
    vf.migrate(fill(3), same).check()
    (tmp_path / "link").symlink_to(tmp_path)
    for other in (same, f"jsonl:{tmp_path}/link/a.jsonl", f"jsonl:{tmp_path}/../{tmp_path.name}/a.jsonl"):
        with pytest.raises(PlanError, match="same collection"):
            vf.migrate(same, other, mode="replace", where={"i": 1})


def test_neither_side_may_lie_inside_the_other(tmp_path: Path) -> None:
    inner, outer = f"jsonl:{tmp_path / 'a.jsonl'}", f"jsonl:{tmp_path}"
    vf.migrate(fill(3), inner).check()
    for source, target in ((inner, outer), (outer, f"jsonl:{tmp_path / 'b.jsonl'}")):
        with pytest.raises(PlanError, match="inside the other"):
            vf.migrate(source, target, mode="replace")


def test_a_source_without_vectors_asks_for_a_model() -> None:
    source = vf.Collection(MemoryStore())
    source.write([{"id": 1, "text": "a"}])
    with pytest.raises(PlanError, match="embed="):
        vf.plan(source, MemoryStore())


def test_duplicate_ids_are_refused_before_the_first_write(tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    path.write_text("".join(json.dumps({"id": i % 3, "vector": [1.0, i]}) + "\n" for i in range(5)))
    target = MemoryStore()
    with pytest.raises(PlanError, match=r"stands twice.*dedupe='id'"):
        vf.migrate(f"jsonl:{path}", target)
    assert not target.exists()
    report = vf.migrate(f"jsonl:{path}", target, dedupe="id").check()
    assert (report.read, report.written) == (5, 3)


def test_lossy_refuse_names_the_loss(tmp_path: Path) -> None:
    from vecferry.model import CollectionSchema, Loss

    class Lossy(MemoryStore):
        def describe(self) -> CollectionSchema:
            loss = Loss(kind="vector", detail="PQ codes", where="source")
            return super().describe().model_copy(update={"losses": (loss,)})

    source = Lossy()
    vf.Collection(source).write(sample_records(3))
    assert "PQ codes" in str(vf.plan(source, MemoryStore()))
    with pytest.raises(LossRefusedError, match="PQ codes"):
        vf.plan(source, MemoryStore(), lossy="refuse")


# -- records that cannot go on ----------------------------------------------------------------


def nan_source() -> vf.Collection:
    records = [r.model_dump() for r in sample_records(20)]
    for row in records:
        row["vectors"] = {"": [float("nan")] * 8 if row["id"] in (3, 7) else row["vectors"][""]}
    collection = vf.Collection(MemoryStore())
    collection.write(records)
    return collection


def test_a_bad_vector_stops_the_job_and_is_named() -> None:
    with pytest.raises(RejectedRecord, match=r"3, 7.*NaN.*quarantine"):
        vf.migrate(nan_source(), MemoryStore())


def test_quarantine_takes_the_bad_and_the_rest_goes_on(tmp_path: Path) -> None:
    target = PickySink()
    target.bad = frozenset({11})
    report = vf.migrate(nan_source(), target, on_error="quarantine", state_dir=tmp_path / "job")
    assert (report.read, report.written, report.rejected) == (20, 17, 3)
    assert report.verification.ok, "the rest arrived"
    with pytest.raises(VerificationError, match="3 records were rejected"):
        report.check()
    from vecferry.api import jobs

    rows = jobs.quarantined(tmp_path / "job")
    assert [(row["id"], row["stage"]) for row in rows] == [
        ("i:3", "check"),
        ("i:7", "check"),
        ("i:11", "write"),
    ]
    target.bad = frozenset()
    done = jobs.replay_quarantine(tmp_path / "job", target)
    assert done == {"written": 1, "left": 2}, "NaN is not mended by writing it again"
    assert target.count() == 18


@pytest.mark.parametrize("bound", [1, 0.001])
def test_too_many_rejections_stop_the_job(bound: Any) -> None:
    with pytest.raises(FatalStoreError, match="max_rejected"):
        vf.migrate(nan_source(), MemoryStore(), on_error="quarantine", max_rejected=bound)


# -- faults and resume ------------------------------------------------------------------------


def test_a_broken_stream_is_opened_again_at_its_cursor() -> None:
    name = "breaking"
    vf.connect(f"memory:{name}").write(sample_records(50))
    source = BreakingSource(name, lambda: RetryableError("connection reset"), every=2, times=5)
    target = MemoryStore()
    vf.migrate(source, target, batch_size=4).check()
    assert sorted(ids(target)) == list(range(50)) and source.left == 0


def test_a_fatal_fault_leaves_a_resumable_job(tmp_path: Path) -> None:
    name = "fatal"
    vf.connect(f"memory:{name}").write(sample_records(50))
    source = BreakingSource(name, lambda: CorruptDataError("a block is unreadable"), every=3, times=1)
    target = f"jsonl:{tmp_path / 'out.jsonl'}"
    options: dict[str, Any] = {"state_dir": tmp_path / "job", "batch_size": 2}
    with pytest.raises(CorruptDataError):
        vf.migrate(source, target, **options)
    assert not (tmp_path / "out.jsonl").exists(), "an unfinished target is not visible"
    plan = vf.plan(source, target, **options)
    assert plan.resuming and "records read" in plan.resuming
    report = plan.run().check()
    assert report.resumed and report.written >= 50
    assert vf.connect(target).count() == 50


def test_a_stop_is_clean_and_the_same_call_goes_on(tmp_path: Path) -> None:
    target = f"parquet:{tmp_path / 'out'}"
    options: dict[str, Any] = {"state_dir": tmp_path / "job", "batch_size": 5}
    source = fill(60)
    count = iter(range(100))
    with pytest.raises(JobStopped, match="run the same call again"):
        vf.migrate(source, target, should_stop=lambda: next(count) > 4, **options)
    report = vf.migrate(source, target, **options).check()
    assert report.resumed and report.read == 60
    assert sorted(ids(target)) == list(range(60))


def test_changed_settings_refuse_a_resume(tmp_path: Path) -> None:
    target = f"parquet:{tmp_path / 'out'}"
    options: dict[str, Any] = {"state_dir": tmp_path / "job", "batch_size": 5}
    with pytest.raises(JobStopped):
        vf.migrate(fill(60), target, should_stop=lambda: True, **options)
    with pytest.raises(JobChangedError, match="where"):
        vf.migrate(fill(60), target, where={"even": True}, **options)
    report = vf.migrate(fill(60), target, where={"even": True}, resume=False, **options).check()
    assert report.resumed is None and report.written == 30


# -- the proof --------------------------------------------------------------------------------


def test_a_silent_loss_fails_the_report_and_is_not_published(tmp_path: Path) -> None:
    target = TamperingJsonl(tmp_path / "out.jsonl")
    report = vf.migrate(fill(30), target, state_dir=tmp_path / "job", batch_size=10)
    assert not report.ok and not report.published
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(VerificationError, match=r"differs.*resume=False") as caught:
        report.check()
    assert caught.value.report is report


def test_without_verification_nothing_is_proved() -> None:
    report = vf.migrate(fill(3), MemoryStore(), verify=False)
    with pytest.raises(VerificationError, match="nothing was verified"):
        report.check()


def test_manual_publishing_stops_before_the_swap(tmp_path: Path) -> None:
    from vecferry.api import jobs

    source = f"jsonl:{tmp_path / 'in.jsonl'}"
    target = f"jsonl:{tmp_path / 'out.jsonl'}"
    vf.migrate(fill(5), source).check()
    report = vf.migrate(source, target, publish="manual").check()
    assert not report.published and not (tmp_path / "out.jsonl").exists()
    jobs.publish_job(report.job)
    assert vf.connect(target).count() == 5


def test_a_backup_is_written_first_and_read_instead(tmp_path: Path) -> None:
    target = f"parquet:{tmp_path / 'out'}"
    report = vf.migrate(fill(20), target, backup=tmp_path / "backup").check()
    assert report.written == 20
    [backup] = (tmp_path / "backup").glob("backup-*Z.jsonl")
    vf.migrate(f"jsonl:{backup}", f"parquet:{tmp_path / 'again'}").check()


def test_verify_compares_directions_where_the_source_normalises(tmp_path: Path) -> None:
    qdrant, home = f"qdrant:{tmp_path / 'q'}#c", f"jsonl:{tmp_path / 'home.jsonl'}"
    vf.migrate(fill(20), qdrant).check()
    vf.migrate(fill(20), home).check()
    assert vf.verify(qdrant, home).ok and vf.verify(home, qdrant).ok


def test_verify_misses_no_field() -> None:
    one, two = vf.Collection(MemoryStore()), vf.Collection(MemoryStore())
    one.write([{"id": 1, "vectors": {"a": [1.0], "b": [2.0]}}])
    two.write([{"id": 1, "vectors": {"a": [1.0]}}])
    with pytest.raises(SchemaMismatchError, match="no vector field 'b'"):
        vf.verify(one, two)
    assert vf.verify(one, two, fields=["a"]).ok


@pytest.mark.parametrize(
    "kind", ["faiss:{}/t", "qdrant:{}/t#c", "jsonl:{}/t.jsonl", "parquet:{}/t.parquet"]
)
def test_texts_that_are_all_gone_are_missed(tmp_path: Path, kind: str) -> None:
    from vecferry.api import jobs

    source, target = vf.Collection(MemoryStore()), kind.format(tmp_path)
    source.write([vf.VectorRecord(id=f"r{i}", text="a text", vector=[1, i + 1]) for i in range(3)])
    vf.migrate(source, target, metric="l2", transform=lambda record: record.replace(text=None)).check()
    proof = vf.verify(source, target)
    assert proof.different_count == 3 and proof.different[0].reason == "'a text' became None"
    jobs.repair(source, target)
    assert vf.verify(source, target).ok


def test_repair_pairs_lone_fields_and_spares_others() -> None:
    from vecferry.api import jobs

    source = vf.Collection(MemoryStore())
    source.write([vf.VectorRecord(id=i, text="a", vector=[1, i]) for i in range(3)])
    lone, two = vf.Collection(MemoryStore()), vf.Collection(MemoryStore())
    lone.write([vf.VectorRecord(id=0, text="b", vectors={"v": [1, 0]})])
    two.write([vf.VectorRecord(id=0, text="b", vectors={"": [1, 0], "w": [1]})])
    assert jobs.repair(source, lone).ok
    assert "'w' of the target was not compared" in vf.verify(source, two).notes[0]
    with pytest.raises(UnsupportedError, match="'w', which the source has not"):
        jobs.repair(source, two)
    assert [record.text for record in two.records()] == ["b"], "nothing was touched"


def test_verify_names_what_differs() -> None:
    one, two = fill(20), fill(20)
    assert vf.verify(one, two).ok
    two.delete([4])
    two.write([{**sample_records(8)[7].model_dump(), "text": "another"}])
    proof = vf.verify(one, two)
    assert not proof.ok
    assert (list(proof.missing_ids), list(proof.different_ids)) == ([4], [7])
    from vecferry.api import jobs

    assert jobs.repair(one, two).ok


# -- stages that look beyond one batch --------------------------------------------------------


def test_duplicates_of_what_the_target_holds_are_dropped() -> None:
    from vecferry.dedupe import Dedupe

    target = MemoryStore()
    vf.Collection(target).write([{"id": "old", "text": "t1", "vector": [1.0, 0.0]}])
    source = vf.Collection(MemoryStore())
    source.write([{"id": i, "text": f"t{i % 4}", "vector": [1.0, i]} for i in range(8)])
    rule = Dedupe(by="text", against_target=True)
    report = vf.migrate(source, target, mode="upsert", dedupe=rule).check()
    assert sorted(map(str, ids(target))) == ["0", "2", "3", "old"]
    assert report.dropped == {"dedupe": 5}


def test_the_first_pass_sees_what_the_transform_makes(tmp_path: Path) -> None:
    from vecferry.dedupe import Dedupe

    def lower(record: vf.VectorRecord) -> vf.VectorRecord:
        return record.replace(text=(record.text or "").lower())

    source = vf.Collection(MemoryStore())
    rows = [("A", 1), ("a", 3), ("b", 2), ("B", 1)]
    source.write(
        [{"id": i, "text": t, "vector": [1.0, i], "metadata": {"at": at}} for i, (t, at) in enumerate(rows)]
    )
    target = MemoryStore()
    rule = Dedupe(by="text", keep="newest", timestamp="metadata:at")
    report = vf.migrate(source, target, dedupe=rule, transform=lower, state_dir=tmp_path / "job").check()
    assert ids(target) == [1, 2]
    audit = (tmp_path / "job" / "dedupe-removed.jsonl").read_text().splitlines()
    assert len(audit) == 2 and report.details["dedupe"]["removed"] == 2
    assert "removed" in str(report)


def test_a_declared_space_is_checked_against_the_model(tmp_path: Path) -> None:
    from vecferry.embedding import CallableEmbedder
    from vecferry.errors import SpaceMismatchError

    space = vf.EmbeddingSpace(model="toy", dim=2, normalized=False)
    model = CallableEmbedder(lambda texts: [[float(len(t)), 1.0] for t in texts], space=space)
    honest, other = vf.Collection(MemoryStore()), vf.Collection(MemoryStore())
    honest.write([{"id": i, "text": "x" * i, "vector": [float(i), 1.0]} for i in range(1, 9)])
    other.write([{"id": i, "text": "x" * i, "vector": [-1.0, float(i)]} for i in range(1, 9)])
    plan = vf.plan(honest, MemoryStore(), embed=model, space=space, metric="l2")
    assert any("space= holds" in note for note in plan.notes)
    with pytest.raises(SpaceMismatchError, match="the stored vectors differ"):
        vf.plan(other, MemoryStore(), embed=model, space=space, metric="l2")


def test_a_key_in_the_name_of_a_model_is_not_stored(tmp_path: Path) -> None:
    from vecferry.pipeline.endpoints import repeatable

    call = {"source": "jsonl:a", "target": "jsonl:b"}
    assert repeatable({**call, "embed": "openai:m"}) is not None
    assert repeatable({**call, "embed": "openai:m?api_key=sk-1234567890"}) is None
    assert repeatable({**call, "embed": ["openai:m", "openai:m?api_key=sk-1234567890"]}) is None


def test_a_resume_rewinds_the_target_to_the_committed_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vecferry.pipeline.job import peek_job
    from vecferry.stores.jsonl import JsonlStore

    marks: list[Any] = []
    rewind = JsonlStore.rewind

    def watched(self: JsonlStore, mark: Any) -> None:
        marks.append(mark)
        rewind(self, mark)

    monkeypatch.setattr(JsonlStore, "rewind", watched)
    target = f"jsonl:{tmp_path / 'out.jsonl'}"
    options: dict[str, Any] = {"state_dir": tmp_path / "job", "batch_size": 5}
    with pytest.raises(JobStopped):
        vf.migrate(fill(60), target, should_stop=lambda: True, **options)
    committed = peek_job(tmp_path / "job")["mark"]
    vf.migrate(fill(60), target, **options).check()
    assert committed is not None and marks == [None, committed]


def test_repair_destroys_nothing_unasked() -> None:
    """What only the target has stays, unless a number says how much of it may go."""
    from vecferry.api import jobs

    one, two = fill(20), fill(23)
    two.delete([4])
    two.write([{**sample_records(8)[7].model_dump(), "text": "another"}])
    looked = jobs.repair(one, two, dry_run=True)
    assert set(looked.copied) == {"i:4", "i:7"} and set(looked.left) == {"i:20", "i:21", "i:22"}
    assert not looked.ok and two.count() == 22, "nothing was changed"
    with pytest.raises(PlanError, match=r"3 records.*delete_extra=2"):
        jobs.repair(one, two, delete_extra=2)
    assert two.count() == 22 and not two.fetch([4]), "refused as a whole"
    done = jobs.repair(one, two)
    assert set(done.left) == {"i:20", "i:21", "i:22"} and two.count() == 23
    swept = jobs.repair(one, two, delete_extra=3)
    assert swept.ok and vf.verify(one, two).ok
