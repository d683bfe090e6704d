"""Making a collection, loading it, and finishing it.

HNSW may be put off during the load (its ``m`` is 0 until the end). What ``m`` was is noted in the
collection's metadata before it is changed, so a run that dies in between can be finished by the next.
Payload indexes are made before a graph is built, because Qdrant links the graph for filters only along
indexes that are there by then.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from vecferry.errors import NotFoundError, PlanError, TargetExistsError, UnsupportedError
from vecferry.layouts import Layout, find_layout
from vecferry.model import CollectionSchema, DType, JsonColumn, Metric, VectorField
from vecferry.ports import WriteMode, check_fits
from vecferry.stores.qdrant.faults import DeniedError
from vecferry.stores.qdrant.filters import json_path
from vecferry.stores.qdrant.points import Json
from vecferry.stores.qdrant.schema import (
    CONFIG,
    NOT_SETTINGS,
    PARAMS,
    Facts,
    Record,
    creation,
    dense_of,
    own_settings,
    read_facts,
)

log = logging.getLogger("vecferry.qdrant")

_POLL_SECONDS = 0.25
_MOST_KEYS = 2000
_TOO_OLD = (
    "{} keeps no metadata of collections, so nobody could tell which model its vectors come from; "
    "write to Qdrant 1.16 or newer (older servers can be read)"
)


class Builder:
    """Prepares and finishes one collection.

    Args:
        like: the collection that this one is to replace: it is built in its shape.
    """

    def __init__(self, engine: Any, name: str, options: Mapping[str, Any], like: str | None = None) -> None:
        self._engine, self._name, self._options, self._like = engine, name, options, like
        self.keys: set[str] = set()

    def prepare(self, schema: CollectionSchema, mode: WriteMode, read: Callable[[], Facts | None]) -> None:
        have = read()
        if have and self._replaces(have, mode):
            self._drop()
            have = None
        if have is None:
            self._create(schema)
            return
        if mode is WriteMode.CREATE and not have.empty:
            raise TargetExistsError(
                f'{self._engine.where} holds points; pass mode="upsert" or mode="replace"'
            )
        check_fits(have.schema, schema, self._engine.where)
        record = self._adopt(have, schema, anew=mode is not WriteMode.RESUME)
        if have.loading and record is not None:
            self._defer(record)

    def _replaces(self, have: Facts, mode: WriteMode) -> bool:
        return mode is WriteMode.REPLACE or (mode is WriteMode.CREATE and have.empty and have.loading)

    def _drop(self) -> None:
        if self._name in self._engine.collections():
            self._engine.drop(self._name)
            return
        raise PlanError(
            f"{self._engine.where} is an alias; write to a shadow and publish it, as migrate() does"
        )

    # -- the beginning ------------------------------------------------------------------------

    def _create(self, schema: CollectionSchema) -> None:
        schema = self._shaped(schema)
        body = creation(schema)
        layout = self._layout(schema)
        record = Record(
            state="loading",
            layout=layout.name,
            text_key=getattr(layout, "text_key", ""),
            text_ids=_text_ids(schema, layout),
            id_key=self._options["id_key"] or "",
            keys=sorted(keys_of(layout, [schema.metadata_types]))[:_MOST_KEYS],
            spaces={f.name: f.space.model_dump() for f in schema.fields if f.space},
            dtypes={f.name: str(f.dtype) for f in schema.fields if self._returns_as(f)},
            fields={f.name: f.index[PARAMS] for f in schema.fields if PARAMS in f.index},
            settings=_settings(schema, body),
            payload_indexes=_indexes(schema, layout),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            nonce=secrets.token_hex(8),
        )
        application = own_settings(schema).get("metadata") or {}
        self._engine.create(self._name, {**body, "metadata": {**application, **record.as_metadata()}})
        if self._kept() is None:
            self._engine.drop(self._name)
            raise UnsupportedError(_TOO_OLD.format(self._engine.where))
        self._engine.nonce = record.nonce
        self._defer(record)

    def _shaped(self, schema: CollectionSchema) -> CollectionSchema:
        """In the shape of the collection that is to be replaced, if there is one."""
        if self._like is None or self._options["shape"] == "source":
            return schema
        try:
            live = read_facts(self._engine, self._like, self._options)
        except NotFoundError:
            return schema
        had = {field.name: field for field in live.schema.fields}
        fields = tuple(_field_like(field, had.get(field.name)) for field in schema.fields)
        own, theirs = own_settings(schema), own_settings(live.schema)
        kept = {key: value for key, value in theirs.items() if key not in ("payload_indexes", "text_ids")}
        if self._engine.local and not theirs.get("hnsw_config"):
            kept = {**{key: own[key] for key in CONFIG if key in own}, **kept}
        indexes = {**own.get("payload_indexes", {})} if own.get("layout") == theirs.get("layout") else {}
        kept["payload_indexes"] = {**indexes, **theirs.get("payload_indexes", {})}
        if "text_ids" in own:
            kept["text_ids"] = own["text_ids"]
        if "metadata" in own:
            kept["metadata"] = {**own["metadata"], **kept.get("metadata", {})}
        settings = {**schema.settings, "qdrant": {"layout": "plain", **kept}}
        return schema.model_copy(update={"fields": fields, "settings": settings})

    def _kept(self) -> Record | None:
        return Record.of(self._engine.info(self._name)["config"].get("metadata"))

    def _returns_as(self, field: VectorField) -> bool:
        """Whether components lie in another type and are turned back on reading."""
        rescaled = field.metric is Metric.COSINE and not self._options["keep_norms"]
        return field.dtype is DType.INT8 and not rescaled

    def _layout(self, schema: CollectionSchema) -> Layout:
        """The layout asked for; else, from Qdrant to Qdrant, the one it had; else plain."""
        own = own_settings(schema)
        name = self._options["layout"] or own.get("layout", "plain")
        text_key = self._options["text_key"] or (own.get("text_key") if name == own.get("layout") else None)
        return find_layout(name, text_key=text_key, metadata_key=self._options["metadata_key"])

    def _adopt(self, have: Facts, schema: CollectionSchema, *, anew: bool) -> Record | None:
        """Note what the collection does not know yet: the space of its vectors, further indexes.

        Returns ``None`` where the key may write points and nothing else.
        """
        record = have.record or Record()
        before = record.as_metadata()
        record.fresh = [] if anew else record.fresh
        record.spaces = {f.name: f.space.model_dump() for f in schema.fields if f.space} | record.spaces
        record.payload_indexes = {**_indexes(schema, have.layout), **record.payload_indexes}
        if not record.layout and have.form.text_ids is not (text_ids := adopted_text_ids(have, schema)):
            record.layout, record.text_ids = have.layout.name, text_ids
            record.text_key = getattr(have.layout, "text_key", "")
        if record.as_metadata() == before:
            return record
        record.nonce = secrets.token_hex(8)
        try:
            self._note(record)
        except DeniedError:
            log.warning(
                "%s: the key may not change the collection: the embedding space, the layout and further "
                "payload indexes are not noted",
                self._engine.where,
            )
            return None
        if self._kept() is None:
            raise UnsupportedError(_TOO_OLD.format(self._engine.where))
        self._engine.nonce = record.nonce
        return record

    def _defer(self, record: Record) -> None:
        """Put off HNSW. Only in a collection that is being made here: a live one keeps its index."""
        if self._engine.local:
            return
        if not self._options["defer_index"]:
            self._make_indexes(record)
            return
        if record.restore is None:
            info = self._engine.info(self._name)
            record.restore = {"": info["config"]["hnsw_config"]["m"], **_own_graphs(info)}
            self._note(record)
        self._set_m(dict.fromkeys(record.restore, 0))

    # -- the load -----------------------------------------------------------------------------

    def wrote(self, layout: Layout, metadata: Iterable[Mapping[str, Any]]) -> None:
        """Remember the keys that were written, to be noted at the end."""
        if len(self.keys) < _MOST_KEYS:
            self.keys |= keys_of(layout, metadata)

    # -- the end ------------------------------------------------------------------------------

    def finish(self, have: Facts) -> None:
        record = have.record or Record()
        self._make_indexes(record)
        fresh = sorted(self.keys - {*record.keys})[:_MOST_KEYS]
        if record.state != "loading" and not fresh:
            return
        if not have.loading:
            record.fresh = sorted({*record.fresh, *fresh})
        if record.restore and not self._engine.local:
            self._set_m(record.restore)
        record.state, record.restore, record.keys = "ready", None, sorted({*record.keys, *fresh})
        try:
            self._note(record)
        except DeniedError:
            if have.loading:
                raise
        optimizers = have.info["config"].get("optimizer_config") or {}
        if optimizers.get("prevent_unoptimized") and not self._engine.local:
            self.wait(self._options["wait_index"])  # points are hidden until then

    def wait(self, seconds: float) -> bool:
        """Until the server has built its indexes; false if it has not within ``seconds``."""
        if self._engine.local:
            return True
        end, greens = time.monotonic() + seconds, 0
        while True:
            # Green, and green still: between two segments it is so for a moment.
            greens = greens + 1 if self._engine.info(self._name)["status"] == "green" else 0
            if greens >= 2:
                return True
            if time.monotonic() >= end:
                return False
            time.sleep(_POLL_SECONDS)

    def _make_indexes(self, record: Record) -> None:
        if not record.payload_indexes or self._engine.local:  # the local mode has none; noted is enough
            return
        there = self._engine.info(self._name).get("payload_schema") or {}
        for path, index in record.payload_indexes.items():
            if path in there:
                continue
            try:
                self._engine.index(self._name, path, index)
            except DeniedError:
                log.warning("%s: the key may not index %s", self._engine.where, path)

    # -- requests -----------------------------------------------------------------------------

    def _note(self, record: Record) -> None:
        self._engine.update(self._name, {"metadata": record.as_metadata()})

    def _set_m(self, by_field: Mapping[str, int]) -> None:
        body: Json = {"hnsw_config": {"m": by_field[""]}}
        if fields := {name: {"hnsw_config": {"m": m}} for name, m in by_field.items() if name}:
            body["vectors"] = fields
        self._engine.update(self._name, body)


def keys_of(layout: Layout, metadata: Iterable[Mapping[str, Any]]) -> set[str]:
    """The payload paths at which metadata of these keys is written."""
    names: set[str] = set()
    for one in metadata.bodies() if isinstance(metadata, JsonColumn) else metadata:
        if not one.keys() <= names:
            names |= one.keys()
    *root, _ = layout.path("x")
    prefix = "".join(f"{step}." for step in root)
    return {prefix + name for name in names} if prefix else names


def adopted_text_ids(have: Facts, schema: CollectionSchema) -> bool:
    """Whether a text that is a UUID means the point of that UUID, in a collection of the application's own.

    An application names its points by UUIDs, and what names them in a file is text.
    """
    if own := own_settings(schema):
        return bool(own.get("text_ids"))
    return have.form.text_ids or schema.id_type in ("str", "mixed")


def _text_ids(schema: CollectionSchema, layout: Layout) -> bool:
    own = own_settings(schema)
    if own:  # from Qdrant to Qdrant ids are what they were
        return bool(own.get("text_ids"))
    return layout.name != "plain" and schema.id_type != "uuid"


def _field_like(field: VectorField, had: VectorField | None) -> VectorField:
    if had is None or had.kind is not field.kind or had.dim != field.dim:
        return field
    return field.model_copy(update={"index": had.index or field.index})


def _settings(schema: CollectionSchema, body: Json) -> Json:
    """What was asked for, to be told where Qdrant itself forgets it."""
    settings = {key: value for key, value in own_settings(schema).items() if key not in NOT_SETTINGS}
    if "hnsw_config" in body:
        settings["hnsw_config"] = body["hnsw_config"]
    return settings


def _own_graphs(info: Json) -> dict[str, int]:
    """Named fields that have an m of their own."""
    graphs = {name: (params.get("hnsw_config") or {}).get("m") for name, params in dense_of(info).items()}
    return {name: m for name, m in graphs.items() if name and m is not None}


def _indexes(schema: CollectionSchema, layout: Layout) -> Json:
    """Payload path → index: those of the layout's apps, of the schema, and of a Qdrant source."""
    asked: Json = dict(layout.indexes)
    paths = {json_path(layout.path(key)): kind for key, kind in schema.payload_indexes.items()}
    asked.update({path: kind for path, kind in paths.items() if path is not None})
    if layout.name == own_settings(schema).get("layout"):
        asked.update(own_settings(schema).get("payload_indexes", {}))
    return asked
