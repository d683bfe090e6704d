"""``llamacloud://PROJECT/INDEX`` and ``llamacloud:INDEX_ID``: an index of the LlamaCloud service.

A source of documents or of the service's own chunks, a target for documents, and a text search. The
service gives no vectors away, so what leaves it is embedded again (``embed=…``).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any
from urllib.parse import unquote

import numpy as np

from vecferry.core.retry import RetryPolicy
from vecferry.errors import (
    ConfigurationError,
    NotFoundError,
    RejectedRecord,
    TargetExistsError,
    UnsupportedError,
)
from vecferry.model import (
    CollectionSchema,
    EmbeddingSpace,
    Loss,
    RecordBatch,
    RecordId,
    VectorField,
    VectorRecord,
    Where,
    predicate,
)
from vecferry.model.vectors import DenseColumn
from vecferry.ports import (
    Capabilities,
    Cursor,
    Fields,
    Partition,
    StoreURL,
    WriteMode,
    WriteReceipt,
)
from vecferry.stores.llamacloud import index as config
from vecferry.stores.llamacloud.client import RETRY, Client, segment
from vecferry.stores.llamacloud.index import Found, create_index, find_index, find_nothing_or
from vecferry.stores.llamacloud.mapping import (
    document_id,
    document_record,
    hit_record,
    record_document,
    to_service,
)
from vecferry.stores.llamacloud.reading import (
    ChunkReader,
    DocumentReader,
    FileReader,
    Listing,
    Row,
    search_files,
)
from vecferry.stores.llamacloud.writing import Ingestion, status_counts, upsert, wait_for

_MOST_HITS = 100
_LISTING_SECONDS = 60.0
"""How long a list of documents answers for records asked for by id, while nothing is written here."""
_INDEXED = "SUCCESS"


class LlamaCloudStore:
    """One index of LlamaCloud.

    Args:
        project: name or id; ``None`` looks in all projects of the key.
        index: name or id.
        records: ``"documents"`` (as they were put in; chunk them anew) or ``"chunks"`` (as the service
            cut them).
        vectors: use embeddings that come with chunks, if they have the length of the index's space. The
            service fills them rarely, if ever; a chunk without one lacks its vector.
        version: 1 (pipelines) or 2 (the later kind); by default whichever is called so.
        rate: requests a second at most; 0 means no limit.
        page_size: documents a request.
        timeout: seconds for one answer.
        wait: whether a write waits until the service has ingested the documents.
        ingest_timeout: how long, in seconds.
        rerank: whether searches are re-ranked by the service.
        key, base_url, retry: for tests and special cases; see `Client`.

    Raises:
        ConfigurationError: if there is no key, or an option is malformed.
    """

    def __init__(
        self,
        index: str,
        project: str | None = None,
        *,
        records: str = "documents",
        vectors: bool = False,
        version: int | None = None,
        rate: float = 5.0,
        page_size: int = 100,
        timeout: float = 60.0,
        wait: bool = True,
        ingest_timeout: float = 600.0,
        poll: float = 0.5,
        rerank: bool = False,
        key: str | None = None,
        base_url: str | None = None,
        retry: RetryPolicy = RETRY,
    ) -> None:
        if records not in ("documents", "chunks"):
            raise ConfigurationError(f'records={records!r}: choose "documents" or "chunks"')
        self.index, self.project, self.records = index, project, records
        self.url = f"llamacloud://{project}/{index}" if project else f"llamacloud:{index}"
        self._vectors, self._version, self._page_size = vectors, version, page_size
        self._wait, self._patience, self._rerank = wait, Ingestion(ingest_timeout, poll), rerank
        self._client = Client(key, base_url, rate=rate, timeout=timeout, retry=retry)
        self._found: Found | None = None
        self._listed: tuple[Listing, float] | None = None

    @classmethod
    def from_url(cls, url: StoreURL, **options: Any) -> LlamaCloudStore:
        for name, read in _OPTIONS.items():
            if isinstance(options.get(name), str):
                options[name] = _read_option(name, options[name], read)
        project, index = (unquote(url.host or ""), url.path) if url.netloc else (None, url.path)
        if not index or project == "":
            raise ConfigurationError("name the index: llamacloud://PROJECT/INDEX, or llamacloud:INDEX_ID")
        return cls(index, project, **options)

    # -- source -------------------------------------------------------------------------------

    def describe(self) -> CollectionSchema:
        found, space = self._index(), self.space
        settings = {**config.settings_of(found.info, found.version), "records": self.records}
        settings |= {"project": found.project.get("name"), "project_id": found.project.get("id")}
        unread: tuple[Loss, ...] = ()
        if found.version == 1:
            settings["files"] = self._count_files()
            unread = tuple(self._not_indexed())
        fields = (VectorField(dim=space.dim, space=space),) if space and self._wants_vectors else ()
        return CollectionSchema(
            name=str(found.info.get("name") or self.index),
            fields=fields,
            id_type="str",
            ids_unique=self.records == "documents",
            count=self._reader().total(),
            settings={"llamacloud": settings},
            losses=(*unread, *(() if fields else (config.loss_of(found.info),))),
        )

    @property
    def space(self) -> EmbeddingSpace | None:
        """The space in which the service embeds, if it can be told from the index's settings."""
        found = self._index()
        return config.space_of(found.info) if found.version == 1 else None

    @property
    def chunking(self) -> dict[str, Any]:
        """Options of `vecferry.migrate` that cut documents as the index does (by sentences, in tokens)."""
        chunker = config.chunker_of(self._index().info)
        if self.records == "chunks" or "chunk_size" not in chunker:
            return {}
        size, overlap = chunker["chunk_size"], chunker["chunk_overlap"]
        return {"long_text": "split", "chunk_size": size, "chunk_overlap": min(overlap, size - 1)}

    @property
    def sink_url(self) -> str | None:
        """The URL of the customer-owned store that holds this index's vectors, if there is one."""
        sink = config.sink_of(self._index().info)
        return sink["url"] if sink else None

    def count(self) -> int:
        return self._reader().count()

    def partitions(self, want: int) -> Sequence[Partition]:
        """One: the list has no order of its own that could be cut, and the rate limit is one for all."""
        return [Partition("0", None, self._reader().total())]

    def scan(
        self,
        *,
        partition: Partition | None = None,
        after: Cursor | None = None,
        batch_size: int = 1024,
        fields: Fields = Fields.ALL,
        where: Where | None = None,
    ) -> Iterator[RecordBatch]:
        rows = self._rows(after, bodies=fields.text or fields.metadata or where is not None)
        passes = None if where is None else predicate(where)
        while chunk := list(islice(rows, batch_size)):
            cursor = chunk[-1][1]
            kept = [row for row, _ in chunk if passes is None or passes(row[2])]
            yield self._batch(kept, fields, cursor)

    def place(self) -> str | None:
        """The index by account and id, whatever names lead to it."""
        found = self._find()
        return None if found is None else f"{self._client.base_url}/{found.id}/{self.records}"

    @property
    def account(self) -> str:
        """Tells two accounts, and two base URLs, apart: an index of one name may be in each."""
        return self._client.account

    def stored_ids(self, ids: Sequence[RecordId]) -> list[RecordId]:
        """The id of each record's document."""
        return [document_id(id_) for id_ in ids]

    def stamp(self) -> dict[str, Any]:
        """What the service counts now; see `vecferry.ports.Stamped`."""
        found = self._find()
        if found is None:
            return {"kind": "store", "absent": True}
        if found.version == 2:
            return {"kind": "store", "count": self._reader().total(), "index": found.id}
        documents = DocumentReader(self._client, self._base, self._page_size).total()
        states = status_counts(self._client, self._base) or {}
        known = {state: count for state, count in sorted(states.items()) if count}
        count = documents if self.records == "documents" else None
        return {"kind": "store", "count": count, "documents": documents, "states": known, "index": found.id}

    def files(self) -> Iterator[dict[str, Any]]:
        """The files behind the documents, as the service describes them (``PipelineFile``)."""
        seen: set[str] = set()
        offset = 0
        while True:
            page = self._client.get(f"{self._base}/files2", limit=self._page_size, offset=offset)
            listed = page.get("files") or []
            for file in listed:
                if file["id"] not in seen:
                    seen.add(file["id"])
                    yield file
            offset += len(listed)
            if not listed or offset >= int(page.get("total_count") or 0):
                return

    # -- sink ---------------------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        return Capabilities(
            kinds=frozenset(),
            id_types=frozenset({"str"}),
            metadata_types=frozenset({"null", "bool", "int", "float", "str", "list", "object"}),
            several_fields=False,
            needs_vectors=False,
            losses=(
                Loss(kind="field", detail="vectors stay behind: LlamaCloud chunks and embeds by itself"),
            ),
        )

    def exists(self) -> bool:
        return self._found is not None or self._find() is not None

    def prepare(self, schema: CollectionSchema, mode: WriteMode) -> None:
        if mode is WriteMode.REPLACE:
            raise UnsupportedError(
                f'{self.url} cannot be replaced in one step; write to a new index, or use mode="upsert"'
            )
        if schema.fields:
            raise UnsupportedError("LlamaCloud embeds by itself: leave the vectors out with fields=[]")
        found = self._find()
        if found is None:
            info, project = create_index(self._client, self.project, self.index, schema)
            self._found = Found(1, info, project)
        elif found.version == 2:
            raise UnsupportedError(f"{self.url} is an index of the later kind, which takes files only")
        elif mode is WriteMode.CREATE and self._reader().total() != 0:
            raise TargetExistsError(f'{self.url} holds documents; pass mode="upsert"')

    def write(self, batch: RecordBatch) -> WriteReceipt:
        columns = zip(batch.id_list, batch.text_list, batch.metadata_list, strict=True)
        documents = [record_document(*row) for row in columns]
        originals = {document_id(id_): id_ for id_ in batch.id_list}
        self._forget_list()
        try:
            sent = upsert(self._client, self._base, documents)
            if self._wait:
                wait_for(self._client, self._base, list(originals), self._patience)
        except RejectedRecord as error:
            raise RejectedRecord(str(error), ids=[originals[id_] for id_ in error.ids]) from error
        return WriteReceipt(len(batch), sent)

    def finish(self) -> None:
        """Nothing to do: each write waits for its own ingestion."""

    def close(self) -> None:
        self._forget_list()
        self._client.close()

    # -- abilities ----------------------------------------------------------------------------

    def fetch(self, ids: Sequence[RecordId], *, fields: Fields = Fields.ALL) -> RecordBatch:
        if self.records == "chunks":
            raise UnsupportedError(
                'the service finds no chunk by id; open the index with records="documents"'
            )
        found = self._by_id([document_id(id_) for id_ in ids])
        rows: list[Row] = [(*document_record(document), None) for document in found]
        return self._batch(rows, fields, None)

    def search_text(self, text: str, k: int = 10, *, where: Where | None = None) -> list[VectorRecord]:
        """At most ``k`` of the service's chunks (and at most 100), best first."""
        passes = None if not where else predicate(where)
        asked = max(1, k)
        while True:
            hits = self._retrieve(text, asked, where)
            kept = hits if passes is None else [hit for hit in hits if passes(hit.metadata)]
            # What the service could not be asked is filtered here: more is asked for until k have passed.
            if len(kept) >= k or passes is None or len(hits) < asked or asked >= _MOST_HITS:
                return kept[:k]
            asked = min(_MOST_HITS, asked * 4)

    def _retrieve(self, text: str, k: int, where: Where | None) -> list[VectorRecord]:
        found = self._index()
        if found.version == 2:
            return search_files(self._client, found.id, text, k)
        body: dict[str, Any] = {
            "query": text,
            "dense_similarity_top_k": min(k, _MOST_HITS),
            "enable_reranking": self._rerank,
        }
        if where:
            body["search_filters"] = to_service(where)
        nodes = self._client.post(f"{self._base}/retrieve", body).get("retrieval_nodes") or []
        return [hit_record(node) for node in nodes]

    def delete(self, ids: Sequence[RecordId]) -> int:
        """Delete documents. The service removes them from its index some time later."""
        deleted = 0
        self._forget_list()
        for id_ in ids:
            try:
                self._client.of_document("DELETE", self._base, document_id(id_))
                deleted += 1
            except NotFoundError:
                continue
        return deleted

    # -- helpers ------------------------------------------------------------------------------

    def _index(self) -> Found:
        if self._found is None:
            self._found = find_index(self._client, self.project, self.index, self._version)
        return self._found

    def _find(self) -> Found | None:
        if self._found is None:
            self._found = find_nothing_or(self._client, self.project, self.index, self._version)
        return self._found

    @property
    def _base(self) -> str:
        return f"/api/v1/pipelines/{segment(self._index().id)}"

    def _reader(self) -> DocumentReader:
        found = self._index()
        if found.version == 2:
            return FileReader(self._client, found.id)
        if self.records == "documents":
            return DocumentReader(self._client, self._base, self._page_size)
        cut = (config.settings_of(found.info, 1), found.info.get("config_hash"))
        return ChunkReader(self._client, self._base, self._page_size, cut, spooled=not self._vectors)

    def _rows(self, after: Cursor | None, *, bodies: bool) -> Iterator[tuple[Row, Cursor]]:
        """The rows of the reader.

        Raises:
            NotFoundError: if there is none, and there are files: nothing of them is in the index.
        """
        empty = True
        for row in self._reader().rows(after, bodies=bodies):
            empty = False
            yield row
        if empty and after is None and self._index().version == 1:
            self._refuse_files_without_documents()

    def _refuse_files_without_documents(self) -> None:
        files = self._count_files() or 0
        documents = DocumentReader(self._client, self._base, self._page_size).total()
        if files and not documents:
            states = "; ".join(loss.detail for loss in self._not_indexed())
            raise NotFoundError(
                f"{self.url} has {files:,} files and no documents, so nothing of them can be read"
                f"{f' ({states})' if states else ''}; wait until they are ingested, or look at them there"
            )

    def _not_indexed(self) -> Iterator[Loss]:
        """Files and documents that are not in the index, or not wholly, as far as the service says."""
        for what in ("files", "documents"):
            states = self._states(what)
            left = {state: n for state, n in sorted(states.items()) if n and state != _INDEXED}
            if left:
                how = ", ".join(f"{n:,} {state}" for state, n in left.items())
                total = sum(states.values())
                yield Loss(
                    kind="text",
                    detail=f"of {total:,} {what} in the index are not ingested and may be missing: {how}",
                    count=sum(left.values()),
                    example=self._first_of(left) if what == "files" else None,
                    where="source",
                )

    def _states(self, what: str) -> Mapping[str, int]:
        counts = status_counts(self._client, self._base, what)
        if counts is not None:
            return counts
        if what == "documents":
            return {}
        try:
            return Counter(str(file.get("status") or _INDEXED) for file in self.files())
        except NotFoundError:
            return {}

    def _first_of(self, states: Mapping[str, int]) -> str | None:
        """The name of a file in one of those states."""
        try:
            found = (file for file in self.files() if file.get("status") in states)
            return next((str(file.get("name") or file.get("id")) for file in found), None)
        except NotFoundError:
            return None

    def _count_files(self) -> int | None:
        try:
            page = self._client.get(f"{self._base}/files2", limit=1, offset=0)
            return int(page.get("total_count") or 0)
        except NotFoundError:
            return None

    def _by_id(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Documents by id: one by one, or from the list, whichever takes fewer requests."""
        if self._listed is None or time.monotonic() - self._listed[1] > _LISTING_SECONDS:
            self._forget_list()
            reader = DocumentReader(self._client, self._base, self._page_size)
            by_list = 2 * (2 + (reader.total() or 0) // self._page_size)
            if len(ids) <= by_list:
                found = map(self._document, ids)
                return [document for document in found if document is not None]
            listing = reader.listing(bodies=True)
            listing.fill()
            self._listed = (listing, time.monotonic())
        there = self._listed[0].find(ids)
        return [there[id_] for id_ in ids if id_ in there]

    def _forget_list(self) -> None:
        if self._listed is not None:
            self._listed[0].close()
            self._listed = None

    def _document(self, id_: str) -> dict[str, Any] | None:
        def is_it(found: Any) -> bool:
            return isinstance(found, dict) and found.get("id") == id_

        try:
            found: dict[str, Any] = self._client.of_document("GET", self._base, id_, is_it=is_it)
            return found
        except NotFoundError:
            return None

    def _batch(self, rows: Sequence[Row], fields: Fields, cursor: Cursor) -> RecordBatch:
        return RecordBatch(
            ids=[row[0] for row in rows],
            vectors={"": self._column(rows)} if self._gives_vectors(fields) else {},
            texts=[row[1] for row in rows] if fields.text else None,
            metadata=[row[2] for row in rows] if fields.metadata else None,
            cursor=cursor,
        )

    @property
    def _wants_vectors(self) -> bool:
        return self._vectors and self.records == "chunks"

    def _gives_vectors(self, fields: Fields) -> bool:
        return self._wants_vectors and fields.wants("") and self.space is not None

    def _column(self, rows: Sequence[Row]) -> DenseColumn:
        space = self.space
        assert space is not None
        usable = [row[3] if row[3] is not None and len(row[3]) == space.dim else None for row in rows]
        return DenseColumn.from_rows(usable, space.dim, np.float32)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError(text)
    return text.lower() in ("true", "1", "yes")


def _read_option(name: str, text: str, read: Callable[[str], object]) -> object:
    try:
        return read(text)
    except ValueError:
        raise ConfigurationError(f"llamacloud: cannot read {name}={text!r} as {read.__name__}") from None


_OPTIONS: dict[str, Callable[[str], object]] = {
    "vectors": _truth,
    "wait": _truth,
    "rerank": _truth,
    "version": int,
    "page_size": int,
    "rate": float,
    "timeout": float,
    "ingest_timeout": float,
    "poll": float,
}
