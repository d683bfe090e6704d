"""What changed between two versions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from vecferry.connecting import Collection
from vecferry.model import RecordBatch, RecordId, SparseVector, decode_id, encode_id, to_json
from vecferry.snapshots.workspace import Workspace

_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS


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
    """The difference of two collections by id, in bounded memory (a temporary SQLite file)."""
    with ExitStack() as stack:
        workspace = stack.enter_context(Workspace(parent=temp_dir))
        file = sqlite3.connect(workspace.folder / "diff.sqlite", isolation_level=None)
        with closing(file):
            file.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
            for name, collection in (("old", before), ("new", after)):
                # An id that stands twice counts once, with the record read last.
                file.execute(f"CREATE TABLE {name} (id TEXT PRIMARY KEY, digest BLOB) WITHOUT ROWID")
                file.execute("BEGIN")
                file.executemany(f"INSERT OR REPLACE INTO {name} VALUES (?, ?)", _rows(collection))  # noqa: S608
                file.execute("COMMIT")
            return _counted(file, limit)


def _counted(file: sqlite3.Connection, limit: int) -> SnapshotDiff:
    only = "FROM {} AS a LEFT JOIN {} AS b USING (id) WHERE b.id IS NULL"
    both = "FROM old AS a JOIN new AS b USING (id) WHERE a.digest {} b.digest"
    parts = (only.format("new", "old"), only.format("old", "new"), both.format("<>"), both.format("="))
    counts = [int(file.execute(f"SELECT COUNT(*) {part}").fetchone()[0]) for part in parts]
    ids: list[list[RecordId]] = [
        [decode_id(row[0]) for row in file.execute(f"SELECT a.id {part} LIMIT ?", (limit,))]
        for part in parts[:3]
    ]
    added, removed, changed, unchanged = counts
    return SnapshotDiff(added, removed, changed, unchanged, *ids)


def _rows(collection: Collection) -> Iterator[tuple[str, bytes]]:
    for batch in collection.scan():
        for row, id_ in enumerate(batch.id_list):
            yield encode_id(id_), _digest(batch, row)


def _digest(batch: RecordBatch, row: int) -> bytes:
    digest = blake2b(digest_size=16)
    try:
        digest.update(
            orjson.dumps([batch.text_list[row], *to_json(batch.metadata_list[row])], option=_OPTIONS)
        )
    except TypeError:  # lone surrogates
        digest.update(
            repr((batch.text_list[row], batch.metadata_list[row])).encode("utf-8", "backslashreplace")
        )
    for name, column in sorted(batch.columns(), key=lambda item: item[0]):
        value = column[row]
        if value is not None:
            digest.update(name.encode() + b"\0")
            arrays = (value.indices, value.values) if isinstance(value, SparseVector) else (value,)
            for array in arrays:
                digest.update(array.tobytes())
    return digest.digest()
