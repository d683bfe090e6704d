"""A collection's configuration ↔ `CollectionSchema`.

What Qdrant itself does not know (the embedding space, the layout, how to restore the indexing that a load
deferred) stands in the collection's own metadata, under the key `RECORD`.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from vecferry.errors import SchemaMismatchError, UnsupportedError
from vecferry.model import CollectionSchema, DType, EmbeddingSpace, Kind, Metric, VectorField

RECORD = "vecferry"

DISTANCES = {
    Metric.COSINE: "Cosine",
    Metric.IP: "Dot",
    Metric.L2: "Euclid",
    Metric.L1: "Manhattan",
}
METRICS = {distance: metric for metric, distance in DISTANCES.items()}
# int8 has no Qdrant type: it lies in float32, which holds it exactly, and comes back as int8.
DATATYPES = {DType.FLOAT32: None, DType.INT8: None, DType.FLOAT16: "float16", DType.UINT8: "uint8"}
_DTYPES = {"float32": DType.FLOAT32, "float16": DType.FLOAT16, "uint8": DType.UINT8}

_NO_LIMIT = 2**31
_SIMPLE_STEP = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_PARAMS = (
    "shard_number",
    "replication_factor",
    "write_consistency_factor",
    "read_fan_out_factor",
    "on_disk_payload",
)
_CREATE = (
    "shard_number",
    "replication_factor",
    "write_consistency_factor",
    "on_disk_payload",
    "hnsw_config",
    "optimizers_config",
    "wal_config",
    "quantization_config",
    "strict_mode_config",
)


@dataclass(slots=True)
class Record:
    """What vecferry notes with a collection.

    Attributes:
        state: ``"loading"`` from `prepare` to `finish` of a new collection, else ``"ready"``.
        layout, text_key: how payloads lie.
        text_ids: whether UUIDs of points are texts (see `vecferry.stores.qdrant.points.point_id`).
        spaces: field name → `EmbeddingSpace` as JSON.
        dtypes: field name → dtype where Qdrant stores another.
        settings, payload_indexes: as they were asked for; the local mode forgets them itself.
        restore: ``{"": m, field: m}``: HNSW's m, set to 0 during the load.
        created: ISO 8601. published: nanoseconds since 1970 when it last became the live version.
        previous: the app's own collection that the alias pointed to before this version.
    """

    state: str = "ready"
    layout: str = ""
    text_key: str = ""
    text_ids: bool = False
    spaces: dict[str, Any] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    payload_indexes: dict[str, Any] = field(default_factory=dict)
    restore: dict[str, int] | None = None
    created: str = ""
    published: int | None = None
    previous: str | None = None

    @classmethod
    def of(cls, metadata: Any) -> Record | None:
        """From a collection's metadata; ``None`` if vecferry never wrote to it."""
        found = (metadata or {}).get(RECORD)
        if not isinstance(found, dict):
            return None
        return cls(**{name: found[name] for name in cls.__slots__ if name in found})

    def as_metadata(self) -> dict[str, Any]:
        return {RECORD: asdict(self)}


# -- Qdrant → schema ----------------------------------------------------------------------------


def read_fields(info: Any, record: Record, *, local: bool) -> tuple[VectorField, ...]:
    """The vector fields of a collection, dense ones first, by name: Qdrant keeps no order of them."""
    params = info.config.params
    vectors = params.vectors or {}
    dense = vectors if isinstance(vectors, dict) else {"": vectors}
    graph = record.settings.get("hnsw_config", {}) if local else _dump(info.config.hnsw_config)
    if record.restore and "" in record.restore:
        graph = {**graph, "m": record.restore[""]}
    fields = [_dense_field(name, vector, record, graph) for name, vector in sorted(dense.items())]
    for name in sorted(params.sparse_vectors or {}):
        fields.append(
            VectorField(name=name, kind=Kind.SPARSE, metric=Metric.IP, space=_space(record, name))
        )
    return tuple(fields)


def _dense_field(name: str, vector: Any, record: Record, graph: dict[str, Any]) -> VectorField:
    """``graph`` is the collection's own HNSW configuration, which the field's may override."""
    dtype = (
        DType(record.dtypes[name])
        if name in record.dtypes
        else _DTYPES[_text(vector.datatype) or "float32"]
    )
    own = _dump(vector.hnsw_config)
    if name and "m" in own:
        own["m"] = (record.restore or {}).get(name, own["m"])
    graph = {**graph, **own}
    index = {"hnsw_m": graph.get("m"), "hnsw_ef_construct": graph.get("ef_construct")}
    return VectorField(
        name=name,
        kind=Kind.MULTI if vector.multivector_config else Kind.DENSE,
        dim=vector.size,
        dtype=dtype,
        metric=METRICS[_text(vector.distance)],
        space=_space(record, name),
        index={key: value for key, value in index.items() if value is not None},
    )


def _space(record: Record, name: str) -> EmbeddingSpace | None:
    return EmbeddingSpace(**record.spaces[name]) if record.spaces.get(name) else None


def read_settings(info: Any, record: Record, *, local: bool) -> dict[str, Any]:
    """Collection-wide settings as JSON, in the words of Qdrant's own create request."""
    if local:  # the local mode invents its answers
        return dict(record.settings)
    config = info.config
    params = _dump(config.params)
    settings = {key: params[key] for key in _PARAMS if key in params}
    settings["hnsw_config"] = _dump(config.hnsw_config)
    settings["optimizers_config"] = _dump(config.optimizer_config)
    for key in ("quantization_config", "strict_mode_config"):
        settings[key] = _dump(getattr(config, key, None))
    if record.restore and "" in record.restore:
        settings["hnsw_config"]["m"] = record.restore[""]
    dense = params.get("vectors") or {}
    dense = {"": dense} if "size" in dense else dense
    settings["vectors"] = {name: _without_shape(vector, record, name) for name, vector in dense.items()}
    settings["sparse_vectors"] = params.get("sparse_vectors") or {}
    return {key: value for key, value in settings.items() if value not in (None, {})}


def _without_shape(vector: dict[str, Any], record: Record, name: str) -> dict[str, Any]:
    kept = {k: v for k, v in vector.items() if k not in ("size", "distance", "datatype")}
    if name and "hnsw_config" in kept and name in (record.restore or {}):
        kept["hnsw_config"]["m"] = (record.restore or {})[name]
    return kept


def page_limit(info: Any) -> int:
    """The most points that one request may ask for: strict mode may set a limit."""
    strict = getattr(info.config, "strict_mode_config", None)
    return (strict.max_query_limit if strict and strict.enabled else None) or _NO_LIMIT


def read_indexes(info: Any, record: Record, *, local: bool) -> dict[str, Any]:
    """Payload path → index type, or the index's parameters where it has any."""
    if local:
        return dict(record.payload_indexes)
    found = {}
    for path, index in (info.payload_schema or {}).items():
        params = _dump(index.params)
        found[path] = params if len(params) > 1 else _text(index.data_type)
    return found


# -- schema → Qdrant ----------------------------------------------------------------------------


def creation(schema: CollectionSchema) -> Any:
    """The ``models.CreateCollection`` for a schema.

    Raises:
        SchemaMismatchError: for a dense field of unknown dimension.
        UnsupportedError: for a metric or dtype that Qdrant has not.
    """
    from pydantic import ValidationError
    from qdrant_client import models

    settings = schema.settings.get("qdrant", {})
    dense = {f.name: _vector_params(f, settings) for f in schema.fields if f.kind is not Kind.SPARSE}
    extra = settings.get("sparse_vectors", {})
    sparse = {f.name: extra.get(f.name, {}) for f in schema.fields if f.kind is Kind.SPARSE}
    if "" in sparse:
        raise UnsupportedError("Qdrant needs a name for a sparse field; rename it, for example to 'sparse'")
    shared = {key: settings[key] for key in _CREATE if key in settings}
    alone = list(dense) == [""]
    if alone and (graph := dense[""].pop("hnsw_config", None)):
        # For the only field it means the same, and the load can put it off in one place.
        shared["hnsw_config"] = {**shared.get("hnsw_config", {}), **graph}
    try:
        return models.CreateCollection(
            vectors=dense[""] if alone else dense, sparse_vectors=sparse or None, **shared
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise UnsupportedError(
            f"this qdrant-client does not know {'.'.join(map(str, first['loc']))}: {first['msg']}; "
            "upgrade qdrant-client"
        ) from error


def _vector_params(field_: VectorField, settings: dict[str, Any]) -> dict[str, Any]:
    if field_.dim is None:
        raise SchemaMismatchError(f"the dimension of field {field_.name!r} is unknown; Qdrant needs it")
    if field_.metric not in DISTANCES:
        raise UnsupportedError(f"Qdrant has no metric {field_.metric}; it has {', '.join(DISTANCES)}")
    if field_.dtype not in DATATYPES:
        raise UnsupportedError(f"Qdrant has no dtype {field_.dtype}; it has {', '.join(DATATYPES)}")
    params = dict(settings.get("vectors", {}).get(field_.name, {}))
    params.update(size=field_.dim, distance=DISTANCES[field_.metric], datatype=DATATYPES[field_.dtype])
    if field_.kind is Kind.MULTI:
        params.setdefault("multivector_config", {"comparator": "max_sim"})
    if "hnsw_m" in field_.index and "hnsw_config" not in {*params, *settings}:
        ef = field_.index.get("hnsw_ef_construct")
        params["hnsw_config"] = {"m": field_.index["hnsw_m"], **({"ef_construct": ef} if ef else {})}
    return params


def json_path(steps: tuple[str, ...]) -> str | None:
    """Qdrant's notation for a path; a step that is no plain name is quoted.

    ``None`` where there is none: it knows no empty step, and no escape for a quote or a backslash.
    """
    if any(not step or '"' in step or "\\" in step for step in steps):
        return None
    return ".".join(step if _SIMPLE_STEP.fullmatch(step) else f'"{step}"' for step in steps)


def _dump(model: Any) -> dict[str, Any]:
    return model.model_dump(mode="json", exclude_none=True) if model is not None else {}


def _text(value: Any) -> str:
    return "" if value is None else str(getattr(value, "value", value))
