"""Sending points: sized by bytes as well as by count, several requests at once, split where too large."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from vecferry.errors import RejectedRecord, RequestTooLargeError
from vecferry.stores.qdrant.connection import Connection
from vecferry.stores.qdrant.local import one_commit
from vecferry.stores.qdrant.points import GRPC_NUMBER, JSON_NUMBER, Rows, as_messages, as_models, chunks

if TYPE_CHECKING:
    from qdrant_client import QdrantClient


class Uploader:
    """Upserts rows and returns when all are acknowledged."""

    def __init__(self, at: Connection, *, points: int, max_bytes: int, parallel: int) -> None:
        self._at, self._points, self._max_bytes, self._parallel = at, points, max_bytes, max(parallel, 1)
        self._pool: ThreadPoolExecutor | None = None

    def upload(self, collection: str, rows: Rows) -> None:
        """Upsert by id.

        Raises:
            RejectedRecord: if a point alone is beyond the server's limit, or is refused.
            RetryableError, FatalStoreError: as the port says. Some rows may be written by then.
        """
        if not len(rows):
            return
        if self._at.address.local:
            points = as_models(rows)
            self._at.run(lambda client: _upsert_at_once(client, collection, points), writing=True)
            return
        width = GRPC_NUMBER if self._at.grpc else JSON_NUMBER
        rows = rows.last_of_each()
        pieces = list(chunks(rows, points=self._points, max_bytes=self._max_bytes, number_bytes=width))
        if len(pieces) == 1 or self._parallel == 1:
            for piece in pieces:
                self._send(collection, piece)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._parallel, thread_name_prefix="vecferry-qdrant")
        jobs = [self._pool.submit(self._send, collection, piece) for piece in pieces]
        wait(jobs)  # also those behind a failure: nothing may arrive after the error is known
        for job in jobs:
            job.result()

    def _send(self, collection: str, rows: Rows) -> None:
        points = as_messages(rows) if self._at.grpc else as_models(rows)
        try:
            self._at.call("upsert", collection, points, wait=True, writing=True)
        except RequestTooLargeError as error:
            if len(rows) == 1:
                reason = f"one point is beyond the server's limit: {error}"
                raise RejectedRecord(reason, ids=rows.records) from error
            middle = len(rows) // 2
            self._send(collection, rows.slice(0, middle))
            self._send(collection, rows.slice(middle, len(rows)))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None


def _upsert_at_once(client: QdrantClient, collection: str, points: list[Any]) -> None:
    with one_commit(client, collection):
        client.upsert(collection, points)
