"""A collection's configuration ↔ `CollectionSchema`, and what is known before its points are read.

What Qdrant itself does not know (the embedding space, the layout, how to restore the indexing that a load
deferred) stands in the collection's own metadata, under the key `RECORD`, beside the application's keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID

from vecferry.errors import FatalStoreError, PlanError, SchemaMismatchError, UnsupportedError
from vecferry.layouts import Columns, Layout, find_layout, recognise_layout
from vecferry.layouts.llamaindex import RESERVED
from vecferry.model import (
    ENVELOPE,
    CollectionSchema,
    DType,
    EmbeddingSpace,
    Kind,
    Loss,
    Metric,
    VectorField,
    Where,
    id_type,
    type_name,
)
from vecferry.ports import Fields
from vecferry.stores.qdrant.filters import Asking, Bounds, bounds
from vecferry.stores.qdrant.points import UINT64, Form, Json, record_id

RECORD = "vecferry"
PARAMS = "qdrant.params"
"""The key in `VectorField.index` under which a field's own settings travel, so that a renamed field keeps
them: ``hnsw_config``, ``quantization_config``, ``on_disk``, ``modifier``, ``index`` … in Qdrant's words."""

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
_SHAPE = ("size", "distance", "datatype")
_PARAMS = (
    "shard_number",
    "sharding_method",
    "replication_factor",
    "write_consistency_factor",
    "read_fan_out_factor",
    "on_disk_payload",
)
CONFIG = ("hnsw_config", "optimizers_config", "wal_config", "quantization_config", "strict_mode_config")
_CREATE = (
    "shard_number",
    "sharding_method",
    "replication_factor",
    "write_consistency_factor",
    "on_disk_payload",
)
NOT_SETTINGS = ("layout", "text_key", "text_ids", "payload_indexes", "metadata")


@dataclass(slots=True)
class Record:
    """What vecferry notes with a collection.

    Attributes:
        state: ``"loading"`` from `prepare` to `finish` of a new collection, else ``"ready"``.
        layout, text_key: how payloads lie.
        text_ids: whether UUIDs of points are texts (see `vecferry.stores.qdrant.points.point_id`).
        id_key: the payload key of ids that changed form, for the application.
        keys: the payload keys that vecferry has written: an upsert leaves all others as they are;
            fresh: those of them that the last load wrote first.
        spaces: field name → `EmbeddingSpace` as JSON.
        dtypes: field name → dtype where Qdrant stores another.
        fields, settings, payload_indexes: as they were asked for; the local mode forgets them itself.
        restore: ``{"": m, field: m}``: HNSW's m, set to 0 during the load.
        created: ISO 8601. published: nanoseconds since 1970 when it last became the live version.
        previous: the app's own collection that the alias pointed to before this version.
        nonce: something new each time a load begins (see `vecferry.stores.qdrant.server`).
    """

    state: str = "ready"
    layout: str = ""
    text_key: str = ""
    text_ids: bool = False
    id_key: str = ""
    keys: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    spaces: dict[str, Any] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    payload_indexes: dict[str, Any] = field(default_factory=dict)
    restore: dict[str, int] | None = None
    created: str = ""
    published: int | None = None
    previous: str | None = None
    nonce: str = ""

    @classmethod
    def of(cls, metadata: Any) -> Record | None:
        """From a collection's metadata; ``None`` if vecferry never wrote to it."""
        found = (metadata or {}).get(RECORD)
        if not isinstance(found, dict):
            return None
        return cls(**{name: found[name] for name in cls.__slots__ if name in found})

    def as_metadata(self) -> Json:
        return {RECORD: asdict(self)}


# -- Qdrant → schema ----------------------------------------------------------------------------


def dense_of(info: Json) -> dict[str, Json]:
    """Field name → parameters of the dense and multi-vector fields."""
    vectors = info["config"]["params"].get("vectors") or {}
    return {"": vectors} if "size" in vectors else vectors


def sparse_of(info: Json) -> dict[str, Json]:
    return info["config"]["params"].get("sparse_vectors") or {}


def read_fields(info: Json, record: Record, *, local: bool) -> tuple[VectorField, ...]:
    """The vector fields of a collection, dense ones first, by name: Qdrant keeps no order of them."""
    graph = dict(record.settings.get("hnsw_config", {}) if local else info["config"]["hnsw_config"])
    if record.restore and "" in record.restore:
        graph["m"] = record.restore[""]
    fields = [_dense_field(name, params, record, graph) for name, params in sorted(dense_of(info).items())]
    for name, params in sorted(sparse_of(info).items()):
        own = _settings_of(params) | record.fields.get(name, {})
        fields.append(
            VectorField(
                name=name,
                kind=Kind.SPARSE,
                metric=Metric.IP,
                space=_space(record, name),
                index={PARAMS: own} if own else {},
            )
        )
    return tuple(fields)


def _dense_field(name: str, params: Json, record: Record, graph: Json) -> VectorField:
    """``graph`` is the collection's own HNSW configuration, which the field's may override."""
    own = _settings_of(params) | record.fields.get(name, {})
    if name and record.restore and name in record.restore and "hnsw_config" in own:
        own["hnsw_config"] = {**own["hnsw_config"], "m": record.restore[name]}
    graph = {**graph, **own.get("hnsw_config", {})}
    index = {"hnsw_m": graph.get("m"), "hnsw_ef_construct": graph.get("ef_construct"), PARAMS: own or None}
    dtype = record.dtypes.get(name) or _DTYPES[params.get("datatype") or "float32"]
    return VectorField(
        name=name,
        kind=Kind.MULTI if params.get("multivector_config") else Kind.DENSE,
        dim=params["size"],
        dtype=DType(dtype),
        metric=METRICS[params["distance"]],
        space=_space(record, name),
        index={key: value for key, value in index.items() if value is not None},
    )


def _settings_of(params: Json) -> Json:
    return {key: value for key, value in params.items() if key not in _SHAPE and value not in (None, {})}


def _space(record: Record, name: str) -> EmbeddingSpace | None:
    return EmbeddingSpace(**record.spaces[name]) if record.spaces.get(name) else None


def read_settings(info: Json, record: Record, *, local: bool) -> Json:
    """Collection-wide settings as JSON, in the words of Qdrant's own create request."""
    metadata = {k: v for k, v in (info["config"].get("metadata") or {}).items() if k != RECORD}
    if local:  # the local mode invents its answers
        return {**record.settings, **({"metadata": metadata} if metadata else {})}
    config, params = info["config"], info["config"]["params"]
    settings = {key: params.get(key) for key in _PARAMS}
    settings |= {key: config.get(key) for key in CONFIG}
    settings["optimizers_config"] = config.get("optimizer_config")
    settings["metadata"] = metadata
    if record.restore and "" in record.restore:
        settings["hnsw_config"] = {**config["hnsw_config"], "m": record.restore[""]}
    return {key: _known(value) for key, value in settings.items() if _known(value) not in (None, {})}


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _known(one) for key, one in value.items() if one is not None}
    return value


def read_indexes(info: Json, record: Record, *, local: bool) -> Json:
    """Payload path → index type, or the index's parameters where it has any."""
    if local:
        return dict(record.payload_indexes)
    found = {}
    for path, index in (info.get("payload_schema") or {}).items():
        params = _known(index.get("params") or {})
        found[path] = params if len(params) > 1 else index["data_type"]
    return found


# -- schema → Qdrant ----------------------------------------------------------------------------


def own_settings(schema: CollectionSchema) -> Json:
    """What a Qdrant source says of its collection."""
    found: Json = schema.settings.get("qdrant") or {}
    return found


def creation(schema: CollectionSchema) -> Json:
    """The body of Qdrant's create request for a schema.

    Raises:
        SchemaMismatchError: for a dense field of unknown dimension.
        UnsupportedError: for a metric or dtype that Qdrant has not.
    """
    settings = own_settings(schema)
    dense = {f.name: _vector_params(f, settings) for f in schema.fields if f.kind is not Kind.SPARSE}
    sparse = {f.name: f.index.get(PARAMS, {}) for f in schema.fields if f.kind is Kind.SPARSE}
    if "" in sparse:
        raise UnsupportedError("Qdrant needs a name for a sparse field; rename it, for example to 'sparse'")
    body: Json = {key: settings[key] for key in (*_CREATE, *CONFIG) if key in settings}
    alone = list(dense) == [""]
    if alone and (graph := dense[""].pop("hnsw_config", None)):
        # For the only field it means the same, and the load can put it off in one place.
        body["hnsw_config"] = {**body.get("hnsw_config", {}), **graph}
    body["vectors"] = dense[""] if alone else dense
    if sparse:
        body["sparse_vectors"] = sparse
    return body


def _vector_params(field_: VectorField, settings: Json) -> Json:
    if field_.dim is None:
        raise SchemaMismatchError(f"the dimension of field {field_.name!r} is unknown; Qdrant needs it")
    if field_.metric not in DISTANCES:
        raise UnsupportedError(f"Qdrant has no metric {field_.metric}; it has {', '.join(DISTANCES)}")
    if field_.dtype not in DATATYPES:
        raise UnsupportedError(f"Qdrant has no dtype {field_.dtype}; it has {', '.join(DATATYPES)}")
    params = dict(field_.index.get(PARAMS, {}))
    params.update(size=field_.dim, distance=DISTANCES[field_.metric])
    if (datatype := DATATYPES[field_.dtype]) is not None:
        params["datatype"] = datatype
    params.pop("multivector_config", None)
    if field_.kind is Kind.MULTI:
        kept = field_.index.get(PARAMS, {}).get("multivector_config")
        params["multivector_config"] = kept or {"comparator": "max_sim"}
    if "hnsw_m" in field_.index and "hnsw_config" not in {*params, *settings}:
        ef = field_.index.get("hnsw_ef_construct")
        params["hnsw_config"] = {"m": field_.index["hnsw_m"], **({"ef_construct": ef} if ef else {})}
    return params


# -- facts --------------------------------------------------------------------------------------

_SAMPLE = 64
_PER_JUMP = 4
_JUMPS = 17


@dataclass(frozen=True, slots=True)
class Facts:
    """A collection as it stands.

    Attributes:
        form: how its records lie.
        record: what vecferry noted; ``None`` if it never wrote here.
        empty: whether it holds no point.
        most: how many points it gives at once.
        indexes: payload path → type of index, as the server has them.
        indexed_only: whether strict mode refuses to filter by keys without an index.
    """

    schema: CollectionSchema
    form: Form
    record: Record | None
    info: Json
    empty: bool
    most: int
    indexes: Mapping[str, str]
    indexed_only: bool

    @property
    def layout(self) -> Layout:
        return self.form.layout

    @property
    def loading(self) -> bool:
        return self.record is not None and self.record.state == "loading"

    @property
    def counts_exactly(self) -> bool:
        """Whether a server counts for less than reading everything."""
        strict = self.info["config"].get("strict_mode_config") or {}
        local = not self.form.drifts
        return not local and not (strict.get("enabled") and strict.get("search_allow_exact") is False)

    @property
    def quantized(self) -> bool:
        """Whether a search reads rounded vectors first."""
        each = [f.index.get(PARAMS, {}) for f in self.schema.fields]
        return any("quantization_config" in one for one in (own_settings(self.schema), *each))

    def bounds(self, where: Where) -> Bounds:
        return bounds(where, Asking(self._path, self.indexes, self.indexed_only))

    def _path(self, key: str) -> tuple[str, ...]:
        own = {ENVELOPE}  # metadata of these names lies elsewhere, if not all of it lies apart
        if self.layout.name != "langchain":
            own |= {getattr(self.layout, "text_key", ""), *RESERVED}
        return () if {key, key.partition(".")[0]} & own else self.layout.path(key)

    def wanted(self, fields: Fields, where: Where | None = None) -> Json:
        """The part of a request that says what is to be read of which points."""
        names = [f.name for f in self.schema.fields if fields.wants(f.name)]
        whole = fields.text or fields.metadata or self.form.nodes
        wanted: Json = {
            "with_payload": True if whole else [ENVELOPE],
            "with_vector": True if names and len(names) == len(self.schema.fields) else names or False,
        }
        if where is not None and (upper := self.bounds(where).upper) is not None:
            wanted["filter"] = upper
        return wanted


def read_facts(engine: Any, collection: str, options: Mapping[str, Any]) -> Facts:
    """Ask the engine.

    Raises:
        NotFoundError: if there is no such collection.
        PlanError: if it has shard keys of its own and none is named.
    """
    info = engine.info(collection)
    local, strict = engine.local, info["config"].get("strict_mode_config") or {}
    strict = strict if strict.get("enabled") else {}
    record = Record.of(info["config"].get("metadata"))
    known = record or Record()
    _check_shard_keys(engine, collection, info)
    most = strict.get("max_query_limit") or _NO_LIMIT
    stated = options["layout"] or options["text_key"] or known.layout
    sample = list(_sample(engine, collection, most, jump=not stated))
    payloads = [point.get("payload") or {} for point in sample]
    layout = _layout(known, payloads, options)
    indexes = read_indexes(info, known, local=local)
    text_ids = known.text_ids if known.layout else layout.text_ids
    settings = read_settings(info, known, local=local)
    own = {
        "layout": layout.name,
        "text_key": getattr(layout, "text_key", ""),
        "text_ids": text_ids,
        "payload_indexes": indexes,
    }
    columns = layout.decode(payloads)
    pairs = zip(sample, columns.ids, strict=True)
    types = {id_type(record_id(p["id"], text_ids=text_ids) if i is None else i) for p, i in pairs}
    schema = CollectionSchema(
        name=collection,
        fields=read_fields(info, known, local=local),
        id_type=types.pop() if len(types) == 1 else "mixed",
        ids_unique=True,
        has_text=not sample or any(text is not None for text in columns.texts),
        metadata_types=_types(columns),
        payload_indexes=_by_key(indexes, layout),
        layout=layout.name,
        settings={"qdrant": {**settings, **{k: v for k, v in own.items() if v}}},
    )
    form = Form(
        schema=schema,
        layout=layout,
        text_ids=text_ids,
        keep_norms=bool(options["keep_norms"]),
        id_key=known.id_key or options.get("id_key") or "",
        drifts=not local,
    )
    kinds = {} if local else {path: index["data_type"] for path, index in _payload_schema(info).items()}
    limited = strict.get("unindexed_filtering_retrieve") is False
    return Facts(schema, form, record, info, not sample, most, kinds, limited)


def _payload_schema(info: Json) -> dict[str, Json]:
    return info.get("payload_schema") or {}


def _sample(engine: Any, collection: str, most: int, *, jump: bool) -> Iterator[Json]:
    """Some points, few at a time: nobody knows how large they are.

    The same points whenever it is asked, so that the plan, the stream and the proof see one layout.

    Args:
        jump: look further on as well, since what comes first need not be like the rest.
    """
    wanted = {"with_payload": True, "with_vector": False}
    seen = 0
    last: Any = None
    for page in engine.pages(collection, wanted, most=min(_SAMPLE, most)):
        yield from page
        seen, last = seen + len(page), page[-1]["id"]
        if seen >= _SAMPLE:
            break
    if not jump or seen < _SAMPLE:
        return
    for start in _jumps(last):
        page = next(engine.pages(collection, wanted, start=start, most=min(_PER_JUMP, most)), None)
        if page is None:
            return
        yield from page


def _jumps(last: Any) -> Iterator[Any]:
    """Ids ever further behind ``last``, in Qdrant's order."""
    if isinstance(last, int):
        for power in range(1, _JUMPS):
            if (start := (last + 1) * 2**power) in UINT64:
                yield start
        last = str(UUID(int=0))
    first = UUID(last).int >> 124
    yield from (str(UUID(int=step << 124)) for step in range(first + 1, 16, 2))


def random_ids(engine: Any, collection: str, want: int) -> list[Any]:
    """Ids of points picked at random."""
    search = {"query": {"sample": "random"}, "limit": want, "with_payload": False, "with_vector": False}
    (found,) = engine.query(collection, [search])
    return [point["id"] for point in found]


def _check_shard_keys(engine: Any, collection: str, info: Json) -> None:
    if info["config"]["params"].get("sharding_method") != "custom" or engine.address.shard_key is not None:
        return
    cluster = engine.cluster(collection)
    shards = [*cluster.get("local_shards", ()), *cluster.get("remote_shards", ())]
    keys = sorted({str(shard["shard_key"]) for shard in shards if shard.get("shard_key") is not None})
    raise PlanError(
        f"{engine.where} has shard keys of its own ({', '.join(keys) or 'none yet'}), and an id may stand "
        "once under each; read or write one of them with shard_key=KEY"
    )


def _layout(record: Record, payloads: list[Json], options: Mapping[str, Any]) -> Layout:
    keys = {"text_key": options["text_key"], "metadata_key": options["metadata_key"]}
    name = options["layout"] or record.layout
    if name:
        keys["text_key"] = keys["text_key"] or (record.text_key if name == record.layout else None)
        return find_layout(name, **keys)
    return find_layout("plain", **keys) if keys["text_key"] else recognise_layout(payloads)


def _types(columns: Columns) -> dict[str, str]:
    types: dict[str, str] = {}
    for metadata in columns.metadata:
        for key, value in metadata.items():
            if value is not None or key not in types:
                types[key] = type_name(value)
    return types


def _by_key(indexes: Json, layout: Layout) -> dict[str, str]:
    """Indexes on metadata, by metadata key."""
    *root, _ = layout.path("x")
    prefix = "".join(f"{step}." for step in root)
    return {
        path.removeprefix(prefix).strip('"'): index["type"] if isinstance(index, dict) else index
        for path, index in indexes.items()
        if path.startswith(prefix) and path not in layout.indexes
    }


def check_complete(engine: Any, facts: Facts, counted: int) -> Sequence[Loss]:
    """What the server says it holds beyond what it gives.

    Raises:
        FatalStoreError: if points wait for the optimizer and are hidden until then.
    """
    if engine.local:
        return ()
    said = int(facts.info.get("points_count") or 0)
    hidden = (facts.info["config"].get("optimizer_config") or {}).get("prevent_unoptimized")
    if said <= counted or not hidden:
        return ()
    raise FatalStoreError(
        f"{engine.where}: the server holds {said:,} points and gives {counted:,}: the others wait for its "
        "optimizer (prevent_unoptimized); wait until the collection is green and start again"
    )
