"""Reading a list that has no cursor and may change while it is read.

The service pages documents by ``skip`` and ``limit`` in an order of its own. Whoever reads such a list
while documents come and go sees some twice and misses others. So the list is read into a private file on
disk until two readings in a row saw the same ids, as many as the service says there are, and is then
given out in the order of the ids: an order that does not depend on the service, so a scan can go on
behind any id, in another process and days later.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from vecferry.errors import RetryableError
from vecferry.stores.llamacloud.client import Client

_READINGS = 8


@dataclass(frozen=True, slots=True)
class Reading:
    """One pass over the list: the ids it saw (an order-independent digest), and what the service counts."""

    digest: int
    count: int
    total: int
    requests: int


class Listing:
    """The documents of one index on disk, sorted by id. A context manager; memory stays flat."""

    def __init__(self, client: Client, path: str, *, page_size: int, bodies: bool) -> None:
        self._client, self._path, self._page_size, self._bodies = client, path, page_size, bodies
        # An empty name is SQLite's private temporary file, gone with the connection. Batches are
        # asked for from whichever thread drives the stream, one at a time.
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute(
            "CREATE TABLE documents (id TEXT PRIMARY KEY, body BLOB, reading INTEGER) WITHOUT ROWID"
        )

    def __enter__(self) -> Listing:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def fill(self) -> int:
        """Read until stable; returns the number of documents.

        Raises:
            RetryableError: if the list never comes to rest, or the service counts more than it lists.
        """
        before: Reading | None = None
        for number in range(_READINGS):
            reading = self._read(number)
            whole = reading.count == reading.total
            settled = reading.requests == 1 or (before is not None and before.digest == reading.digest)
            if whole and settled:
                self._db.execute("DELETE FROM documents WHERE reading < ?", (number,))
                return reading.count
            before = reading
        assert before is not None
        raise RetryableError(
            f"the list of documents did not come to rest in {_READINGS} readings: the service counts "
            f"{before.total:,} and lists {before.count:,}; pause the ingestion, then try again"
        )

    def after(self, id_: str | None) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Ids greater than ``id_`` in ascending order, with their documents if bodies are kept."""
        rows = self._db.execute("SELECT id, body FROM documents WHERE id > ? ORDER BY id", (id_ or "",))
        if id_ is None:
            rows = self._db.execute("SELECT id, body FROM documents ORDER BY id")
        for found, body in rows:
            yield found, None if body is None else json.loads(body)

    def _read(self, number: int) -> Reading:
        skip = digest = count = requests = 0
        while True:
            page = self._client.get(self._path, skip=skip, limit=self._page_size)
            documents, total = page.get("documents") or [], int(page.get("total_count") or 0)
            requests += 1
            for document in documents:
                if self._keep(document, number):
                    count += 1
                    digest ^= _hash(document["id"])
            offset = page.get("offset")
            skip = (skip if offset is None else int(offset)) + len(documents)
            if not documents or skip >= total:
                return Reading(digest, count, total, requests)

    def _keep(self, document: dict[str, Any], number: int) -> bool:
        """Store the newest body; true if this reading sees the id for the first time."""
        known = self._db.execute("SELECT reading FROM documents WHERE id = ?", (document["id"],)).fetchone()
        body = json.dumps(document) if self._bodies else None
        self._db.execute("REPLACE INTO documents VALUES (?, ?, ?)", (document["id"], body, number))
        return known is None or known[0] != number


def _hash(id_: str) -> int:
    return int.from_bytes(blake2b(id_.encode("utf-8", "surrogatepass"), digest_size=16).digest(), "big")
