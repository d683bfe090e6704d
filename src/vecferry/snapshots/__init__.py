"""Versioned copies of a collection on disk and in S3.

>>> from vecferry.snapshots import SnapshotStore
>>> store = SnapshotStore("s3://my-bucket/kb")  # doctest: +SKIP
>>> store.save("faiss:./vectorstore", note="after the cleaning")  # doctest: +SKIP
"""

from vecferry.snapshots.catalog import Snapshot, SnapshotFile
from vecferry.snapshots.comparing import SnapshotDiff
from vecferry.snapshots.store import Problem, SnapshotStore

__all__ = ["Problem", "Snapshot", "SnapshotDiff", "SnapshotFile", "SnapshotStore"]
