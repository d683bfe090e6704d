"""Ids keep their type: ``7``, ``"7"`` and ``"007"`` are three ids, in every store.

An id is an ``int``, a ``str``, a ``uuid.UUID`` or a tuple of these (a composite key). A store
that cannot hold one gets `uuid_of` instead and keeps `encode_id` with the record.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import TypeAlias
from uuid import UUID, uuid5

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
