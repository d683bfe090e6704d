"""Ids keep their type: ``7``, ``"7"`` and ``"007"`` are three ids, in every store.

An id is an ``int``, a ``str``, a ``uuid.UUID`` or a tuple of these (a composite key). A store
that cannot hold one gets `uuid_of` instead and keeps `encode_id` with the record. Wherever ids are
counted, looked up or paired, their `id_key` stands for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any, TypeAlias, overload
from uuid import UUID, uuid5

import numpy as np
from numpy.typing import NDArray

ScalarId: TypeAlias = int | str | UUID
RecordId: TypeAlias = ScalarId | tuple[ScalarId, ...]

# Fixed for ever: changing it would change the ids of every migrated collection.
ID_NAMESPACE = UUID("6d0b7f2e-6f1c-5f0e-9c57-7ec0fe44ab1d")


def check_id(value: object) -> RecordId:
    """Return ``value`` as an id, numpy integers as ``int``.

    Raises:
        TypeError: for anything else, ``bool`` and ``None`` included.
    """
    if type(value) in (int, str, UUID):
        return value  # type: ignore[return-value]
    if isinstance(value, tuple | list) and value:
        return tuple(check_id(part) for part in value)  # type: ignore[misc]
    if not isinstance(value, bool) and hasattr(value, "__index__"):
        return int(value.__index__())
    if isinstance(value, str):
        return str(value)
    raise TypeError(f"an id is an int, a str, a UUID or a tuple of these, not {type(value).__name__}")


def encode_id(value: RecordId) -> str:
    """Write a typed id as text: ``i:7``, ``s:7``, ``u:…``, ``t:["i:1","s:a"]``."""
    if isinstance(value, int):
        return f"i:{value}"
    if isinstance(value, str):
        return f"s:{value}"
    if isinstance(value, UUID):
        return f"u:{value}"
    return "t:" + json.dumps([encode_id(part) for part in value], ensure_ascii=False)


def decode_id(text: str) -> RecordId:
    """The inverse of `encode_id`.

    Raises:
        ValueError: if ``text`` was not written by `encode_id`.
    """
    kind, _, body = text.partition(":")
    if kind == "i":
        return int(body)
    if kind == "s":
        return body
    if kind == "u":
        return UUID(body)
    if kind == "t":
        return tuple(decode_id(part) for part in json.loads(body))  # type: ignore[misc]
    raise ValueError(f"not an encoded id: {text[:40]!r}")


def uuid_of(value: RecordId) -> UUID:
    """The id itself if it is a UUID, else UUIDv5 of its typed text (RFC 9562, section 5.5)."""
    if isinstance(value, UUID):
        return value
    return uuid5(ID_NAMESPACE, encode_id(value))


def id_key(value: RecordId) -> bytes:
    """16 bytes that identify a typed id: BLAKE2b-128 of `encode_id`."""
    return blake2b(encode_id(value).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def id_type(value: RecordId) -> str:
    """``"int"``, ``"str"``, ``"uuid"`` or ``"tuple"``."""
    return "uuid" if isinstance(value, UUID) else type(value).__name__


KEY_TYPE = np.dtype("S16")
"""Of keys in arrays. numpy strips trailing zero bytes when an ``S16`` becomes ``bytes``, but compares and
sorts with them, so keys are compared as arrays only."""

_KINDS: dict[type, str] = {int: "int", str: "str", UUID: "uuid"}


class IdColumn(Sequence[RecordId]):
    """n typed ids: an int64 array where all are integers of that range, else a list.

    Which of the two it is changes nothing but speed. Not to be changed once it is made.

    Args:
        ids: ids, or an array of integers. They are not checked one by one; for values from elsewhere
            use `checked`.
    """

    __slots__ = ("_keys", "_values", "ints")

    ints: NDArray[np.int64] | None

    def __init__(self, ids: Sequence[RecordId] | NDArray[Any] | IdColumn) -> None:
        self._keys: NDArray[Any] | None = None
        self._values: list[RecordId] | None = None
        self.ints = None
        if isinstance(ids, IdColumn):
            self._keys, self._values, self.ints = ids._keys, ids._values, ids.ints
        elif isinstance(ids, np.ndarray):
            self._take_array(ids)
        else:
            self._take_list(ids if isinstance(ids, list) else list(ids))

    @classmethod
    def checked(cls, values: Sequence[object]) -> IdColumn:
        """Of any values.

        Raises:
            TypeError: for one that can be no id.
        """
        if all(type(value) is int for value in values):
            return cls(list(values))  # type: ignore[arg-type]
        return cls([check_id(value) for value in values])

    def _take_array(self, ids: NDArray[Any]) -> None:
        fits = ids.dtype.kind in "iu" and (ids.dtype != np.uint64 or not len(ids) or ids.max() < 2**63)
        if fits:
            self.ints = np.ascontiguousarray(ids, dtype=np.int64)
        else:
            self._take_list([check_id(value) for value in ids.tolist()])

    def _take_list(self, values: list[RecordId]) -> None:
        self._values = values
        if values and type(values[0]) is int and all(type(value) is int for value in values):
            try:
                self.ints = np.array(values, dtype=np.int64)
            except OverflowError:
                self.ints = None

    # -- as a sequence --------------------------------------------------------------------------

    @property
    def values(self) -> list[RecordId]:
        """The ids as Python values; not to be changed."""
        if self._values is None:
            self._values = [] if self.ints is None else self.ints.tolist()
        return self._values

    def tolist(self) -> list[RecordId]:
        """A new list of the ids."""
        return list(self.values)

    def __len__(self) -> int:
        return len(self.values) if self.ints is None else len(self.ints)

    @overload
    def __getitem__(self, row: int) -> RecordId: ...
    @overload
    def __getitem__(self, row: slice) -> IdColumn: ...
    def __getitem__(self, row: int | slice) -> RecordId | IdColumn:
        if isinstance(row, slice):
            return self.take(np.arange(*row.indices(len(self))))
        return self.values[row] if self.ints is None else int(self.ints[row])

    def __iter__(self) -> Iterator[RecordId]:
        return iter(self.values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if self.ints is not None:
            return self.ints.astype(dtype or np.int64, copy=bool(copy))
        array = np.empty(len(self), dtype=object)
        array[:] = self.values
        return array if dtype is None else array.astype(dtype)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, IdColumn) and self.ints is not None and other.ints is not None:
            return np.array_equal(self.ints, other.ints)
        # No two ids of different types are equal in Python: 7 != "7", UUID != str.
        if isinstance(other, IdColumn | list | tuple):
            return self.values == list(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:4]))
        return f"<IdColumn of {len(self)}: {shown}{', …' if len(self) > 4 else ''}>"

    def take(self, rows: Sequence[int] | NDArray[Any]) -> IdColumn:
        """The given rows, in the given order."""
        where = np.asarray(rows, dtype=np.int64)
        if self.ints is not None:
            taken = IdColumn(self.ints[where])
        else:
            values = self.values
            taken = IdColumn([values[row] for row in where.tolist()])
        if self._keys is not None:
            taken._keys = self._keys[where]
        return taken

    @classmethod
    def concat(cls, columns: Sequence[IdColumn]) -> IdColumn:
        """One column of all ids."""
        arrays = [column.ints for column in columns if column.ints is not None]
        if arrays and len(arrays) == len(columns):
            return cls(np.concatenate(arrays))
        return cls([id_ for column in columns for id_ in column.values])

    # -- what the ids are -----------------------------------------------------------------------

    @property
    def kind(self) -> str:
        """``"int"`` (within 64 bits), ``"str"``, ``"uuid"``, or ``"mixed"`` for anything else together."""
        if self.ints is not None:
            return "int"
        types = set(map(type, self.values))
        kind = _KINDS.get(types.pop(), "mixed") if len(types) == 1 else "mixed"
        return "mixed" if kind == "int" else kind

    @property
    def keys(self) -> NDArray[Any]:
        """``S16 (n,)``: the `id_key` of each id, computed once."""
        if self._keys is None:
            joined = b"".join([blake2b(text, digest_size=16).digest() for text in self._encoded_bytes()])
            self._keys = np.frombuffer(joined, dtype=KEY_TYPE)
        return self._keys

    def encoded(self) -> list[str]:
        """`encode_id` of each id."""
        if self.ints is not None:
            return [f"i:{value}" for value in self.values]
        return [f"s:{value}" if type(value) is str else encode_id(value) for value in self.values]

    def _encoded_bytes(self) -> Iterator[bytes]:
        return (text.encode("utf-8", "surrogatepass") for text in self.encoded())


def keys_of(ids: Sequence[RecordId] | NDArray[Any]) -> NDArray[Any]:
    """``S16 (n,)``: the `id_key` of each id."""
    return (ids if isinstance(ids, IdColumn) else IdColumn(ids)).keys
