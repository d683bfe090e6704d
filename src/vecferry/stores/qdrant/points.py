"""`RecordBatch` ↔ Qdrant points: ids, payloads, vectors, and the bytes in which they travel."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from struct import pack
from typing import Any, cast
from uuid import UUID, uuid5

import numpy as np
import orjson

from vecferry.errors import RejectedRecord
from vecferry.layouts import PAYLOAD_KEY, Layout
from vecferry.layouts.envelope import is_envelope
from vecferry.model import (
    ENVELOPE,
    CollectionSchema,
    Column,
    DenseColumn,
    DType,
    IdColumn,
    JsonColumn,
    Kind,
    Metric,
    MultiColumn,
    RecordBatch,
    RecordId,
    SparseColumn,
    SparseVector,
    VectorField,
    encode_id,
)
from vecferry.model.ids import ID_NAMESPACE
from vecferry.model.vectors import Array
from vecferry.ports import Fields

PointId = int | str
Json = dict[str, Any]
Norms = list[dict[str, Any]]

UINT64 = range(2**64)
_INT64 = range(-(2**63), 2**63)
# Vectors that are meant to have unit length miss it by less than this, by the type they are kept in.
_UNIT_TOLERANCE = {DType.FLOAT16: 1e-3}
_UNIT_TOLERANCE_ELSE = 1e-5
# A float32 written as the shortest decimal, with its comma; and in protobuf.
JSON_NUMBER, GRPC_NUMBER = 13, 4
_MOST_LEVELS = 32
"""Objects and lists inside each other that a gRPC message of points may hold."""


class NeedsRest(Exception):
    """A payload holds what gRPC has no form for."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Points before they take the form of a transport, column by column.

    ``records`` are the records' own ids, ``payloads`` JSON. Dense and multi columns are float32 here,
    whatever they were.
    """

    ids: Sequence[PointId]
    records: Sequence[RecordId]
    payloads: Sequence[bytes]
    columns: Mapping[str, Column]

    def __len__(self) -> int:
        return len(self.ids)

    def slice(self, start: int, stop: int) -> Rows:
        """Rows ``start`` to ``stop``."""
        if start <= 0 and stop >= len(self):
            return self
        picked = np.arange(start, min(stop, len(self)))
        columns = {name: column.take(picked) for name, column in self.columns.items()}
        return Rows(self.ids[start:stop], self.records[start:stop], self.payloads[start:stop], columns)

    def take(self, picked: Sequence[int]) -> Rows:
        """The given rows."""
        columns = {name: column.take(np.array(picked, np.int64)) for name, column in self.columns.items()}
        return Rows(
            [self.ids[i] for i in picked],
            [self.records[i] for i in picked],
            [self.payloads[i] for i in picked],
            columns,
        )

    def last_of_each(self) -> Rows:
        """Without the earlier of two rows of one id: requests side by side come in any order."""
        last = {id_: row for row, id_ in enumerate(self.ids)}
        return self if len(last) == len(self) else self.take(sorted(last.values()))

    def sizes(self, number_bytes: int) -> list[int]:
        """About how many bytes each row takes, when a number takes ``number_bytes``."""
        numbers = np.full(len(self), 16.0)
        for column in self.columns.values():
            if isinstance(column, DenseColumn):
                numbers += column.values.shape[1]
            elif isinstance(column, MultiColumn):
                numbers += np.diff(column.offsets) * column.values.shape[1]
            else:
                numbers += 2 * np.diff(column.indptr)
        sizes = (numbers * number_bytes).astype(np.int64).tolist()
        return [size + len(payload) for size, payload in zip(sizes, self.payloads, strict=True)]


# -- ids ----------------------------------------------------------------------------------------


def point_id(id_: RecordId, *, text_ids: bool) -> tuple[PointId, bool]:
    """The point's id for a record's id, and whether the payload must keep the record's.

    Integers from 0 to 2^64 − 1 are themselves, and so are UUIDs; with ``text_ids`` it is not UUIDs but
    texts that are a UUID in its usual spelling. Every other id becomes a UUIDv5 of its typed text.
    """
    if isinstance(id_, int) and id_ in UINT64:
        return id_, False
    if isinstance(id_, UUID) and not text_ids:
        return str(id_), False
    if isinstance(id_, str) and text_ids and _is_uuid(id_):
        return id_, False
    return str(uuid5(ID_NAMESPACE, encode_id(id_))), True


def candidates(id_: RecordId) -> list[PointId]:
    """Every point id under which a record of this id may lie."""
    return list(dict.fromkeys(point_id(id_, text_ids=text_ids)[0] for text_ids in (False, True)))


def record_id(point: PointId, *, text_ids: bool) -> RecordId:
    """The record's id where the payload keeps none."""
    return point if isinstance(point, int) or text_ids else UUID(point)


def after(point: PointId) -> PointId | None:
    """The least id behind ``point`` in Qdrant's order: integers first, then UUIDs; ``None`` if none is."""
    if isinstance(point, int):
        return point + 1 if point + 1 in UINT64 else str(UUID(int=0))
    number = UUID(point).int + 1
    return str(UUID(int=number)) if number < 2**128 else None


def order(point: PointId) -> tuple[int, int]:
    """Sorts point ids as Qdrant does."""
    return (0, point) if isinstance(point, int) else (1, UUID(point).int)


def _is_uuid(text: str) -> bool:
    if len(text) != 36:
        return False
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


# -- numbers of a payload -----------------------------------------------------------------------

_MAY_DRIFT = re.compile(rb"[:,\[]-?(?:\d[\d.]{15,}|\d[\d.]*e[+-]?\d\d)")
"""Finds, in compact JSON, what may be a number that `as_kept` changes. Texts may look like it, too."""


_POWERS = [float(f"1e{power}") for power in range(309)]  # 10.0 ** 23 is another double than 1e23


def as_kept(value: float) -> float:
    """What a server gives back for a float: it keeps JSON text and parses it without exact round-trip.

    The digits become a double, which is then multiplied or divided by a power of ten (serde_json without
    ``float_roundtrip``): two roundings instead of one. What came back once mostly stays.
    """
    digits, _, power = repr(abs(value)).partition("e")
    whole, _, fraction = digits.partition(".")
    fraction = "" if fraction == "0" else fraction
    exponent = int(power or 0) - len(fraction)
    result = float(int(whole + fraction))
    if exponent >= 0:
        result *= _POWERS[exponent]
    elif exponent >= -308:
        result /= _POWERS[-exponent]
    else:
        result = result / 1e308 / _POWERS[-exponent - 308]
    return math.copysign(result, value)


def _forms(value: float) -> set[float]:
    """What may lie there for a float: REST parses it on the way in as well as on the way out."""
    found = [value]
    for _ in range(3):
        found.append(as_kept(found[-1]))
    return set(found)


def drifting(value: Any, pointer: str = "") -> Iterator[tuple[str, float]]:
    """JSON pointer and exact value of every float that `as_kept` changes."""
    if isinstance(value, float):
        if as_kept(value) != value:
            yield pointer, value
    elif isinstance(value, dict):
        for key, child in value.items():
            if isinstance(child, float | dict | list):
                yield from drifting(child, f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, list):
        for i, child in enumerate(value):
            if isinstance(child, float | dict | list):
                yield from drifting(child, f"{pointer}/{i}")


def drifting_in(metadata: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """`drifting` for metadata as it is, with a quick look first."""
    try:
        if _MAY_DRIFT.search(orjson.dumps(metadata)) is None:
            return
    except TypeError:
        pass
    yield from drifting(dict(metadata))


def beyond_64_bits(metadata: Mapping[str, Any]) -> Iterator[int]:
    """The integers that no number of a payload holds, with a quick look first: they lie there as texts."""
    try:
        orjson.dumps(metadata)
    except TypeError:
        yield from _beyond_64_bits(metadata)


def _beyond_64_bits(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        if value not in UINT64 and value not in _INT64:
            yield value
    elif isinstance(value, Mapping):
        for child in value.values():
            yield from _beyond_64_bits(child)
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _beyond_64_bits(child)


class _Numbers:
    """The numbers of a payload, by the JSON pointers of the record's metadata."""

    def __init__(self, payload: Json, body: Json, envelope: Json) -> None:
        self._payload, self._body = payload, body
        self._aside = envelope.get("aside") or {}

    def place(self, pointer: str) -> tuple[Any, Any]:
        """The container that a pointer leads into, and the key there.

        Raises:
            LookupError, TypeError, ValueError: if it leads nowhere.
        """
        *steps, last = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]
        first = steps[0] if steps else last
        root: Any = self._aside if first in self._aside else self._body
        if first == PAYLOAD_KEY and self._body is not self._payload:
            root, steps = self._payload, steps[1:]
        for step in steps:
            root = root[int(step)] if isinstance(root, list) else root[step]
        return root, int(last) if isinstance(root, list) else last

    def drifting(self, own: set[str]) -> Iterator[tuple[str, float]]:
        """`drifting`, of everything that metadata becomes of; ``own`` are the layout's keys."""
        yield from drifting({k: v for k, v in self._body.items() if k != ENVELOPE})
        yield from drifting(self._aside)
        if self._body is not self._payload:
            beside = {k: v for k, v in self._payload.items() if k not in own}
            yield from drifting(beside, f"/{PAYLOAD_KEY}")

    def put_in_place(self, types: Json) -> None:
        """Numbers that other stores cannot hold stay numbers here, so that range filters find them."""
        for pointer, kind in list(types.items()):
            if kind not in ("int", "float"):
                continue
            try:
                holder, key = self.place(pointer)
                number = int(holder[key]) if kind == "int" else float(holder[key])
            except (LookupError, TypeError, ValueError):
                continue
            if number in UINT64 if kind == "int" else number - number == 0.0:
                holder[key] = number
                del types[pointer]

    def restore(self, floats: Json) -> None:
        """Give floats that came back a little off their exact value, unless the app has changed them."""
        for pointer, exact in floats.items():
            try:
                holder, key = self.place(pointer)
                value = float(exact)
                if isinstance(holder[key], float) and holder[key] in _forms(value):
                    holder[key] = value
            except (LookupError, TypeError, ValueError):
                continue


# -- batch → rows -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Form:
    """How records lie in one collection.

    Attributes:
        text_ids: whether texts that are UUIDs are point ids (see `point_id`).
        keep_norms: whether lengths that a cosine collection takes are kept and given back.
        id_key: a payload key under which ids that change form stand as they were, for the application.
        drifts: whether the store changes some floats (see `as_kept`): a server does.
    """

    schema: CollectionSchema
    layout: Layout
    text_ids: bool = False
    keep_norms: bool = True
    id_key: str = ""
    drifts: bool = True

    @property
    def root(self) -> tuple[str, ...]:
        """The steps from the payload to the object that holds the metadata."""
        return self.layout.path("x")[:-1]

    @property
    def nodes(self) -> bool:
        """Whether metadata is read from a text inside the payload, in which numbers are exact."""
        return self.layout.name in ("llamaindex", "both")

    def body(self, payload: Json) -> Json:
        """The object that holds the metadata."""
        for step in self.root:
            found = payload.get(step)
            payload = found if isinstance(found, dict) else {}
        return payload

    # -- writing ------------------------------------------------------------------------------

    def rows_of(self, batch: RecordBatch) -> Rows:
        """The batch as rows.

        Raises:
            RejectedRecord: for NaN and infinite components, and for metadata that cannot be kept, with
                the ids.
        """
        ids = batch.id_list
        if bad := batch.non_finite():
            raise RejectedRecord("vectors hold NaN or infinite numbers", ids=[ids[row] for row in bad])
        ints = batch.ids.ints
        if ints is not None and (not len(ints) or ints.min() >= 0):
            points, foreign = ids, [False] * len(ids)
        else:
            pairs = [point_id(id_, text_ids=self.text_ids) for id_ in ids]
            points, foreign = [point for point, _ in pairs], [odd for _, odd in pairs]
        norms = self._norms(batch) if self.keep_norms else None
        payloads = self._payloads(batch, ids, foreign, norms)
        return Rows(cast("list[PointId]", points), ids, payloads, dict(_wire_columns(batch)))

    def _payloads(
        self, batch: RecordBatch, ids: list[RecordId], foreign: list[bool], norms: Norms | None
    ) -> list[bytes]:
        try:
            done = self._passed_through(batch, ids, foreign, norms)
        except (TypeError, ValueError):  # half a surrogate pair, a value of an unknown type
            done = {}
        left = [row for row in range(len(ids)) if row not in done]
        if left:
            done |= self._encoded(batch, left, ids, foreign, norms)
        return [done[row] for row in range(len(ids))]

    def _passed_through(
        self, batch: RecordBatch, ids: list[RecordId], foreign: list[bool], norms: Norms | None
    ) -> dict[int, bytes]:
        """Payloads made of the JSON that metadata is already; rows that need more are left out."""
        name = self.layout.name
        if self.nodes or self.id_key or name not in ("plain", "langchain"):
            return {}
        column = JsonColumn.of(batch.metadata or [{}] * len(batch))
        rows, typed, texts = column.rows(), column.typed, batch.text_list
        pattern = self._odd_keys
        odd = pattern if pattern.search(b",".join(rows)) else None
        text_key = orjson.dumps(getattr(self.layout, "text_key", "text"))
        head = b"{%s:" % text_key if name == "plain" else b"{%s:%%s,%s:%%s" % (text_key, self._body_key)
        done: dict[int, bytes] = {}
        for row, (raw, text) in enumerate(zip(rows, texts, strict=True)):
            if row in typed or (odd is not None and odd.search(raw)):
                continue
            if name == "langchain":
                if text is None:
                    continue
                payload = head % (orjson.dumps(text), raw)
            elif text is None:
                payload = raw[:-1]
            else:
                payload = head + orjson.dumps(text) + (b"," + raw[1:-1] if len(raw) > 2 else b"")
            if foreign[row] or (norms and norms[row]):
                envelope: Json = {"id": encode_id(ids[row])} if foreign[row] else {}
                if norms and norms[row]:
                    envelope["norms"] = norms[row]
                comma = b"," if len(payload) > 1 else b""
                payload += comma + b'"%s":' % ENVELOPE.encode() + orjson.dumps(envelope)
            done[row] = payload + b"}"
        return done

    @property
    def _body_key(self) -> bytes:
        return orjson.dumps(self.root[-1]) if self.root else b""

    @property
    def _odd_keys(self) -> re.Pattern[bytes]:
        """Finds, in JSON, keys that the layout needs for itself and numbers that may drift."""
        keys = [ENVELOPE, PAYLOAD_KEY] + ([] if self.root else [getattr(self.layout, "text_key", "text")])
        names = b"|".join(re.escape(orjson.dumps(key)) for key in keys)
        return re.compile(b"(?:%s):" % names + (b"|" + _MAY_DRIFT.pattern if self.drifts else b""))

    def _encoded(
        self,
        batch: RecordBatch,
        rows: list[int],
        ids: list[RecordId],
        foreign: list[bool],
        norms: Norms | None,
    ) -> dict[int, bytes]:
        """Payloads by way of the layout.

        Raises:
            RejectedRecord: naming the records that cannot be kept.
        """
        texts, metadata = batch.text_list, batch.metadata_list
        done: dict[int, bytes] = {}
        bad, reason = [], ""
        for row in rows:
            how: Json = {"foreign": [foreign[row]], "norms": [norms[row]] if norms else None}
            try:
                (payload,) = self.layout.encode([ids[row]], [texts[row]], [metadata[row]], **how)
                done[row] = self._sealed(payload, ids[row], foreign[row])
            except TypeError as error:
                bad.append(ids[row])
                reason = str(error)
                if "surrogates" in reason:
                    reason = f"not valid Unicode: {reason}"
        if bad:
            raise RejectedRecord(reason, ids=bad)
        return done

    def _sealed(self, payload: Json, id_: RecordId, foreign: bool) -> bytes:
        """The payload as JSON, with what its numbers need."""
        if foreign and self.id_key and self.id_key not in payload:
            payload[self.id_key] = _shown(id_)
        if self.nodes:
            return orjson.dumps(payload)
        envelope = payload.get(ENVELOPE)
        if isinstance(envelope, dict) and envelope.get("types"):
            _Numbers(payload, self.body(payload), envelope).put_in_place(envelope["types"])
            if not envelope["types"]:
                del envelope["types"]
            if not envelope:
                del payload[ENVELOPE]
        text = orjson.dumps(payload)
        if not self.drifts or _MAY_DRIFT.search(text) is None:
            return text
        envelope = payload.get(ENVELOPE)
        numbers = _Numbers(payload, self.body(payload), envelope if isinstance(envelope, dict) else {})
        own = {ENVELOPE, *self.root, getattr(self.layout, "text_key", "")}
        floats = {pointer: repr(value) for pointer, value in numbers.drifting(own)}
        if floats and (envelope is None or is_envelope(envelope)):
            payload.setdefault(ENVELOPE, {})["floats"] = floats
            text = orjson.dumps(payload)
        return text

    def _norms(self, batch: RecordBatch) -> Norms | None:
        """The lengths that a cosine collection would forget, by row; ``None`` if all are 1."""
        found: Norms = [{} for _ in range(len(batch))]
        known = {f.name: f for f in self.schema.fields}
        for name, column in batch.vectors.items():
            field_ = known.get(name)
            if field_ is None or field_.metric is not Metric.COSINE:
                continue
            if self.drifts and field_.dtype is DType.UINT8:
                continue  # a server leaves these as they are
            lengths = np.linalg.norm(column.values.astype(np.float64), axis=1)
            tolerance = _UNIT_TOLERANCE.get(field_.dtype, _UNIT_TOLERANCE_ELSE)
            odd = (np.abs(lengths - 1.0) > tolerance) & (lengths > 0)
            if isinstance(column, MultiColumn):
                for row in range(len(batch)):
                    span = slice(column.offsets[row], column.offsets[row + 1])
                    if odd[span].any():
                        found[row][name] = lengths[span].tolist()
                continue
            for row in np.flatnonzero(odd & column.present).tolist():
                found[row][name] = float(lengths[row])
        return found if any(found) else None

    # -- reading ------------------------------------------------------------------------------

    def batch_of(self, points: Sequence[Any], fields: Fields) -> RecordBatch:
        """A batch of points as REST gives them: ``{"id", "payload", "vector"}``."""
        payloads = [point.get("payload") or {} for point in points]
        for payload in payloads:
            if ENVELOPE in payload or self.id_key:
                self._unsealed(payload)
        columns = self.layout.decode(payloads)
        ids = [
            record_id(point["id"], text_ids=self.text_ids) if known is None else known
            for point, known in zip(points, columns.ids, strict=True)
        ]
        norms = columns.norms if self.keep_norms and any(columns.norms) else None
        vectors = self.columns_of(points, [f for f in self.schema.fields if fields.wants(f.name)], norms)
        return RecordBatch(
            ids=IdColumn(ids),
            vectors={n: c for n, c in vectors.items() if not isinstance(c, SparseColumn)},
            sparse_vectors={n: c for n, c in vectors.items() if isinstance(c, SparseColumn)},
            texts=columns.texts if fields.text else None,
            metadata=columns.metadata if fields.metadata else None,
        )

    def columns_of(
        self, points: Sequence[Any], fields: Sequence[VectorField], norms: Any = None
    ) -> dict[str, Column]:
        """The vectors of some fields. ``norms`` gives them back their lengths."""
        stored = [_named(point.get("vector")) for point in points]
        found: dict[str, Column] = {}
        for field_ in fields:
            values = [vectors.get(field_.name) for vectors in stored]
            if field_.kind is Kind.SPARSE:
                found[field_.name] = SparseColumn.from_rows([_sparse(value) for value in values])
            else:
                found[field_.name] = _dense(field_, values, norms)
        return found

    def _unsealed(self, payload: Json) -> None:
        envelope = payload.get(ENVELOPE)
        if not isinstance(envelope, dict):
            return
        if isinstance(envelope.get("floats"), dict) and is_envelope(envelope):
            _Numbers(payload, self.body(payload), envelope).restore(envelope["floats"])
        if self.id_key and "id" in envelope and self.id_key in payload:
            shown = payload[self.id_key]
            if encode_id(shown) == envelope["id"] or shown == envelope["id"]:
                del payload[self.id_key]


def _shown(id_: RecordId) -> Any:
    """An id as an application reads and filters it: integers of 64 bits and texts as they are."""
    if isinstance(id_, str) or (isinstance(id_, int) and id_ in _INT64):
        return id_
    return encode_id(id_)


def _wire_columns(batch: RecordBatch) -> Iterator[tuple[str, Column]]:
    for name, column in batch.columns():
        if isinstance(column, SparseColumn) or column.values.dtype == np.float32:
            yield name, column
        elif isinstance(column, MultiColumn):
            yield name, MultiColumn(column.values.astype(np.float32), column.offsets, column.mask)
        else:
            yield name, DenseColumn(column.values.astype(np.float32), column.mask)


def chunks(rows: Rows, *, points: int, max_bytes: int, number_bytes: int) -> Iterator[Rows]:
    """Consecutive pieces of at most ``points`` rows and about ``max_bytes``, one row at least."""
    start, total = 0, 0
    for i, size in enumerate(rows.sizes(number_bytes)):
        total += size
        if i > start and (i - start >= points or total > max_bytes):
            yield rows.slice(start, i)
            start, total = i, size
    if start < len(rows):
        yield rows.slice(start, len(rows))


# -- rows → JSON --------------------------------------------------------------------------------


def as_json(rows: Rows) -> list[bytes]:
    """Each row as a point in JSON. Vectors go from the array to text in C, payloads as they are."""
    ids = [b"%d" % id_ if isinstance(id_, int) else b'"%s"' % id_.encode() for id_ in rows.ids]
    return [
        b'{"id":%s,"vector":%s,"payload":%s}' % row
        for row in zip(ids, _json_vectors(rows), rows.payloads, strict=True)
    ]


def _json_vectors(rows: Rows) -> Iterator[bytes]:
    if list(rows.columns) == [""]:
        return (text or b"{}" for text in _json_column(rows.columns[""]))
    heads = [orjson.dumps(name) + b":" for name in rows.columns]
    columns = [_json_column(column) for column in rows.columns.values()]
    if not columns:
        return repeat(b"{}", len(rows))
    return (
        b"{%s}" % b",".join([head + text for head, text in zip(heads, row, strict=True) if text])
        for row in zip(*columns, strict=True)
    )


def _json_column(column: Column) -> list[bytes | None]:
    if isinstance(column, DenseColumn):
        if not len(column) or not column.values.shape[1]:
            return [None] * len(column)
        whole = orjson.dumps(np.ascontiguousarray(column.values), option=orjson.OPT_SERIALIZE_NUMPY)
        rows: list[bytes | None] = [b"[%s]" % row for row in whole[2:-2].split(b"],[")]
        if column.mask is None:
            return rows
        return [row if there else None for row, there in zip(rows, column.mask, strict=True)]
    return [None if (value := column[i]) is None else _json_value(value) for i in range(len(column))]


def _json_value(value: Array | SparseVector) -> bytes:
    if isinstance(value, SparseVector):
        value = {"indices": value.indices, "values": value.values}  # type: ignore[assignment]
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


# -- rows → protobuf ----------------------------------------------------------------------------
#
# The messages of Qdrant's points.proto and json_with_int.proto, field by field: a tag is the field's
# number times 8 plus how it is written (0 varint, 1 eight bytes, 2 length and content).


def as_message(collection: str, rows: Rows, shard_key: str | None) -> bytes:
    """An ``UpsertPoints`` that waits. Vectors are the array's own bytes.

    Raises:
        NeedsRest: for integers beyond 64 bits with a sign, and for what is nested too deep.
    """
    parts = [as_field(0x0A, collection.encode()), b"\x10\x01"]
    for id_, payload, vectors in zip(rows.ids, rows.payloads, _packed_vectors(rows), strict=True):
        id_part = b"\x08" + _varint(id_) if isinstance(id_, int) else as_field(0x12, id_.encode())
        entries = [_entry(0x1A, key, value, 1) for key, value in orjson.loads(payload).items()]
        parts.append(as_field(0x1A, as_field(0x0A, id_part) + b"".join(entries) + vectors))
    if shard_key is not None:
        parts.append(as_field(0x2A, as_field(0x0A, as_field(0x0A, shard_key.encode()))))
    return b"".join(parts)


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def as_field(tag: int, content: bytes) -> bytes:
    """A length-delimited field; ``tag`` below 128."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    return bytes((tag,)) + _varint(size) + content


def _entry(tag: int, key: str, value: Any, level: int) -> bytes:
    """An entry of a ``map<string, Value>``."""
    return as_field(tag, as_field(0x0A, key.encode()) + as_field(0x12, _value(value, level)))


def _value(value: Any, level: int) -> bytes:
    kind = type(value)
    if kind is str:
        return as_field(0x22, value.encode())
    if kind is int:
        if value not in _INT64:
            raise NeedsRest
        return b"\x18" + _varint(value & 0xFFFFFFFFFFFFFFFF)
    if kind is float:
        return b"\x11" + pack("<d", value)
    if kind is bool:
        return b"\x28\x01" if value else b"\x28\x00"
    if value is None:
        return b"\x08\x00"
    if level > _MOST_LEVELS // 2:
        raise NeedsRest
    if kind is dict:
        return as_field(0x32, b"".join([_entry(0x0A, k, v, level + 1) for k, v in value.items()]))
    return as_field(0x3A, b"".join([as_field(0x0A, _value(v, level + 1)) for v in value]))


def _packed_vectors(rows: Rows) -> Iterator[bytes]:
    """Each row's ``Vectors``, as a field of its ``PointStruct``."""
    if list(rows.columns) == [""]:
        empty = as_field(0x22, as_field(0x12, b""))
        return (
            empty if one is None else as_field(0x22, as_field(0x0A, one))
            for one in _packed(rows.columns[""])
        )
    keys = [as_field(0x0A, name.encode()) for name in rows.columns]
    columns = [_packed(column) for column in rows.columns.values()]
    if not columns:
        return repeat(as_field(0x22, as_field(0x12, b"")), len(rows))
    return (
        as_field(
            0x22,
            as_field(
                0x12,
                b"".join(
                    [
                        as_field(0x0A, key + as_field(0x12, one))
                        for key, one in zip(keys, row, strict=True)
                        if one is not None
                    ]
                ),
            ),
        )
        for row in zip(*columns, strict=True)
    )


def _packed(column: Column) -> list[bytes | None]:
    """Each row as a ``Vector``."""
    if isinstance(column, DenseColumn):
        width = 4 * column.values.shape[1]
        floats = b"\x0a" + _varint(width)  # the packed floats of a DenseVector
        head = b"\xaa\x06" + _varint(len(floats) + width) + floats  # field 101 of Vector
        body = column.values.astype("<f4", copy=False).tobytes()
        rows: list[bytes | None] = [head + body[at : at + width] for at in range(0, len(body), width)]
        if column.mask is None:
            return rows
        return [row if there else None for row, there in zip(rows, column.mask, strict=True)]
    return [None if (value := column[i]) is None else _packed_one(value) for i in range(len(column))]


def _packed_one(value: Array | SparseVector) -> bytes:
    if isinstance(value, SparseVector):
        indices = b"".join(map(_varint, value.indices.tolist()))
        numbers = value.values.astype("<f4", copy=False).tobytes()
        content, tag = as_field(0x0A, numbers) + as_field(0x12, indices), b"\xb2\x06"  # field 102
    else:
        rows = value.astype("<f4", copy=False)
        content = b"".join([as_field(0x0A, as_field(0x0A, row.tobytes())) for row in rows])
        tag = b"\xba\x06"  # field 103
    return tag + _varint(len(content)) + content


# -- JSON → columns -----------------------------------------------------------------------------


def _named(vector: Any) -> Mapping[str, Any]:
    if isinstance(vector, dict):
        return vector
    return {} if vector is None else {"": vector}


def _sparse(value: Any) -> SparseVector | None:
    return None if value is None else SparseVector(value["indices"], value["values"])


def _dense(
    field_: VectorField, values: list[Any], norms: Sequence[Mapping[str, Any]] | None
) -> DenseColumn | MultiColumn:
    dtype = np.dtype(field_.dtype.numpy)
    if norms is None and field_.kind is Kind.DENSE and values and None not in values:
        whole = np.array(values, dtype=np.float32)
        rounded = np.rint(whole) if dtype.kind in "iu" else whole
        return DenseColumn(rounded.astype(dtype, copy=False))
    make: Callable[..., Any] = MultiColumn.from_rows if field_.kind is Kind.MULTI else DenseColumn.from_rows
    rows = [None if value is None else np.asarray(value, dtype=np.float32) for value in values]
    for i, row in enumerate(rows):
        length = norms[i].get(field_.name) if norms else None
        if length is not None and row is not None:
            rows[i] = _lengthened(row, np.asarray(length, dtype=np.float64))
    if field_.dtype in (DType.INT8, DType.UINT8):
        rows = [None if row is None else np.rint(row) for row in rows]
    column: DenseColumn | MultiColumn = make(rows, field_.dim, dtype)
    return column


def _lengthened(row: Array, length: Array) -> Array:
    """``row`` (or each of its rows) at its old length. What never lost it stays as it is, to the bit."""
    now = np.linalg.norm(row.astype(np.float64), axis=-1)
    if now.shape != length.shape:
        return row  # the app has replaced the vector since
    scale = np.divide(length, now, out=np.ones_like(now), where=now > 0)
    if np.all(np.abs(scale - 1.0) < 1e-6):
        return row
    longer: Array = (row.astype(np.float64) * scale[..., None]).astype(np.float32)
    return longer
