"""Deciding which column holds what: from the memo, from the options, or by looking."""

from __future__ import annotations

from vecferry.errors import SchemaMismatchError
from vecferry.model import CollectionSchema, DType, Kind, Metric, VectorField
from vecferry.stores.pgvector.columns import DERIVED_TYPES, VECTOR_TYPES, RowMap
from vecferry.stores.pgvector.frameworks import Place, framework_map, recognise
from vecferry.stores.pgvector.memo import Memo
from vecferry.stores.pgvector.reflect import PgIndex, Relation
from vecferry.stores.pgvector.settings import Settings, names

TEXT_NAMES = ("text", "content", "document", "page_content", "body", "chunk", "chunk_text")
JSON_NAMES = ("metadata", "meta", "metadata_", "cmetadata", "langchain_metadata", "payload", "attributes")
_METRIC_OF_OPERATORS = {
    "cosine_ops": Metric.COSINE,
    "l2_ops": Metric.L2,
    "ip_ops": Metric.IP,
    "l1_ops": Metric.L1,
    "hamming_ops": Metric.HAMMING,
    "jaccard_ops": Metric.JACCARD,
}


def map_rows(relation: Relation, settings: Settings, place: Place | None = None) -> RowMap:
    """How the records of this relation lie in its rows.

    A table made by this adapter says so itself. Elsewhere the id is the primary key, the text is the
    column called ``text``, ``content``, ``document`` …, the metadata is the object in ``metadata`` (or
    the like) together with all other columns, and a single vector column is the unnamed field, so that
    it stays unnamed wherever it goes; several are named as their columns are.

    Raises:
        SchemaMismatchError: if there is no vector column, no unique key, or an option names a wrong column.
    """
    memo = relation.memo
    layout = settings.layout or recognise(relation, place)
    if layout != "plain" and not _overridden(settings):
        return framework_map(layout, relation, place)
    if memo and memo.columns and not _overridden(settings):
        return _from_memo(relation, memo)
    vectors = _vectors(relation, settings)
    id_ = names(settings.id) or relation.primary_key or _some_unique(relation) or names(settings.key)
    key = names(settings.key) or (relation.primary_key if not relation.is_unique(id_) else ()) or id_
    text = _text(relation, settings, (*id_, *key))
    json = _json(relation, settings)
    taken = {*id_, *vectors.values(), text, json}
    typed = _typed(relation, settings, taken)
    found = RowMap(key, id_, text=text, vectors=vectors, json=json, typed=typed)
    _check(relation, found)
    return found


def _overridden(settings: Settings) -> bool:
    options = (settings.vector, settings.text, settings.id, settings.key, settings.columns)
    return any(option is not None for option in options)


def _from_memo(relation: Relation, memo: Memo) -> RowMap:
    columns = memo.columns
    vectors = {name: column for name, column in columns["vectors"].items() if column in relation.columns}
    known = {
        *columns["vectors"].values(),
        columns["id"],
        columns["text"],
        columns["json"],
        *columns["typed"].values(),
    }
    added = {c.name: c.name for c in relation.columns.values() if c.is_vector and c.name not in known}
    typed = {key: column for key, column in columns["typed"].items() if column in relation.columns}
    found = RowMap(
        key=(columns["id"],),
        id=(columns["id"],),
        coded_ids=memo.native_ids,
        text=columns["text"],
        vectors={**vectors, **added},
        json=columns["json"],
        typed=typed,
    )
    _check(relation, found)
    return found


def _vectors(relation: Relation, settings: Settings) -> dict[str, str]:
    have = [c.name for c in relation.columns.values() if c.is_vector]
    wanted = settings.vector_columns
    if not wanted:
        return {"": have[0]} if len(have) == 1 else {name: name for name in have}
    found: dict[str, str] = {}
    for name, column in wanted.items():
        if column not in relation.columns:
            raise SchemaMismatchError(
                f"{_where(relation)} has no column {column!r}; there are {sorted(relation.columns)}"
            )
        if not relation.columns[column].is_vector:
            type_ = relation.columns[column].type
            raise SchemaMismatchError(
                f"{_where(relation)}: column {column!r} is {type_}, not a vector; choose of {have}"
            )
        found[column if name is None else name] = column
    return found


def _some_unique(relation: Relation) -> tuple[str, ...]:
    """A unique key of columns that are never NULL."""
    for index in relation.indexes:
        columns = [relation.columns[name] for name in index.columns]
        if index.unique and index.valid and columns and not any(c.nullable for c in columns):
            return index.columns
    return ()


def _text(relation: Relation, settings: Settings, taken: tuple[str, ...]) -> str | None:
    if settings.text is not None:
        return settings.text or None
    columns = relation.columns
    return next((n for n in TEXT_NAMES if n in columns and columns[n].is_text and n not in taken), None)


def _json(relation: Relation, settings: Settings) -> str | None:
    if settings.metadata not in (None, "columns"):
        return settings.metadata or None
    columns = relation.columns
    return next((n for n in JSON_NAMES if n in columns and columns[n].is_json), None)


def _typed(relation: Relation, settings: Settings, taken: set[str | None]) -> dict[str, str]:
    if settings.columns is not None:
        return {name: name for name in names(settings.columns) if name}
    return {
        c.name: c.name
        for c in relation.columns.values()
        if c.name not in taken and c.type not in VECTOR_TYPES and c.type not in DERIVED_TYPES
    }


def _check(relation: Relation, found: RowMap) -> None:
    where = _where(relation)
    if not found.key:
        raise SchemaMismatchError(
            f"{where} has no primary key; name the columns of a unique key: key='a,b'"
        )
    if not found.vectors:
        raise SchemaMismatchError(f"{where} has no vector column; there are {sorted(relation.columns)}")
    used = [*found.key, *found.id, *found.typed.values(), *(c for c in (found.text, found.json) if c)]
    for column in used:
        if column not in relation.columns:
            raise SchemaMismatchError(
                f"{where} has no column {column!r}; there are {sorted(relation.columns)}"
            )
    if found.json and not relation.columns[found.json].is_json:
        raise SchemaMismatchError(
            f"{where}: metadata column {found.json!r} is not json; leave the option out"
        )


def _where(relation: Relation) -> str:
    return str(relation.table) if relation.table else "the select"


# -- the schema of what is there ------------------------------------------------------------------


def describe(relation: Relation, rows: RowMap, name: str) -> CollectionSchema:
    """The schema of a relation: recorded settings and spaces, and the columns as they are."""
    recorded = relation.memo.collection if relation.memo else CollectionSchema()
    spaces = {field.name: field for field in recorded.fields}
    fields = [_field(relation, f, column, spaces.get(f)) for f, column in rows.vectors.items()]
    types = {key: relation.columns[column].value_type for key, column in rows.typed.items()}
    return recorded.model_copy(
        update={
            "name": name,
            "fields": tuple(fields),
            "id_type": _id_type(relation, rows, recorded),
            "ids_unique": rows.id == rows.key and relation.is_unique(rows.id),
            "has_text": rows.text is not None,
            "metadata_types": {**recorded.metadata_types, **types},
            "layout": rows.layout,
        }
    )


def _field(relation: Relation, name: str, column_name: str, recorded: VectorField | None) -> VectorField:
    column = relation.columns[column_name]
    kind, dtype = VECTOR_TYPES[column.type]
    index = next((i for i in relation.indexes if column_name in vector_columns(i, relation)), None)
    base = Metric.IP if kind is Kind.SPARSE else Metric.HAMMING if dtype is DType.BIT else Metric.COSINE
    metric = recorded.metric if recorded else (metric_of(index) if index else None) or base
    known = relation.dims.get(column_name) or (recorded.dim if recorded else None)
    dim = column.dim or known if kind is Kind.DENSE else recorded.dim if recorded else None
    space = (
        recorded.space
        if recorded and (dim is None or not recorded.space or recorded.space.dim == dim)
        else None
    )
    settings = {**(recorded.index if recorded else {}), **(index_settings(index) if index else {})}
    return VectorField(
        name=name, kind=kind, dim=dim, dtype=dtype, metric=metric, space=space, index=settings
    )


def _id_type(relation: Relation, rows: RowMap, recorded: CollectionSchema) -> str:
    if rows.coded_ids:
        return recorded.id_type
    if len(rows.id) > 1:
        return "tuple"
    return relation.columns[rows.id[0]].id_kind


def vector_columns(index: PgIndex, relation: Relation) -> list[str]:
    """The vector column an index is on, directly or through an expression on it alone."""
    if index.method not in ("hnsw", "ivfflat"):
        return []
    if index.columns:
        return list(index.columns)
    return [
        c.name
        for c in relation.columns.values()
        if c.is_vector and f"({c.name})" in index.definition.replace('"', "")
    ]


def metric_of(index: PgIndex) -> Metric | None:
    """By the index's operator class, such as ``vector_cosine_ops``."""
    suffix = index.operators[0].split("_", 1)[1] if index.operators else ""
    return _METRIC_OF_OPERATORS.get(suffix)


def index_settings(index: PgIndex) -> dict[str, int]:
    """Under the common names."""
    if index.method == "ivfflat":
        return {"ivf_lists": int(index.options.get("lists", 100))}
    return {
        "hnsw_m": int(index.options.get("m", 16)),
        "hnsw_ef_construct": int(index.options.get("ef_construction", 64)),
    }
