"""The options of a `PgVectorStore`, from keyword arguments or the query of a URL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vecferry.errors import ConfigurationError
from vecferry.ports import OnProgress, ignore_progress

LAYOUTS = ("plain", "langchain", "langchain-v2", "llamaindex")
INDEXES = ("hnsw", "ivfflat", "none")
Names = str | Sequence[str]


@dataclass(frozen=True, slots=True)
class Options:
    """How a table is read and written. Everything is optional.

    Attributes:
        vector: the vector columns: a name, several (``"a,b"``), or ``{field: column}``.
        text: the column of the text; ``""`` for none.
        id: the columns of the record's id (default: the primary key).
        key: the columns of a unique key to page by, where they are not those of the id.
        metadata: the json column that holds the metadata; ``"columns"`` makes typed columns in a new table.
        columns: which other columns become metadata (default: all).
        layout: ``plain``, ``langchain``, ``langchain-v2`` or ``llamaindex``.
        index: ``hnsw``, ``ivfflat`` or ``none``; ``None`` follows the schema, else HNSW.
        m, ef_construction, lists: index settings that win over the schema's.
        dtype: column type of new vector fields, ``float32`` or ``float16`` (``halfvec``).
        id_type: of a new table: ``int``, ``str``, ``uuid`` or ``mixed``.
        storage: of new vector columns: ``plain`` keeps up to 2,000 dimensions in the row itself, which
            loads and reads faster, and makes queries that skip the vector slower.
        maintenance_work_mem: for the index build, such as ``2GB``.
        where, params: an SQLAlchemy expression or SQL text with ``:name`` parameters: all that is read.
        select, params: an SQLAlchemy select or SQL text to be read instead of a table.
        ef_search, probes, iterative_scan: defaults of `search`.
        on_progress: called during the index build.
    """

    vector: str | Sequence[str] | Mapping[str, str] | None = None
    text: str | None = None
    id: Names | None = None
    key: Names | None = None
    metadata: str | None = None
    columns: Names | None = None
    layout: str | None = None
    index: str | None = None
    m: int | None = None
    ef_construction: int | None = None
    lists: int | None = None
    dtype: str | None = None
    id_type: str | None = None
    storage: str | None = None
    maintenance_work_mem: str | None = None
    where: Any = None
    select: Any = None
    params: dict[str, Any] = field(default_factory=dict)
    ef_search: int | None = None
    probes: int | None = None
    iterative_scan: str | None = None
    on_progress: OnProgress = ignore_progress

    def __post_init__(self) -> None:
        for name in ("m", "ef_construction", "lists", "ef_search", "probes"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        _one_of("layout", self.layout, LAYOUTS)
        _one_of("index", self.index, INDEXES)
        _one_of("dtype", self.dtype, ("float32", "float16"))
        _one_of("id_type", self.id_type, ("int", "str", "uuid", "mixed"))
        _one_of("storage", self.storage, ("plain", "external", "extended", "main"))
        _one_of("iterative_scan", self.iterative_scan, ("off", "strict_order", "relaxed_order"))

    @property
    def vector_columns(self) -> dict[str | None, str]:
        """Field → column; the key is ``None`` where the field's name follows from the column."""
        if self.vector is None:
            return {}
        if isinstance(self.vector, Mapping):
            return {name: column for name, column in self.vector.items()}  # noqa: C416 widens the key
        found: dict[str | None, str] = {}
        columns = names(self.vector)
        for column in columns:
            name, colon, of = column.partition(":")
            found[name if colon else ("" if len(columns) == 1 else column)] = of if colon else column
        return found


def names(value: Names | None) -> tuple[str, ...]:
    """``"a,b"`` or ``["a", "b"]`` as a tuple."""
    if value is None:
        return ()
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(part.strip() for part in parts)


def _number(name: str, value: Any) -> int | None:
    convert: Callable[[Any], int] = int
    try:
        return None if value is None else convert(value)
    except (TypeError, ValueError):
        raise ConfigurationError(f"{name} takes a whole number, not {value!r}") from None


def _one_of(name: str, value: str | None, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise ConfigurationError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}")
