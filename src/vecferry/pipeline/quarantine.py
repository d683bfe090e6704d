"""Records that could not go on, kept durably with the reason, to be mended and replayed.

One JSON object a line: ``id`` (typed, see `encode_id`), ``stage``, ``reason``, ``text``, ``metadata``
and ``types`` (see `to_json`), ``vectors`` and ``sparse_vectors``. Floats are written such that they read
back to the same float32; NaN and infinities as strings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vecferry.core.redaction import redact
from vecferry.errors import CorruptDataError, FatalStoreError
from vecferry.model import (
    RecordId,
    SparseVector,
    VectorRecord,
    decode_id,
    encode_id,
    from_json,
    to_json,
)
from vecferry.ports import Rejection


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One line of the file."""

    record: VectorRecord
    stage: str
    reason: str


class Quarantine:
    """An append log with a committed length: what a job did not commit is cut off when it resumes.

    Args:
        path: the JSON Lines file.
        length: the committed bytes; everything behind them is forgotten.
    """

    def __init__(self, path: Path, length: int = 0) -> None:
        self.path = path
        self._dirty = False
        self._file = path.open("ab")
        if self._file.tell() > length:
            self._file.truncate(length)
            self._file.seek(length)

    def add(self, rejection: Rejection) -> None:
        """Append the rejection's records."""
        for record in rejection.batch.records():
            line = _line(record, rejection.stage, redact(rejection.reason))
            try:
                self._file.write(json.dumps(line, ensure_ascii=True).encode() + b"\n")
            except OSError as error:
                raise self._failed(error) from error
        self._dirty = True

    def sync(self) -> int:
        """Make what was added durable and return the length to commit.

        Raises:
            FatalStoreError: if the disk is full or refuses.
        """
        if not self._dirty:
            return self._file.tell()
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from error
        self._dirty = False
        return self._file.tell()

    def close(self) -> None:
        """Close the file. What was not synced may be lost; the job has not committed it either."""
        with suppress(OSError):
            self._file.close()

    def _failed(self, error: OSError) -> FatalStoreError:
        return FatalStoreError(f"{self.path}: {error.strerror}; make room and run the same call again")


def read_quarantine(path: Path) -> Iterator[Quarantined]:
    """The records of a quarantine file; none if it is not there.

    Raises:
        CorruptDataError: naming a line that was mended into something else.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                item = _read_line(json.loads(line))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise CorruptDataError(
                    f"{path} line {number} is no quarantined record ({type(error).__name__}: {error}); "
                    "mend or remove the line"
                ) from error
            yield item


def _read_line(item: dict[str, Any]) -> Quarantined:
    record = VectorRecord.model_construct(
        id=decode_id(item["id"]),
        text=item["text"],
        vectors={k: _array(v) for k, v in item["vectors"].items()},
        sparse_vectors={
            k: SparseVector(v["indices"], v["values"]) for k, v in item["sparse_vectors"].items()
        },
        metadata=from_json(item["metadata"], item["types"]),
        score=None,
    )
    return Quarantined(record, item["stage"], item["reason"])


def quarantined_ids(path: Path, *, but_of: Container[str] = ()) -> set[RecordId]:
    """The ids in a quarantine file, but those put there by the stages ``but_of``."""
    return {item.record.id for item in read_quarantine(path) if item.stage not in but_of}


def _line(record: VectorRecord, stage: str, reason: str) -> dict[str, Any]:
    try:
        metadata, types = to_json(record.metadata)
    except TypeError:
        metadata, types = {"repr": repr(record.metadata)}, {}
    return {
        "id": encode_id(record.id),
        "stage": stage,
        "reason": reason,
        "text": record.text,
        "metadata": metadata,
        "types": types,
        "vectors": {k: _numbers(v) for k, v in record.vectors.items()},
        "sparse_vectors": {
            k: {"indices": v.indices.tolist(), "values": v.values.tolist()}
            for k, v in record.sparse_vectors.items()
        },
    }


def _numbers(array: Any) -> dict[str, Any]:
    finite = [x if np.isfinite(x) else repr(x) for x in array.ravel().tolist()]
    return {"dtype": str(array.dtype), "shape": list(array.shape), "values": finite}


def _array(item: dict[str, Any]) -> Any:
    values = [float(x) if isinstance(x, str) else x for x in item["values"]]
    return np.array(values, dtype=item["dtype"]).reshape(item["shape"])
