"""Making a collection, loading it without building indexes, and building them at the end.

On a server HNSW's ``m`` is 0 during the load (Qdrant's own advice for bulk uploads), so that no graph is
built twice. What it was is noted in the collection's metadata before it is changed, so a run that dies in
between can be finished by the next. Payload indexes are made at the end but before the graph, because
Qdrant links the graph for filters only along indexes that are there when it is built.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from vecferry.errors import PlanError, TargetExistsError, UnsupportedError
from vecferry.layouts import Layout, find_layout
from vecferry.model import CollectionSchema, DType, Metric
from vecferry.ports import WriteMode, check_fits
from vecferry.stores.qdrant.config import Record, creation, json_path
from vecferry.stores.qdrant.connection import Connection
from vecferry.stores.qdrant.facts import Facts

_POLL_SECONDS = 0.5
_TOO_OLD = (
    "{} keeps no metadata of collections, so nobody could tell which model its vectors come from; "
    "write to Qdrant 1.16 or newer (older servers can be read)"
)
_NOT_SETTINGS = ("layout", "text_key", "payload_indexes")


class Builder:
    """Prepares and finishes one collection."""

    def __init__(self, at: Connection, name: str, options: dict[str, Any]) -> None:
        self._at, self._name, self._options = at, name, options

    def prepare(self, schema: CollectionSchema, mode: WriteMode, read: Callable[[], Facts | None]) -> None:
        have = read()
        if have and self._replaces(have, mode):
            self._drop()
            have = None
        if have is None:
            self._create(schema)
            return
        if mode is WriteMode.CREATE and not have.empty:
            raise TargetExistsError(f'{self._at.where} holds points; pass mode="upsert" or mode="replace"')
        check_fits(have.schema, schema, self._at.where)
        self._adopt(have, schema)
        if have.record.state == "loading":
            self._defer(have.record)

    def _replaces(self, have: Facts, mode: WriteMode) -> bool:
        begun = have.empty and have.record.state == "loading"
        return mode is WriteMode.REPLACE or (mode is WriteMode.CREATE and begun)

    def _drop(self) -> None:
        if self._name in {c.name for c in self._at.call("get_collections").collections}:
            self._at.call("delete_collection", self._name)
            return
        raise PlanError(
            f"{self._at.where} is an alias; write to a shadow and publish it, as migrate() does"
        )

    # -- the beginning ------------------------------------------------------------------------

    def _create(self, schema: CollectionSchema) -> None:
        wanted = creation(schema)
        layout = self._layout(schema)
        record = Record(
            state="loading",
            layout=layout.name,
            text_key=getattr(layout, "text_key", ""),
            text_ids=layout.name != "plain" and schema.id_type != "uuid",
            spaces={f.name: f.space.model_dump() for f in schema.fields if f.space},
            dtypes={f.name: str(f.dtype) for f in schema.fields if self._returns_as(f)},
            settings=_settings(schema, wanted),
            payload_indexes=_indexes(schema, layout),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        arguments = {key: getattr(wanted, key) for key in wanted.model_fields_set}
        self._at.call(
            "create_collection",
            self._name,
            vectors_config=arguments.pop("vectors"),
            sparse_vectors_config=arguments.pop("sparse_vectors"),
            metadata=record.as_metadata(),
            **arguments,
            create=True,
        )
        if self._kept() is None:
            self._at.call("delete_collection", self._name)
            raise UnsupportedError(_TOO_OLD.format(self._at.where))
        self._defer(record)

    def _kept(self) -> Record | None:
        return Record.of(self._at.call("get_collection", self._name).config.metadata)

    def _returns_as(self, field: Any) -> bool:
        """Whether components lie in another type and are turned back on reading."""
        rescaled = field.metric is Metric.COSINE and not self._options["keep_norms"]
        return field.dtype is DType.INT8 and not rescaled

    def _layout(self, schema: CollectionSchema) -> Layout:
        """The layout asked for; else, from Qdrant to Qdrant, the one it had; else plain."""
        own = _own(schema)
        name = self._options["layout"] or own.get("layout", "plain")
        text_key = self._options["text_key"] or (own.get("text_key") if name == own.get("layout") else None)
        return find_layout(name, text_key=text_key, metadata_key=self._options["metadata_key"])

    def _adopt(self, have: Facts, schema: CollectionSchema) -> None:
        """Note what the collection does not know yet: the space of its vectors, and further indexes."""
        record = have.record
        spaces = {f.name: f.space.model_dump() for f in schema.fields if f.space}
        indexes = _indexes(schema, have.layout)
        if {**spaces, **record.spaces} == record.spaces and {**indexes, **record.payload_indexes} == (
            record.payload_indexes
        ):
            return
        record.spaces = {**spaces, **record.spaces}
        record.payload_indexes = {**indexes, **record.payload_indexes}
        self._note(record)
        if self._kept() is None:
            raise UnsupportedError(_TOO_OLD.format(self._at.where))

    def _defer(self, record: Record) -> None:
        """Put off HNSW. Only in a collection that is being made here: a live one keeps its index."""
        if self._at.address.local:
            return
        if record.restore is None:
            config = self._at.call("get_collection", self._name).config
            record.restore = {"": config.hnsw_config.m, **_own_graphs(config.params.vectors)}
            self._note(record)
        self._set_m(dict.fromkeys(record.restore, 0))

    # -- the end ------------------------------------------------------------------------------

    def finish(self, have: Facts) -> None:
        record = have.record
        self._make_indexes(record)
        if record.state != "loading":
            return
        if record.restore and not self._at.address.local:
            self._set_m(record.restore)
            self._wait()
        record.state, record.restore = "ready", None
        self._note(record)

    def _make_indexes(self, record: Record) -> None:
        if not record.payload_indexes or self._at.address.local:  # the local mode has none; noted is enough
            return
        there = self._at.call("get_collection", self._name).payload_schema or {}
        for path, index in record.payload_indexes.items():
            if path not in there:
                schema = _index_params(index)
                self._at.call("create_payload_index", self._name, path, field_schema=schema, wait=True)

    def _wait(self) -> None:
        """Until the server has built its indexes, or long enough: it can be searched meanwhile."""
        end = time.monotonic() + self._options["wait_index"]
        while time.monotonic() < end:
            if self._at.call("get_collection", self._name).status.value == "green":
                return
            time.sleep(_POLL_SECONDS)

    # -- requests -----------------------------------------------------------------------------

    def _note(self, record: Record) -> None:
        self._at.call("update_collection", self._name, metadata=record.as_metadata())

    def _set_m(self, by_field: dict[str, int]) -> None:
        from qdrant_client import models

        fields = {
            name: models.VectorParamsDiff(hnsw_config=models.HnswConfigDiff(m=m))
            for name, m in by_field.items()
            if name
        }
        self._at.call(
            "update_collection",
            self._name,
            hnsw_config=models.HnswConfigDiff(m=by_field[""]),
            vectors_config=fields or None,
        )


def _own(schema: CollectionSchema) -> dict[str, Any]:
    found: dict[str, Any] = schema.settings.get("qdrant") or {}
    return found


def _settings(schema: CollectionSchema, wanted: Any) -> dict[str, Any]:
    """What was asked for, to be told where Qdrant itself forgets it."""
    settings = {key: value for key, value in _own(schema).items() if key not in _NOT_SETTINGS}
    if wanted.hnsw_config is not None:
        settings["hnsw_config"] = wanted.hnsw_config.model_dump(mode="json", exclude_none=True)
    return settings


def _own_graphs(vectors: Any) -> dict[str, int]:
    """Named fields that have an m of their own."""
    named = vectors if isinstance(vectors, dict) else {}
    return {
        name: params.hnsw_config.m
        for name, params in named.items()
        if name and params.hnsw_config and params.hnsw_config.m is not None
    }


def _indexes(schema: CollectionSchema, layout: Layout) -> dict[str, Any]:
    """Payload path → index: those of the layout's apps, of the schema, and of a Qdrant source."""
    asked: dict[str, Any] = dict(layout.indexes)
    paths = {json_path(layout.path(key)): kind for key, kind in schema.payload_indexes.items()}
    asked.update({path: kind for path, kind in paths.items() if path is not None})
    if layout.name == _own(schema).get("layout"):
        asked.update(_own(schema).get("payload_indexes", {}))
    return asked


def _index_params(index: Any) -> Any:
    """``"keyword"``, or parameters as JSON, as the client takes them."""
    from qdrant_client import models

    if isinstance(index, str):
        return models.PayloadSchemaType(index)
    return getattr(models, f"{index['type'].title()}IndexParams")(**index)
