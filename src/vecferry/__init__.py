"""vecferry: ferry collections of vectors between stores, and prove that nothing was lost.

>>> import vecferry as vf
>>> report = vf.migrate("faiss:./vectorstore", "qdrant:./qdrant#questions")  # doctest: +SKIP
>>> report.check()  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_EXPORTS = {
    "Budget": "vecferry.embedding",
    "BudgetExceeded": "vecferry.errors",
    "Collection": "vecferry.connecting",
    "CollectionSchema": "vecferry.model",
    "ConfigurationError": "vecferry.errors",
    "CorruptDataError": "vecferry.errors",
    "Dedupe": "vecferry.dedupe",
    "DualWriter": "vecferry.serving",
    "EmbedderChain": "vecferry.embedding",
    "EmbeddingRouter": "vecferry.embedding",
    "EmbeddingSpace": "vecferry.model",
    "FallbackCollection": "vecferry.serving",
    "FatalStoreError": "vecferry.errors",
    "JobChangedError": "vecferry.errors",
    "JobError": "vecferry.errors",
    "JobLockedError": "vecferry.errors",
    "JobStopped": "vecferry.errors",
    "LossRefusedError": "vecferry.errors",
    "NotFoundError": "vecferry.errors",
    "Plan": "vecferry.pipeline.plan",
    "PlanError": "vecferry.errors",
    "QueryEmbedder": "vecferry.embedding",
    "RecordBatch": "vecferry.model",
    "RejectedRecord": "vecferry.errors",
    "RepairReport": "vecferry.reporting",
    "Report": "vecferry.reporting",
    "RetryableError": "vecferry.errors",
    "SchemaMismatchError": "vecferry.errors",
    "SnapshotStore": "vecferry.snapshots",
    "SpaceMismatchError": "vecferry.errors",
    "TargetExistsError": "vecferry.errors",
    "UnsupportedError": "vecferry.errors",
    "VecferryError": "vecferry.errors",
    "VectorRecord": "vecferry.model",
    "VerificationError": "vecferry.errors",
    "connect": "vecferry.connecting",
    "inspect": "vecferry.api.migration",
    "jobs": "vecferry.api.jobs",
    "migrate": "vecferry.api.migration",
    "plan": "vecferry.api.migration",
    "publish": "vecferry.api.jobs",
    "repair": "vecferry.api.jobs",
    "rollback": "vecferry.api.jobs",
    "sync": "vecferry.serving",
    "verify": "vecferry.api.migration",
    "versions": "vecferry.api.jobs",
}

__all__ = [
    "Budget",
    "BudgetExceeded",
    "Collection",
    "CollectionSchema",
    "ConfigurationError",
    "CorruptDataError",
    "Dedupe",
    "DualWriter",
    "EmbedderChain",
    "EmbeddingRouter",
    "EmbeddingSpace",
    "FallbackCollection",
    "FatalStoreError",
    "JobChangedError",
    "JobError",
    "JobLockedError",
    "JobStopped",
    "LossRefusedError",
    "NotFoundError",
    "Plan",
    "PlanError",
    "QueryEmbedder",
    "RecordBatch",
    "RejectedRecord",
    "RepairReport",
    "Report",
    "RetryableError",
    "SchemaMismatchError",
    "SnapshotStore",
    "SpaceMismatchError",
    "TargetExistsError",
    "UnsupportedError",
    "VecferryError",
    "VectorRecord",
    "VerificationError",
    "__version__",
    "connect",
    "inspect",
    "jobs",
    "migrate",
    "plan",
    "publish",
    "repair",
    "rollback",
    "sync",
    "verify",
    "versions",
]

if TYPE_CHECKING:
    from vecferry.api import jobs as jobs
    from vecferry.api.jobs import publish as publish
    from vecferry.api.jobs import repair as repair
    from vecferry.api.jobs import rollback as rollback
    from vecferry.api.jobs import versions as versions
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
    from vecferry.errors import BudgetExceeded as BudgetExceeded
    from vecferry.errors import ConfigurationError as ConfigurationError
    from vecferry.errors import CorruptDataError as CorruptDataError
    from vecferry.errors import FatalStoreError as FatalStoreError
    from vecferry.errors import JobChangedError as JobChangedError
    from vecferry.errors import JobError as JobError
    from vecferry.errors import JobLockedError as JobLockedError
    from vecferry.errors import JobStopped as JobStopped
    from vecferry.errors import LossRefusedError as LossRefusedError
    from vecferry.errors import NotFoundError as NotFoundError
    from vecferry.errors import PlanError as PlanError
    from vecferry.errors import RejectedRecord as RejectedRecord
    from vecferry.errors import RetryableError as RetryableError
    from vecferry.errors import SchemaMismatchError as SchemaMismatchError
    from vecferry.errors import SpaceMismatchError as SpaceMismatchError
    from vecferry.errors import TargetExistsError as TargetExistsError
    from vecferry.errors import UnsupportedError as UnsupportedError
    from vecferry.errors import VecferryError as VecferryError
    from vecferry.errors import VerificationError as VerificationError
    from vecferry.model import CollectionSchema as CollectionSchema
    from vecferry.model import EmbeddingSpace as EmbeddingSpace
    from vecferry.model import RecordBatch as RecordBatch
    from vecferry.model import VectorRecord as VectorRecord
    from vecferry.pipeline.plan import Plan as Plan
    from vecferry.reporting import RepairReport as RepairReport
    from vecferry.reporting import Report as Report
    from vecferry.serving import DualWriter as DualWriter
    from vecferry.serving import FallbackCollection as FallbackCollection
    from vecferry.serving import sync as sync
    from vecferry.snapshots import SnapshotStore as SnapshotStore


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import vecferry`` stays light."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'vecferry' has no attribute {name!r}")
    module = import_module(_EXPORTS[name])
    value = module if _EXPORTS[name].endswith(f".{name}") else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
