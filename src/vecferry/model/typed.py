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
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import UUID

import orjson

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None
"""A value that JSON holds."""

ENVELOPE = "_vecferry"
"""The payload key under which a store keeps what it cannot hold natively:
``{"id": encode_id(id), "types": {pointer: type name}, "norms": {field: length}}``, each if needed."""

_JSON_NATIVE = frozenset({str, bool, type(None)})
_INT64_END = 2**63
_STRICT = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATETIME
_SORTED = _STRICT | orjson.OPT_SORT_KEYS
# A number of 18 digits or more (a float has at most 17), or one with a three-digit exponent.
_SHAPE = bytes.maketrans(b"123456789.E", b"0000000000e")
_DIGITS, _EXPONENTS = b"0" * 18, (b"0e000", b"0e-000", b"0e+000")
_ARRAY = re.compile(rb"\s*:\s*\[")
_INEXACT = re.compile(rb"(?:^|[\[:,])\s*-?(?:[0.]*[1-9][\d.]{17}|[\d.]+[eE][-+]?\d{3})")


def to_json(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Metadata as pure JSON, and the types of the values that changed.

    Raises:
        TypeError: for a value of a type that cannot be kept, naming its place.
    """
    if is_plain(metadata):
        return dict(metadata), {}
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


def is_plain(metadata: Mapping[str, Any]) -> bool:
    """Whether `to_json` leaves every value as it is: mostly it does, and this is the cheaper question."""
    for value in metadata.values():
        kind = type(value)
        if kind not in _JSON_NATIVE and not _stays(value, kind):
            return False
    return True


def _stays(value: Any, kind: type[Any]) -> bool:
    if kind is int:
        return bool(-_INT64_END <= value < _INT64_END)
    if kind is float:
        return survives_json(value)
    if kind is list:
        return all(type(item) in _JSON_NATIVE or _stays(item, type(item)) for item in value)
    return kind is dict and all(type(key) is str for key in value) and is_plain(value)


def parse_json(text: str | bytes, *, vector: str | None = None) -> Any:
    """What a JSON text says, each number exactly: integers of any size, decimals of any length.

    orjson reads the text, unless it holds something that a 64-bit integer or a float cannot: a number
    with more digits, NaN, an infinity, half a surrogate pair.

    Args:
        vector: the key of a long array of numbers that are meant as floats, so that it is not searched
            for others.

    Raises:
        ValueError: if it is not JSON.
    """
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    seen = raw if vector is None else _without(raw, vector)
    if not _is_inexact(seen):
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError:  # half a surrogate pair, perhaps
            return json.loads(raw, parse_float=_float_or_decimal)
        # What was not searched is the vector, not an array of that name further down.
        if seen is raw or (type(value) is dict and vector in value) or not _is_inexact(raw):
            return value
    return json.loads(raw, parse_float=_float_or_decimal)


def dump_json(value: Any, *, sort: bool = False) -> bytes:
    """Pure JSON in one line, as `parse_json` reads it: integers of any size, halves of surrogate pairs.

    Raises:
        TypeError: for a value that `to_json` would have changed.
    """
    try:
        return orjson.dumps(value, option=_SORTED if sort else _STRICT)
    except TypeError:
        return json.dumps(value, sort_keys=sort, separators=(",", ":"), allow_nan=False).encode()


def _is_inexact(raw: bytes) -> bool:
    """Whether a number may be more than a float holds; the shape of the text alone mostly says no."""
    shape = raw.translate(_SHAPE)
    if _DIGITS in shape or (b"0e" in shape and any(sign in shape for sign in _EXPONENTS)):
        return _INEXACT.search(raw) is not None
    return False


def _without(raw: bytes, key: str) -> bytes:
    """The text without the numbers of the array under a key that stands in it only once."""
    token = f'"{key}"'.encode()
    at = raw.find(token)
    opening = _ARRAY.match(raw, at + len(token)) if at >= 0 else None
    end = raw.find(b"]", opening.end()) if opening else -1
    if opening is None or end < 0 or raw.find(b'"', opening.end(), end) >= 0:
        return raw
    rest = raw[end:]
    return raw if token in rest else raw[: opening.end()] + rest


def _float_or_decimal(text: str) -> float | Decimal:
    """A float where it says the same: 17 digits name a float, and some write all of them."""
    number, exact = float(text), Decimal(text)
    if number - number != 0.0 or (number == 0.0) is not (exact == 0):
        return exact
    same = len(exact.as_tuple().digits) <= 17 or Decimal(repr(number)) == exact
    return number if same else exact


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
        if -_INT64_END <= value < _INT64_END:
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
