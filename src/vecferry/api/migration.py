"""The story on one page.

source ─▶ plan ─▶ stream ( read ▸ transform ▸ dedupe ▸ embed ▸ write ) ─▶ finish ─▶ verify ─▶ publish
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vecferry.api.inspection import Inspection, inspect_collection
from vecferry.connecting import Collection, borrowed, connect
from vecferry.errors import ConfigurationError, SchemaMismatchError
from vecferry.model import CollectionSchema, RecordBatch, VectorField
from vecferry.pipeline.endpoints import Endpoint, repeatable
from vecferry.pipeline.job import Progressing
from vecferry.pipeline.migration import Migration
from vecferry.pipeline.plan import Plan, field_names
from vecferry.pipeline.profile import SAMPLE
from vecferry.pipeline.settings import CallSettings, RunSettings, options_of, read_settings, takes
from vecferry.pipeline.stages import ConformToSchema
from vecferry.pipeline.stream import Reading, batch_size_for, flow
from vecferry.ports import Fields, OnProgress, ShouldStop, Sink, Stage, ignore_progress, never_stop
from vecferry.reporting import Report
from vecferry.verifying import Receipt, Verification, compare


@takes(RunSettings)
def migrate(
    source: Any,
    target: Any,
    *,
    on_progress: OnProgress = ignore_progress,
    should_stop: ShouldStop = never_stop,
    **options: Any,
) -> Report:
    """Ferry a collection from ``source`` to ``target`` and prove that it arrived.

    Args:
        source, target: URLs, collections from `connect`, or adapter objects.
        on_progress: called with a `Progress` after every batch.
        should_stop: asked after every batch; true stops at a checkpoint with `JobStopped`.
        options: see ``docs/settings.md``, or the fields of `vecferry.pipeline.settings.CallSettings`.

    Returns:
        A `Report`. It does not raise on a difference: ask ``report.check()``.

    Raises:
        PlanError: the call cannot work as written; nothing was written.
        JobStopped: stopped; the same call goes on where it was.
        VecferryError: anything else went wrong; the same call goes on where it was.
    """
    return plan(source, target, **options).run(on_progress, should_stop=should_stop)


@takes(CallSettings)
def plan(source: Any, target: Any, **options: Any) -> Plan:
    """Look at both sides and say what `migrate` would do. Nothing is written.

    Takes what `migrate` takes, and raises `PlanError` where that would.
    """
    settings = read_settings(options)
    laid = {"layout": settings.layout} if settings.layout else {}
    return Migration(
        Endpoint(source, settings.source_options or {}),
        Endpoint(target, {**laid, **(settings.target_options or {})}),
        settings,
        repeatable({"source": source, "target": target, **options}),
    ).plan()


def verify(
    source: Any = None,
    target: Any = None,
    *,
    receipt: str | Path | Receipt | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
    should_stop: ShouldStop = never_stop,
    where: Any = None,
    fields: Any = None,
    workers: int = 1,
    **options: Any,
) -> Verification:
    """Compare two collections record by record: ids, texts, metadata, vectors, search results.

    Args:
        source, target: URLs, collections from `connect`, or adapter objects.
        receipt: hold the target (the only collection given) against the receipt of an earlier verification
            instead of a source: what was equal then is equal now, or the buckets that differ are named.
        where: compare only the records of the source that pass this filter; others are no difference.
        fields: as in `migrate`.
        workers: threads that read the target at once, where it comes in another order than the source. The
            result is the same for any number.
        options: passed on to `vecferry.verifying.compare`.

    Raises:
        SchemaMismatchError: if the target lacks one of the vector fields.
    """
    if receipt is not None:
        return _hold(receipt, source, target, workers, on_progress, should_stop)
    if source is None or target is None:
        raise ConfigurationError("verify() compares a source and a target, or a target and receipt=FILE")
    with borrowed(partial(connect, source)) as origin, borrowed(partial(connect, target)) as goal:
        found, have = origin.describe(), goal.describe()
        names = shared_fields(found, have, fields)
        _refuse_other_widths(found, have, names)
        wanted = have.model_copy(update={"fields": tuple(_as_they_come(found, have, names))})
        stages: list[Stage] = [ConformToSchema(wanted, names, keep_text=holds_text(goal))]
        reading = Reading(batch_size_for(found), Fields(vectors=tuple(names)), where)
        parts = [Progressing(part) for part in origin.store.partitions(1)]

        def expected() -> Iterator[RecordBatch]:
            return (p.batch for p in flow(origin.store, parts, reading, stages) if len(p.batch))

        proof = compare(
            expected,
            wanted,
            goal.store,
            allow_extra=where is not None,
            reference=origin.store,
            directions=_without_lengths(origin.store, found, names),
            workers=workers,
            on_progress=on_progress,
            should_stop=should_stop,
            **options,
        )
    notes = (*proof.notes, *_said_otherwise(found, have, names))
    return proof.model_copy(update={"notes": notes})


def _hold(
    receipt: str | Path | Receipt,
    source: Any,
    target: Any,
    workers: int,
    on_progress: Callable[[int], None],
    should_stop: ShouldStop,
) -> Verification:
    if (source is None) == (target is None):
        raise ConfigurationError("a receipt stands for the source: give the target alone beside receipt=")
    kept = receipt if isinstance(receipt, Receipt) else Receipt.read(receipt)
    with borrowed(partial(connect, source if target is None else target)) as goal:
        return kept.hold(goal.store, workers=workers, on_progress=on_progress, should_stop=should_stop)


def inspect(target: Any, *, sample: int | None = SAMPLE) -> Inspection:
    """Look at a collection: schema, layout, types, lengths of vectors, duplicates, what is missing.

    Args:
        sample: how many records to look at; ``None`` for all.
    """
    with borrowed(partial(connect, target)) as collection:
        return inspect_collection(collection, sample=sample)


def holds_text(target: Collection) -> bool:
    """Whether the target has a place for texts; that it holds none now may be what is to be found."""
    store = target.store
    return store.capabilities().text if isinstance(store, Sink) else target.describe().has_text


def shared_fields(found: CollectionSchema, have: CollectionSchema, fields: Any) -> dict[str, str]:
    """Pair the fields by name; two lone fields are a pair whatever they are called."""
    names = field_names(found, fields)
    there = {field.name for field in have.fields}
    if fields is None and len(names) == 1 and len(there) == 1:
        return {next(iter(names)): next(iter(there))}
    missing = [new for new in names.values() if new not in there]
    if missing:
        raise SchemaMismatchError(
            f"the target has no vector field {missing[0]!r}, only {sorted(there)}; "
            "name the fields to compare with fields="
        )
    return names


def _refuse_other_widths(found: CollectionSchema, have: CollectionSchema, names: Mapping[str, str]) -> None:
    for old, new in names.items():
        a, b = found.field(old).dim, have.field(new).dim
        if a and b and a != b:
            raise SchemaMismatchError(
                f"vector field {old!r} has {a:,} components in the source and {b:,} in the target "
                f"({new!r}); "
                "name the fields to compare with fields="
            )


def _as_they_come(
    found: CollectionSchema, have: CollectionSchema, names: Mapping[str, str]
) -> Iterator[VectorField]:
    """The target's fields with the component types of the source, so that nothing is rounded unseen."""
    for old, new in names.items():
        yield have.field(new).model_copy(update={"dtype": found.field(old).dtype})


def _said_otherwise(
    found: CollectionSchema, have: CollectionSchema, names: Mapping[str, str]
) -> Iterator[str]:
    """What the two sides record differently of vectors that may be the same, and fields not compared."""
    for more in sorted({field.name for field in have.fields} - set(names.values())):
        yield f"vector field {more!r} of the target was not compared"
    for old, new in names.items():
        a, b = found.field(old), have.field(new)
        place = new or "the vector field"
        if a.metric is not b.metric:
            yield f"{place} is searched by {b.metric} in the target, by {a.metric} in the source"
        if a.space and b.space and not a.space.same_as(b.space):
            yield f"{place} is recorded as {b.space} in the target, as {a.space} in the source"


def _without_lengths(store: Any, found: CollectionSchema, names: dict[str, str]) -> list[str]:
    """Target fields whose vectors the source keeps at unit length, so that only directions can agree."""
    if not isinstance(store, Sink):
        return []
    normalized = store.capabilities().normalizes
    return [new for old, new in names.items() if found.field(old).metric in normalized]


__all__ = [
    "CallSettings",
    "holds_text",
    "inspect",
    "migrate",
    "options_of",
    "plan",
    "shared_fields",
    "verify",
]
