"""Where vecferry keeps what outlives a run: job states, the embedding cache, the ledger, fetched models."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """The folder ``VECFERRY_HOME``, or the user's state folder of this system.

    It need not exist: who writes below it makes it.
    """
    chosen = os.environ.get("VECFERRY_HOME")
    return Path(chosen).expanduser() if chosen else platformdirs.user_state_path("vecferry")
