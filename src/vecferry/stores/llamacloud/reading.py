"""The rows of an index behind a cursor: documents, chunks, or the files of the later kind of index.

The service pages documents by ``skip`` and ``limit`` in an order of its own. Whoever reads such a list
while documents come and go sees some twice and misses others. So the list is read into a private file on
disk until two readings in a row saw the same ids, and is then given out in the order of the ids: an order
that does not depend on the service, so a scan can go on behind any id, in another process and days later.

A cursor is ``[document, chunk]``: everything up to this chunk of this document has been given out; ``null``
for the chunk means the whole document.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any, TypeAlias

from vecferry.core.state import StateFile
from vecferry.errors import (
    CorruptDataError,
    FatalStoreError,
    NotFoundError,
    RejectedRecord,
    RetryableError,
)
from vecferry.model import RecordId, VectorRecord
from vecferry.ports import Cursor
from vecferry.stores.llamacloud.client import AHEAD, Client
from vecferry.stores.llamacloud.mapping import chunk_id, chunk_record, document_record

_READINGS = 8
_SLACK = 200  # pages that a list may be longer than its first page says, before it counts as restless
_SPOOLS = 4
_FIND_PAGE = 1000
_TEXT = 200_000
"""Characters of a file asked for at once."""
Row: TypeAlias = tuple[RecordId, str, dict[str, Any], list[float] | None]


# -- the list of documents --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reading:
    """One pass over the list: the ids it saw (an order-independent digest), and what the service counts."""

    digest: int
    count: int
    total: int
    pages: int


class Listing:
    """The documents of one index on disk, sorted by id. A context manager; memory stays flat."""

    def __init__(self, client: Client, path: str, *, page_size: int, bodies: bool) -> None:
        self._client, self._path, self._page_size, self._bodies = client, path, page_size, bodies
        self._state = StateFile(
            None,
            "CREATE TABLE documents (id TEXT PRIMARY KEY, body BLOB, reading INTEGER) WITHOUT ROWID",
            what="the list of documents",
            hint="make room in the temporary folder",
            durability="scratch",
        )

    def __enter__(self) -> Listing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._state.close()

    def fill(self) -> int:
        """Read until stable; returns the number of documents.

        Two readings in a row that saw the same ids are believed, whatever the service counts.

        Raises:
            RetryableError: if the list never comes to rest.
        """
        before: Reading | None = None
        for number in range(_READINGS):
            reading = self._read(number)
            at_once = reading.pages <= 1 and reading.count == reading.total
            if at_once or (before is not None and before.digest == reading.digest):
                self._state.execute("DELETE FROM documents WHERE reading < ?", (number,))
                return reading.count
            before = reading
        assert before is not None
        raise _restless(before.total, before.count)

    def after(self, id_: str | None) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Ids greater than ``id_`` in ascending order, with their documents if bodies are kept."""
        query = "SELECT id, body FROM documents WHERE ? IS NULL OR id > ? ORDER BY id"
        for found, body in self._state.execute(query, (id_, id_)):
            yield found, None if body is None else json.loads(body)

    def find(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The documents of those ids that are there."""
        rows: list[Any] = list(
            self._state.chosen("SELECT id, body FROM documents WHERE id IN ({})", list(ids))
        )
        return {id_: json.loads(body) for id_, body in rows}

    def _read(self, number: int) -> Reading:
        """One pass, up to an empty page: a count that is too small must not end it."""
        skip = digest = count = pages = most = 0
        while True:
            page = self._page(skip)
            documents, total = page.get("documents") or [], int(page.get("total_count") or 0)
            with self._state.transaction():
                for document in documents:
                    if self._keep(document, number):
                        count += 1
                        digest ^= _hash(document["id"])
            if not documents:
                return Reading(digest, count, total, pages)
            pages += 1
            most = most or _SLACK + 3 * total // len(documents)
            if pages > most:
                raise _restless(total, count)
            offset = page.get("offset")
            skip = (skip if offset is None else int(offset)) + len(documents)

    def _page(self, skip: int) -> dict[str, Any]:
        """A page; of a size that the service does not refuse."""
        while True:
            try:
                found: dict[str, Any] = self._client.get(self._path, skip=skip, limit=self._page_size)
                return found
            except (RejectedRecord, FatalStoreError) as error:
                at_fault = "limit" in str(getattr(error, "locations", "")) or "limit" in str(error)
                if self._page_size <= 1 or not at_fault:
                    raise
                self._page_size = max(1, self._page_size // 2)

    def _keep(self, document: dict[str, Any], number: int) -> bool:
        """Store the newest body; true if this reading sees the id for the first time."""
        known = self._state.value("SELECT reading FROM documents WHERE id = ?", (document["id"],))
        body = json.dumps(document) if self._bodies else None
        self._state.execute("REPLACE INTO documents VALUES (?, ?, ?)", (document["id"], body, number))
        return known != number


def _restless(total: int, count: int) -> RetryableError:
    return RetryableError(
        f"the list of documents did not come to rest in {_READINGS} readings: the service counts {total:,} "
        f"and lists {count:,}; pause the ingestion, then try again"
    )


class ChunkSpool:
    """The chunks of one index on disk, each document's fetched once for plan, backup, copy and proof.

    A document's chunks are known by the digest of the document and of the index's settings, both read anew
    in each scan: what has changed since is fetched again.
    """

    def __init__(self) -> None:
        self._state = StateFile(
            None,
            "CREATE TABLE chunks (document TEXT PRIMARY KEY, version BLOB, nodes BLOB) WITHOUT ROWID",
            what="the chunks of an index",
            hint="make room in the temporary folder",
            durability="scratch",
        )

    def get(self, document: str, version: bytes) -> list[dict[str, Any]] | None:
        query = "SELECT nodes FROM chunks WHERE document = ? AND version = ?"
        nodes: Any = self._state.value(query, (document, version))
        return None if nodes is None else json.loads(nodes)

    def put(self, document: str, version: bytes, nodes: list[dict[str, Any]]) -> None:
        row = (document, version, json.dumps(nodes))
        self._state.execute("REPLACE INTO chunks VALUES (?, ?, ?)", row)

    def close(self) -> None:
        self._state.close()


_spools: OrderedDict[str, ChunkSpool] = OrderedDict()
_spools_lock = threading.Lock()


def spool_of(name: str) -> ChunkSpool:
    """The spool of an index in this process: one for all stores that a job opens, the last few kept."""
    with _spools_lock:
        spool = _spools.pop(name, None) or ChunkSpool()
        _spools[name] = spool
        while len(_spools) > _SPOOLS:
            _spools.popitem(last=False)  # closed when its last reader lets go
        return spool


# -- rows -------------------------------------------------------------------------------------------


class DocumentReader:
    """Documents as they were put in."""

    def __init__(self, client: Client, base: str, page_size: int) -> None:
        self.client, self.base, self.page_size = client, base, page_size

    def count(self) -> int:
        """The exact number now."""
        with self.listing(bodies=False) as listing:
            return listing.fill()

    def total(self) -> int | None:
        """What the service says, in one request; ``None`` if it does not count these."""
        page = self.client.get(f"{self.base}/documents/paginated", skip=0, limit=1)
        return int(page.get("total_count") or 0)

    def rows(self, after: Cursor, *, bodies: bool) -> Iterator[tuple[Row, Cursor]]:
        """Rows behind the cursor, each with the cursor behind it. Without ``bodies`` texts may be empty."""
        # The original of an id that the service cannot hold lies in the body.
        with self.listing(bodies=True) as listing:
            listing.fill()
            for id_, body in listing.after(after[0] if after else None):
                yield (*document_record(body or {"id": id_}), None), [id_, None]

    def listing(self, *, bodies: bool) -> Listing:
        path = f"{self.base}/documents/paginated"
        return Listing(self.client, path, page_size=self.page_size, bodies=bodies)


class ChunkReader(DocumentReader):
    """The chunks that the service made.

    Args:
        settings: of the index, as far as they change its chunks.
        spooled: whether chunks that were fetched before in this process may be used.
    """

    def __init__(
        self, client: Client, base: str, page_size: int, settings: object, *, spooled: bool = True
    ) -> None:
        super().__init__(client, base, page_size)
        self._settings = json.dumps(settings, sort_keys=True, default=str)
        self._spool = spool_of(f"{client.account}{base}") if spooled else None

    def count(self) -> int:
        with self.listing(bodies=True) as listing:
            listing.fill()
            return sum(len(nodes) for _, nodes in self._chunks(listing, None))

    def total(self) -> None:
        return None

    def rows(self, after: Cursor, *, bodies: bool) -> Iterator[tuple[Row, Cursor]]:
        document, part = after if after is not None else (None, None)
        with self.listing(bodies=True) as listing:
            listing.fill()
            if document is not None and part is not None:
                yield from self._numbered(document, self._rest(listing, document, part))
            for id_, nodes in self._chunks(listing, document):
                yield from self._numbered(id_, nodes)

    def _rest(self, listing: Listing, document: str, part: str) -> list[dict[str, Any]]:
        """The chunks behind ``part``. If the document was cut anew since, all its new chunks follow."""
        body = listing.find([document]).get(document)
        if body is None:
            return []
        nodes = self._nodes(document, body)
        done = [number for number, node in enumerate(nodes) if node.get("id_") == part]
        return nodes[done[0] + 1 :] if done else nodes

    def _numbered(self, document: str, nodes: Sequence[dict[str, Any]]) -> Iterator[tuple[Row, Cursor]]:
        last = len(nodes) - 1
        for number, node in enumerate(nodes):
            row = chunk_record(node)
            yield (*row, node.get("embedding")), [document, None if number == last else row[0]]

    def _chunks(self, listing: Listing, after: str | None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Document id and chunks, in the order of the ids, a few requests ahead."""
        documents = ((id_, body or {}) for id_, body in listing.after(after))
        with ThreadPoolExecutor(AHEAD, "llamacloud-chunks") as pool:
            under_way = [(i, pool.submit(self._nodes, i, body)) for i, body in islice(documents, AHEAD)]
            while under_way:
                id_, future = under_way.pop(0)
                nodes = future.result()
                under_way += [(i, pool.submit(self._nodes, i, body)) for i, body in islice(documents, 1)]
                yield id_, nodes

    def _nodes(self, document: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The chunks of a document; none if it went away meanwhile.

        Raises:
            CorruptDataError: if the service lists it and does not know its chunks.
        """
        version = blake2b(f"{self._settings}{json.dumps(body, sort_keys=True)}".encode(), digest_size=16)
        kept = self._spool.get(document, version.digest()) if self._spool else None
        if kept is not None:
            return kept

        def is_it(nodes: Any) -> bool:
            return isinstance(nodes, list) and all(_source(node) in (None, document) for node in nodes)

        try:
            found = self.client.of_document("GET", self.base, document, "/chunks", is_it)
        except NotFoundError as error:
            if not self._is_listed(document):
                return []
            raise CorruptDataError(
                f"LlamaCloud lists the document {document!r} and answers 404 for its chunks: {error}. "
                'Ingest or delete it there, or read records="documents"'
            ) from error
        nodes: list[dict[str, Any]] = found or []
        if self._spool:
            self._spool.put(document, version.digest(), nodes)
        return nodes

    def _is_listed(self, document: str) -> bool:
        with self.listing(bodies=True) as listing:
            listing.fill()
            return bool(listing.find([document]))


class FileReader(DocumentReader):
    """The files of an index of the later kind."""

    def __init__(self, client: Client, index_id: str) -> None:
        super().__init__(client, "", 0)
        self._index_id = index_id

    def count(self) -> int:
        return sum(1 for _ in index_files(self.client, self._index_id))

    def total(self) -> int:
        return self.count()

    def rows(self, after: Cursor, *, bodies: bool) -> Iterator[tuple[Row, Cursor]]:
        files = index_files(self.client, self._index_id)
        names = {file["file_id"]: file.get("file_name") for file in files}
        for id_ in sorted(names):
            if after is None or id_ > after[0]:
                text = read_text(self.client, self._index_id, id_) if bodies else ""
                yield (id_, text, {"file_name": names[id_]}, None), [id_, None]


# -- the later kind of index ("v2"): files can be found, read and searched; no chunk list, no vectors ---


def index_files(client: Client, index_id: str) -> Iterator[dict[str, Any]]:
    """Every file once: ``{"file_id", "file_name"}``, in the order of the service."""
    seen: set[str] = set()
    body = {"index_id": index_id, "page_size": _FIND_PAGE}
    for file in client.items("POST", "/api/v1/retrieval/files/find", body=body):
        if file["file_id"] not in seen:
            seen.add(file["file_id"])
            yield file


def read_text(client: Client, index_id: str, file_id: str) -> str:
    """The parsed text of a file, read in pieces up to an empty one: a server may give less than asked."""
    pieces: list[str] = []
    offset = 0
    while True:
        body = {"index_id": index_id, "file_id": file_id, "offset": offset, "max_length": _TEXT}
        piece = client.post("/api/v1/retrieval/files/read", body).get("content") or ""
        if not piece:
            return "".join(pieces)
        pieces.append(piece)
        offset += len(piece)


def search_files(client: Client, index_id: str, text: str, k: int) -> list[VectorRecord]:
    """Hits of the retrieval endpoint. The service names no chunks: an id is made of file and position."""
    body = {"index_id": index_id, "query": text, "top_k": min(k, 500)}
    results = client.post("/api/v1/retrieval/retrieve", body).get("results") or []
    return [_hit(result, number) for number, result in enumerate(results)]


def _hit(result: dict[str, Any], number: int) -> VectorRecord:
    place = {k: v for k, v in (result.get("static_fields") or {}).items() if v is not None}
    metadata = {**(result.get("metadata") or {}), **place}
    score = result.get("rerank_score")
    score = result.get("score") if score is None else score
    return VectorRecord(
        id=chunk_id(place, number), text=result.get("content") or "", metadata=metadata, score=score
    )


def _source(node: Any) -> str | None:
    """The document that a chunk says it was cut from."""
    try:
        found = node["relationships"]["1"]["node_id"]
    except (KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def _hash(id_: str) -> int:
    return int.from_bytes(blake2b(id_.encode("utf-8", "surrogatepass"), digest_size=16).digest(), "big")


__all__ = ["ChunkReader", "DocumentReader", "FileReader", "Listing", "Row", "search_files"]
