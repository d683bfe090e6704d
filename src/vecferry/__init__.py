"""vecferry: ferry collections of vectors between stores, and prove that nothing was lost.

>>> import vecferry as vf
>>> report = vf.migrate("faiss:./vectorstore", "qdrant:./qdrant#questions")  # doctest: +SKIP
>>> report.check()  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "Budget": "vecferry.embedding",
    "Collection": "vecferry.ports",
    "CollectionSchema": "vecferry.records",
    "Dedupe": "vecferry.dedupe",
    "DualWriter": "vecferry.serving",
    "EmbedderChain": "vecferry.embedding",
    "EmbeddingRouter": "vecferry.embedding",
    "EmbeddingSpace": "vecferry.records",
    "FallbackCollection": "vecferry.serving",
    "Plan": "vecferry.planning",
    "RecordBatch": "vecferry.records",
    "Report": "vecferry.reporting",
    "SnapshotStore": "vecferry.snapshots",
    "VecferryError": "vecferry.errors",
    "VectorRecord": "vecferry.records",
    "connect": "vecferry.registry",
    "inspect": "vecferry.migration",
    "migrate": "vecferry.migration",
    "plan": "vecferry.migration",
    "sync": "vecferry.serving",
    "verify": "vecferry.migration",
}

__all__ = [
    "Budget",
    "Collection",
    "CollectionSchema",
    "Dedupe",
    "DualWriter",
    "EmbedderChain",
    "EmbeddingRouter",
    "EmbeddingSpace",
    "FallbackCollection",
    "Plan",
    "RecordBatch",
    "Report",
    "SnapshotStore",
    "VecferryError",
    "VectorRecord",
    "__version__",
    "connect",
    "inspect",
    "migrate",
    "plan",
    "sync",
    "verify",
]

if TYPE_CHECKING:
    from vecferry.dedupe import Dedupe as Dedupe
    from vecferry.embedding import Budget as Budget
    from vecferry.embedding import EmbedderChain as EmbedderChain
    from vecferry.embedding import EmbeddingRouter as EmbeddingRouter
    from vecferry.errors import VecferryError as VecferryError
    from vecferry.migration import inspect as inspect
    from vecferry.migration import migrate as migrate
    from vecferry.migration import plan as plan
    from vecferry.migration import verify as verify
    from vecferry.planning import Plan as Plan
    from vecferry.ports import Collection as Collection
    from vecferry.records import CollectionSchema as CollectionSchema
    from vecferry.records import EmbeddingSpace as EmbeddingSpace
    from vecferry.records import RecordBatch as RecordBatch
    from vecferry.records import VectorRecord as VectorRecord
    from vecferry.registry import connect as connect
    from vecferry.reporting import Report as Report
    from vecferry.serving import DualWriter as DualWriter
    from vecferry.serving import FallbackCollection as FallbackCollection
    from vecferry.serving import sync as sync
    from vecferry.snapshots import SnapshotStore as SnapshotStore


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import vecferry`` stays light."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'vecferry' has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
