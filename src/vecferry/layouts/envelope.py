"""The envelope: what a payload cannot hold by itself, kept beside it under the key `ENVELOPE`.

| key | holds |
|---|---|
| ``id`` | `encode_id` of the id, where the store holds another one in its place |
| ``types`` | ``{JSON pointer: type name}`` of metadata that changed its form |
| ``norms`` | ``{field name: length}`` of vectors that the store brought to unit length |
| ``aside`` | ``{key: value}`` of metadata whose key the layout needs for itself |
| ``no_text`` | true where a layout demands a text and the record has none |
| ``floats`` | ``{JSON pointer: shortest form}`` of numbers that a store gives back a little off |

A record that needs none of it has no envelope.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vecferry.model import ENVELOPE, RecordId, decode_id, encode_id, from_json, to_json

Payload = dict[str, Any]

_PARTS = frozenset({"id", "types", "norms", "aside", "no_text", "floats"})

PAYLOAD_KEY = "_payload"
"""Metadata key of what an app keeps at the top of a framework's payload, beside the framework's keys."""


def seal(
    metadata: Mapping[str, Any],
    *,
    id: RecordId | None = None,
    norms: Mapping[str, float] | None = None,
    no_text: bool = False,
    reserved: Collection[str] = (),
) -> tuple[Payload, Payload]:
    """Metadata as pure JSON, and the envelope that makes it whole again (``{}`` if none is needed).

    Args:
        id: the original id, if the store cannot hold it; else ``None``.
        reserved: keys that metadata must not use in this layout; their values go to the envelope.

    Raises:
        TypeError: for a metadata value that cannot be kept, naming its place.
    """
    body, types = to_json(metadata)
    envelope: Payload = {}
    if id is not None:
        envelope["id"] = encode_id(id)
    if types:
        envelope["types"] = types
    if norms:
        envelope["norms"] = dict(norms)
    aside = {key: body.pop(key) for key in (*reserved, ENVELOPE) if key in body}
    if aside:
        envelope["aside"] = aside
    if no_text:
        envelope["no_text"] = True
    return body, envelope


def open_envelope(body: Mapping[str, Any], envelope: Any) -> tuple[RecordId | None, Payload]:
    """The original id (``None`` if the store's own is the original) and the metadata, typed again.

    What stands there and is not vecferry's belongs to the application, and is metadata.
    """
    if not is_envelope(envelope):
        return None, dict(body) if envelope is None else {**body, ENVELOPE: envelope}
    aside, types = envelope.get("aside"), envelope.get("types")
    metadata = {**body, **aside} if isinstance(aside, Mapping) else dict(body)
    if isinstance(types, Mapping):
        metadata = from_json(metadata, types)
    return _id_of(envelope.get("id")), metadata


def is_envelope(found: Any) -> bool:
    """Whether vecferry wrote it: an application may have a key of the same name."""
    return isinstance(found, Mapping) and _PARTS.issuperset(found)


def _id_of(text: Any) -> RecordId | None:
    try:
        return decode_id(text) if isinstance(text, str) else None
    except ValueError:
        return None
