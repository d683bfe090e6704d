"""``langchain``: as ``langchain_qdrant.QdrantVectorStore`` lays documents out (read from version 1.1).

    {"page_content": "…", "metadata": {"lang": "en", "page": 3}}

What an app keeps beside these two keys travels in the record's metadata under `PAYLOAD_KEY`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vecferry.layouts.base import Columns, RecordByRecord, norms_of
from vecferry.layouts.envelope import PAYLOAD_KEY, Payload, open_envelope, seal
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
        if envelope:
            own[ENVELOPE] = envelope
        beside = body.get(PAYLOAD_KEY)
        if not isinstance(beside, dict) or not beside or {*own, ENVELOPE} & beside.keys():
            return own
        del body[PAYLOAD_KEY]
        return {**beside, **own}

    def decode(self, payloads: Sequence[Mapping[str, Any]]) -> Columns:
        columns = Columns([], [], [], [])
        own = (self.text_key, self.metadata_key, ENVELOPE)
        for payload in payloads:
            envelope, body = payload.get(ENVELOPE), payload.get(self.metadata_key)
            body = dict(body) if isinstance(body, Mapping) else {}
            beside = {key: value for key, value in payload.items() if key not in own}
            if beside:
                body[PAYLOAD_KEY] = beside
            id_, metadata = open_envelope(body, envelope)
            text = payload.get(self.text_key)
            silent = isinstance(envelope, Mapping) and envelope.get("no_text") is True and not text
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
