"""What changed between two versions: the verification of one against the other, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vecferry.connecting import Collection
from vecferry.model import RecordBatch, RecordId, encode_id
from vecferry.snapshots.workspace import Workspace
from vecferry.verifying import EXACT
from vecferry.verifying import compare as verify


@dataclass(frozen=True, slots=True)
class SnapshotDiff:
    """Counts, and ids up to the limit. Changed: another text, metadata or vector (bit for bit)."""

    added: int
    removed: int
    changed: int
    unchanged: int
    added_ids: list[RecordId] = field(default_factory=list)
    removed_ids: list[RecordId] = field(default_factory=list)
    changed_ids: list[RecordId] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not (self.added or self.removed or self.changed)

    def signed(self) -> list[tuple[str, list[RecordId]]]:
        """The listed ids with the signs of a patch."""
        return [("+", self.added_ids), ("-", self.removed_ids), ("~", self.changed_ids)]

    def to_dict(self) -> dict[str, Any]:
        """As JSON; ids as ``encode_id`` writes them."""
        ids = ("added_ids", "removed_ids", "changed_ids")
        values = {name: [encode_id(i) for i in getattr(self, name)] for name in ids}
        counts = {n: getattr(self, n) for n in ("added", "removed", "changed", "unchanged")}
        return {**counts, **values}

    def __str__(self) -> str:
        return (
            f"{self.added:,} added, {self.removed:,} removed, {self.changed:,} changed, "
            f"{self.unchanged:,} unchanged"
        )


def compare(
    before: Collection, after: Collection, limit: int, temp_dir: Path | None = None
) -> SnapshotDiff:
    """The difference of two collections by id, in bounded memory. An id that stands twice counts once."""
    schema = before.describe()
    for more in after.describe().fields:
        if more.name not in {f.name for f in schema.fields}:
            schema = schema.with_field(more)

    def expected() -> Iterator[RecordBatch]:
        return iter(before.scan())

    with Workspace(parent=temp_dir) as workspace:
        proof = verify(
            expected,
            schema,
            after.store,
            tolerance={f.name: EXACT for f in schema.fields},
            sample_queries=0,
            limit=limit,
            folder=workspace.folder,
        )
    same = proof.expected_ids - proof.missing_count - proof.different_count
    return SnapshotDiff(
        proof.extra_count,
        proof.missing_count,
        proof.different_count,
        same,
        proof.extra_ids,
        proof.missing_ids,
        proof.different_ids,
    )
