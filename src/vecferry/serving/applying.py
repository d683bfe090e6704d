"""The target of a sync: records in its own fields and space, by the stages and the writer of a migration,
held against what it has by the rules of a verification."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vecferry.api.migration import holds_text, shared_fields
from vecferry.connecting import Collection
from vecferry.core.retry import RetryPolicy
from vecferry.embedding import EmbedStage
from vecferry.embedding.chunking import PARENT
from vecferry.errors import (
    LossRefusedError,
    PlanError,
    SchemaMismatchError,
    SpaceMismatchError,
    UnsupportedError,
)
from vecferry.model import CollectionSchema, RecordBatch, RecordId, VectorField, encode_id
from vecferry.pipeline.stages import ConformToSchema
from vecferry.pipeline.stream import Writer
from vecferry.ports import (
    Deletable,
    Fetchable,
    Fields,
    InFlightBatch,
    KeepsOwn,
    Partition,
    Rejection,
    ShouldStop,
    Store,
    WriteMode,
    never_stop,
)
from vecferry.serving.dual import DualWriter
from vecferry.verifying import differing, field_rules

Change = Callable[[RecordBatch], RecordBatch]


class Target:
    """Writes what changed.

    Args:
        store: an existing collection that can be read and written.
        have: the source's schema.
        embed: embeds the texts for the target's field, if its space is another one; what `migrate` takes.
        options: for the `EmbedStage`, such as ``long_text`` and ``chunk_size``.
        writer: goes through this `DualWriter`, so that live writes are not overtaken.

    Raises:
        SpaceMismatchError, SchemaMismatchError: if the records do not fit. Nothing was written.
    """

    def __init__(
        self,
        store: Any,
        have: CollectionSchema,
        *,
        embed: Any = None,
        options: Mapping[str, Any] | None = None,
        writer: DualWriter | None = None,
        retry: RetryPolicy,
        should_stop: ShouldStop = never_stop,
    ) -> None:
        if not isinstance(store, Store):
            raise UnsupportedError(
                "the target cannot be both read and written, so it cannot be kept in step"
            )
        self.store = store
        self.writer, self._retry = writer, retry
        self.schema: CollectionSchema = store.describe()
        self._embed = _embed_stage(embed, self.schema, options or {}, should_stop)
        self.splits = (options or {}).get("long_text") == "split"
        names = {} if self._embed else _pair(have, self.schema)
        self._fit = ConformToSchema(self.schema, names, keep_text=holds_text(Collection(store)))
        wanted = [
            self.schema.field(new).model_copy(update={"dtype": have.field(old).dtype})
            for old, new in names.items()
        ]
        written = self.schema.model_copy(update={"fields": tuple(wanted)})
        self._rules = field_rules(written, self.store)
        self._kept = store.kept(self.schema) if isinstance(store, KeepsOwn) else None
        self._write = Writer(store, retry=retry, should_stop=should_stop)
        self._begun = False

    def check_chunks(self) -> None:
        """Whether the target holds records that a migration split.

        Raises:
            PlanError: if it does and this sync would not split. Nothing was written.
        """
        if self.splits:
            return
        where = {PARENT: {"$exists": True}}
        batches = self.store.scan(batch_size=1, fields=Fields.NO_VECTORS, where=where)
        if any(len(batch) for batch in batches):
            raise PlanError(
                "the target holds long texts split into several records, which this call would write whole "
                "beside them and then delete; pass embed=, long_text='split' and chunk_size= as the "
                "migration had them (nothing was written)"
            )

    def adapt(self, batch: RecordBatch) -> RecordBatch:
        """The batch in the target's fields, long texts split, without what is to be embedded.

        Raises:
            LossRefusedError: for a record that the target cannot hold.
        """
        inflight = InFlightBatch(batch, Partition("sync"), None, len(batch))
        inflight = self._embed.split(inflight) if self._embed else inflight
        return _whole(self._fit.apply(inflight))

    def differing(self, batch: RecordBatch) -> tuple[list[int], list[int]]:
        """Rows that the target lacks, and rows that it holds otherwise."""
        if not isinstance(self.store, Fetchable):
            return list(range(len(batch))), []
        fetchable = self.store
        found = self._retry.call(lambda: fetchable.fetch(batch.id_list))
        there = {encode_id(id_): row for row, id_ in enumerate(found.id_list)}
        places = [there.get(encode_id(id_)) for id_ in batch.id_list]
        added = [row for row, at in enumerate(places) if at is None]
        both = [(row, at) for row, at in enumerate(places) if at is not None]
        if not both:
            return added, []
        mine, theirs = batch.take([row for row, _ in both]), found.take([at for _, at in both])
        rows = differing(mine, theirs, self._rules, kept=self._kept, text=self._fit.keeps_text)
        return added, [both[row][0] for row in rows]

    def upsert(self, batch: RecordBatch) -> None:
        """Write; acknowledged when it returns.

        Raises:
            LossRefusedError: for a record that the target refuses; the others are written.
        """
        if not len(batch):
            return
        if self.writer is not None:
            self.writer.mirror(batch.id_list)
            return
        ready = self._embedded(batch)
        self._begin()
        _refuse(self._write.write(ready))

    def delete(self, ids: Sequence[RecordId]) -> None:
        """Delete; unknown ids are no error.

        Raises:
            UnsupportedError: if the target cannot.
        """
        if self.writer is not None:
            self.writer.mirror(ids)
            return
        if not isinstance(self.store, Deletable):
            raise UnsupportedError(
                "the target cannot delete; pass deletes=False to leave what is gone there"
            )
        self.finish()  # a store that stages its writes deletes from what is published
        deletable = self.store
        self._retry.call(lambda: deletable.delete(ids))

    def finish(self) -> None:
        """Let it be read and searched."""
        if self._begun:
            self._retry.call(self.store.finish)
            self._begun = False

    def close(self) -> None:
        """Close what embedding holds open; the store is the caller's."""
        if self._embed is not None:
            self._embed.close()

    def _begin(self) -> None:
        if not self._begun:
            schema = self.schema.model_copy(update={"losses": ()})
            self._retry.call(lambda: self.store.prepare(schema, WriteMode.UPSERT))
            self._begun = True

    def _embedded(self, batch: RecordBatch) -> RecordBatch:
        if self._embed is None:
            return batch
        texts = batch.text_list
        rows = [row for row, text in enumerate(texts) if (text or "").strip()]
        bare = sorted({*range(len(batch))} - {*rows})
        some = batch.take(rows)
        inflight = InFlightBatch(some, Partition("sync"), None, len(some))
        full = _whole(self._embed.behind_split().apply(inflight))
        return RecordBatch.concat([full, batch.take(bare)]) if bare else full


def _whole(inflight: InFlightBatch) -> RecordBatch:
    _refuse(inflight.rejections)
    return inflight.batch


def _refuse(rejections: Sequence[Rejection]) -> None:
    if rejections:
        first = rejections[0]
        raise LossRefusedError(
            f"record {first.batch.id_list[0]!r}: {first.reason}; mend it in the source, or leave it out "
            "with where= or transform="
        )


def _embed_stage(
    embed: Any, schema: CollectionSchema, options: Mapping[str, Any], should_stop: ShouldStop
) -> EmbedStage | None:
    if embed is None:
        if options:
            raise PlanError(f"{min(options)}= is about embedding; pass embed= with it")
        return None
    if len(schema.fields) != 1:
        names = [f.name for f in schema.fields]
        raise SchemaMismatchError(f"an embedder fills one field, and the target has {names}")
    field = schema.fields[0]
    if isinstance(embed, list | tuple):
        from vecferry.embedding import choose_alternative

        fingerprint = field.space.fingerprint if field.space else None
        embed = choose_alternative(embed, fingerprint=fingerprint).embedder
    stage = EmbedStage(embed, field=field.name, should_stop=should_stop, **options)
    _check_space(stage.space, field, "the embedder gives")
    return stage


def _pair(have: CollectionSchema, want: CollectionSchema) -> dict[str, str]:
    """Source field → target field. Every field of the target must be filled, by vectors of its space."""
    there = {field.name for field in want.fields}
    lone = len(have.fields) == len(want.fields) == 1
    names = shared_fields(have, want, None if lone else [f.name for f in have.fields if f.name in there])
    missing = sorted(there - set(names.values()))
    if missing:
        raise SchemaMismatchError(
            f"the source has no vectors for the target's field {missing[0]!r}; pass embed="
        )
    for source, target in names.items():
        old, field = have.field(source), want.field(target)
        if old.dim and field.dim and old.dim != field.dim:
            raise SchemaMismatchError(
                f"the source has {old.dim} dimensions, the target {field.dim} in {field.name!r}"
            )
        _check_space(old.space, field, "the source holds")
    return names


def _check_space(space: Any, field: VectorField, what: str) -> None:
    if space and field.space and not space.same_as(field.space):
        raise SpaceMismatchError(
            f"{what} vectors of {space}, the target holds {field.space}; pass an embedder of that space"
        )
