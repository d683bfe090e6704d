"""`QdrantStore`: a collection on a Qdrant server or in the client's local mode."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import orjson

from vecferry.errors import ConfigurationError, CorruptDataError, NotFoundError, SchemaMismatchError
from vecferry.layouts import find_layout
from vecferry.layouts.llamaindex import RESERVED
from vecferry.model import (
    ENVELOPE,
    CollectionSchema,
    DenseColumn,
    Kind,
    Loss,
    Metric,
    MultiColumn,
    RecordBatch,
    RecordId,
    SparseVector,
    VectorField,
    VectorRecord,
    Where,
    encode_id,
    id_type,
    predicate,
)
from vecferry.ports import (
    Capabilities,
    Cursor,
    Fields,
    Kept,
    Partition,
    StoreURL,
    Version,
    WriteMode,
    WriteReceipt,
)
from vecferry.stores.qdrant import points as pts
from vecferry.stores.qdrant.building import Builder, adopted_text_ids
from vecferry.stores.qdrant.connection import Address, flag, number
from vecferry.stores.qdrant.folder import Folder
from vecferry.stores.qdrant.points import Json, Rows
from vecferry.stores.qdrant.schema import (
    DATATYPES,
    DISTANCES,
    Facts,
    Record,
    check_complete,
    random_ids,
    read_facts,
)
from vecferry.stores.qdrant.server import Server
from vecferry.stores.qdrant.versions import Versions, check_tag

_FACTS_SECONDS = 30.0
_FETCH_AT_ONCE = 512
_SEARCHES_AT_ONCE = 32
_SAMPLE_PER_SHARE = 64
_ADDRESS = tuple(name for name in Address.__dataclass_fields__ if name not in ("path", "host"))


class QdrantStore:
    """Source, sink, and every ability but change tracking.

    Args:
        address: where.
        collection: the collection, or an alias of one.
        layout: how payloads lie; recognised if not given (and plain where nothing is there yet).
        text_key: where the text lies in the plain layout (``"text"``) or in LangChain's.
        metadata_key: where the metadata lies in LangChain's layout.
        id_key: a payload key for ids that have to change their form, so that the application reads and
            filters them as they were.
        keep_norms: keep the lengths of vectors that a cosine collection brings to unit length.
        shape: whose settings a collection that replaces another gets: ``"target"``, those of the replaced
            one, or ``"source"``.
        batch_points, max_bytes: the most points and the most bytes in one request.
        parallel: requests on their way at once, to a server.
        defer_index: put HNSW off until everything is loaded.
        wait_index: the most seconds that `settle` waits until a server has built its indexes.
        like: the collection that this one is built to replace.
    """

    def __init__(
        self,
        address: Address,
        collection: str,
        *,
        layout: str | None = None,
        text_key: str | None = None,
        metadata_key: str | None = None,
        id_key: str | None = None,
        keep_norms: bool = True,
        shape: str = "target",
        batch_points: int = 1024,
        max_bytes: int = 8 * 2**20,
        parallel: int = 3,
        defer_index: bool = False,
        wait_index: int = 60,
        like: str | None = None,
    ) -> None:
        if not collection:
            raise ConfigurationError("qdrant: names no collection; write qdrant:FOLDER#COLLECTION")
        if collection in (".", ".."):
            raise ConfigurationError(f"qdrant: {collection!r} is a folder, not the name of a collection")
        if layout:
            find_layout(layout)
        if shape not in ("target", "source"):
            raise ConfigurationError(f"qdrant: shape={shape!r} is neither target nor source")
        place = address.path if address.local else f"//{address.host}:{address.port}"
        self.url = f"qdrant:{place}{'#' if address.local else '/'}{collection}"
        self.collection = collection
        self._options: dict[str, Any] = {
            "layout": layout,
            "text_key": text_key,
            "metadata_key": metadata_key,
            "id_key": id_key,
            "keep_norms": keep_norms,
            "shape": shape,
            "batch_points": batch_points,
            "max_bytes": max_bytes,
            "parallel": parallel,
            "defer_index": defer_index,
            "wait_index": wait_index,
        }
        self._address = address
        self._engine: Folder | Server = (
            Folder(address, self.url)
            if address.local
            else Server(address, self.url, points=batch_points, max_bytes=max_bytes, parallel=parallel)
        )
        self._builder = Builder(self._engine, collection, self._options, like)
        self._cached: tuple[float, Facts] | None = None
        self._writing: Facts | None = None
        self._has_text = True

    @classmethod
    def from_url(
        cls,
        url: StoreURL,
        *,
        layout: str | None = None,
        text_key: str | None = None,
        metadata_key: str | None = None,
        id_key: str | None = None,
        keep_norms: Any = True,
        shape: str = "target",
        batch_points: Any = None,
        max_bytes: Any = None,
        parallel: Any = None,
        defer_index: Any = None,
        wait_index: Any = None,
        **address: Any,
    ) -> QdrantStore:
        """From ``qdrant://HOST[:PORT]/COLLECTION`` or ``qdrant:FOLDER#COLLECTION``.

        Also the attributes of `Address`: ``grpc_port``, ``https``, ``timeout``, ``api_key``, ``ca_file``, …
        """
        for name in address:
            if name not in _ADDRESS:
                raise TypeError(f"from_url() got an unexpected keyword argument '{name}'")
        collection = url.fragment or (url.path.strip("/") if url.netloc else "")
        return cls(
            Address.of(url, **address),
            collection,
            layout=layout,
            text_key=text_key,
            metadata_key=metadata_key,
            id_key=id_key,
            keep_norms=flag("keep_norms", keep_norms, True),
            shape=shape,
            batch_points=number("batch_points", batch_points, 1024),
            max_bytes=number("max_bytes", max_bytes, 8 * 2**20),
            parallel=number("parallel", parallel, 3),
            defer_index=flag("defer_index", defer_index, False),
            wait_index=number("wait_index", wait_index, 60),
        )

    # -- source -------------------------------------------------------------------------------

    def describe(self) -> CollectionSchema:
        facts, count = self._facts(fresh=True), self.count()
        losses = tuple(check_complete(self._engine, facts, count))
        return facts.schema.model_copy(update={"count": count, "losses": losses})

    def count(self) -> int:
        return self._engine.count(self.collection)

    def partitions(self, want: int) -> Sequence[Partition]:
        total = self.count()
        edges: list[Any] = []
        if want > 1 and total > want:
            limit = min(_SAMPLE_PER_SHARE * want, self._facts().most)
            ids = sorted(set(random_ids(self._engine, self.collection, limit)), key=pts.order)
            picked = [ids[len(ids) * i // want] for i in range(1, want)] if ids else []
            edges = list(dict.fromkeys(picked))
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
        asked = fields if where is None else replace(fields, metadata=True)
        wanted, passes = facts.wanted(asked, where), predicate(where) if where else None
        most = min(batch_size, facts.most)
        counting = start is None and stop is None and where is None and facts.counts_exactly
        before, seen = self.count() if counting else 0, 0
        for page in self._engine.pages(self.collection, wanted, start=start, stop=stop, most=most):
            batch = facts.form.batch_of(page, asked)
            seen += len(batch)
            if passes is not None:
                keep = [i for i, meta in enumerate(batch.metadata_list) if passes(meta)]
                batch = batch.take(keep) if len(keep) < len(batch) else batch
                batch = batch if fields.metadata else batch.replace(metadata=None)
            yield batch.replace(cursor=page[-1]["id"])
        if seen < before and seen < (now := self.count()):
            raise CorruptDataError(
                f"{self.url}: the server counts {min(before, now):,} points and gave {seen:,}; wait until "
                "the collection is green and read it again, and see whether an id stands in it twice"
            )

    def place(self) -> str | None:
        """The collection behind every name for it: two stores that say the same are one collection."""
        if self._address.local:
            return None
        try:
            peer = self._engine.cluster(self.collection)["peer_id"]  # type: ignore[union-attr]
            return f"qdrant:{peer}:{self._engine.aliases().get(self.collection, self.collection)}"
        except NotFoundError:
            return None

    def stamp(self) -> Json:
        """Tells one state of the collection from another, as far as that is cheap."""
        found: Json = {"kind": "store", "count": self.count()}
        if not self._address.local:
            info = self._engine.info(self.collection)
            found["points"] = info.get("points_count")
            queue = info.get("update_queue")
            found |= {"queue": queue} if queue else {}
        return found

    # -- sink ---------------------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        limited = self._address.limited_to()
        losses = () if limited is None else (_UNNOTED.model_copy(update={"example": ", ".join(limited)}),)
        return Capabilities(
            kinds=frozenset(Kind),
            metrics=frozenset(DISTANCES),
            dtypes=frozenset(DATATYPES),
            id_types=frozenset({"int", "str", "uuid", "tuple"}),  # `foresee` tells which of them change
            metadata_types=frozenset(
                {"str", "int", "big int", "float", "unusual float", "bool", "null", "list", "object"}
            ),
            normalizes=frozenset({Metric.COSINE}),
            keeps_norms=bool(self._options["keep_norms"]),
            needs_vectors=False,
            needs_text=self._options["layout"] in ("langchain", "llamaindex", "both"),
            max_dim=tuple((dtype, 65536) for dtype in DATATYPES),
            losses=losses,
        )

    def foresee(self, batch: RecordBatch) -> Iterable[Loss]:
        """What would be kept in another form of the records of a batch: ids, great integers, and floats."""
        form = self._form_for(batch)
        foreign = [id_ for id_ in batch.id_list if pts.point_id(id_, text_ids=form.text_ids)[1]]
        for kind in dict.fromkeys(map(id_type, foreign)):
            of_kind = [id_ for id_ in foreign if id_type(id_) == kind]
            yield Loss(
                kind="id",
                detail=f"{kind} ids get another form in the target",
                count=len(of_kind),
                example=repr(of_kind[0]),
                reversible=True,
            )
        big = [number for meta in batch.metadata or () for number in pts.beyond_64_bits(meta)]
        if big:
            yield Loss(
                kind="metadata",
                detail="big int values are kept in another form",
                count=len(big),
                example=repr(big[0]),
                reversible=True,
            )
        if not form.drifts or form.nodes:
            return
        found = [(f"{p[1:]}={v!r}") for meta in batch.metadata or () for p, v in pts.drifting_in(meta)]
        if found:
            yield Loss(
                kind="metadata",
                detail="floats that the server does not keep to the last bit are noted exactly",
                count=len(found),
                example=found[0],
                reversible=True,
            )

    def stored_ids(self, ids: Sequence[RecordId]) -> list[RecordId]:
        """The point id of each record."""
        text_ids = self._facts().form.text_ids
        return [pts.point_id(id_, text_ids=text_ids)[0] for id_ in ids]

    def _form_for(self, batch: RecordBatch) -> pts.Form:
        """How such records would lie here, before anything is made."""
        try:
            have = self._facts()
        except NotFoundError:
            layout = find_layout(self._options["layout"] or "plain")
            text_ids = layout.name != "plain" and batch.ids.kind != "uuid"
            return pts.Form(CollectionSchema(), layout, text_ids=text_ids, drifts=not self._address.local)
        adopted = have.record is None and batch.ids.kind == "str"
        return replace(have.form, text_ids=have.form.text_ids or adopted)

    def kept(self, schema: CollectionSchema) -> Kept:
        """What an upsert leaves to the application: keys that vecferry never wrote before."""
        facts = self._facts()
        prefix = "".join(f"{step}." for step in facts.form.root)
        ours = _ours(facts.record)
        return Kept(text=not schema.has_text, metadata=lambda key: prefix + key not in ours)

    def exists(self) -> bool:
        try:
            return not self._facts(fresh=True).loading
        except NotFoundError:
            return False

    def prepare(self, schema: CollectionSchema, mode: WriteMode) -> None:
        self._builder.prepare(schema, mode, self._have)
        self._cached = None
        facts = self._facts(fresh=True)
        if facts.record is None or not facts.record.layout:
            form = replace(facts.form, text_ids=adopted_text_ids(facts, schema))
            facts = replace(facts, form=form)
        self._writing, self._has_text = facts, schema.has_text

    def _have(self) -> Facts | None:
        try:
            return self._facts(fresh=True)
        except NotFoundError:
            return None

    def write(self, batch: RecordBatch) -> WriteReceipt:
        facts = self._writing or self._facts()
        self._check_width(batch, facts.schema)
        rows = facts.form.rows_of(batch)
        if not facts.loading:
            rows = self._joined(facts, rows)
        self._engine.upsert(self.collection, rows)
        self._builder.wrote(facts.layout, batch.metadata or ())
        return WriteReceipt(len(batch), batch.nbytes)

    def _joined(self, facts: Facts, rows: Rows) -> Rows:
        """The rows, with the payload keys and vectors that the application keeps in their points."""
        rows = rows.last_of_each()
        own = [f for f in facts.schema.fields if f.name not in rows.columns]
        wanted = {"with_payload": True, "with_vector": [f.name for f in own] or False}
        if any(f.name == "" for f in own):
            wanted["with_vector"] = True
        have = {point["id"]: point for page in self._retrieve(list(rows.ids), wanted) for point in page}
        if not have:
            return rows
        payloads = [
            _merged(payload, have[id_].get("payload") or {}, facts, keep_text=not self._has_text)
            if id_ in have
            else payload
            for id_, payload in zip(rows.ids, rows.payloads, strict=True)
        ]
        points = [have.get(id_, {}) for id_ in rows.ids]
        columns = {**rows.columns, **facts.form.columns_of(points, own)}
        return Rows(rows.ids, rows.records, payloads, columns)

    def _check_width(self, batch: RecordBatch, schema: CollectionSchema) -> None:
        known = {f.name: f for f in schema.fields}
        for name, column in batch.columns():
            if name not in known:
                raise SchemaMismatchError(f"{self.url} has no vector field {name!r}, only {sorted(known)}")
            if not isinstance(column, DenseColumn | MultiColumn):
                continue
            width = column.values.shape[1]
            if column.present.any() and width != known[name].dim:
                raise SchemaMismatchError(
                    f"{self.url} field {name!r} holds {known[name].dim} dimensions, the batch has {width}"
                )

    def writers(self, want: int) -> Sequence[QdrantStore]:
        """Further writers of the prepared collection, each with connections of its own."""
        if self._address.local:
            return []
        made = [QdrantStore(self._address, self.collection, **self._options) for _ in range(want)]
        for one in made:
            one._writing, one._builder = self._writing or self._facts(), self._builder
            one._has_text = self._has_text
        return made

    def finish(self) -> None:
        self._builder.finish(self._facts(fresh=True))
        self._cached = self._writing = None

    def settle(self, seconds: float | None = None) -> float | None:
        """Wait until the server has built its indexes; how long it took, ``None`` if it is still at it."""
        start = time.monotonic()
        limit = float(self._options["wait_index"]) if seconds is None else seconds
        return time.monotonic() - start if self._builder.wait(limit) else None

    def close(self) -> None:
        self._cached = None
        self._engine.close()

    # -- abilities ----------------------------------------------------------------------------

    def fetch(self, ids: Sequence[RecordId], *, fields: Fields = Fields.ALL) -> RecordBatch:
        facts = self._facts()
        each = [pts.candidates(id_) for id_ in ids]
        asked = list(dict.fromkeys(point for points in each for point in points))
        found = {p["id"]: p for page in self._retrieve(asked, facts.wanted(fields)) for p in page}
        there = [point for point in asked if point in found]
        batch = facts.form.batch_of([found[point] for point in there], fields)
        rows = {encode_id(id_): row for row, id_ in enumerate(batch.id_list)}
        return batch.take([rows[key] for key in map(encode_id, ids) if key in rows])

    def _retrieve(self, points: Sequence[pts.PointId], wanted: Json) -> Iterator[list[Json]]:
        for low in range(0, len(points), _FETCH_AT_ONCE):
            page = self._engine.retrieve(self.collection, points[low : low + _FETCH_AT_ONCE], wanted)
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
        how = {"hnsw_ef": ef_search, "exact": exact} if ef_search or exact else {}
        return self._find([vector], k, field=field, where=where, params=how)[0]

    def search_many(
        self,
        vectors: Sequence[Any],
        k: int = 10,
        *,
        field: str = "",
        where: Where | None = None,
        fields: Fields = Fields.ALL,
    ) -> list[list[VectorRecord]]:
        return self._find(vectors, k, field=field, where=where, fields=fields)

    def search_exact(
        self, vectors: Sequence[Any], k: int = 10, *, field: str = ""
    ) -> list[list[VectorRecord]]:
        """As `search_many`, without the approximate index."""
        return self._find(vectors, k, field=field, where=None, params={"exact": True})

    def _find(
        self,
        vectors: Sequence[Any],
        k: int,
        *,
        field: str,
        where: Where | None,
        fields: Fields = Fields.ALL,
        params: Json | None = None,
    ) -> list[list[VectorRecord]]:
        if k < 1:  # a server refuses to be asked for nothing
            return [[] for _ in vectors]
        facts = self._facts()
        target = facts.schema.field(field)
        queries = [_query(vector, target) for vector in vectors]
        seen = fields if where is None else replace(fields, metadata=True)
        request, passes = facts.wanted(seen, where), predicate(where) if where else None
        request |= {"using": target.name} if target.name else {}
        params = dict(params or {})
        if facts.quantized and not params.get("exact"):
            params["quantization"] = {"rescore": True, "oversampling": 4.0}
        request |= {"params": params} if params else {}
        found: dict[int, list[VectorRecord]] = {}
        asked = k
        while open_ := [i for i in range(len(queries)) if i not in found]:
            for low in range(0, len(open_), _SEARCHES_AT_ONCE):
                some = open_[low : low + _SEARCHES_AT_ONCE]
                asking = [{**request, "query": queries[i], "limit": min(asked, facts.most)} for i in some]
                answers = self._engine.query(self.collection, asking)
                for i, points in zip(some, answers, strict=True):
                    hits = _hits(facts.form.batch_of(points, seen), points, target.metric)
                    hits = [hit for hit in hits if passes is None or passes(hit.metadata)]
                    if len(hits) >= k or len(points) < asked:
                        found[i] = hits[:k]
            asked *= 4  # the server could not apply the whole filter: look further down
        return [found[i] for i in range(len(queries))]

    def delete(self, ids: Sequence[RecordId]) -> int:
        facts = self._facts()
        wanted, gone = {encode_id(id_) for id_ in ids}, 0
        points = list(dict.fromkeys(point for id_ in ids for point in pts.candidates(id_)))
        for page in self._retrieve(points, facts.wanted(Fields.IDS)):
            found = facts.form.batch_of(page, Fields.IDS).id_list
            marked = [p["id"] for p, id_ in zip(page, found, strict=True) if encode_id(id_) in wanted]
            if marked:
                self._engine.delete(self.collection, marked)
            gone += len(marked)
        return gone

    def stages(self, mode: WriteMode) -> bool:
        return mode is WriteMode.REPLACE

    def shadow(self, tag: str) -> QdrantStore:
        name = self._versions().collection(check_tag(tag))
        return QdrantStore(self._address, name, **self._options, like=self.collection)

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
        return Versions(self._engine, self.collection)

    def _facts(self, *, fresh: bool = False) -> Facts:
        """What is known of the collection; kept for a while, because every search needs it."""
        now = time.monotonic()
        if not fresh and self._cached and now - self._cached[0] < _FACTS_SECONDS:
            return self._cached[1]
        facts = read_facts(self._engine, self.collection, self._options)
        self._cached = (now, facts)
        return facts


_UNNOTED = Loss(
    kind="index",
    detail="the key is bound to some collections: into one that exists it writes points, but the embedding "
    "space, the layout and further payload indexes cannot be noted",
    reversible=True,
)


def _ours(record: Record | None) -> set[str]:
    """The payload keys that vecferry wrote before the load that is under way."""
    return {*record.keys} - {*record.fresh} if record else set()


def _merged(payload: bytes, have: Json, facts: Facts, *, keep_text: bool) -> bytes:
    """A new payload, with the keys of the one that is there which vecferry never wrote."""
    new: Json = orjson.loads(payload)
    form, ours = facts.form, _ours(facts.record)
    text_key = getattr(facts.layout, "text_key", "")
    envelope: Json = new.pop(ENVELOPE, {})
    if keep_text and isinstance(have.get(text_key), str):
        new[text_key] = have[text_key]
        envelope.pop("no_text", None)
    known = {ENVELOPE, *new, *form.root, text_key, *RESERVED}
    kept = {
        key: value for key, value in have.items() if key not in known and (form.root or key not in ours)
    }
    inner: Json = {}
    if form.nodes:
        kept = {}  # a node's metadata stands in its own text
    elif form.root:
        body, prefix = form.body(new), "".join(f"{step}." for step in form.root)
        inner = {k: v for k, v in form.body(have).items() if k not in body and prefix + k not in ours}
        body |= inner
    envelope = _envelopes(envelope, have.get(ENVELOPE), {*kept, *inner})
    return orjson.dumps({**kept, **new, **({ENVELOPE: envelope} if envelope else {})})


def _envelopes(new: Json, have: Any, kept: set[str]) -> Json:
    """What is noted about the values that stay."""
    if not isinstance(have, dict):
        return new
    merged = dict(new)
    for table in ("types", "floats"):
        entries = have.get(table)
        stay = (
            {p: v for p, v in entries.items() if p.split("/")[1] in kept}
            if isinstance(entries, dict)
            else {}
        )
        if stay:
            merged[table] = {**stay, **new.get(table, {})}
    return merged


def _query(vector: Any, field: VectorField) -> Any:
    if field.kind is Kind.SPARSE:
        if not isinstance(vector, SparseVector):
            raise SchemaMismatchError("a sparse field is searched with a SparseVector")
        return {"indices": vector.indices.tolist(), "values": vector.values.tolist()}
    if isinstance(vector, SparseVector) or np.shape(vector)[-1:] != (field.dim,):
        shape = "sparse" if isinstance(vector, SparseVector) else f"of shape {np.shape(vector)}"
        raise SchemaMismatchError(f"the query is {shape}, the field {field.name!r} holds ({field.dim},)")
    rows = np.asarray(vector, dtype=np.float32)
    return np.atleast_2d(rows).tolist() if field.kind is Kind.MULTI else rows.tolist()


def _hits(batch: RecordBatch, points: Sequence[Json], metric: Metric) -> list[VectorRecord]:
    # Qdrant answers with the distance itself, and with its negative for a multi-vector.
    distance = metric in (Metric.L2, Metric.L1)
    scores = [-abs(p["score"]) if distance else p["score"] for p in points]
    records = zip(batch.records(), scores, strict=True)
    return [record.model_copy(update={"score": float(score)}) for record, score in records]
