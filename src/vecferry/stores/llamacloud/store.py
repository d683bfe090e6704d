"""``llamacloud://PROJECT/INDEX`` and ``llamacloud:INDEX_ID``: an index of the LlamaCloud service.

A source of documents or of the service's own chunks, a target for documents, and a text search. The
service gives no vectors away, so what leaves it is embedded again (``embed=…``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any
from urllib.parse import unquote

import numpy as np

from vecferry.errors import (
    ConfigurationError,
    NotFoundError,
    RejectedRecord,
    TargetExistsError,
    UnsupportedError,
)
from vecferry.ports import (
    Capabilities,
    Cursor,
    Fields,
    Partition,
    StoreURL,
    WriteMode,
    WriteReceipt,
)
from vecferry.records import (
    CollectionSchema,
    EmbeddingSpace,
    Loss,
    RecordBatch,
    RecordId,
    VectorField,
    VectorRecord,
    Where,
    matches,
)
from vecferry.records.vectors import DenseColumn
from vecferry.retry import RetryPolicy
from vecferry.stores.llamacloud import config, later
from vecferry.stores.llamacloud.client import RETRY, Client, segment
from vecferry.stores.llamacloud.filters import to_service
from vecferry.stores.llamacloud.finding import Found, find_index, find_nothing_or, find_project, is_uuid
from vecferry.stores.llamacloud.listing import Listing
from vecferry.stores.llamacloud.mapping import (
    chunk_record,
    document_id,
    document_record,
    hit_record,
    record_document,
)
from vecferry.stores.llamacloud.writing import Ingestion, upsert, wait_for

_AHEAD = 4
"""Requests for chunks under way at once; the pace stays what ``rate`` says."""
_MOST_HITS = 100
Row = tuple[RecordId, str, dict[str, Any], list[float] | None]


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
        found = self._index()
        info = found.info
        space = self.space
        settings: dict[str, Any] = {
            "project": found.project.get("name") or found.project.get("id"),
            "project_id": found.project.get("id"),
            "index": info.get("name"),
            "index_id": found.id,
            "version": found.version,
            "records": self.records,
        }
        losses = [_NO_VECTORS]
        if found.version == 1:
            sink = config.sink_of(info)
            settings |= {
                "embedding": config.without_secrets(config.embedding_of(info)),
                "space": space.model_dump() if space else None,
                "chunker": config.chunker_of(info),
                "transform_config": config.without_secrets(info.get("transform_config") or {}),
                "data_sink": sink,
                "files": self._count_files(),
            }
            losses = [_in_sink(sink)] if sink else losses
        wanted = self._vectors and self.records == "chunks" and space is not None
        return CollectionSchema(
            name=str(info.get("name") or self.index),
            fields=(VectorField(dim=space.dim, space=space),) if wanted and space else (),
            id_type="str",
            ids_unique=self.records == "documents",
            count=self._total() if self.records == "documents" else None,
            settings={"llamacloud": settings},
            losses=() if wanted else tuple(losses),
        )

    @property
    def space(self) -> EmbeddingSpace | None:
        """The space in which the service embeds, if it can be told from the index's settings."""
        found = self._index()
        return config.space_of(found.info) if found.version == 1 else None

    @property
    def sink_url(self) -> str | None:
        """The URL of the customer-owned store that holds this index's vectors, if there is one."""
        sink = config.sink_of(self._index().info)
        return sink["url"] if sink else None

    def count(self) -> int:
        if self._index().version == 2:
            return sum(1 for _ in later.files(self._client, self._index().id))
        with self._listing(bodies=False) as listing:
            documents = listing.fill()
            if self.records == "documents":
                return documents
            return sum(len(nodes) for _, nodes in self._chunks(listing, None))

    def partitions(self, want: int) -> Sequence[Partition]:
        """One: the list has no order of its own that could be cut, and the rate limit is one for all."""
        return [Partition("0", None, self._total() if self.records == "documents" else None)]

    def scan(
        self,
        *,
        partition: Partition | None = None,
        after: Cursor | None = None,
        batch_size: int = 1024,
        fields: Fields = Fields.ALL,
        where: Where | None = None,
    ) -> Iterator[RecordBatch]:
        document, part = after if after is not None else (None, None)
        rows = self._rows(document, part, bodies=fields.text or fields.metadata or where is not None)
        while chunk := list(islice(rows, batch_size)):
            cursor = chunk[-1][1]
            kept = [row for row, _ in chunk if where is None or matches(where, row[2])]
            yield self._batch(kept, fields, cursor)

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
            losses=(Loss(kind="field", detail="LlamaCloud chunks and embeds by itself"),),
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
            self._found = self._create(schema)
        elif found.version == 2:
            raise UnsupportedError(f"{self.url} is an index of the later kind, which takes files only")
        elif mode is WriteMode.CREATE and self._total():
            raise TargetExistsError(f'{self.url} holds documents; pass mode="upsert"')

    def write(self, batch: RecordBatch) -> WriteReceipt:
        columns = zip(batch.id_list, batch.text_list, batch.metadata_list, strict=True)
        documents = [record_document(*row) for row in columns]
        originals = {document_id(id_): id_ for id_ in batch.id_list}
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
        self._client.close()

    # -- abilities ----------------------------------------------------------------------------

    def fetch(self, ids: Sequence[RecordId], *, fields: Fields = Fields.ALL) -> RecordBatch:
        if self.records == "chunks":
            raise UnsupportedError(
                'the service finds no chunk by id; open the index with records="documents"'
            )
        rows: list[Row] = []
        for id_ in ids:
            document = self._document(document_id(id_))
            if document is not None:
                rows.append((*document_record(document), None))
        return self._batch(rows, fields, None)

    def search_text(self, text: str, k: int = 10, *, where: Where | None = None) -> list[VectorRecord]:
        """At most ``k`` of the service's chunks (and at most 100), best first."""
        found = self._index()
        if found.version == 2:
            hits = later.search(self._client, found.id, text, k)
        else:
            body: dict[str, Any] = {
                "query": text,
                "dense_similarity_top_k": max(1, min(k, _MOST_HITS)),
                "enable_reranking": self._rerank,
            }
            if where:
                body["search_filters"] = to_service(where)
            nodes = self._client.post(f"{self._base}/retrieve", body).get("retrieval_nodes") or []
            hits = [hit_record(node) for node in nodes]
        return [hit for hit in hits if not where or matches(where, hit.metadata)][:k]

    def delete(self, ids: Sequence[RecordId]) -> int:
        """Delete documents. The service removes them from its index some time later."""
        deleted = 0
        for id_ in ids:
            try:
                self._client.delete(f"{self._base}/documents/{segment(document_id(id_))}")
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

    def _listing(self, *, bodies: bool) -> Listing:
        path = f"{self._base}/documents/paginated"
        return Listing(self._client, path, page_size=self._page_size, bodies=bodies)

    def _total(self) -> int:
        if self._index().version == 2:
            return self.count()
        page = self._client.get(f"{self._base}/documents/paginated", skip=0, limit=1)
        return int(page.get("total_count") or 0)

    def _count_files(self) -> int | None:
        try:
            page = self._client.get(f"{self._base}/files2", limit=1, offset=0)
            return int(page.get("total_count") or 0)
        except NotFoundError:
            return None

    def _document(self, id_: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._client.get(f"{self._base}/documents/{segment(id_)}")
            return found
        except NotFoundError:
            return None

    def _rows(
        self, document: str | None, part: str | None, *, bodies: bool
    ) -> Iterator[tuple[Row, Cursor]]:
        """Rows behind the cursor, each with the cursor behind it."""
        if self._index().version == 2:
            yield from self._file_rows(document, bodies=bodies)
            return
        chunks = self.records == "chunks"
        with self._listing(bodies=bodies and not chunks) as listing:
            listing.fill()
            if chunks:
                yield from self._chunk_rows(listing, document, part)
                return
            for id_, body in listing.after(document):
                yield (*document_record(body or {"id": id_}), None), [id_, None]

    def _file_rows(self, document: str | None, *, bodies: bool) -> Iterator[tuple[Row, Cursor]]:
        index_id = self._index().id
        names = {file["file_id"]: file.get("file_name") for file in later.files(self._client, index_id)}
        for id_ in sorted(names):
            if document is None or id_ > document:
                text = later.read_text(self._client, index_id, id_) if bodies else ""
                yield (id_, text, {"file_name": names[id_]}, None), [id_, None]

    def _chunk_rows(
        self, listing: Listing, document: str | None, part: str | None
    ) -> Iterator[tuple[Row, Cursor]]:
        if document is not None and part is not None:
            # The document that the last batch ended in: its remaining chunks. If it was cut anew since,
            # the id is not among them, and all its new chunks follow.
            nodes = self._nodes(document)
            done = [number for number, node in enumerate(nodes) if node.get("id_") == part]
            yield from self._numbered(document, nodes[done[0] + 1 :] if done else nodes)
        for id_, nodes in self._chunks(listing, document):
            yield from self._numbered(id_, nodes)

    def _numbered(self, document: str, nodes: Sequence[dict[str, Any]]) -> Iterator[tuple[Row, Cursor]]:
        last = len(nodes) - 1
        for number, node in enumerate(nodes):
            row = chunk_record(node)
            yield (*row, node.get("embedding")), [document, None if number == last else row[0]]

    def _chunks(self, listing: Listing, after: str | None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Document id and chunks, in the order of the ids, a few requests ahead."""
        ids = (id_ for id_, _ in listing.after(after))
        with ThreadPoolExecutor(_AHEAD, "llamacloud-chunks") as pool:
            under_way = [(id_, pool.submit(self._nodes, id_)) for id_ in islice(ids, _AHEAD)]
            while under_way:
                id_, future = under_way.pop(0)
                nodes = future.result()
                under_way += [(more, pool.submit(self._nodes, more)) for more in islice(ids, 1)]
                yield id_, nodes

    def _nodes(self, document: str) -> list[dict[str, Any]]:
        """The chunks of a document; none if it went away meanwhile."""
        try:
            return self._client.get(f"{self._base}/documents/{segment(document)}/chunks") or []
        except NotFoundError:
            return []

    def _batch(self, rows: Sequence[Row], fields: Fields, cursor: Cursor) -> RecordBatch:
        return RecordBatch(
            ids=[row[0] for row in rows],
            vectors={"": self._column(rows)} if self._gives_vectors(fields) else {},
            texts=[row[1] for row in rows] if fields.text else None,
            metadata=[row[2] for row in rows] if fields.metadata else None,
            cursor=cursor,
        )

    def _gives_vectors(self, fields: Fields) -> bool:
        wanted = self._vectors and self.records == "chunks" and fields.wants("")
        return wanted and self.space is not None

    def _column(self, rows: Sequence[Row]) -> DenseColumn:
        space = self.space
        assert space is not None
        usable = [row[3] if row[3] is not None and len(row[3]) == space.dim else None for row in rows]
        return DenseColumn.from_rows(usable, space.dim, np.float32)

    def _create(self, schema: CollectionSchema) -> Found:
        """A new index, with the settings that came along if the records come from LlamaCloud."""
        if is_uuid(self.index):
            raise NotFoundError(f"there is no index with the id {self.index}; give a new one a name")
        if self.project is None:
            raise ConfigurationError(
                f"name the project of the new index: llamacloud://PROJECT/{self.index}"
            )
        project = find_project(self._client, self.project)
        known = schema.settings.get("llamacloud") or {}
        body = {
            "name": self.index,
            "pipeline_type": "MANAGED",
            "embedding_config": _creatable(known.get("embedding")),
            "transform_config": known.get("transform_config") or {"mode": "auto"},
        }
        info = self._client.put("/api/v1/pipelines", body, project_id=project["id"])
        return Found(1, info, project)


_MANAGED = {
    "type": "MANAGED_OPENAI_EMBEDDING",
    "component": {"model_name": "openai-text-embedding-3-small"},
}
_NO_VECTORS = Loss(
    kind="vector",
    detail="LlamaCloud keeps its vectors to itself; embed anew with embed=…",
    where="source",
)


def _in_sink(sink: dict[str, Any]) -> Loss:
    there = f"read them with vecferry at {sink['url']}" if sink["url"] else "read them there"
    detail = f"the vectors of this index lie in your own {sink['type']} store {sink['name']!r}; {there}"
    return Loss(kind="vector", detail=detail, where="source")


def _creatable(embedding: Any) -> dict[str, Any]:
    """An embedding configuration without secrets can be used only where the service has the key itself."""
    managed = isinstance(embedding, dict) and embedding.get("type") == "MANAGED_OPENAI_EMBEDDING"
    return embedding if managed else _MANAGED


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError(text)
    return text.lower() in ("true", "1", "yes")


def _read_option(name: str, text: str, read: Any) -> Any:
    try:
        return read(text)
    except ValueError:
        raise ConfigurationError(f"llamacloud: cannot read {name}={text!r} as {read.__name__}") from None


_OPTIONS: dict[str, Any] = {
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
