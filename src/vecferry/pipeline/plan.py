"""`Plan`: what a migration will do, as a sentence and a few tables; and how it is made from the two sides.

Making a plan reads both sides and writes neither.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as attribute
from typing import TYPE_CHECKING, Any

import numpy as np

from vecferry.connecting import Collection
from vecferry.core.retry import RetryPolicy
from vecferry.errors import (
    LossRefusedError,
    NotFoundError,
    PlanError,
    SchemaMismatchError,
    TargetExistsError,
)
from vecferry.model import (
    CollectionSchema,
    DType,
    EmbeddingSpace,
    Kind,
    Loss,
    Metric,
    RecordBatch,
    VectorField,
    type_name,
)
from vecferry.pipeline.profile import HEAD, SourceProfile, profile_source
from vecferry.pipeline.settings import Settings
from vecferry.ports import (
    Capabilities,
    ChecksFilters,
    ForeseesChanges,
    OnProgress,
    ShouldStop,
    Sink,
    Source,
    Stamped,
    WriteMode,
    check_fits,
    ignore_progress,
    never_stop,
)

if TYPE_CHECKING:
    from vecferry.reporting import Report

Runner = Callable[["Plan", OnProgress, ShouldStop], "Report"]

MOST_LOSSES_SHOWN = 3
MOST_KEYS_SHOWN = 20


@dataclass(frozen=True)
class Plan:
    """Look before you leap: print it, then `run` it.

    Attributes:
        source, target: the URLs, without secrets.
        mode: ``create``, ``upsert`` or ``replace``.
        source_schema, target_schema: as found, and as it will be prepared.
        names: source vector field → target vector field.
        count: records to read, if known.
        losses: what changes on the way, each with a count and an example.
        notes: what else is worth knowing before the start.
        estimate: tokens, costs, bytes, as far as they apply.
        refusal: why it cannot run as it is, and the next move; ``None`` where it can.
        resuming: where an unfinished job of the same pair stands, or ``None``.
    """

    source: str
    target: str
    mode: str
    source_schema: CollectionSchema
    target_schema: CollectionSchema
    names: dict[str, str]
    count: int | None
    losses: tuple[Loss, ...] = ()
    notes: tuple[str, ...] = ()
    estimate: dict[str, Any] = attribute(default_factory=dict)
    resuming: str | None = None
    refusal: str | None = None
    _runner: Runner | None = attribute(default=None, repr=False, compare=False)

    def run(
        self, on_progress: OnProgress = ignore_progress, *, should_stop: ShouldStop = never_stop
    ) -> Report:
        """Carry it out; see `vecferry.migrate`."""
        if self._runner is None:
            raise RuntimeError("this plan was not made by vecferry.plan() and cannot run")
        return self._runner(self, on_progress, should_stop)

    @property
    def sentence(self) -> str:
        """``faiss:./kb → qdrant:…: 2,000 records, 384 d, cosine; str ids get another form (kept)``."""
        count = "records" if self.count is None else f"{self.count:,} records"
        parts = [", ".join([count, *(_shape(field) for field in self.target_schema.fields)])]
        parts += [str(loss) for loss in self.losses if loss.kind in ("id", "magnitude", "vector")]
        return f"{self.source} → {self.target} ({self.mode}): {'; '.join(parts)}"

    def __str__(self) -> str:
        lines = [self.sentence]
        if self.refusal:
            lines += ["", f"refused: {self.refusal}"]
        if self.resuming:
            lines += ["", f"goes on: {self.resuming}"]
        lines += ["", *_table(self._field_rows())]
        lines += ["", "changes on the way:" if self.losses else "nothing is lost on the way"]
        lines += [f"  - {loss.kind}: {loss}" for loss in self.losses]
        lines += [f"  {key}: {value}" for key, value in self.estimate.items()]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = self._field_rows()
        cell = html.escape
        head = "".join(f"<th>{cell(name)}</th>" for name in rows[0])
        body = "".join(
            "<tr>" + "".join(f"<td>{cell(value)}</td>" for value in row) + "</tr>" for row in rows[1:]
        )
        losses = "".join(f"<li><b>{cell(x.kind)}</b>: {cell(str(x))}</li>" for x in self.losses)
        notes = "".join(f"<li>{cell(note)}</li>" for note in (*self.notes, *self._estimates()))
        return (
            f"<p><b>{cell(self.sentence)}</b></p><table><tr>{head}</tr>{body}</table>"
            f"<p>{'changes on the way' if losses else 'nothing is lost on the way'}</p>"
            f"<ul>{losses}{notes}</ul>"
        )

    def _estimates(self) -> list[str]:
        return [f"{key}: {value}" for key, value in self.estimate.items()]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "sentence": self.sentence,
            "source": self.source,
            "target": self.target,
            "mode": self.mode,
            "count": self.count,
            "names": self.names,
            "source_schema": self.source_schema.model_dump(mode="json"),
            "target_schema": self.target_schema.model_dump(mode="json"),
            "losses": [loss.model_dump(mode="json") for loss in self.losses],
            "notes": list(self.notes),
            "estimate": self.estimate,
            "resuming": self.resuming,
            "refusal": self.refusal,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2)

    def _field_rows(self) -> list[tuple[str, str, str, str]]:
        rows = [("field", "from", "to", "space")]
        for old, new in self.names.items():
            before, after = self._find(self.source_schema, old), self._find(self.target_schema, new)
            if before is None or after is None:
                continue
            shown = repr(old) if old == new else f"{old!r} → {new!r}"
            rows.append((shown, _shape(before), _shape(after), str(after.space or "unknown")))
        fresh = [f for f in self.target_schema.fields if f.name not in self.names.values()]
        rows += [(repr(f.name), "(embedded)", _shape(f), str(f.space or "unknown")) for f in fresh]
        return rows

    @staticmethod
    def _find(schema: CollectionSchema, name: str) -> VectorField | None:
        return next((field for field in schema.fields if field.name == name), None)


def _shape(field: VectorField) -> str:
    words = [f"{field.dim:,} d" if field.dim else "any dimension", str(field.metric)]
    words += [str(field.dtype)] if field.dtype != "float32" else []
    words += [str(field.kind)] if field.kind != "dense" else []
    return " ".join(words)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


# -- from the two sides to the inputs of a plan -----------------------------------------------


@dataclass(frozen=True)
class PlanInputs:
    """What a plan is made of, and a run begins with.

    Attributes:
        refusal: why nothing may be written.
        stamp: of the source when it was looked at (see `vecferry.ports.Stamped`).
    """

    source_schema: CollectionSchema
    target_schema: CollectionSchema
    names: dict[str, str]
    losses: tuple[Loss, ...]
    notes: tuple[str, ...]
    profile: SourceProfile
    keep_text: bool
    uuid_ids: bool = False
    refusal: str | None = None
    stamp: Mapping[str, Any] = attribute(default_factory=dict)

    def count(self, settings: Settings) -> int | None:
        """Records to be read, if known."""
        if settings.where is not None:
            return self.profile.records if self.profile.complete else None
        return self.source_schema.count


def build_plan(
    source: Collection,
    target: Collection,
    settings: Settings,
    *,
    space: EmbeddingSpace | None = None,
    embedded: VectorField | None = None,
    fixed: CollectionSchema | None = None,
    dedupes_ids: bool = False,
    head: int = HEAD,
    on_head: Callable[[RecordBatch], None] = lambda _: None,
) -> PlanInputs:
    """Compare the two sides. The source is read once.

    Args:
        space: what the caller says made the source's vectors.
        embedded: the field an embedder will fill, if there is one.
        fixed: the target's schema of an unfinished job; the target is then not looked at again.
        dedupes_ids: whether a later stage removes records whose id stands twice.
        head, on_head: see `profile_source`.

    Raises:
        PlanError: when the call cannot work as written; the message names the next move.
    """
    reader, sink = _able(source, Source, "be read"), _able(target, Sink, "be written")
    stamp = stamp_of(source, settings.retry)
    found = declare_space(settings.retry.call(reader.describe), space)
    capabilities: Capabilities = settings.retry.call(sink.capabilities)
    names, wanted = _map(found, capabilities, settings, embedded)
    if fixed is None:
        wanted = settings.retry.call(lambda: _meet(sink, wanted, settings, found, names))
    if isinstance(settings.where, Mapping) and isinstance(reader, ChecksFilters):
        reader.check_filter(settings.where)
    profile = profile_source(
        reader,
        found,
        where=settings.where,
        sample=settings.sample,
        head=head,
        on_head=on_head,
        retry=settings.retry,
        changes=sink.foresee if isinstance(sink, ForeseesChanges) else None,
    )
    if not profile.records and settings.where is not None:
        _check_empty(source, found, settings)
    refusal = _doubled(source, profile) if profile.duplicates and not dedupes_ids else None
    losses = tuple(find_losses(found, wanted, capabilities, profile))
    if settings.lossy == "refuse":
        _refuse_losses(losses)
    return PlanInputs(
        source_schema=found,
        target_schema=fixed or wanted,
        names=names,
        losses=losses,
        notes=(*_notes(found, wanted, profile, settings),),
        profile=profile,
        keep_text=capabilities.text,
        uuid_ids=capabilities.id_types == frozenset({"uuid"}),
        refusal=refusal,
        stamp=stamp,
    )


def stamp_of(collection: Collection, retry: RetryPolicy) -> dict[str, Any]:
    """What tells this state of a collection from another, as far as its store can say; its count at
    least.
    """
    store = collection.store
    if isinstance(store, Stamped):
        return dict(retry.call(store.stamp))
    try:
        return {"kind": "store", "count": retry.call(store.count)}
    except NotFoundError:
        return {"kind": "store", "absent": True}


def _check_empty(source: Collection, found: CollectionSchema, settings: Settings) -> None:
    """A filter that no record passes: is it one that never could, and may it empty a target?

    Raises:
        PlanError: if a key of the filter is in no record looked at, or the target would be replaced by
            nothing.
    """
    if isinstance(settings.where, Mapping):
        seen = profile_source(
            source.store, found.model_copy(update={"ids_unique": True}), sample=settings.sample
        )
        for key, value in _conditions(settings.where):
            kinds = seen.keys.get(key) or seen.keys.get(key.split(".", 1)[0])
            if kinds is None and seen.records:
                have = ", ".join(map(repr, sorted(seen.keys)[:MOST_KEYS_SHOWN])) or "none"
                raise PlanError(
                    f"no record of {source.url} has the key {key!r} of the filter; there are {have}"
                )
            if kinds and "." not in key and not _comparable(kinds, value):
                raise PlanError(
                    f"the filter compares {key!r} with {value!r}, but its values are "
                    f"{', '.join(sorted(kinds))}; write the literal as one of these"
                )
    if settings.write_mode is WriteMode.REPLACE and not settings.allow_empty:
        raise PlanError(
            f"no record of {source.url} passes the filter, and mode='replace' would leave the target "
            "empty; "
            "mend the filter, or pass allow_empty=True"
        )


def _conditions(where: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each key that a record must have to pass, with what it is compared with."""
    for key, condition in where.items():
        if key in ("$and", "$or"):
            for part in condition:
                yield from _conditions(part)
        elif isinstance(condition, Mapping):
            positive = {"$eq", "$gt", "$gte", "$lt", "$lte", "$in"} & set(condition)
            for name in sorted(positive):
                operand = condition[name]
                many = operand if name == "$in" and isinstance(operand, list | tuple | set) else [operand]
                yield from ((key, one) for one in list(many)[:1])
        elif not key.startswith("$"):
            yield key, condition


_NUMBERS = {"int", "big int", "float", "unusual float", "non-finite float", "decimal"}
_CONTAINERS = {"list", "tuple", "set", "object", "non-text-keyed object"}


def _comparable(kinds: Iterable[str], value: Any) -> bool:
    """Whether a value of one of these types could ever equal ``value``, or be ordered beside it."""
    name = type_name(value)
    wanted = _NUMBERS if name in _NUMBERS else {name}
    return any(kind in wanted or kind in _CONTAINERS for kind in kinds) or name not in (
        *_NUMBERS,
        "str",
        "bool",
    )


def _able(collection: Collection, port: Any, verb: str) -> Any:
    if not isinstance(collection.store, port):
        raise PlanError(f"{collection.url} cannot {verb}; docs/stores/ says what each store can do")
    return collection.store


def declare_space(schema: CollectionSchema, space: EmbeddingSpace | None) -> CollectionSchema:
    """Write the space the caller declares into the fields whose space is unknown."""
    if space is None:
        return schema
    for field in schema.fields:
        if field.space and not field.space.same_as(space):
            raise SchemaMismatchError(
                f"the source records {field.space} for field {field.name!r}, "
                f"space= says {space}; leave it out"
            )
        if field.dim and field.dim != space.dim:
            raise SchemaMismatchError(
                f"space= says {space}, but field {field.name!r} has {field.dim} dimensions"
            )
    fields = tuple(field.model_copy(update={"space": space}) for field in schema.fields)
    return schema.model_copy(update={"fields": fields})


def _map(
    found: CollectionSchema,
    capabilities: Capabilities,
    settings: Settings,
    embedded: VectorField | None,
) -> tuple[dict[str, str], CollectionSchema]:
    # The embedding stage has replaced its field, or added it, before the names are mapped.
    ready = found if embedded is None else found.with_field(embedded)
    names = fit_names(field_names(ready, settings.fields), capabilities)
    if not capabilities.kinds:  # a service that embeds by itself takes texts only
        names = {}
    by_name = {field.name: field for field in ready.fields}
    metric = None if settings.metric is None else Metric(settings.metric)
    fields = [target_field(by_name[old], new, capabilities, metric) for old, new in names.items()]
    schema = found.model_copy(update={"fields": tuple(fields), "losses": (), "notes": (), "count": None})
    if not schema.fields and capabilities.needs_vectors:
        raise PlanError(
            "the source has no vectors; pass embed=, such as embed='sentence-transformers:all-MiniLM-L6-v2'"
        )
    return names, schema


def _meet(
    sink: Any,
    wanted: CollectionSchema,
    settings: Settings,
    found: CollectionSchema,
    names: Mapping[str, str],
) -> CollectionSchema:
    """Compare with what the target already holds."""
    if not sink.exists() or settings.write_mode is WriteMode.REPLACE:
        return wanted
    have = sink.describe() if isinstance(sink, Source) else wanted
    if settings.write_mode is WriteMode.UPSERT:
        wanted = _with_metrics_of(have, wanted, settings, found, names)
        check_fits(have, wanted, str(getattr(sink, "url", "the target")))
        fields = {field.name: field for field in have.fields}
        kept = tuple(
            field.model_copy(update={"dtype": fields[field.name].dtype}) for field in wanted.fields
        )
        return wanted.model_copy(update={"fields": kept})
    if have.count == 0:
        return wanted
    raise TargetExistsError(
        f"{getattr(sink, 'url', 'the target')} already holds a collection; "
        'pass mode="upsert" to add to it or mode="replace" to build a new one beside it and swap'
    )


def _with_metrics_of(
    have: CollectionSchema,
    wanted: CollectionSchema,
    settings: Settings,
    found: CollectionSchema,
    names: Mapping[str, str],
) -> CollectionSchema:
    """A metric that the source does not declare is no fact: the target's counts."""
    if settings.metric is not None:
        return wanted
    undeclared = {names.get(f.name) for f in found.fields if not getattr(f, "metric_declared", True)}
    metrics = {field.name: field.metric for field in have.fields}
    fields = tuple(
        f.model_copy(update={"metric": metrics[f.name]})
        if f.name in undeclared and f.name in metrics
        else f
        for f in wanted.fields
    )
    return wanted.model_copy(update={"fields": fields})


def _doubled(source: Collection, profile: SourceProfile) -> str:
    shown = ", ".join(repr(id_) for id_ in profile.duplicates[:MOST_LOSSES_SHOWN])
    return (
        f"{source.url} holds {profile.duplicate_count:,} record(s) whose id stands twice ({shown}); "
        "one would overwrite the other: pass dedupe='id' to keep the first of each, or mend the source"
    )


def _refuse_losses(losses: tuple[Loss, ...]) -> None:
    hard = [loss for loss in losses if not loss.reversible]
    if hard:
        shown = "; ".join(f"{loss.kind}: {loss}" for loss in hard[:MOST_LOSSES_SHOWN])
        raise LossRefusedError(f'{shown}; pass lossy="allow" to accept that, or choose another target')


def _notes(
    found: CollectionSchema, wanted: CollectionSchema, profile: SourceProfile, settings: Settings
) -> list[str]:
    notes = list(found.notes)
    if not profile.complete:
        notes.append(f"types and lengths were looked up in the first {profile.records:,} records only")
    for field in wanted.fields:
        if field.space is None:
            notes.append(
                f"the embedding space of field {field.name!r} is unknown: name its model with space="
            )
    if found.layout not in ("plain", wanted.layout):
        notes.append(f"the source lies in the {found.layout} layout")
    if profile.without_text and settings.embed is not None:
        notes.append(f"{profile.without_text:,} records have no text to embed")
    return notes


# -- names, metrics, component types ------------------------------------------------------------

_EXACT = {
    DType.FLOAT16: (DType.FLOAT16, DType.FLOAT32),
    DType.INT8: (DType.INT8, DType.FLOAT32, DType.FLOAT16),
    DType.UINT8: (DType.UINT8, DType.FLOAT32, DType.FLOAT16),
    DType.FLOAT32: (DType.FLOAT32,),
    DType.BIT: (DType.BIT,),
}
"""Component types that hold every value of the source's type, the best first."""


def field_names(
    schema: CollectionSchema, wanted: Sequence[str] | Mapping[str, str] | None
) -> dict[str, str]:
    """Source field → target field, as the caller asked: all, a list of names, or ``{old: new}``.

    Raises:
        SchemaMismatchError: for a name the source does not have.
    """
    have = [field.name for field in schema.fields]
    if wanted is None:
        return {name: name for name in have}
    names = dict(wanted) if isinstance(wanted, Mapping) else {name: name for name in wanted}
    unknown = [name for name in names if name not in have]
    if unknown:
        raise SchemaMismatchError(f"the source has no vector field {unknown[0]!r}; it has {have}")
    if len(set(names.values())) != len(names):
        raise SchemaMismatchError(f"two fields would get one name: {names}")
    return names


def fit_names(names: dict[str, str], capabilities: Capabilities) -> dict[str, str]:
    """A target that holds one unnamed field gets the only field there is under ``""``.

    Raises:
        SchemaMismatchError: if there are several and only one fits.
    """
    if len(names) > 1 and not capabilities.several_fields:
        raise SchemaMismatchError(
            f"the target holds one vector field and the source has {list(names)}; "
            f"choose one, e.g. fields=[{next(iter(names))!r}]"
        )
    if len(names) == 1 and not capabilities.field_names:
        return dict.fromkeys(names, "")
    return names


def target_field(
    field: VectorField, name: str, capabilities: Capabilities, metric: Metric | None
) -> VectorField:
    """The field as the target will hold it.

    Raises:
        SchemaMismatchError: if the target has no such kind, metric or component type at all.
    """
    if field.kind not in capabilities.kinds:
        raise SchemaMismatchError(
            f"the target holds no {field.kind} vectors (field {field.name!r}); leave it out with fields=[…]"
        )
    chosen = metric or field.metric
    if chosen not in capabilities.metrics:
        have = ", ".join(sorted(capabilities.metrics))
        raise SchemaMismatchError(
            f"the target has no metric {chosen} (field {field.name!r}); choose one with metric=: {have}"
        )
    dtype = next((d for d in _EXACT[field.dtype] if d in capabilities.dtypes), None)
    if dtype is None:
        dtype = next((d for d in (DType.FLOAT32, DType.FLOAT16) if d in capabilities.dtypes), None)
    if dtype is None or (field.dtype is DType.BIT) is not (dtype is DType.BIT):
        raise SchemaMismatchError(
            f"the target cannot hold {field.dtype} components (field {field.name!r}); "
            "leave the field out with fields=[…]"
        )
    _check_dim(field, dtype, capabilities)
    return field.model_copy(update={"name": name, "metric": chosen, "dtype": dtype})


def _check_dim(field: VectorField, dtype: DType, capabilities: Capabilities) -> None:
    for kind, most in capabilities.max_dim:
        if kind is dtype and field.dim and field.dim > most:
            raise SchemaMismatchError(
                f"the target holds at most {most:,} components of {dtype}; "
                f"field {field.name!r} has {field.dim:,}"
            )


def find_losses(
    source: CollectionSchema, target: CollectionSchema, capabilities: Capabilities, profile: SourceProfile
) -> list[Loss]:
    """Everything that changes on the way, with a count and an example."""
    pairs = list(zip(source.fields, target.fields, strict=False))
    return [
        *source.losses,
        *_vector_losses(pairs),
        *_magnitude_losses(pairs, capabilities, profile),
        *_missing_vectors(pairs, capabilities, profile),
        *_id_losses(capabilities, profile),
        *_metadata_losses(capabilities, profile),
        *_text_losses(capabilities, profile),
        *capabilities.losses,
        *profile.changes,
    ]


def _vector_losses(pairs: Iterable[tuple[VectorField, VectorField]]) -> Iterable[Loss]:
    for old, new in pairs:
        if new.dtype not in _EXACT[old.dtype]:
            yield Loss(kind="vector", detail=f"field {old.name!r}: {old.dtype} becomes {new.dtype}")
        if new.metric is not old.metric:
            yield Loss(
                kind="metric",
                detail=f"field {old.name!r} is searched by {new.metric}, not {old.metric}",
            )


def _magnitude_losses(
    pairs: Iterable[tuple[VectorField, VectorField]], capabilities: Capabilities, profile: SourceProfile
) -> Iterable[Loss]:
    for old, new in pairs:
        norms = profile.norms.get(old.name)
        if new.kind is Kind.SPARSE or new.metric not in capabilities.normalizes or norms is None:
            continue
        odd = norms[np.abs(norms - 1) > 1e-3]
        if len(odd):
            yield Loss(
                kind="magnitude",
                detail=f"of {profile.looked_at:,} vectors looked at in field {old.name!r} "
                "not of unit length, which the target normalises",
                count=len(odd),
                example=f"length {odd[0]:.4g}",
                reversible=capabilities.keeps_norms,
            )


def _missing_vectors(
    pairs: Iterable[tuple[VectorField, VectorField]], capabilities: Capabilities, profile: SourceProfile
) -> Iterable[Loss]:
    for old, _ in pairs:
        if profile.missing[old.name] and not capabilities.missing_vectors:
            yield Loss(
                kind="field",
                detail=f"of {profile.looked_at:,} records looked at without a vector in field "
                f"{old.name!r}, which the target refuses",
                count=profile.missing[old.name],
            )


def _id_losses(capabilities: Capabilities, profile: SourceProfile) -> Iterable[Loss]:
    for kind, n in profile.id_types.items():
        if kind not in capabilities.id_types:
            yield Loss(
                kind="id",
                detail=f"{kind} ids get another form in the target",
                count=n,
                example=profile.id_examples.get(kind),
                reversible=True,
            )


def _metadata_losses(capabilities: Capabilities, profile: SourceProfile) -> Iterable[Loss]:
    if capabilities.metadata_types is None:
        return
    for kind, n in profile.types.items():
        if kind not in capabilities.metadata_types:
            yield Loss(
                kind="metadata",
                detail=f"{kind} values are kept in another form",
                count=n,
                example=profile.examples.get(kind),
                reversible=True,
            )


def _text_losses(capabilities: Capabilities, profile: SourceProfile) -> Iterable[Loss]:
    texts = profile.records - profile.without_text
    if texts and not capabilities.text:
        yield Loss(kind="text", detail="the target has no place for texts", count=texts)
    if profile.without_text and capabilities.text and capabilities.needs_text:
        yield Loss(
            kind="text",
            detail="records without text get an empty one, which the layout demands",
            count=profile.without_text,
            reversible=True,
        )
