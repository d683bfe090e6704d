"""Documents into an index: in batches the service can bear, and not acknowledged before they are in.

The service answers an upsert at once and chunks and embeds afterwards. A document counts as written
when its ingestion succeeded; one that failed is refused by its id.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vecferry.errors import NotFoundError, RejectedRecord, RetryableError
from vecferry.stores.llamacloud.client import Client

MAX_DOCUMENTS = 100
MAX_BYTES = 1_000_000
_PENDING = ("NOT_STARTED", "IN_PROGRESS")
_DONE = "SUCCESS"


@dataclass(frozen=True, slots=True)
class Ingestion:
    """How long the outcome is waited for: ``timeout`` in all, first look after ``poll`` seconds."""

    timeout: float = 600.0
    poll: float = 0.5


def group(documents: Sequence[dict[str, Any]]) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Groups of at most 100 documents and about 1 MB (a larger document goes alone), with their bytes."""
    chunk: list[dict[str, Any]] = []
    size = 0
    for document in documents:
        weight = len(json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        if chunk and (len(chunk) == MAX_DOCUMENTS or size + weight > MAX_BYTES):
            yield chunk, size
            chunk, size = [], 0
        chunk.append(document)
        size += weight
    if chunk:
        yield chunk, size


def upsert(client: Client, base: str, documents: Sequence[dict[str, Any]]) -> int:
    """Send them all; returns the bytes sent.

    Raises:
        RejectedRecord: with the ids at fault, where the service names them.
    """
    sent = 0
    for chunk, size in group(documents):
        ids = [document["id"] for document in chunk]
        try:
            answer = client.put(f"{base}/documents", chunk)
        except RejectedRecord as error:
            raise RejectedRecord(str(error), ids=_faulty(error, ids)) from error
        taken = {document.get("id") for document in answer or ()}
        missing = [id_ for id_ in ids if id_ not in taken]
        if missing:
            raise RejectedRecord(f"LlamaCloud did not take {missing[:3]} and gave no reason", ids=missing)
        sent += size
    return sent


def wait_for(client: Client, base: str, ids: Sequence[str], patience: Ingestion) -> None:
    """Return when every document is in the index.

    Asks for the counts of the whole index, one request however many documents. They speak for these only
    if they count every document that is listed; where they do not, where an old server has none, or where
    some document failed, each document is asked for its status.

    Raises:
        RejectedRecord: with the ids whose ingestion failed, and why.
        RetryableError: if it takes longer than ``patience.timeout``.
    """
    end = time.monotonic() + patience.timeout
    wait = patience.poll
    left = list(ids)
    failed: dict[str, str] = {}
    while left:
        counts = status_counts(client, base)
        busy = counts is not None and any(counts.get(state) for state in _PENDING)
        if counts is not None and not busy and {state for state, n in counts.items() if n} <= {_DONE}:
            listed = client.get(f"{base}/documents/paginated", skip=0, limit=1).get("total_count") or 0
            if sum(counts.values()) >= max(int(listed), len(set(ids))):
                return
        if not busy:
            left = _look_at_each(client, base, left, failed)
        if left and time.monotonic() + wait > end:
            raise RetryableError(
                f"{len(left):,} documents were not ingested within {patience.timeout:.0f} s; they are on "
                "the server, so run the same call again to wait on"
            )
        if left:
            time.sleep(wait)
            wait = min(wait * 2, 10.0)
    if failed:
        reasons = "; ".join(f"{id_}: {reason}" for id_, reason in list(failed.items())[:3])
        raise RejectedRecord(f"ingestion failed for {len(failed):,} documents: {reasons}", ids=list(failed))


def status_counts(client: Client, base: str, what: str = "documents") -> dict[str, int] | None:
    """How many documents or files are in which state; ``None`` where the server does not say."""
    try:
        counts: dict[str, int] = client.get(f"{base}/{what}/status-counts").get("counts") or {}
        return counts
    except (NotFoundError, RejectedRecord):
        return None


def _look_at_each(client: Client, base: str, ids: Sequence[str], failed: dict[str, str]) -> list[str]:
    """The ids still pending; those that failed go to ``failed`` with the reason."""
    pending = []
    for id_ in ids:
        try:
            status = client.of_document("GET", base, id_, "/status")
        except NotFoundError:
            failed[id_] = "the document is gone"
            continue
        state = status.get("status")
        if state in _PENDING or state is None:  # without a status nothing is acknowledged
            pending.append(id_)
        elif state != _DONE:
            failed[id_] = _reason(status)
    return pending


def _reason(status: dict[str, Any]) -> str:
    errors = status.get("error") or []
    messages = [
        f"{error.get('step')}: {error.get('message')}" for error in errors if isinstance(error, dict)
    ]
    return "; ".join(messages) or str(status.get("status"))


def _faulty(error: RejectedRecord, ids: Sequence[str]) -> list[str]:
    """The ids that a 422 points at: ``loc`` is ``["body", row, …]``."""
    rows = [loc[1] for loc in getattr(error, "locations", []) if len(loc) > 1 and isinstance(loc[1], int)]
    return [ids[row] for row in dict.fromkeys(rows) if row < len(ids)]
