"""Pickles written piece by piece, so that a large one never is in memory as a whole."""

from __future__ import annotations

import io
import pickle
from typing import Any


def pickle_piece(value: Any) -> bytes:
    """A value's own pickle without frame, memo and end, to be set into a larger one."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=3)
    pickler.fast = True  # no memo, so that the pieces do not share numbers
    pickler.dump(value)
    return buffer.getvalue()[2:-1]
