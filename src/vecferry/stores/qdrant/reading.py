"""Reading a collection from beginning to end, in the order of its ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vecferry.model import Where, check_where
from vecferry.ports import Fields
from vecferry.stores.qdrant import wire
from vecferry.stores.qdrant.connection import Connection
from vecferry.stores.qdrant.facts import Facts
from vecferry.stores.qdrant.points import PointId, order

_PAGE_BYTES = 16 * 2**20
_SAMPLE_PER_SHARE = 64


def pages(
    at: Connection,
    facts: Facts,
    start: PointId | None,
    stop: PointId | None,
    size: int,
    fields: Fields,
    where: Where | None,
) -> Iterator[list[Any]]:
    """Points from ``start`` up to before ``stop``, at most ``size`` a page; no page is empty.

    ``where`` is applied as far as the server can: what it lets through may still fail.
    """
    wanted = {"with_payload": facts.payload_selector(fields), "with_vectors": facts.vector_names(fields)}
    upper = facts.bounds(check_where(where)).upper if where else None
    collection = facts.schema.name
    if at.address.local:
        yield from _local_pages(at, collection, start, stop, size, upper, wanted)
        return
    size = min(size, max(16, _PAGE_BYTES // facts.row_bytes), facts.most)
    end = None if stop is None else order(stop)
    while True:
        page, following = _scroll(at, collection, upper=upper, limit=size, offset=start, **wanted)
        inside = page if end is None else [p for p in page if order(p.id) < end]
        if inside:
            yield inside
        if following is None or len(inside) < len(page):
            return
        start = following


def retrieve(at: Connection, collection: str, ids: Sequence[PointId], **wanted: Any) -> list[Any]:
    """The points of these ids that are there; in the order of ``ids`` or not."""
    if not at.grpc:
        found: list[Any] = at.call("retrieve", collection, ids, **wanted)
        return found
    timeout = at.address.timeout
    return at.run(lambda client: wire.retrieve(client, collection, ids, timeout=timeout, **wanted))


def _scroll(at: Connection, collection: str, *, upper: Any, **wanted: Any) -> tuple[list[Any], Any]:
    if not at.grpc:
        page, following = at.call("scroll", collection, scroll_filter=upper, **wanted)
        return page, following
    timeout = at.address.timeout
    return at.run(lambda client: wire.scroll(client, collection, upper=upper, timeout=timeout, **wanted))


def _local_pages(
    at: Connection, collection: str, start: Any, stop: Any, size: int, upper: Any, wanted: dict[str, Any]
) -> Iterator[list[Any]]:
    """The local mode walks through everything at each scroll: the ids are asked for once."""
    everything = max(at.call("count", collection).count, 1)
    found, _ = at.call(
        "scroll", collection, upper, everything, offset=start, with_payload=False, with_vectors=False
    )
    end = None if stop is None else order(stop)
    ids = [p.id for p in found if end is None or order(p.id) < end]
    del found
    for low in range(0, len(ids), size):
        page = retrieve(at, collection, ids[low : low + size], **wanted)
        if page:
            yield page


def quantiles(at: Connection, collection: str, want: int, most: int) -> list[PointId]:
    """Ids that cut the collection into about ``want`` equal shares, from a random sample of its ids."""
    from qdrant_client import models

    query = models.SampleQuery(sample=models.Sample.RANDOM)
    limit = min(_SAMPLE_PER_SHARE * want, most)
    answer = at.call("query_points", collection, query, limit=limit, with_payload=False, with_vectors=False)
    ids = sorted({point.id for point in answer.points}, key=order)
    picked = [ids[len(ids) * i // want] for i in range(1, want)] if ids else []
    return list(dict.fromkeys(picked))
