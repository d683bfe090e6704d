"""Which column of an Arrow table is what: told by its metadata, or guessed from names and types."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from vecferry.errors import ConfigurationError, CorruptDataError
from vecferry.model._pyarrow import pa
from vecferry.model.foreign import ID_NAMES, METADATA_NAMES, TEXT_NAMES, VECTOR_NAMES
from vecferry.model.schema import CollectionSchema, DType, Kind, VectorField

KEY = b"vecferry"
PANDAS_INDEX = "__index_level_0__"
"""What pandas calls an index without a name; it is the id where no other column is."""


@dataclass(frozen=True, slots=True)
class VectorPlace:
    """Where one vector field lies: the column and what it holds."""

    column: str
    name: str
    kind: Kind
    dtype: DType
    dim: int | None = None

    @property
    def field(self) -> VectorField:
        return VectorField(
            name=self.name, kind=self.kind, dim=self.dim, dtype=self.dtype, metric_declared=False
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """Which column is what. ``extra`` are foreign columns that become metadata keys."""

    id: str | None
    id_kind: str = "mixed"
    text: str | None = None
    metadata: str | None = None
    types: str | None = None
    vectors: tuple[VectorPlace, ...] = ()
    extra: tuple[str, ...] = ()
    own: bool = False
    numbered_from: int = field(default=0, compare=False)

    def columns(self, *, vectors: Iterable[str], text: bool, metadata: bool) -> list[str]:
        """The columns to read for a projection; ``vectors`` are field names."""
        wanted = set(vectors)
        names = [self.id, self.text if text else None]
        names += [self.metadata, self.types, *self.extra] if metadata else []
        names += [place.column for place in self.vectors if place.name in wanted]
        return [name for name in names if name is not None]


def schema_from_arrow(arrow: pa.Schema) -> CollectionSchema | None:
    """The collection's schema that `arrow_schema` left, or ``None`` in a foreign table.

    Raises:
        CorruptDataError: if it is there and cannot be read.
    """
    about = (arrow.metadata or {}).get(KEY)
    if about is None:
        return None
    try:
        return CollectionSchema(**orjson.loads(about)["schema"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptDataError(f"the vecferry metadata of this table cannot be read: {error}") from error


def layout_of(arrow: pa.Schema, *, lists: Collection[str] = (), **names: str | None) -> Layout:
    """What each column is: by its own metadata, else by name and type.

    Args:
        lists: columns of numbers that are metadata, since their lengths differ. With ``vector`` given
            every other column of numbers is.
        names: ``id``, ``text``, ``vector``, ``metadata``: the columns to take, instead of guessing.

    Raises:
        ConfigurationError: if a named column is not there, or none can be the vector.
        CorruptDataError: if two columns share a name.
    """
    twice = next((name for name in arrow.names if arrow.names.count(name) > 1), None)
    if twice is not None:
        raise CorruptDataError(f"two columns are called {twice!r}; rename one of them")
    roles = {f.name: orjson.loads(f.metadata[KEY]) for f in arrow if f.metadata and KEY in f.metadata}
    if roles:
        return _own_layout(roles)
    for role, name in names.items():
        if name is not None and name not in arrow.names:
            raise ConfigurationError(f"no column is called {name!r} (the {role}); there are {arrow.names}")
    return _foreign_layout(arrow, names, lists)


def _own_layout(roles: Mapping[str, Mapping[str, Any]]) -> Layout:
    places: dict[str, Any] = {}
    vectors = []
    for column, about in roles.items():
        if about["role"] == "vector":
            what = (Kind(about["kind"]), DType(about["dtype"]), about["dim"])
            vectors.append(VectorPlace(column, about["name"], *what))
        else:
            places[about["role"]] = column
        if about["role"] == "id":
            places["id_kind"] = about["kind"]
    return Layout(**{"id": None, **places}, vectors=tuple(vectors), own=True)


def _foreign_layout(arrow: pa.Schema, names: Mapping[str, str | None], lists: Collection[str]) -> Layout:
    left = list(arrow.names)
    id_ = _pick(left, names.get("id"), (*ID_NAMES, PANDAS_INDEX))
    text = _pick(left, names.get("text"), [n for n in TEXT_NAMES if _is_text(arrow, n)])
    json_names = [n for n in METADATA_NAMES if _is_text(arrow, n) or _is_object(arrow, n)]
    metadata = _pick(left, names.get("metadata"), json_names)
    types = _pick(left, None, ["_vecferry"] if metadata else [])
    sure = (names.get("vector"), *VECTOR_NAMES)
    given = names.get("vector")
    candidates = [name for name in left if name not in lists and given in (None, name)]
    places = [p for name in candidates if (p := _vector_place(arrow.field(name), integers=name in sure))]
    for place in places:
        left.remove(place.column)
    main = given or next((n for n in VECTOR_NAMES if n in {p.column for p in places}), None)
    if main is None and len(places) == 1:
        main = places[0].column
    if given and main not in {place.column for place in places}:
        raise ConfigurationError(f"column {main!r} is {arrow.field(main).type}, not a list of numbers")
    return Layout(
        id=id_,
        id_kind=_foreign_id_kind(arrow, id_),
        text=text,
        metadata=metadata,
        types=types,
        vectors=tuple(_named(place, main) for place in places),
        extra=tuple(left),
    )


def _named(place: VectorPlace, main: str | None) -> VectorPlace:
    name = "" if place.column == main else place.column.removeprefix("vector_")
    return VectorPlace(place.column, name, place.kind, place.dtype, place.dim)


def _pick(left: list[str], given: str | None, known: Iterable[str]) -> str | None:
    name = given or next((n for n in known if n in left), None)
    if name is not None:
        left.remove(name)
    return name


def _is_text(arrow: pa.Schema, name: str) -> bool:
    return name in arrow.names and _is_string(arrow.field(name).type)


def _is_object(arrow: pa.Schema, name: str) -> bool:
    if name not in arrow.names:
        return False
    kind = arrow.field(name).type
    sparse = pa.types.is_struct(kind) and {f.name for f in kind} == {"indices", "values"}
    return bool((pa.types.is_struct(kind) and not sparse) or pa.types.is_map(kind))


def _is_string(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    view = getattr(pa.types, "is_string_view", lambda _: False)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or view(kind))


def _foreign_id_kind(arrow: pa.Schema, column: str | None) -> str:
    if column is None:
        return "int"
    kind = arrow.field(column).type
    if pa.types.is_integer(kind):
        return "int"
    return "uuid" if "uuid" in str(kind) else "str" if _is_string(kind) else "mixed"


def _vector_place(arrow: pa.Field, *, integers: bool = False) -> VectorPlace | None:
    """A column that can only be vectors: lists of floats or bytes, matrices, index and value pairs.

    Args:
        integers: whether lists of any integers are vectors, too; elsewhere they may be tags.
    """
    kind, name = arrow.type, arrow.name
    if pa.types.is_struct(kind) and {f.name for f in kind} == {"indices", "values"}:
        return VectorPlace(name, name, Kind.SPARSE, DType.FLOAT32)
    inner = _component(kind)
    if inner is None:
        return None
    fixed = kind.list_size if pa.types.is_fixed_size_list(kind) else None
    if _component(inner) is not None:
        fixed = inner.list_size if pa.types.is_fixed_size_list(inner) else None
        component = _dtype(_component(inner), fixed, integers=integers)
        return VectorPlace(name, name, Kind.MULTI, component, fixed) if component else None
    component = _dtype(inner, fixed, integers=integers)
    return VectorPlace(name, name, Kind.DENSE, component, fixed) if component else None


def _component(kind: Any) -> pa.DataType | None:
    view = getattr(pa.types, "is_list_view", lambda _: False)
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, view)
    return kind.value_type if any(test(kind) for test in lists) else None


def _dtype(component: Any, fixed: int | None, *, integers: bool) -> DType | None:
    if pa.types.is_float16(component):
        return DType.FLOAT16
    if pa.types.is_floating(component):
        return DType.FLOAT32
    if (fixed or integers) and pa.types.is_int8(component):
        return DType.INT8
    if (fixed or integers) and pa.types.is_uint8(component):
        return DType.UINT8
    return DType.FLOAT32 if integers and pa.types.is_integer(component) else None
