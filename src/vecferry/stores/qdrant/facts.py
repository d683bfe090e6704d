"""What is known of a collection before its points are read: schema, layout, vecferry's own record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vecferry.errors import NotFoundError
from vecferry.layouts import Columns, Layout, find_layout, recognise_layout
from vecferry.layouts.llamaindex import RESERVED
from vecferry.model import ENVELOPE, CollectionSchema, Kind, RecordBatch, Where, id_type, type_name
from vecferry.ports import Fields
from vecferry.stores.qdrant.config import Record, page_limit, read_fields, read_indexes, read_settings
from vecferry.stores.qdrant.connection import Connection
from vecferry.stores.qdrant.points import batch_of, record_id

if TYPE_CHECKING:
    from vecferry.stores.qdrant.filters import Bounds

_SAMPLE = 64
_MULTI_ROWS = 64
_PAYLOAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Facts:
    """A collection as it stands.

    ``empty`` says that it holds no point; ``text_ids`` that its UUIDs are texts (see `point_id`);
    ``restore`` that vectors get back the lengths that were kept; ``most`` is how many points the
    collection gives at once.
    """

    schema: CollectionSchema
    layout: Layout
    record: Record
    empty: bool
    text_ids: bool
    restore: bool
    most: int

    @property
    def row_bytes(self) -> int:
        """About how many bytes one point takes in an answer."""
        rows = [(f.dim or 256) * (_MULTI_ROWS if f.kind is Kind.MULTI else 1) for f in self.schema.fields]
        return 4 * sum(rows) + _PAYLOAD_BYTES

    def batch(self, points: Sequence[Any], fields: Fields) -> RecordBatch:
        """Points as a batch."""
        return batch_of(
            points, self.schema, self.layout, fields, text_ids=self.text_ids, restore=self.restore
        )

    def bounds(self, where: Where) -> Bounds:
        from vecferry.stores.qdrant.filters import bounds

        own = {ENVELOPE}  # metadata of these names lies elsewhere, if not all of it lies apart
        if self.layout.name != "langchain":
            own |= {getattr(self.layout, "text_key", ""), *RESERVED}
        return bounds(where, lambda key: () if {key, key.split(".")[0]} & own else self.layout.path(key))

    def payload_selector(self, fields: Fields) -> Any:
        """``with_payload``: everything, unless ids and lengths are all that is needed."""
        if fields.text or fields.metadata or self.layout.name in ("llamaindex", "both"):
            return True
        return [ENVELOPE]

    def vector_names(self, fields: Fields) -> bool | list[str]:
        """``with_vectors``."""
        names = [f.name for f in self.schema.fields if fields.wants(f.name)]
        return True if len(names) == len(self.schema.fields) and names else names or False


def read_facts(at: Connection, collection: str, options: dict[str, Any]) -> Facts:
    """Ask the server.

    Raises:
        NotFoundError: if there is no such collection.
    """
    info = at.call("get_collection", collection)
    if info is None:
        raise NotFoundError(f"{at.where}: there is no collection {collection!r}; check its name")
    local = at.address.local
    record = Record.of(info.config.metadata) or Record()
    most = page_limit(info)
    sample, _ = at.call(
        "scroll", collection, limit=min(_SAMPLE, most), with_payload=True, with_vectors=False
    )
    payloads = [point.payload or {} for point in sample]
    layout = _layout(record, payloads, options)
    columns = layout.decode(payloads)
    text_ids = record.text_ids if record.layout else layout.text_ids
    pairs = zip(sample, columns.ids, strict=True)
    types = {id_type(record_id(p.id, text_ids=text_ids) if i is None else i) for p, i in pairs}
    settings = read_settings(info, record, local=local)
    indexes = read_indexes(info, record, local=local)
    own = {
        "layout": layout.name,
        "text_key": getattr(layout, "text_key", ""),
        "payload_indexes": indexes,
    }
    schema = CollectionSchema(
        name=collection,
        fields=read_fields(info, record, local=local),
        id_type=types.pop() if len(types) == 1 else "mixed",
        ids_unique=True,
        has_text=not sample or any(text is not None for text in columns.texts),
        metadata_types=_types(columns),
        payload_indexes=_by_key(indexes, layout),
        layout=layout.name,
        settings={"qdrant": {**settings, **{k: v for k, v in own.items() if v}}},
    )
    restore = options["keep_norms"]
    return Facts(schema, layout, record, not sample, text_ids, restore, most)


def _layout(record: Record, payloads: list[dict[str, Any]], options: dict[str, Any]) -> Layout:
    keys = {"text_key": options["text_key"], "metadata_key": options["metadata_key"]}
    name = options["layout"] or record.layout
    if name:
        keys["text_key"] = keys["text_key"] or (record.text_key if name == record.layout else None)
        return find_layout(name, **keys)
    return find_layout("plain", **keys) if keys["text_key"] else recognise_layout(payloads)


def _types(columns: Columns) -> dict[str, str]:
    types: dict[str, str] = {}
    for metadata in columns.metadata:
        for key, value in metadata.items():
            if value is not None or key not in types:
                types[key] = type_name(value)
    return types


def _by_key(indexes: dict[str, Any], layout: Layout) -> dict[str, str]:
    """Indexes on metadata, by metadata key."""
    *root, _ = layout.path("x")
    prefix = "".join(f"{step}." for step in root)
    return {
        path.removeprefix(prefix).strip('"'): index["type"] if isinstance(index, dict) else index
        for path, index in indexes.items()
        if path.startswith(prefix) and path not in layout.indexes
    }
