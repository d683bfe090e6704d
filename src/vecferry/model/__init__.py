"""The cargo: records, batches, schemas, spaces and ids. Plain values that know no store."""

from vecferry.model.batch import RecordBatch, schema_of
from vecferry.model.filters import (
    FilterVisitor,
    Where,
    check_where,
    matches,
    parse_where,
    predicate,
    tree_of,
)
from vecferry.model.ids import IdColumn, RecordId, decode_id, encode_id, id_key, id_type, keys_of, uuid_of
from vecferry.model.json_column import JsonColumn
from vecferry.model.record import VectorRecord
from vecferry.model.schema import CollectionSchema, DType, Kind, Loss, Metric, VectorField
from vecferry.model.space import EmbeddingSpace, probe_cosine, same_model, signature
from vecferry.model.typed import ENVELOPE, Json, dump_json, from_json, parse_json, to_json, type_name
from vecferry.model.vectors import (
    Column,
    DenseColumn,
    MultiColumn,
    QueryVector,
    RaggedColumn,
    SparseColumn,
    SparseVector,
)

__all__ = [
    "ENVELOPE",
    "CollectionSchema",
    "Column",
    "DType",
    "DenseColumn",
    "EmbeddingSpace",
    "FilterVisitor",
    "IdColumn",
    "Json",
    "JsonColumn",
    "Kind",
    "Loss",
    "Metric",
    "MultiColumn",
    "QueryVector",
    "RaggedColumn",
    "RecordBatch",
    "RecordId",
    "SparseColumn",
    "SparseVector",
    "VectorField",
    "VectorRecord",
    "Where",
    "check_where",
    "decode_id",
    "dump_json",
    "encode_id",
    "from_json",
    "id_key",
    "id_type",
    "keys_of",
    "matches",
    "parse_json",
    "parse_where",
    "predicate",
    "probe_cosine",
    "same_model",
    "schema_of",
    "signature",
    "to_json",
    "tree_of",
    "type_name",
    "uuid_of",
]
