"""Moving house under live traffic: search both, write both, catch up, cut over, roll back."""

from vecferry.core.moved import moved
from vecferry.serving.comparing import Comparison, compare
from vecferry.serving.counters import Counters
from vecferry.serving.dual import DualWriter
from vecferry.serving.fallback import Attempt, FallbackCollection, Hit, Hits
from vecferry.serving.journal import Journal
from vecferry.serving.syncing import Announcing, SyncReport, sync, untrack

__all__ = [
    "Announcing",
    "Attempt",
    "Comparison",
    "Counters",
    "DualWriter",
    "FallbackCollection",
    "Hit",
    "Hits",
    "Journal",
    "SyncReport",
    "compare",
    "sync",
    "untrack",
]

_BRIDGES = ("as_langchain_vector_store", "as_llama_index_vector_store")
_MOVED = {name: f"vecferry.contrib.bridges:{name}" for name in _BRIDGES}
__getattr__ = moved(__name__, {**_MOVED, "Figures": "vecferry.serving.counters:Counters"})
