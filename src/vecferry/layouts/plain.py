"""``plain``: metadata keys at the top of the payload, the text beside them under one key.

{"text": "…", "lang": "en", "page": 3}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vecferry.layouts.base import Columns, RecordByRecord, norms_of
from vecferry.layouts.envelope import Payload, open_envelope, seal
from vecferry.model import ENVELOPE, RecordId


class PlainLayout(RecordByRecord):
    """Every key where a filter expects it. The default where no framework is named."""

    name = "plain"
    text_ids = False
    indexes: Mapping[str, str] = {}

    def __init__(self, text_key: str = "text") -> None:
        self.text_key = text_key

    def path(self, key: str) -> tuple[str, ...]:
        return (key,)

    def encode_one(
        self,
        id_: RecordId,
        text: str | None,
        metadata: Mapping[str, Any],
        foreign: bool,
        norms: Mapping[str, float] | None,
    ) -> Payload:
        own = id_ if foreign else None
        body, envelope = seal(metadata, id=own, norms=norms)
        # What is no text may lie under the text's key: it is read as metadata again.
        if self.text_key in body and (text is not None or isinstance(body[self.text_key], str)):
            body, envelope = seal(metadata, id=own, norms=norms, reserved=(self.text_key,))
        payload = body if text is None else {self.text_key: text, **body}
        if envelope:
            payload[ENVELOPE] = envelope
        return payload

    def decode(self, payloads: Sequence[Mapping[str, Any]]) -> Columns:
        columns = Columns([], [], [], [])
        for payload in payloads:
            body = dict(payload)
            envelope = body.pop(ENVELOPE, None)
            found = body.get(self.text_key)
            text = body.pop(self.text_key) if isinstance(found, str) else None
            id_, metadata = open_envelope(body, envelope)
            columns.ids.append(id_)
            columns.texts.append(text)
            columns.metadata.append(metadata)
            columns.norms.append(norms_of(payload))
        return columns

    def recognise(self, payloads: Sequence[Mapping[str, Any]]) -> float:
        return 1.0
