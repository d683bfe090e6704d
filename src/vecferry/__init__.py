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
    "Collection": "vecferry.connecting",
    "CollectionSchema": "vecferry.model",
    "Dedupe": "vecferry.dedupe",
    "DualWriter": "vecferry.serving",
    "EmbedderChain": "vecferry.embedding",
    "EmbeddingRouter": "vecferry.embedding",
    "EmbeddingSpace": "vecferry.model",
    "FallbackCollection": "vecferry.serving",
    "Plan": "vecferry.pipeline.plan",
    "QueryEmbedder": "vecferry.embedding",
    "RecordBatch": "vecferry.model",
    "Report": "vecferry.reporting",
    "SnapshotStore": "vecferry.snapshots",
    "VecferryError": "vecferry.errors",
    "VectorRecord": "vecferry.model",
    "connect": "vecferry.connecting",
    "inspect": "vecferry.api.migration",
    "migrate": "vecferry.api.migration",
    "plan": "vecferry.api.migration",
    "sync": "vecferry.serving",
    "verify": "vecferry.api.migration",
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
    "QueryEmbedder",
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
    from vecferry.api.migration import inspect as inspect
    from vecferry.api.migration import migrate as migrate
    from vecferry.api.migration import plan as plan
    from vecferry.api.migration import verify as verify
    from vecferry.connecting import Collection as Collection
    from vecferry.connecting import connect as connect
    from vecferry.dedupe import Dedupe as Dedupe
    from vecferry.embedding import Budget as Budget
    from vecferry.embedding import EmbedderChain as EmbedderChain
    from vecferry.embedding import EmbeddingRouter as EmbeddingRouter
    from vecferry.embedding import QueryEmbedder as QueryEmbedder
    from vecferry.errors import VecferryError as VecferryError
    from vecferry.model import CollectionSchema as CollectionSchema
    from vecferry.model import EmbeddingSpace as EmbeddingSpace
    from vecferry.model import RecordBatch as RecordBatch
    from vecferry.model import VectorRecord as VectorRecord
    from vecferry.pipeline.plan import Plan as Plan
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
