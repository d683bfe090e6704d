"""Reading points over gRPC without a Python object a number.

The client turns each answer into validated models, number by number; here dense vectors are taken from the
message as the bytes they are. Same requests, same answers, several times as fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vecferry.model.vectors import Array
from vecferry.stores.qdrant.points import PointId

if TYPE_CHECKING:
    from qdrant_client import QdrantClient


@dataclass(frozen=True, slots=True)
class WirePoint:
    """As ``models.Record``, with arrays in the place of lists."""

    id: PointId
    payload: dict[str, Any]
    vector: Any


def scroll(
    client: QdrantClient,
    collection: str,
    *,
    upper: Any,
    limit: int,
    offset: PointId | None,
    with_payload: Any,
    with_vectors: Any,
    timeout: int,
) -> tuple[list[WirePoint], PointId | None]:
    """As ``QdrantClient.scroll``."""
    from qdrant_client import grpc
    from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc

    request = grpc.ScrollPoints(
        collection_name=collection,
        filter=None if upper is None else RestToGrpc.convert_filter(upper),
        offset=None if offset is None else RestToGrpc.convert_extended_point_id(offset),
        limit=limit,
        with_payload=RestToGrpc.convert_with_payload_interface(with_payload),
        with_vectors=RestToGrpc.convert_with_vectors(with_vectors),
    )
    answer = client.grpc_points.Scroll(request, timeout=timeout)
    more = answer.HasField("next_page_offset")
    following: Any = GrpcToRest.convert_point_id(answer.next_page_offset) if more else None
    return [_point(message) for message in answer.result], following


def retrieve(
    client: QdrantClient,
    collection: str,
    ids: Sequence[PointId],
    *,
    with_payload: Any,
    with_vectors: Any,
    timeout: int,
) -> list[WirePoint]:
    """As ``QdrantClient.retrieve``, with a time-out."""
    from qdrant_client import grpc
    from qdrant_client.conversions.conversion import RestToGrpc

    request = grpc.GetPoints(
        collection_name=collection,
        ids=[RestToGrpc.convert_extended_point_id(id_) for id_ in ids],
        with_payload=RestToGrpc.convert_with_payload_interface(with_payload),
        with_vectors=RestToGrpc.convert_with_vectors(with_vectors),
    )
    return [_point(message) for message in client.grpc_points.Get(request, timeout=timeout).result]


def _point(message: Any) -> WirePoint:
    from qdrant_client.conversions.conversion import GrpcToRest

    id_ = message.id.num if message.id.HasField("num") else message.id.uuid
    payload = GrpcToRest.convert_payload(message.payload)
    kind = message.vectors.WhichOneof("vectors_options") if message.HasField("vectors") else None
    if kind is None:
        return WirePoint(id_, payload, None)
    if kind == "vector":
        vector = _vector(message.vectors.vector)
    else:
        named = message.vectors.vectors.vectors
        vector = {name: _vector(named[name]) for name in named}
    if vector is None or (isinstance(vector, dict) and any(one is None for one in vector.values())):
        vector = GrpcToRest.convert_vectors_output(message.vectors)  # as servers before 1.16 write it
    return WirePoint(id_, payload, vector)


def _vector(message: Any) -> Any:
    kind = message.WhichOneof("vector")
    if kind == "dense":
        return _floats(message.dense)
    if kind == "multi_dense":
        return np.stack([_floats(row) for row in message.multi_dense.vectors])
    return message.sparse if kind == "sparse" else None


def _floats(dense: Any) -> Array:
    """The packed floats stand last in the serialised message."""
    count = len(dense.data)
    raw = dense.SerializeToString()
    return np.frombuffer(raw, dtype="<f4", count=count, offset=len(raw) - 4 * count)
