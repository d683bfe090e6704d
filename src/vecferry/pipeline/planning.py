"""Draw up a plan from an opened source and target. Reads both, writes neither."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vecferry.connecting import Collection
from vecferry.errors import (
    LossRefusedError,
    PlanError,
    SchemaMismatchError,
    TargetExistsError,
)
from vecferry.model import CollectionSchema, EmbeddingSpace, Loss, VectorField
from vecferry.pipeline.mapping import field_names, find_losses, fit_names, target_field
from vecferry.pipeline.profile import Census, take_census
from vecferry.pipeline.settings import Settings
from vecferry.ports import Capabilities, Sink, Source, WriteMode, check_fits

MOST_LOSSES_SHOWN = 3


@dataclass(frozen=True)
class Draft:
    """What the plan is made of."""

    source_schema: CollectionSchema
    target_schema: CollectionSchema
    names: dict[str, str]
    losses: tuple[Loss, ...]
    notes: tuple[str, ...]
    census: Census
    keep_text: bool


def draw_up(
    source: Collection,
    target: Collection,
    settings: Settings,
    *,
    space: EmbeddingSpace | None = None,
    embedded: VectorField | None = None,
    fixed: CollectionSchema | None = None,
    dedupes_ids: bool = False,
) -> Draft:
    """Compare the two sides.

    Args:
        space: what the caller says made the source's vectors.
        embedded: the field an embedder will fill, if there is one.
        fixed: the target's schema of an unfinished job; the target is then not looked at again.
        dedupes_ids: whether a later stage removes records whose id stands twice.

    Raises:
        PlanError: when the call cannot work as written; the message names the next move.
    """
    reader, sink = _able(source, Source, "be read"), _able(target, Sink, "be written")
    found = declare_space(reader.describe(), space)
    capabilities: Capabilities = sink.capabilities()
    names, wanted = _map(found, capabilities, settings, embedded)
    if fixed is None:
        wanted = _meet(sink, wanted, settings)
    census = take_census(reader, found, where=settings.where, sample=settings.sample)
    if census.duplicates and not dedupes_ids:
        _refuse_duplicates(source, census)
    losses = tuple(find_losses(found, wanted, capabilities, census))
    if settings.lossy == "refuse":
        _refuse_losses(losses)
    notes = (*_notes(found, wanted, census, settings),)
    return Draft(found, fixed or wanted, names, losses, notes, census, capabilities.text)


def _able(collection: Collection, port: Any, verb: str) -> Any:
    if not isinstance(collection.store, port):
        raise PlanError(f"{collection.url} cannot {verb}; docs/stores/ says what each store can do")
    return collection.store


def declare_space(schema: CollectionSchema, space: EmbeddingSpace | None) -> CollectionSchema:
    """Write the space the caller declares into the fields whose space is unknown."""
    if space is None:
        return schema
    for field in schema.fields:
        if field.space and field.space.fingerprint != space.fingerprint:
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
    fields = [target_field(by_name[old], new, capabilities, settings.metric) for old, new in names.items()]
    schema = found.model_copy(update={"fields": tuple(fields), "losses": (), "count": None})
    if not schema.fields and capabilities.needs_vectors:
        raise PlanError(
            "the source has no vectors; pass embed=, such as embed='sentence-transformers:all-MiniLM-L6-v2'"
        )
    return names, schema


def _meet(sink: Any, wanted: CollectionSchema, settings: Settings) -> CollectionSchema:
    """Compare with what the target already holds."""
    if not sink.exists() or settings.write_mode is WriteMode.REPLACE:
        return wanted
    have = sink.describe() if isinstance(sink, Source) else wanted
    if settings.write_mode is WriteMode.UPSERT:
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


def _refuse_duplicates(source: Collection, census: Census) -> None:
    shown = ", ".join(repr(id_) for id_ in census.duplicates[:MOST_LOSSES_SHOWN])
    raise PlanError(
        f"{source.url} holds {census.duplicate_count:,} record(s) whose id stands twice ({shown}); "
        "one would overwrite the other: pass dedupe='id' to keep the first of each, or mend the source"
    )


def _refuse_losses(losses: tuple[Loss, ...]) -> None:
    hard = [loss for loss in losses if not loss.reversible]
    if hard:
        shown = "; ".join(f"{loss.kind}: {loss}" for loss in hard[:MOST_LOSSES_SHOWN])
        raise LossRefusedError(f'{shown}; pass lossy="allow" to accept that, or choose another target')


def _notes(
    found: CollectionSchema, wanted: CollectionSchema, census: Census, settings: Settings
) -> list[str]:
    notes = []
    if not census.complete:
        notes.append(f"types and lengths were looked up in the first {census.records:,} records only")
    for field in wanted.fields:
        if field.space is None:
            notes.append(
                f"the embedding space of field {field.name!r} is unknown: name its model with space="
            )
    if found.layout not in ("plain", wanted.layout):
        notes.append(f"the source lies in the {found.layout} layout")
    if census.without_text and settings.embed is not None:
        notes.append(f"{census.without_text:,} records have no text to embed")
    return notes
