"""`QdrantStore`: a collection on a Qdrant server or in the client's local mode."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from vecferry.errors import (
    ConfigurationError,
    NotFoundError,
    SchemaMismatchError,
)
from vecferry.layouts import find_layout
from vecferry.model import (
    CollectionSchema,
    Kind,
    Metric,
    RecordBatch,
    RecordId,
    VectorRecord,
    Where,
    encode_id,
    matches,
)
from vecferry.ports import (
    Capabilities,
    Cursor,
    Fields,
    Partition,
    StoreURL,
    Version,
    WriteMode,
    WriteReceipt,
)
from vecferry.stores.qdrant import points as pts
from vecferry.stores.qdrant.building import Builder
from vecferry.stores.qdrant.config import DATATYPES, DISTANCES
from vecferry.stores.qdrant.connection import Address, Connection, flag, number
from vecferry.stores.qdrant.facts import Facts, read_facts
from vecferry.stores.qdrant.reading import pages, quantiles, retrieve
from vecferry.stores.qdrant.searching import find
from vecferry.stores.qdrant.uploading import Uploader
from vecferry.stores.qdrant.versions import Versions, check_tag

_FACTS_SECONDS = 30.0
_FETCH_AT_ONCE = 256


class QdrantStore:
    """Source, sink, and every ability but change tracking.

    Args:
        address: where.
        collection: the collection, or an alias of one.
        layout: how payloads lie; recognised if not given (and plain where nothing is there yet).
        text_key: where the text lies in the plain layout (``"text"``) or in LangChain's.
        metadata_key: where the metadata lies in LangChain's layout.
        keep_norms: keep the lengths of vectors that a cosine collection brings to unit length.
        batch_points, max_bytes: the most points and the most bytes in one request.
        parallel: requests on their way at once, to a server.
        wait_index: the most seconds `finish` waits until a server has built its indexes.
    """

    def __init__(
        self,
        address: Address,
        collection: str,
        *,
        layout: str | None = None,
        text_key: str | None = None,
        metadata_key: str | None = None,
        keep_norms: bool = True,
        batch_points: int = 256,
        max_bytes: int = 8 * 2**20,
        parallel: int = 3,
        wait_index: int = 60,
    ) -> None:
        if not collection:
            raise ConfigurationError("qdrant: names no collection; write qdrant:FOLDER#COLLECTION")
        if layout:
            find_layout(layout)
        place = address.path if address.local else f"//{address.host}:{address.port}"
        self.url = f"qdrant:{place}{'#' if address.local else '/'}{collection}"
        self.collection = collection
        self._options: dict[str, Any] = {
            "layout": layout,
            "text_key": text_key,
            "metadata_key": metadata_key,
            "keep_norms": keep_norms,
            "batch_points": batch_points,
            "max_bytes": max_bytes,
            "parallel": parallel,
            "wait_index": wait_index,
        }
        self._at = Connection(address, self.url)
        self._uploader = Uploader(self._at, points=batch_points, max_bytes=max_bytes, parallel=parallel)
        self._builder = Builder(self._at, collection, self._options)
        self._cached: tuple[float, Facts] | None = None

    @classmethod
    def from_url(
        cls,
        url: StoreURL,
        *,
        layout: str | None = None,
        text_key: str | None = None,
        metadata_key: str | None = None,
        keep_norms: Any = True,
        batch_points: Any = None,
        max_bytes: Any = None,
        parallel: Any = None,
        wait_index: Any = None,
        **address: Any,
    ) -> QdrantStore:
        """From ``qdrant://HOST[:PORT]/COLLECTION`` or ``qdrant:FOLDER#COLLECTION``.

        Also: ``grpc_port``, ``prefer_grpc``, ``https``, ``timeout``, ``prefix``, ``api_key``.
        """
        known = ("grpc_port", "prefer_grpc", "https", "timeout", "prefix", "api_key")
        for name in address:
            if name not in known:
                raise TypeError(f"from_url() got an unexpected keyword argument '{name}'")
        collection = url.fragment or (url.path.strip("/") if url.netloc else "")
        return cls(
            Address.of(url, **address),
            collection,
            layout=layout,
            text_key=text_key,
            metadata_key=metadata_key,
            keep_norms=flag("keep_norms", keep_norms, True),
            batch_points=number("batch_points", batch_points, 256),
            max_bytes=number("max_bytes", max_bytes, 8 * 2**20),
            parallel=number("parallel", parallel, 3),
            wait_index=number("wait_index", wait_index, 60),
        )

    # -- source -------------------------------------------------------------------------------

    def describe(self) -> CollectionSchema:
        return self._facts(fresh=True).schema.model_copy(update={"count": self.count()})

    def count(self) -> int:
        return int(self._at.call("count", self.collection, exact=True).count)

    def partitions(self, want: int) -> Sequence[Partition]:
        total = self.count()
        sampled = want > 1 and total > want
        edges = quantiles(self._at, self.collection, want, self._facts().most) if sampled else []
        bounds = zip([None, *edges], [*edges, None], strict=True)
        share = total // (len(edges) + 1)
        return [Partition(str(i), list(pair), share) for i, pair in enumerate(bounds)]

    def scan(
        self,
        *,
        partition: Partition | None = None,
        after: Cursor | None = None,
        batch_size: int = 1024,
        fields: Fields = Fields.ALL,
        where: Where | None = None,
    ) -> Iterator[RecordBatch]:
        facts = self._facts(fresh=True)
        start, stop = partition.bounds if partition else (None, None)
        if after is not None:
            start = pts.after(after)
            if start is None:
                return
        asked = fields if where is None else _with_metadata(fields)
        for page in pages(self._at, facts, start, stop, batch_size, asked, where):
            batch = facts.batch(page, asked)
            if where is not None:
                keep = [i for i, meta in enumerate(batch.metadata_list) if matches(where, meta)]
                batch = batch.take(keep) if len(keep) < len(batch) else batch
                batch = batch if fields.metadata else batch.replace(metadata=None)
            yield batch.replace(cursor=page[-1].id)

    # -- sink ---------------------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        return Capabilities(
            kinds=frozenset(Kind),
            metrics=frozenset(DISTANCES),
            dtypes=frozenset(DATATYPES),
            id_types=frozenset({"int", "uuid"}),
            metadata_types=frozenset({"str", "int", "float", "bool", "null", "list", "object"}),
            normalizes=frozenset({Metric.COSINE}),
            keeps_norms=bool(self._options["keep_norms"]),
            max_dim=tuple((dtype, 65536) for dtype in DATATYPES),
        )

    def exists(self) -> bool:
        try:
            return self._facts(fresh=True).record.state != "loading"
        except NotFoundError:
            return False

    def prepare(self, schema: CollectionSchema, mode: WriteMode) -> None:
        self._builder.prepare(schema, mode, self._have)
        self._cached = None

    def _have(self) -> Facts | None:
        try:
            return self._facts(fresh=True)
        except NotFoundError:
            return None

    def write(self, batch: RecordBatch) -> WriteReceipt:
        facts = self._facts()
        self._check_width(batch, facts.schema)
        rows = pts.rows_of(
            batch,
            facts.schema,
            facts.layout,
            text_ids=facts.text_ids,
            keep_norms=self._options["keep_norms"],
        )
        self._uploader.upload(self.collection, rows)
        return WriteReceipt(len(batch), batch.nbytes)

    def _check_width(self, batch: RecordBatch, schema: CollectionSchema) -> None:
        known = {f.name: f for f in schema.fields}
        for name, column in batch.vectors.items():
            if name not in known:
                raise SchemaMismatchError(f"{self.url} has no vector field {name!r}, only {sorted(known)}")
            width = column.values.shape[1]
            if column.present.any() and width != known[name].dim:
                raise SchemaMismatchError(
                    f"{self.url} field {name!r} holds {known[name].dim} dimensions, the batch has {width}"
                )

    def finish(self) -> None:
        self._builder.finish(self._facts(fresh=True))
        self._cached = None

    def close(self) -> None:
        self._cached = None
        self._uploader.close()
        self._at.close()

    # -- abilities ----------------------------------------------------------------------------

    def fetch(self, ids: Sequence[RecordId], *, fields: Fields = Fields.ALL) -> RecordBatch:
        facts = self._facts()
        parts = [
            facts.batch(page, fields)
            for page in self._retrieve(
                ids,
                with_payload=facts.payload_selector(fields),
                with_vectors=facts.vector_names(fields),
            )
        ]
        found = RecordBatch.concat(parts) if parts else facts.batch([], fields)
        rows = {encode_id(id_): row for row, id_ in enumerate(found.id_list)}
        return found.take([rows[key] for key in map(encode_id, ids) if key in rows])

    def _retrieve(self, ids: Sequence[RecordId], **wanted: Any) -> Iterator[list[Any]]:
        points = list(dict.fromkeys(point for id_ in ids for point in pts.candidates(id_)))
        for low in range(0, len(points), _FETCH_AT_ONCE):
            page = retrieve(self._at, self.collection, points[low : low + _FETCH_AT_ONCE], **wanted)
            if page:
                yield page

    def search(
        self,
        vector: Any,
        k: int = 10,
        *,
        field: str = "",
        where: Where | None = None,
        ef_search: int | None = None,
        exact: bool = False,
    ) -> list[VectorRecord]:
        """As the port says. ``ef_search`` is HNSW's, ``exact`` asks for a search without the index."""
        how = {"hnsw_ef": ef_search, "exact": exact} if ef_search or exact else None
        return find(self._at, self._facts(), [vector], k, field=field, where=where, params=how)[0]

    def search_many(
        self,
        vectors: Sequence[Any],
        k: int = 10,
        *,
        field: str = "",
        where: Where | None = None,
        fields: Fields = Fields.ALL,
    ) -> list[list[VectorRecord]]:
        return find(self._at, self._facts(), vectors, k, field=field, where=where, fields=fields)

    def delete(self, ids: Sequence[RecordId]) -> int:
        facts = self._facts()
        wanted, gone = {encode_id(id_) for id_ in ids}, 0
        for page in self._retrieve(
            ids, with_payload=facts.payload_selector(Fields.IDS), with_vectors=False
        ):
            found = facts.batch(page, Fields.IDS).id_list
            doomed = [p.id for p, id_ in zip(page, found, strict=True) if encode_id(id_) in wanted]
            if doomed:
                self._at.call("delete", self.collection, doomed, wait=True)
            gone += len(doomed)
        return gone

    def stages(self, mode: WriteMode) -> bool:
        return mode is WriteMode.REPLACE

    def shadow(self, tag: str) -> QdrantStore:
        return QdrantStore(self._at.address, self._versions().collection(check_tag(tag)), **self._options)

    def publish(self, tag: str) -> Version:
        self._cached = None
        return self._versions().publish(tag)

    def discard(self, tag: str) -> None:
        with suppress(NotFoundError):  # there is not even a folder
            self._versions().discard(tag)

    def versions(self) -> list[Version]:
        try:
            return self._versions().all()
        except NotFoundError:
            return []

    def rollback(self) -> Version:
        self._cached = None
        return self._versions().rollback()

    def prune(self, keep: int = 0) -> list[str]:
        return self._versions().prune(keep)

    # -- helpers ------------------------------------------------------------------------------

    def _versions(self) -> Versions:
        return Versions(self._at, self.collection)

    def _facts(self, *, fresh: bool = False) -> Facts:
        """What is known of the collection; kept for a while, because every search needs it."""
        now = time.monotonic()
        if not fresh and self._cached and now - self._cached[0] < _FACTS_SECONDS:
            return self._cached[1]
        facts = read_facts(self._at, self.collection, self._options)
        self._cached = (now, facts)
        return facts


def _with_metadata(fields: Fields) -> Fields:
    return Fields(vectors=fields.vectors, text=fields.text, metadata=True)
