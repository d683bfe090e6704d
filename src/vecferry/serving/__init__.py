"""Moving house under live traffic: search both, write both, catch up, cut over, roll back."""

from typing import Any

from vecferry.core.registry import find
from vecferry.serving.comparing import Comparison, compare
from vecferry.serving.dual import DualWriter
from vecferry.serving.fallback import Attempt, FallbackCollection, Hit, Hits
from vecferry.serving.figures import Figures
from vecferry.serving.journal import Journal
from vecferry.serving.syncing import Announcing, SyncReport, sync, untrack

__all__ = [
    "Announcing",
    "Attempt",
    "Comparison",
    "DualWriter",
    "FallbackCollection",
    "Figures",
    "Hit",
    "Hits",
    "Journal",
    "SyncReport",
    "compare",
    "sync",
    "untrack",
]

_BRIDGES = {"as_langchain_vector_store": "langchain", "as_llama_index_vector_store": "llama-index"}


def __getattr__(name: str) -> Any:
    if name in _BRIDGES:  # they moved to vecferry.contrib.bridges
        return find("vecferry.bridges", _BRIDGES[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
