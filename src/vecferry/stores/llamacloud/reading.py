"""The rows of an index behind a cursor: documents, chunks, or the files of the later kind of index.

A cursor is ``[document, chunk]``: everything up to this chunk of this document has been given out; ``null``
for the chunk means the whole document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeAlias

from vecferry.errors import NotFoundError
from vecferry.model import RecordId
from vecferry.ports import Cursor
from vecferry.stores.llamacloud import later
from vecferry.stores.llamacloud.client import Client, segment
from vecferry.stores.llamacloud.listing import Listing
from vecferry.stores.llamacloud.mapping import chunk_record, document_record

_AHEAD = 4
"""Requests for chunks under way at once; the pace stays what ``rate`` says."""
Row: TypeAlias = tuple[RecordId, str, dict[str, Any], list[float] | None]


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
    """The chunks that the service made."""

    def count(self) -> int:
        with self.listing(bodies=False) as listing:
            listing.fill()
            return sum(len(nodes) for _, nodes in self._chunks(listing, None))

    def total(self) -> None:
        return None

    def rows(self, after: Cursor, *, bodies: bool) -> Iterator[tuple[Row, Cursor]]:
        document, part = after if after is not None else (None, None)
        with self.listing(bodies=False) as listing:
            listing.fill()
            if document is not None and part is not None:
                yield from self._numbered(document, self._rest(document, part))
            for id_, nodes in self._chunks(listing, document):
                yield from self._numbered(id_, nodes)

    def _rest(self, document: str, part: str) -> list[dict[str, Any]]:
        """The chunks behind ``part``. If the document was cut anew since, all its new chunks follow."""
        nodes = self._nodes(document)
        done = [number for number, node in enumerate(nodes) if node.get("id_") == part]
        return nodes[done[0] + 1 :] if done else nodes

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
            return self.client.get(f"{self.base}/documents/{segment(document)}/chunks") or []
        except NotFoundError:
            return []


class FileReader(DocumentReader):
    """The files of an index of the later kind."""

    def __init__(self, client: Client, index_id: str) -> None:
        super().__init__(client, "", 0)
        self._index_id = index_id

    def count(self) -> int:
        return sum(1 for _ in later.files(self.client, self._index_id))

    def total(self) -> int:
        return self.count()

    def rows(self, after: Cursor, *, bodies: bool) -> Iterator[tuple[Row, Cursor]]:
        names = {
            file["file_id"]: file.get("file_name") for file in later.files(self.client, self._index_id)
        }
        for id_ in sorted(names):
            if after is None or id_ > after[0]:
                text = later.read_text(self.client, self._index_id, id_) if bodies else ""
                yield (id_, text, {"file_name": names[id_]}, None), [id_, None]
