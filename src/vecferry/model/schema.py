"""What a collection looks like: its vector fields, ids, metadata and index settings."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vecferry.model.space import EmbeddingSpace


class Metric(StrEnum):
    """How two vectors of a field are compared."""

    COSINE = "cosine"
    L2 = "l2"
    IP = "ip"
    L1 = "l1"
    HAMMING = "hamming"
    JACCARD = "jaccard"


class DType(StrEnum):
    """The component type as stored. ``bit`` columns are packed, eight components a byte, MSB first."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    UINT8 = "uint8"
    BIT = "bit"

    @property
    def numpy(self) -> str:
        """The numpy dtype that carries it in a `RecordBatch`."""
        return "uint8" if self is DType.BIT else self.value

    def width(self, dim: int) -> int:
        """Columns of the numpy array that carries ``dim`` components."""
        return (dim + 7) // 8 if self is DType.BIT else dim


class Kind(StrEnum):
    """Dense: one array a record; sparse: index and value pairs; multi: a matrix a record (ColBERT)."""

    DENSE = "dense"
    SPARSE = "sparse"
    MULTI = "multi"


_SHOWN = 5


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class VectorField(_Frozen):
    """One vector field of a collection. The unnamed field has the name ``""``.

    ``dim`` is ``None`` only where it is unknown or varies (sparse fields, undimensioned columns).
    ``metric_declared`` is false where nobody said which metric the vectors are made for (rows of a file),
    so that ``metric`` is a guess, which gives way to the target's.
    ``index`` holds carried-over index settings under common names (``hnsw_m``,
    ``hnsw_ef_construct``, ``hnsw_ef_search``, ``ivf_lists``) and vendor ones under ``"vendor.…"``.
    """

    name: str = ""
    kind: Kind = Kind.DENSE
    dim: int | None = Field(default=None, gt=0)
    dtype: DType = DType.FLOAT32
    metric: Metric = Metric.COSINE
    metric_declared: bool = True
    space: EmbeddingSpace | None = None
    index: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _space_fits(self) -> VectorField:
        if self.space and self.dim and self.space.dim != self.dim:
            raise ValueError(
                f"field {self.name!r} has {self.dim} dimensions but its space {self.space} has not"
            )
        return self


class Loss(_Frozen):
    """Something that does not survive a migration, or survives only in another form.

    The one way in which a reader says what it saw and does not carry (`CollectionSchema.losses`) and a
    writer what it changes (`Capabilities.losses`). The plan prints each, with a count and an example.

    ``kind`` is one of ``vector`` (precision), ``magnitude``, ``metric``, ``id``, ``metadata``,
    ``index``, ``text``, ``field``. ``reversible`` says that the original is kept with the record
    and comes back on the way home.
    """

    kind: str
    detail: str
    count: int | None = None
    example: str | None = None
    reversible: bool = False
    where: str = "target"

    @classmethod
    def not_carried(
        cls, what: str, found: Sequence[str], *, kind: str = "metadata", hint: str = ""
    ) -> tuple[Loss, ...]:
        """What a reader saw and does not carry: one loss that names some; none if nothing was ``found``.

        >>> str(*Loss.not_carried("columns", ["a", "b"]))
        '2 × columns are not carried, e.g. a, b'
        """
        if not found:
            return ()
        shown = ", ".join(found[:_SHOWN]) + ("" if len(found) <= _SHOWN else ", …")
        detail = f"{what} are not carried{hint}"
        return (cls(kind=kind, detail=detail, count=len(found), example=shown, where="source"),)

    def __str__(self) -> str:
        count = "" if self.count is None else f"{self.count:,} × "
        example = f", e.g. {self.example}" if self.example else ""
        return f"{count}{self.detail}{example}{' (kept reversibly)' if self.reversible else ''}"


class CollectionSchema(_Frozen):
    """What ``describe()`` returns and ``prepare()`` takes.

    Attributes:
        name: the collection's own name (a table, a folder, a Qdrant collection).
        fields: the vector fields.
        id_type: ``int``, ``str``, ``uuid``, ``tuple``, or ``mixed`` where types differ or are unknown.
        ids_unique: whether the store itself guarantees that no id stands twice.
        has_text: whether records carry text.
        metadata_types: key → type name (``int``, ``str``, ``datetime``, …), as far as known
            without reading everything.
        payload_indexes: metadata key → index type (``keyword``, ``integer``, ``float``, ``bool``,
            ``datetime``, ``text``, ``geo``, ``uuid``), to be carried over.
        layout: how records lie in payloads or rows: ``plain``, ``langchain``, ``llamaindex``, …
        count: records, if cheap to know.
        settings: collection-wide vendor settings by vendor (``{"qdrant": {...}}``), carried over
            between stores of one kind and listed by the plan otherwise.
        losses: what the store itself has already lost, or cannot give back exactly (a PQ index).
        notes: what else a reader of the plan should know, such as which file the records are in.
    """

    name: str = ""
    fields: tuple[VectorField, ...] = ()
    id_type: str = "mixed"
    ids_unique: bool = False
    has_text: bool = True
    metadata_types: dict[str, str] = Field(default_factory=dict)
    payload_indexes: dict[str, str] = Field(default_factory=dict)
    layout: str = "plain"
    count: int | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    losses: tuple[Loss, ...] = ()
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> CollectionSchema:
        names = [field.name for field in self.fields]
        if len(set(names)) != len(names):
            raise ValueError(f"two vector fields share a name: {names}")
        return self

    def field(self, name: str = "") -> VectorField:
        """The field called ``name``; ``""`` also finds the only field of a collection.

        Raises:
            KeyError: naming the fields that exist.
        """
        for field in self.fields:
            if field.name == name:
                return field
        if name == "" and len(self.fields) == 1:
            return self.fields[0]
        raise KeyError(f"no vector field {name!r}; there are {[f.name for f in self.fields]}")

    def with_field(self, replacement: VectorField) -> CollectionSchema:
        """A copy in which the field of that name is replaced (or added at the end)."""
        names = [field.name for field in self.fields]
        fields = tuple(replacement if f.name == replacement.name else f for f in self.fields)
        fields += () if replacement.name in names else (replacement,)
        return self.model_copy(update={"fields": fields})
