"""`VectorRecord`: one record at the edge, validated and frozen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from vecferry.model.ids import RecordId, check_id
from vecferry.model.vectors import Array, SparseVector


def _to_array(value: Any) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" or array.ndim not in (1, 2) or array.size == 0:
        raise ValueError("a vector is a non-empty list of numbers, or a matrix for a multi-vector")
    kept = (np.float16, np.int8, np.uint8)
    return array if array.dtype in kept else array.astype(np.float32, copy=False)


def _to_sparse(value: Any) -> SparseVector:
    if isinstance(value, SparseVector):
        return value
    if isinstance(value, Mapping) and set(value) == {"indices", "values"}:
        return SparseVector(value["indices"], value["values"])
    if isinstance(value, Mapping):
        return SparseVector(np.array(list(value.keys())), np.array(list(value.values())))
    raise ValueError("a sparse vector is a SparseVector, {index: value} or {'indices', 'values'}")


def _list_of(value: Array) -> list[Any]:
    items: list[Any] = value.tolist()
    return items


def _dict_of(value: SparseVector) -> dict[str, Any]:
    return {"indices": value.indices.tolist(), "values": value.values.tolist()}


Vector = Annotated[Any, BeforeValidator(_to_array), PlainSerializer(_list_of)]
Sparse = Annotated[Any, BeforeValidator(_to_sparse), PlainSerializer(_dict_of)]
Id = Annotated[Any, BeforeValidator(check_id)]


class VectorRecord(BaseModel):
    """One record.

    Attributes:
        id: ``int``, ``str``, ``UUID`` or a tuple of these; its type is kept everywhere.
        text: the text that was embedded, if the store keeps it.
        vectors: field name → float32 (float16, int8, uint8) array of shape ``(dim,)``, or
            ``(m, dim)`` for a multi-vector. The unnamed field is ``""``; ``vector=`` sets it.
        sparse_vectors: field name → `SparseVector`.
        metadata: any JSON value, and datetime, date, Decimal, UUID and bytes.
        score: only on search hits. Higher is better for every metric: the cosine similarity, the
            inner product, or the negated distance.

    >>> VectorRecord(id=7, text="hello", vector=[1.0, 0.0]).vector.tolist()
    [1.0, 0.0]
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            id: RecordId,
            text: str | None = None,
            vector: Any = None,
            vectors: Mapping[str, Any] = ...,
            sparse_vectors: Mapping[str, Any] = ...,
            metadata: Mapping[str, Any] = ...,
            score: float | None = None,
        ) -> None: ...

    id: Id
    text: str | None = None
    vectors: dict[str, Vector] = Field(default_factory=dict)
    sparse_vectors: dict[str, Sparse] = Field(default_factory=dict)
    metadata: dict[str, Any] = Field(default_factory=dict)
    score: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _unnamed(cls, data: Any) -> Any:
        if isinstance(data, dict) and "vector" in data:
            data = dict(data)
            vector = data.pop("vector")
            if vector is not None:
                data["vectors"] = {**data.get("vectors", {}), "": vector}
        return data

    @property
    def vector(self) -> Array | None:
        """The unnamed vector, or the only one there is, or ``None``."""
        if "" in self.vectors:
            return self.vectors[""]  # type: ignore[no-any-return]
        return next(iter(self.vectors.values())) if len(self.vectors) == 1 else None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, VectorRecord):
            return NotImplemented
        return (
            (type(self.id), self.id, self.text, self.metadata, self.score)
            == (type(other.id), other.id, other.text, other.metadata, other.score)
            and self.sparse_vectors == other.sparse_vectors
            and self.vectors.keys() == other.vectors.keys()
            and all(np.array_equal(v, other.vectors[k]) for k, v in self.vectors.items())
        )

    def __hash__(self) -> int:
        return hash((type(self.id), self.id))

    def replace(self, **changes: Any) -> VectorRecord:
        """A copy with some attributes changed, validated again."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        return VectorRecord(**(fields | changes))


RecordLike = VectorRecord | Mapping[str, Any]
__all__ = ["RecordId", "RecordLike", "SparseVector", "VectorRecord"]
