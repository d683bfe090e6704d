"""What a rule looks at, as one fixed-width row a record.

| rule | row |
|---|---|
| id, text, metadata, vector | BLAKE2b-128 of the value, as two uint64 |
| similar | the vector at unit length, float32 ``(dim,)`` |
| minhash | 128 MinHash values of the text's shingles, uint32 |

BLAKE2b: RFC 7693. With 128 bits, two different values among 10⁹ share a key with probability 10⁻²¹.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from hashlib import blake2b
from math import isnan
from typing import Any

import numpy as np

from vecferry.dedupe.exact import ExactMatcher
from vecferry.dedupe.matchers import Features, Matcher
from vecferry.dedupe.minhash import MinHashMatcher, signatures
from vecferry.dedupe.rules import Dedupe, metadata_keys
from vecferry.dedupe.similar import SimilarMatcher
from vecferry.errors import ConfigurationError, SchemaMismatchError
from vecferry.model import Column, DenseColumn, RecordBatch, SparseVector
from vecferry.model.canonical import canonical_value
from vecferry.model.filters import lookup
from vecferry.model.vectors import Array

NO_TIME = np.iinfo(np.int64).min
_LAST_TIME = np.iinfo(np.int64).max - 1
_MILLISECONDS, _MICROSECONDS = 1e11, 1e14


def matcher_for(rule: Dedupe, memory_keys: int) -> Matcher:
    """The matcher that decides ``rule``."""
    if rule.threshold is None:
        return ExactMatcher(memory_keys)
    return SimilarMatcher(rule.threshold) if rule.by == "similar" else MinHashMatcher(rule.threshold)


def dtype_of(rule: Dedupe) -> str:
    """The numpy dtype of the rule's rows."""
    return {"similar": "<f4", "minhash": "<u4"}.get(rule.by, "<u8")


def features(rule: Dedupe, batch: RecordBatch) -> Features:
    """The rows of ``rule`` for every record of the batch.

    Raises:
        SchemaMismatchError: if the vector field the rule names is not there.
    """
    tokens: list[bytes] | None = None
    if rule.by == "id":
        return Features(id_keys(batch), np.ones(len(batch), np.bool_))
    if rule.by == "similar":
        values, has = _unit_vectors(rule, batch)
    elif rule.by == "minhash":
        values, has, tokens = signatures(batch.text_list)
    else:
        values, has = _hashed(_messages(rule, batch))
    if rule.within is None:
        return Features(values, has, None, tokens)
    keys, known = _hashed(_values_of(metadata_keys(rule.within, "within"), batch))
    return Features(values, has & known, keys[:, 0].copy(), tokens)


def id_keys(batch: RecordBatch) -> Array:
    """uint64 ``(n, 2)``: `vecferry.model.id_key` of each id."""
    keys: Array = batch.ids.keys.view("<u8").reshape(-1, 2)
    return keys


def times(rule: Dedupe, batch: RecordBatch) -> Array:
    """int64 ``(n,)``: microseconds since 1970, UTC; the smallest int64 where there is no readable time."""
    assert rule.timestamp is not None
    (key,) = metadata_keys(rule.timestamp, "timestamp")[:1]
    stamps = (_microseconds(lookup(meta, key, None)) for meta in batch.metadata_list)
    return np.fromiter(stamps, dtype=np.int64, count=len(batch))


def normal_form(text: str) -> str:
    """NFKC, case-folded, white space collapsed."""
    if not text.isascii():
        # Folding case may undo the composition, so it is composed again (Unicode, section 3.13).
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        return " ".join(text.split())
    return " ".join(text.lower().split())


# -- exact keys -------------------------------------------------------------------------------


def _hashed(messages: Iterable[bytes | None]) -> tuple[Array, Array]:
    nothing = bytes(16)
    given = list(messages)
    digests = [nothing if m is None else blake2b(m, digest_size=16).digest() for m in given]
    has = np.fromiter((m is not None for m in given), np.bool_, len(given))
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2), has


def _messages(rule: Dedupe, batch: RecordBatch) -> Iterable[bytes | None]:
    if rule.by == "vector":
        return _vector_bytes(rule, batch)
    if rule.keys:
        return _values_of(rule.keys, batch)
    texts = batch.text_list
    if rule.normalize:
        texts = [normal_form(text) if text else None for text in texts]
    # An empty text says nothing about the record: two of them are not duplicates.
    return [text.encode("utf-8", "surrogatepass") if text else None for text in texts]


def _values_of(keys: Sequence[str], batch: RecordBatch) -> Iterable[bytes | None]:
    for meta in batch.metadata_list:
        values = [lookup(meta, key, None) for key in keys]
        yield None if any(map(_lacking, values)) else _canonical(values)


def _lacking(value: Any) -> bool:
    return value is None or (isinstance(value, float) and isnan(value))


def _canonical(values: list[Any]) -> bytes:
    """Values with their types; two times of one instant are equal."""
    moments = [v.astimezone(UTC) if isinstance(v, datetime) and v.tzinfo else v for v in values]
    return canonical_value(moments)


def _column(rule: Dedupe, batch: RecordBatch) -> Column | None:
    """The column the rule compares; ``None`` where no record of the batch has any vector."""
    columns = dict(batch.columns())
    if not columns:
        return None
    if rule.field in columns:
        return columns[rule.field]
    if not rule.field and len(columns) == 1:
        return next(iter(columns.values()))
    raise SchemaMismatchError(
        f"by={rule.by!r} finds no vector field {rule.field!r}; "
        f"there are {sorted(columns)}, name one with field="
    )


def _vector_bytes(rule: Dedupe, batch: RecordBatch) -> Iterable[bytes | None]:
    if not len(batch):
        return
    column = _column(rule, batch)
    if column is None:
        yield from [None] * len(batch)
        return
    if isinstance(column, DenseColumn):
        width = column.values.shape[1] * column.values.itemsize
        raw = column.values.tobytes()
        present = (column.present & column.values.any(axis=1)).tolist()
        for row in range(len(column)):
            yield raw[row * width : (row + 1) * width] if present[row] else None
        return
    for row in range(len(batch)):
        value = column[row]
        if isinstance(value, SparseVector):
            yield value.indices.tobytes() + value.values.tobytes() if value.values.any() else None
        else:
            yield None if value is None or not value.any() else value.tobytes()


# -- near keys --------------------------------------------------------------------------------


def _unit_vectors(rule: Dedupe, batch: RecordBatch) -> tuple[Array, Array]:
    if not len(batch):
        return np.empty((0, 0), np.float32), np.empty(0, np.bool_)
    column = _column(rule, batch)
    if column is None:
        return np.empty((len(batch), 0), np.float32), np.zeros(len(batch), np.bool_)
    if not isinstance(column, DenseColumn):
        raise ConfigurationError(f"by='similar' compares dense vectors; field {rule.field!r} holds others")
    values = column.values.astype(np.float32)
    lengths = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
    has = column.present & (lengths > 0) & np.isfinite(lengths)
    values /= np.where(has, lengths, 1.0).astype(np.float32)[:, None]
    values[~has] = 0
    return values, has


# -- times ------------------------------------------------------------------------------------


def _microseconds(value: Any) -> int:
    try:
        moment = _moment(value)
        stamp = NO_TIME if moment is None else round(moment * 1_000_000)
    except (TypeError, ValueError, OverflowError, OSError):
        return NO_TIME
    return stamp if abs(stamp) <= _LAST_TIME else NO_TIME


def _moment(value: Any) -> float | None:
    """Seconds since 1970, UTC."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        text = value.strip()
        try:
            value = float(text)
        except ValueError:
            value = datetime.fromisoformat(text)
        else:
            if len(text) <= 4:  # a bare year
                value = datetime(int(text), 1, 1)
            elif len(text) == 8 and text.isdigit():  # 20240131, as ISO 8601 has it too
                value = datetime.fromisoformat(text)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    number = float(value)
    if abs(number) >= _MICROSECONDS:
        return number / 1_000_000
    return number / 1_000 if abs(number) >= _MILLISECONDS else number
