"""What the columns of a table are, and which part of a record lies in which of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vecferry.model import DType, Kind

VECTOR_TYPES: dict[str, tuple[Kind, DType]] = {
    "vector": (Kind.DENSE, DType.FLOAT32),
    "halfvec": (Kind.DENSE, DType.FLOAT16),
    "bit": (Kind.DENSE, DType.BIT),
    "sparsevec": (Kind.SPARSE, DType.FLOAT32),
}

# Postgres type → the type name of its Python value (see `vecferry.model.type_name`).
VALUE_TYPES: dict[str, str] = {
    "bool": "bool",
    **dict.fromkeys(("int2", "int4", "int8", "oid"), "int"),
    **dict.fromkeys(("float4", "float8"), "float"),
    "numeric": "decimal",
    **dict.fromkeys(("text", "varchar", "bpchar", "name", "char"), "str"),
    "uuid": "uuid",
    "bytea": "bytes",
    **dict.fromkeys(("timestamptz", "timestamp"), "datetime"),
    "date": "date",
    **dict.fromkeys(("time", "timetz"), "time"),
    **dict.fromkeys(("json", "jsonb"), "object"),
}
DERIVED_TYPES = frozenset({"tsvector"})
"""Made from other columns: never part of a record."""


@dataclass(frozen=True, slots=True)
class PgColumn:
    """One column as the server describes it. ``type`` is the base type of a domain.

    ``dim`` is the dimension of a vector column, ``None`` where it is not fixed. ``element`` is the
    type of an array's elements. ``category`` is ``pg_type.typcategory``,
    ``sql_type`` the type as a cast names it. ``writable`` is false where the server generates the value;
    ``defaulted`` says that it may not be NULL and has a default, which stands in for a missing value.
    """

    name: str
    type: str
    oid: int
    modifier: int = -1
    category: str = "U"
    element: str | None = None
    sql_type: str = "text"
    nullable: bool = True
    writable: bool = True
    defaulted: bool = False

    @property
    def is_vector(self) -> bool:
        return self.type in VECTOR_TYPES and (self.type != "bit" or self.modifier > 1)

    @property
    def dim(self) -> int | None:
        return self.modifier if self.modifier > 0 else None

    @property
    def is_text(self) -> bool:
        """Strings and enumerations: their binary form is their text."""
        return self.category in ("S", "E")

    @property
    def is_json(self) -> bool:
        return self.type in ("json", "jsonb")

    @property
    def value_type(self) -> str:
        """The type name of its values in metadata."""
        if self.category == "A":
            return "list"
        return "str" if self.is_text else VALUE_TYPES.get(self.type, "str")

    @property
    def id_kind(self) -> str:
        """The type of ids in such a column: everything but integers and UUIDs is read as text."""
        if self.type in ("int2", "int4", "int8"):
            return "int"
        return "uuid" if self.type == "uuid" else "str"

    @property
    def native(self) -> bool:
        """Whether its binary form is decoded; everything else is read as text (``::text``)."""
        known = self.is_text or self.type in VALUE_TYPES
        return known if self.category != "A" else (self.element or "") in VALUE_TYPES


@dataclass(frozen=True, slots=True)
class RowMap:
    """How a record lies in a row.

    Attributes:
        key: the columns of a unique key: they order a scan and name its cursors.
        id: the columns that make the record's id; several make a tuple.
        coded_ids: for a text column made by this adapter, the type whose ids stand in it as they are
            (``str``, ``int``, ``uuid``); ids of other types are written typed. Empty: only text fits.
        text: the column of the text.
        vectors: vector field → column.
        json: the json(b) column whose object is the metadata (or what typed columns do not hold).
        typed: metadata key → column.
        fixed: column → value, the same in all rows of the collection: read as a filter, written as is.
        layout: ``plain`` or a framework's; see `vecferry.stores.pgvector.layouts`.
    """

    key: tuple[str, ...]
    id: tuple[str, ...]
    coded_ids: str = ""
    text: str | None = None
    vectors: dict[str, str] = field(default_factory=dict)
    json: str | None = None
    typed: dict[str, str] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    layout: str = "plain"

    def field_of(self, name: str) -> str:
        """The field called ``name``, also when it is given by its column's name, or is the only one."""
        if name in self.vectors:
            return name
        for known, column in self.vectors.items():
            if column == name:
                return known
        if not name and len(self.vectors) == 1:
            return next(iter(self.vectors))
        raise KeyError(f"no vector field {name!r}; there are {sorted(self.vectors)}")
