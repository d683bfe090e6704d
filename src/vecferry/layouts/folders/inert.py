"""What a pickle may name, and the plain value each name builds. Nothing here imports or calls further.

| name | becomes |
|---|---|
| LangChain's ``InMemoryDocstore`` and ``Document``, of every generation | `Document`, a dict of documents |
| ``datetime`` ``date`` ``time`` ``timedelta`` ``timezone``, ``ZoneInfo``, pytz's UTC | themselves |
| ``decimal.Decimal``, ``uuid.UUID`` | themselves |
| ``set`` ``frozenset`` ``bytearray`` ``OrderedDict`` ``defaultdict`` | set, bytes, dict |
| numpy scalars and arrays of numbers, booleans and text | Python numbers, lists |
| ``pathlib`` paths | text |
| points and sparse vectors of Qdrant's client | a dict of their fields |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from math import prod
from typing import Any, cast
from uuid import UUID
from zoneinfo import ZoneInfo

from vecferry.errors import UnsafePickleError

_DEEPEST_KEY = 16
_MOST_STEPS = 10_000


class Inert:
    """A value under construction: it takes a state and becomes a plain value."""

    __slots__ = ("done", "value")

    def __init__(self, value: Any = None, *, done: bool = False) -> None:
        self.value = value
        self.done = done

    def set_state(self, state: Any, keep: Callable[[Any], Any] | None) -> None:
        raise ValueError(f"a {type(self).__name__} takes no state")

    def finished(self) -> Any:
        """The value itself once it is complete; until then this object stands for it."""
        return self.value if self.done else self


class Name:
    """A name of the table: ``build`` answers a call, ``create`` the making of a bare object."""

    __slots__ = ("build", "create")

    def __init__(
        self, build: Callable[..., Any] | None = None, create: Callable[..., Any] | None = None
    ) -> None:
        self.build = build or _never
        self.create = create or self.build


def _never(*_: Any) -> Any:
    raise ValueError("this name is not for calling")


class Document(Inert):
    """A LangChain document: ``value`` is ``{"id", "page_content", "metadata"}``, or what ``keep`` made."""

    __slots__ = ()

    def set_state(self, state: Any, keep: Callable[[Any], Any] | None) -> None:
        fields = _attributes(state)
        content, metadata = fields.get("page_content"), fields.get("metadata")
        value = {
            "id": fields.get("id"),
            "page_content": content if isinstance(content, str) else None,
            "metadata": metadata if isinstance(metadata, dict) else {},
        }
        self.value = keep(value) if keep else value
        self.done = True


class Docstore(Inert):
    """LangChain's ``InMemoryDocstore``: ``value`` is `Documents`."""

    __slots__ = ()

    def set_state(self, state: Any, keep: Callable[[Any], Any] | None) -> None:
        documents = _attributes(state).get("_dict")
        if not isinstance(documents, dict):
            raise ValueError("a docstore without documents")
        self.value = Documents(documents)
        self.done = True


class Documents:
    """The documents of a docstore; a type of its own, so that a plain dict is not taken for one."""

    __slots__ = ("by_id",)

    def __init__(self, by_id: dict[Any, Any]) -> None:
        self.by_id = by_id


class _Model(Inert):
    """A model of Qdrant's client, as its local mode stores points: ``value`` is a dict of its fields."""

    __slots__ = ()

    def set_state(self, state: Any, keep: Callable[[Any], Any] | None) -> None:
        self.value = _attributes(state)
        self.done = True


class _Uuid(Inert):
    __slots__ = ()

    def set_state(self, state: Any, keep: Callable[[Any], Any] | None) -> None:
        self.value = UUID(int=_attributes(state)["int"])
        self.done = True


class _NumpyType(Inert):
    """A dtype: ``value`` is its code, such as ``"<f4"``."""

    __slots__ = ()

    def set_state(self, state: Any, keep: Callable[[Any], Any] | None) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
        if order not in ("<", ">", "|", "="):
            raise ValueError("an unknown byte order")
        code = str(self.value).lstrip("<>|=")
        self.value = (order + code) if order in "<>" else code


class _NumpyArray(Inert):
    __slots__ = ()

    def set_state(self, state: Any, keep: Callable[[Any], Any] | None) -> None:
        _, shape, kind, fortran, data = state
        self.value = _array(data, kind, shape, "F" if fortran else "C")
        self.done = True


def _attributes(state: Any) -> dict[Any, Any]:
    """The attributes in an object's state: pydantic's two forms, a plain dict, or a pair with slots."""
    if isinstance(state, tuple) and state:
        state = state[0]
    if not isinstance(state, dict):
        raise ValueError("an object without attributes")
    inner = state.get("__dict__")
    return inner if isinstance(inner, dict) else state


_NUMPY_CODE = re.compile(r"^[<>|=]?(?:[?]|[biufc](?:1|2|4|8|16)|[US]\d{1,6})$")


def _numpy_type(code: Any, *_: Any) -> _NumpyType:
    if not isinstance(code, str) or not _NUMPY_CODE.match(code):
        raise ValueError(f"a numpy type {code!s:.20} is not a number, a boolean or a text")
    return _NumpyType(code)


def _array(data: Any, kind: Any, shape: Any, order: Any = "C") -> Any:
    import numpy as np

    if not isinstance(kind, _NumpyType) or not isinstance(data, bytes) or order not in ("C", "F"):
        raise ValueError("an array that is not numbers")
    values = np.frombuffer(data, dtype=np.dtype(kind.value))
    if not values.size and isinstance(shape, tuple) and prod(max(int(n), 1) for n in shape) > _MOST_STEPS:
        raise ValueError("an array of nothing, many times over")
    return values.reshape(shape, order=cast(Any, order)).tolist()


def _numpy_scalar(kind: Any, data: Any = b"") -> Any:
    return _array(data, kind, ())


def _codecs_encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocols 0 to 2 write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("an unknown encoding")
    return text.encode("latin-1")


def _bytes(data: Any = b"", encoding: Any = "latin-1") -> bytes:
    if isinstance(data, bytes):
        return data
    return _codecs_encode(data, encoding)


def _zone(key: Any, *_: Any) -> ZoneInfo:
    return ZoneInfo(key)


def _getattr(target: Any, attribute: Any) -> Name:
    """``ZoneInfo`` pickles as a call of ``getattr(ZoneInfo, "_unpickle")``; no other use is answered."""
    if target is not _TABLE["zoneinfo", "ZoneInfo"] or attribute != "_unpickle":
        raise UnsafePickleError(
            "a pickle asks for an attribute, which no record needs; nothing of it was run"
        )
    return Name(_zone)


def _set(items: Iterable[Any] = ()) -> set[Any]:
    return set(map(check_key, items))


def _mapping(*arguments: Any) -> dict[Any, Any]:
    """OrderedDict and defaultdict: their items follow."""
    pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
    return {check_key(key): value for key, value in pairs}


def _path(*parts: Any) -> str:
    return "/".join(str(part).rstrip("/") if part != "/" else "" for part in parts) or "."


def check_key(key: Any) -> Any:
    """Return a key or set item, unless hashing it would take deep recursion or many steps: a tuple may
    hold another many times over, and each is hashed anew."""
    if isinstance(key, tuple | frozenset):
        waiting, steps = [(key, 0)], 0
        while waiting:
            parts, depth = waiting.pop()
            steps += len(parts)
            if depth > _DEEPEST_KEY or steps > _MOST_STEPS:
                raise ValueError("a key is nested too deeply, or too large")
            waiting += [(part, depth + 1) for part in parts if isinstance(part, tuple | frozenset)]
    return key


def _table() -> dict[tuple[str, str], Name]:
    documents: tuple[str, ...] = (
        "langchain.schema",
        "langchain.schema.document",
        "langchain.docstore.document",
    )
    documents += ("langchain_core.documents", "langchain_core.documents.base")
    documents += ("langchain_community.docstore.document",)
    stores: tuple[str, ...] = (
        "langchain.docstore",
        "langchain.docstore.in_memory",
        "langchain_community.docstore",
    )
    stores += ("langchain_community.docstore.in_memory", "langchain_classic.docstore.in_memory")
    document, docstore = Name(create=lambda *_: Document()), Name(create=lambda *_: Docstore())
    table = {
        **{(module, "Document"): document for module in documents},
        **{(module, "InMemoryDocstore"): docstore for module in stores},
        ("uuid", "UUID"): Name(create=lambda *_: _Uuid()),
        ("uuid", "SafeUUID"): Name(lambda *_: None),
        ("datetime", "datetime"): Name(datetime),
        ("datetime", "date"): Name(date),
        ("datetime", "time"): Name(time),
        ("datetime", "timedelta"): Name(timedelta),
        ("datetime", "timezone"): Name(timezone),
        ("pytz", "_UTC"): Name(lambda: UTC),
        ("zoneinfo", "ZoneInfo"): Name(_zone),
        ("decimal", "Decimal"): Name(Decimal),
        ("_codecs", "encode"): Name(_codecs_encode),
        ("collections", "OrderedDict"): Name(_mapping),
        ("collections", "defaultdict"): Name(_mapping),
        ("numpy", "dtype"): Name(_numpy_type),
        ("numpy", "ndarray"): Name(),
    }
    for module in ("builtins", "__builtin__"):
        table[module, "set"] = table[module, "frozenset"] = Name(_set)
        table[module, "getattr"] = Name(_getattr)
        table[module, "bytes"] = table[module, "bytearray"] = Name(_bytes)
        for name in ("list", "dict", "int", "float", "str"):  # factories of a defaultdict
            table[module, name] = Name()
    for core in ("numpy.core", "numpy._core"):
        table[f"{core}.multiarray", "scalar"] = Name(_numpy_scalar)
        table[f"{core}.multiarray", "_reconstruct"] = Name(lambda *_: _NumpyArray())
        table[f"{core}.numeric", "_frombuffer"] = Name(_array)
    for name in ("PurePosixPath", "PosixPath", "PureWindowsPath", "WindowsPath", "Path", "PurePath"):
        table["pathlib", name] = Name(_path)
    for name in ("PointStruct", "SparseVector"):
        table["qdrant_client.http.models.models", name] = Name(create=lambda *_: _Model())
    return table


_TABLE = _table()


def lookup(module: str, name: str) -> Name | None:
    """What stands for ``module.name``, if a record may hold it."""
    return _TABLE.get((module, name))
