"""``langchain``: as ``langchain_qdrant.QdrantVectorStore`` lays documents out (read from version 1.1).

    {"page_content": "…", "metadata": {"lang": "en", "page": 3}}

What an app keeps beside these two keys, or under them in another form (a list as metadata, an object as
text), travels in the record's metadata under `PAYLOAD_KEY`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vecferry.layouts.base import Columns, RecordByRecord, norms_of
from vecferry.layouts.envelope import PAYLOAD_KEY, Payload, is_envelope, open_envelope, seal
from vecferry.model import ENVELOPE, RecordId


class LangChainLayout(RecordByRecord):
    """The text under one key, the metadata as an object under another. LangChain demands a text."""

    name = "langchain"
    text_ids = False
    indexes: Mapping[str, str] = {}

    def __init__(self, text_key: str = "page_content", metadata_key: str = "metadata") -> None:
        self.text_key, self.metadata_key = text_key, metadata_key

    def path(self, key: str) -> tuple[str, ...]:
        return (self.metadata_key, key)

    def encode_one(
        self,
        id_: RecordId,
        text: str | None,
        metadata: Mapping[str, Any],
        foreign: bool,
        norms: Mapping[str, float] | None,
    ) -> Payload:
        body, envelope = seal(metadata, id=id_ if foreign else None, norms=norms, no_text=text is None)
        own: Payload = {self.text_key: text or "", self.metadata_key: body}
        beside = body.get(PAYLOAD_KEY)
        if isinstance(beside, dict) and beside and self._may_lie(beside, text, body, envelope):
            del body[PAYLOAD_KEY]
            own |= beside
            if self.text_key in beside:
                envelope.pop("no_text", None)
        if envelope:
            own[ENVELOPE] = envelope
        return own

    def _may_lie(self, beside: Payload, text: str | None, body: Payload, envelope: Payload) -> bool:
        """Whether the app's own keys can lie where they lay: what they displace must be nothing."""
        if isinstance(beside.get(self.text_key), str) or isinstance(beside.get(self.metadata_key), dict):
            return False  # that would be read as the record's own
        if ENVELOPE in beside and (envelope or is_envelope(beside[ENVELOPE])):
            return False
        displaced = self.metadata_key in beside and body.keys() != {PAYLOAD_KEY}
        return not displaced and not (self.text_key in beside and text is not None)

    def decode(self, payloads: Sequence[Mapping[str, Any]]) -> Columns:
        columns = Columns([], [], [], [])
        for payload in payloads:
            beside = dict(payload)
            envelope = beside.pop(ENVELOPE, None)
            if not is_envelope(envelope) and envelope is not None:
                beside[ENVELOPE], envelope = envelope, None
            found, text = payload.get(self.metadata_key), payload.get(self.text_key)
            body = dict(beside.pop(self.metadata_key)) if isinstance(found, Mapping) else {}
            if isinstance(text, str):
                del beside[self.text_key]
            if beside:
                body[PAYLOAD_KEY] = beside
            id_, metadata = open_envelope(body, envelope)
            silent = envelope is not None and envelope.get("no_text") is True and not text
            columns.ids.append(id_)
            columns.texts.append(None if silent or not isinstance(text, str) else text)
            columns.metadata.append(metadata)
            columns.norms.append(norms_of(payload))
        return columns

    def recognise(self, payloads: Sequence[Mapping[str, Any]]) -> float:
        return sum(map(self._fits, payloads)) / len(payloads) if payloads else 0.0

    def _fits(self, payload: Mapping[str, Any]) -> bool:
        body = payload.get(self.metadata_key, self)
        return isinstance(payload.get(self.text_key), str) and (body is None or isinstance(body, Mapping))
