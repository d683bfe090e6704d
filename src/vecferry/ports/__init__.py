"""The promises between the core and the adapters. Small protocols; the docstrings are the law."""

from vecferry.ports.abilities import (
    BatchSearchable,
    Changes,
    ChangeTracking,
    ChecksFilters,
    ConcurrentSink,
    Deletable,
    ExactSearchable,
    Fetchable,
    KeepsOwn,
    Kept,
    Publishable,
    Rewindable,
    Searchable,
    Stamped,
    Store,
    TextSearchable,
    Version,
)
from vecferry.ports.checks import check_fits
from vecferry.ports.embedder import AsksDifferently, Embedder, for_queries
from vecferry.ports.progress import OnProgress, Progress, ShouldStop, ignore_progress, never_stop
from vecferry.ports.sink import Capabilities, Sink, WriteMode, WriteReceipt
from vecferry.ports.source import Cursor, Fields, Partition, Source
from vecferry.ports.url import StoreURL, is_secret

__all__ = [
    "AsksDifferently",
    "BatchSearchable",
    "Capabilities",
    "ChangeTracking",
    "Changes",
    "ChecksFilters",
    "ConcurrentSink",
    "Cursor",
    "Deletable",
    "Embedder",
    "ExactSearchable",
    "Fetchable",
    "Fields",
    "KeepsOwn",
    "Kept",
    "OnProgress",
    "Partition",
    "Progress",
    "Publishable",
    "Rewindable",
    "Searchable",
    "ShouldStop",
    "Sink",
    "Source",
    "Stamped",
    "Store",
    "StoreURL",
    "TextSearchable",
    "Version",
    "WriteMode",
    "WriteReceipt",
    "check_fits",
    "for_queries",
    "ignore_progress",
    "is_secret",
    "never_stop",
]
