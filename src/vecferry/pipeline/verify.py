"""The verdict of a job: the target against the source read anew, and the books of the stream against
both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vecferry.connecting import Collection
from vecferry.model import RecordBatch, encode_id
from vecferry.pipeline.job import Counters, JobFile, Progressing
from vecferry.pipeline.quarantine import quarantined_ids
from vecferry.pipeline.stages import ConformToSchema, RejectNonFinite, Transform
from vecferry.pipeline.stream import Reading, flow
from vecferry.ports import Prepass, Stage
from vecferry.verifying import Verification

SAVED_EVERY = 2.0
"""Seconds between two points from which a verification goes on."""

_REPLAYED = (RejectNonFinite.name, Transform.name, ConformToSchema.name)
"""Stages whose replay copies reject the same records again; another record of that id may have passed."""


@dataclass(frozen=True)
class Expected:
    """What the target should hold, derived from the source anew by replay copies of the stages."""

    source: Collection
    reading: Reading
    stages: Sequence[Stage]
    file: JobFile

    def __call__(self) -> Iterator[RecordBatch]:
        """The stream from its beginning."""
        stages = [stage.replay_copy() for stage in self.stages]
        for place, stage in enumerate(stages):
            run_prepass(self.source, self.file, self.reading, stage, stages[:place])
        quarantined = quarantined_ids(self.file.folder / "quarantine.jsonl", but_of=_REPLAYED)
        rejected = set(map(encode_id, quarantined))
        for inflight in flow(self.source.store, all_parts(self.file), self.reading, stages):
            if len(inflight.batch):
                yield _without(inflight.batch, rejected)


def all_parts(file: JobFile) -> list[Progressing]:
    """Every partition from its beginning."""
    return [Progressing(part.partition) for part in file.partitions()]


def run_prepass(
    source: Collection, file: JobFile, reading: Reading, stage: Stage, before: Sequence[Stage]
) -> None:
    """Let a stage see the whole source as it will come to it: behind the user's transform."""
    if not isinstance(stage, Prepass) or stage.prepass_fields is None:
        return
    changing = [earlier.replay_copy() for earlier in before if isinstance(earlier, Transform)]
    fields = reading.fields if changing else stage.prepass_fields
    seen = Reading(reading.batch_size, fields, reading.where, reading.retry, reading.should_stop)
    stage.prepass(flow(source.store, all_parts(file), seen, changing))


def reconcile(proof: Verification, counters: Counters, *, upserted: bool) -> tuple[Verification, list[str]]:
    """Hold the books against what was counted at both ends: *read − dropped − rejected + added* is what
    must be there, in every run.

    Returns:
        The proof, with the records that overwrote each other counted as missing; and what does not add up,
        in words.
    """
    due, faults = counters.due, []
    if counters.written != due:
        faults.append(
            f"the target acknowledged {counters.written:,} records of {due:,} "
            f"({counters.read:,} read, {sum(counters.dropped.values()):,} dropped, "
            f"{counters.rejected:,} rejected, {sum(counters.added.values()):,} added)"
        )
    distinct = getattr(proof, "expected_ids", None) or proof.expected_count
    if not proof.ok:
        return proof, faults  # the proof has its own reasons, and may have been left before its end
    if distinct < due:
        proof = _collided(proof, due - distinct, due)
    elif distinct > due:
        faults.append(
            f"the source gave {distinct:,} records when it was read again and {due:,} when it was copied: "
            "it has changed since"
        )
    there = getattr(proof, "target_ids", None) or proof.target_count
    if proof.ok and not upserted and there != due:
        faults.append(f"the target holds {there:,} records, and {due:,} were due")
    return proof, faults


def _collided(proof: Verification, lost: int, due: int) -> Verification:
    """The proof, less the records whose id another one has, too: one of each is there."""
    note = (
        f"{lost:,} record(s) overwrote or gave way to another of the same id; let transform= or the "
        "source give "
        "each its own, or pass dedupe='id' to keep the first of each"
    )
    found = {"missing_count": lost, "expected_count": due, "notes": (*proof.notes, note)}
    return proof.model_copy(update={"ok": False, **found})


def source_faults(
    stamps: Mapping[str, Any], counters: Counters, *, filtered: bool
) -> tuple[list[str], list[str]]:
    """What the source's own counts say: faults, and notes.

    Args:
        stamps: ``begin`` and ``verdict``, as `stamp_of` took them.
        filtered: whether only a part of the source was asked for.
    """
    begin, verdict = stamps.get("begin") or {}, stamps.get("verdict") or {}
    if begin != verdict:
        said = f"the source has changed since the job began ({describe_change(begin, verdict)})"
        if verdict.get("kind") == "files":
            return [f"{said}; migrate it again with resume=False (--no-resume)"], []
        return [], [f"{said}; what came later may not be in the target"]
    count = verdict.get("count")
    if not filtered and count is not None and count != counters.read:
        return [f"the source counts {count:,} records by itself, and {counters.read:,} were read"], []
    return [], []


def describe_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The differences of two stamps, in words."""
    names = sorted({*before, *now} - {"kind"})
    changed = [
        f"{name} {before.get(name)} → {now.get(name)}"
        for name in names
        if before.get(name) != now.get(name)
    ]
    return ", ".join(changed) or "another kind of collection"


def _without(batch: RecordBatch, encoded: set[str]) -> RecordBatch:
    if not encoded:
        return batch
    return batch.take([i for i, id_ in enumerate(batch.id_list) if encode_id(id_) not in encoded])
