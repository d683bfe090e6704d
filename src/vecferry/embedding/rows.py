"""What the embed stage does to the rows of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vecferry.embedding.base import Matrix
from vecferry.model import DenseColumn, RecordBatch

if TYPE_CHECKING:
    from vecferry.ports import InFlightBatch


def filled(batch: RecordBatch, field: str, rows: list[int], vectors: Matrix) -> RecordBatch:
    """The batch with ``vectors`` ``(len(rows), dim)`` in ``rows`` of ``field``.

    Other rows keep the vector they have, if it is as long; else they have none.
    """
    if len(rows) == len(batch):
        column = DenseColumn(vectors)
    else:
        old = batch.vectors.get(field)
        values = np.zeros((len(batch), vectors.shape[1]), dtype=np.float32)
        present = np.zeros(len(batch), dtype=np.bool_)
        if isinstance(old, DenseColumn) and old.values.shape == values.shape:
            values[:], present[:] = old.values, old.present
        values[rows], present[rows] = vectors, True
        column = DenseColumn(values, None if present.all() else present)
    return batch.replace(vectors={**batch.vectors, field: column})


def rejected(inflight: InFlightBatch, reasons: dict[int, str], stage: str) -> InFlightBatch:
    """Without the rows of ``reasons``, one rejection for each different reason."""
    left = list(range(len(inflight.batch)))
    for reason in dict.fromkeys(reasons.values()):
        gone = {row for row, why in reasons.items() if why == reason}
        inflight = inflight.reject([i for i, row in enumerate(left) if row in gone], stage, reason)
        left = [row for row in left if row not in gone]
    return inflight
