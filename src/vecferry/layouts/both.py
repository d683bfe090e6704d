"""``both``: readable by LlamaIndex and by LangChain at once.

The LlamaIndex payload, and beside it ``page_content`` and ``metadata`` for LangChain. Metadata that uses
one of these keys itself is still whole in ``_node_content``, which is what counts on reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vecferry.layouts.envelope import Payload
from vecferry.layouts.llamaindex import LlamaIndexLayout
from vecferry.model import ENVELOPE


class BothLayout(LlamaIndexLayout):
    """Each text stands twice, each metadata value three times: the price of two readers."""

    name = "both"

    def _more(self, text: str | None, body: Payload) -> Payload:
        return {"page_content": text or "", "metadata": body}

    def _read_without_node(self, payload: Mapping[str, Any]) -> tuple[str | None, str | None, Payload]:
        """A document that LangChain added later."""
        if not self._has_document(payload):
            return super()._read_without_node(payload)
        body = payload.get("metadata") or {}
        beside = {k: v for k, v in payload.items() if k not in ("page_content", "metadata", ENVELOPE)}
        return None, payload["page_content"], {**body, **beside}

    def _fits(self, payload: Mapping[str, Any]) -> bool:
        return super()._fits(payload) and self._has_document(payload)

    def _has_document(self, payload: Mapping[str, Any]) -> bool:
        body = payload.get("metadata")
        return isinstance(payload.get("page_content"), str) and (body is None or isinstance(body, Mapping))
