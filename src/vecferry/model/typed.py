"""Metadata that JSON cannot hold, kept reversibly.

`to_json` turns metadata into pure JSON plus a small table ``{JSON pointer: type name}`` of the values
that changed their form; `from_json` turns them back. A store keeps the table in its envelope key
`ENVELOPE` beside the payload; plain JSON metadata needs none. Pointers follow RFC 6901.

| type name | JSON form |
|---|---|
| ``datetime``, ``date``, ``time`` | ISO 8601 (RFC 3339 where an offset is known) |
| ``decimal``, ``uuid``, ``int`` (beyond 64 bits), ``float`` (see `survives_json`) | string |
| ``bytes`` | Base64 |
| ``tuple``, ``set`` | array |
| ``pairs`` (a dict whose keys are not all strings) | array of [key, value] |
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson

ENVELOPE = "_vecferry"
"""The payload key under which a store keeps what it cannot hold natively:
``{"id": encode_id(id), "types": {pointer: type name}, "norms": {field: length}}``, each if needed."""

_BEYOND_INT64 = 2.0**63
_JSON_NATIVE = frozenset({str, bool, type(None)})
_INT64 = range(-(2**63), 2**63)


def to_json(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Metadata as pure JSON, and the types of the values that changed.

    Raises:
        TypeError: for a value of a type that cannot be kept, naming its place.
    """
    types: dict[str, str] = {}
    body = {
        key: value if type(value) in _JSON_NATIVE else _encode(value, f"/{_escape(key)}", types)
        for key, value in metadata.items()
    }
    return body, types


def from_json(metadata: Mapping[str, Any], types: Mapping[str, str]) -> dict[str, Any]:
    """The inverse of `to_json`. A pointer that no longer leads anywhere is passed over."""
    result = dict(metadata)
    # Deepest first: a container is rebuilt after everything inside it.
    for pointer in sorted(types, key=lambda p: -p.count("/")):
        steps = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]
        _decode_at(result, steps, _DECODERS.get(types[pointer]))
    return result


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says, integers of any size exactly: orjson makes floats of those beyond 64 bits.

    Raises:
        ValueError: if it is not JSON.
    """
    value = orjson.loads(text)
    return json.loads(text) if isinstance(value, dict) and _is_huge(value) else value


def _is_huge(found: dict[str, Any]) -> bool:
    """A loop, since every line that is read comes through here."""
    for value in found.values():
        kind = type(value)
        if kind is float:
            if abs(value) >= _BEYOND_INT64:
                return True
        elif kind is dict and _is_huge(value):
            return True
    return False


def survives_json(value: float) -> bool:
    """Whether every JSON store gives the float back as it was.

    NaN and infinities are no JSON; a whole number beyond 10^15 comes back as an integer and a negative
    zero without its sign where numbers are kept as decimals (``jsonb``).
    """
    if value == 0.0:
        return math.copysign(1.0, value) > 0
    return value - value == 0.0 and (abs(value) < 1e15 or not value.is_integer())


def type_name(value: Any) -> str:
    """The name of a metadata value's type, as plans and schemas print it."""
    if value is None:
        return "null"
    for kind, name in _NAMES:
        if isinstance(value, kind):
            return name
    return type(value).__name__


def _escape(key: Any) -> str:
    return str(key).replace("~", "~0").replace("/", "~1")


def _encode(value: Any, pointer: str, types: dict[str, str]) -> Any:
    kind = type(value)
    if kind in _JSON_NATIVE:
        return value
    if kind is int:
        if value in _INT64:
            return value
        types[pointer] = "int"
        return str(value)
    if kind is float:
        if survives_json(value):
            return value
        types[pointer] = "float"
        return repr(value)
    if isinstance(value, Mapping):
        return _encode_mapping(value, pointer, types)
    if isinstance(value, list):
        return [_encode(item, f"{pointer}/{i}", types) for i, item in enumerate(value)]
    return _encode_special(value, pointer, types)


def _encode_mapping(value: Mapping[Any, Any], pointer: str, types: dict[str, str]) -> Any:
    if all(type(key) is str for key in value):
        return {k: _encode(item, f"{pointer}/{_escape(k)}", types) for k, item in value.items()}
    types[pointer] = "pairs"
    pairs = [[key, item] for key, item in value.items()]
    return [_encode(pair, f"{pointer}/{i}", types) for i, pair in enumerate(pairs)]


def _encode_special(value: Any, pointer: str, types: dict[str, str]) -> Any:
    for kind, name, write in _ENCODERS:
        if isinstance(value, kind):
            types[pointer] = name
            return write(value)
    if isinstance(value, tuple | set | frozenset):
        types[pointer] = "tuple" if isinstance(value, tuple) else "set"
        items = value if isinstance(value, tuple) else sorted(value, key=repr)
        return [_encode(item, f"{pointer}/{i}", types) for i, item in enumerate(items)]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _encode(value.tolist(), pointer, types)
    if isinstance(value, str | int | float):  # subclasses, enumerations of them
        # `str()` of a text enumeration gives the name of its member, not its value.
        plain = str.__str__ if isinstance(value, str) else int if isinstance(value, int) else float
        return _encode(plain(value), pointer, types)
    raise TypeError(f"metadata at {pointer} is a {type(value).__name__}, which cannot be stored")


def _decode_at(root: Any, steps: list[str], decode: Callable[[Any], Any] | None) -> None:
    if decode is None or not steps:
        return
    try:
        # Containers are copied on the way down, so that the caller's payload stays as it is.
        for step in steps[:-1]:
            key = int(step) if isinstance(root, list) else step
            child = root[key]
            root[key] = child = child.copy()
            root = child
        last = int(steps[-1]) if isinstance(root, list) else steps[-1]
        root[last] = decode(root[last])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return


_ENCODERS: tuple[tuple[type, str, Callable[[Any], str]], ...] = (
    (datetime, "datetime", datetime.isoformat),
    (date, "date", date.isoformat),
    (time, "time", time.isoformat),
    (Decimal, "decimal", str),
    (UUID, "uuid", str),
    (bytes, "bytes", lambda value: base64.b64encode(value).decode()),
)
_DECODERS: dict[str, Callable[[Any], Any]] = {
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "decimal": Decimal,
    "uuid": UUID,
    "bytes": lambda text: base64.b64decode(text, validate=True),
    "int": int,
    "float": float,
    "tuple": tuple,
    "set": set,
    "pairs": dict,
}
_NAMES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "bool"),
    (int, "int"),
    (float, "float"),
    (str, "str"),
    *((kind, name) for kind, name, _ in _ENCODERS),
    (Mapping, "object"),
    (tuple, "tuple"),
    ((set, frozenset), "set"),
    (list, "list"),
)
