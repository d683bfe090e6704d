"""What the file stores have in common: everything but the format.

A write goes to an append log beside the target (`AppendLog`); `finish` builds the file from what was
there before and the log, and lets it be the target in one step. What comes out depends only on the order
of the records, not on how they were batched or how often the job was interrupted, so that it is equal to
the byte. Of records with one id the last written wins.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from vecferry.core.durable import as_store_error, check_swappable, replace_whole
from vecferry.errors import (
    ConfigurationError,
    CorruptDataError,
    NotFoundError,
    PlanError,
    TargetExistsError,
)
from vecferry.model import (
    CollectionSchema,
    DType,
    Kind,
    Metric,
    RecordBatch,
    RecordId,
    VectorRecord,
    Where,
)
from vecferry.model.vectors import Array
from vecferry.ports import (
    Capabilities,
    Cursor,
    Fields,
    Partition,
    Version,
    WriteMode,
    WriteReceipt,
    check_fits,
)
from vecferry.stores.kit.append_log import ID_KINDS, PENDING, AppendLog
from vecferry.stores.kit.checks import check_columns, check_query, field_named, kind_of, score_batch
from vecferry.stores.kit.keys import KeyIndex, keys_of, last_of_each
from vecferry.stores.kit.staging import StagingRoom
from vecferry.stores.kit.stamps import stamp_of_files

_SEARCH_BATCH = _INDEX_BATCH = 4096


class FileStore(ABC):
    """A collection in a file or a folder of files.

    A subclass knows the format: how to list and read its files, how to encode a batch for the log,
    and how to build the target. Positions are int64 numbers that name a record of the present
    content: row numbers or byte offsets.
    """

    scheme: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.url = f"{self.scheme}:{path}"
        self.room = StagingRoom(self.path)
        self._log = AppendLog(self.room.folder / PENDING)
        self._writing: CollectionSchema | None = None
        self._index: tuple[Any, KeyIndex] | None = None
        self._dropped = keys_of([])
        self._as_folder: bool | None = None
        self._front: FileStore | None = None

    # -- what a format must say ---------------------------------------------------------------

    @abstractmethod
    def describe(self) -> CollectionSchema: ...

    @abstractmethod
    def count(self) -> int: ...

    @abstractmethod
    def partitions(self, want: int) -> Sequence[Partition]: ...

    @abstractmethod
    def scan(
        self,
        *,
        partition: Partition | None = None,
        after: Cursor | None = None,
        batch_size: int = 1024,
        fields: Fields = Fields.ALL,
        where: Where | None = None,
    ) -> Iterator[RecordBatch]: ...

    @abstractmethod
    def _located(self, batch_size: int, fields: Fields) -> Iterator[tuple[RecordBatch, Array]]:
        """Every record with its position."""

    @abstractmethod
    def _at(self, positions: Array, fields: Fields) -> RecordBatch:
        """The records at the given positions, in that order."""

    @abstractmethod
    def _encode(self, batch: RecordBatch, schema: CollectionSchema) -> tuple[bytes, Array, str]:
        """Bytes for the log, the length of each row in them, and the kind of the ids."""

    @abstractmethod
    def _build(self, place: Path, pending: Pending) -> None:
        """Write the whole target, file or folder, at ``place``."""

    @abstractmethod
    def _twin(self, path: Path) -> Self:
        """A store of the same settings at another path."""

    # -- files --------------------------------------------------------------------------------

    @property
    def is_folder(self) -> bool:
        """Whether the target is, or would be, a folder."""
        if self._as_folder is not None:
            return self._as_folder
        return self.path.is_dir() or (not self.path.exists() and not self.path.name.endswith(self.suffixes))

    def files(self) -> list[Path]:
        """The data files, in order of their names.

        Raises:
            NotFoundError: if there is nothing at the path.
        """
        if self.path.is_dir():
            found = sorted(p for p in self.path.rglob("*") if self._is_data(p))
            if not found:
                raise NotFoundError(f"{self.url} holds no {self.suffixes[0]} file; check the path")
            return found
        if not self.path.exists():
            raise NotFoundError(f"{self.url} is not there; check the path")
        return [self.path]

    def _is_data(self, path: Path) -> bool:
        hidden = any(part.startswith((".", "_")) for part in path.relative_to(self.path).parts)
        return path.name.endswith(self.suffixes) and not hidden and path.is_file()

    def _refuse_foreign_files(self) -> None:
        """A folder is swapped whole: no files of others may lie in it, but for ``_SUCCESS`` and such."""
        foreign = (
            str(path.relative_to(self.path))
            for path in (self.path.rglob("*") if self.path.is_dir() else ())
            if path.is_file() and not path.name.startswith(("_", ".")) and not self._is_data(path)
        )
        if names := ", ".join(islice(foreign, 3)):
            raise ConfigurationError(
                f"{self.url} also holds {names}, which no collection needs and a swap would take away; "
                "name another folder or move these files"
            )

    def stamp(self) -> dict[str, Any]:
        """What tells one state of the files from another; see `vecferry.ports.Stamped`."""
        return stamp_of_files(self.files())

    def _stamp(self) -> Any:
        return [(str(p), s.st_size, s.st_mtime_ns, s.st_ino) for p in self.files() for s in (p.stat(),)]

    # -- sink ---------------------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        """Everything fits, as it is."""
        return Capabilities(
            kinds=frozenset(Kind),
            metrics=frozenset(Metric),
            dtypes=frozenset(DType),
            needs_vectors=False,
        )

    def exists(self) -> bool:
        """Whether there is a file (in the folder)."""
        try:
            return bool(self.files())
        except NotFoundError:
            return False

    def prepare(self, schema: CollectionSchema, mode: WriteMode) -> None:
        """Begin or resume the log; the target itself is not touched before `finish`."""
        try:
            self._prepare(schema, mode)
        except OSError as error:
            raise as_store_error(error, self.path) from error

    def _prepare(self, schema: CollectionSchema, mode: WriteMode) -> None:
        check_swappable((self._front or self).path)
        (self._front or self)._refuse_foreign_files()
        if mode is WriteMode.RESUME:
            self._resume(schema)
            return
        if self._writing is not None:  # twice is as once
            check_fits(self._writing, schema, self.url)
            return
        seen = self._front or self
        if mode is WriteMode.CREATE and seen.exists() and seen.count():
            raise TargetExistsError(f'{seen.url} holds records; pass mode="upsert" or mode="replace"')
        keep = mode is WriteMode.UPSERT  # what is there when it is finished, that is
        if keep and self.exists():
            have = self.describe()
            check_fits(have, schema, self.url)
            schema = have
        schema = schema.model_copy(update={"losses": (), "count": None})
        self._log.begin(schema, keep=keep)
        self._writing = schema

    def _resume(self, schema: CollectionSchema) -> None:
        try:
            self._log.resume(lambda held: _fits(held, schema, self.url))
        except NotFoundError:
            # Cut short before the log was begun, or after it was built into the target: what the log
            # held is in the target then, and `rewind` tells the two apart.
            there = self.exists()
            have = self.describe() if there else schema
            self._log.begin(have.model_copy(update={"losses": (), "count": None}), keep=there)
        check_fits(self._log.schema, schema, self.url)
        self._writing = self._log.schema

    def write(self, batch: RecordBatch) -> WriteReceipt:
        """Append to the log."""
        if self._writing is None:
            if not self.exists():
                raise NotFoundError(f"{self.url} was not prepared; call prepare() first")
            self.prepare(self.describe(), WriteMode.UPSERT)
        assert self._writing is not None
        check_columns(batch, self._writing, self.url)
        rows, lengths, kind = self._encode(batch, self._writing)
        try:
            self._log.append(rows, lengths, batch.ids, kind)
        except OSError as error:
            raise as_store_error(error, self.path) from error
        return WriteReceipt(len(batch), len(rows))

    def finish(self) -> None:
        """Build the target from what was there and the log, and swap it in."""
        if self._writing is None:
            return
        self._log.mark()
        pending = Pending(self, self._log, self._writing)
        if not pending.changes_nothing:
            self._swap_in(pending)
        self._writing = self._index = None
        self._log.remove()
        self.room.sweep()

    def _swap_in(self, pending: Pending) -> None:
        draft = self._log.folder / "draft" / self.path.name
        shutil.rmtree(draft.parent, ignore_errors=True)
        try:
            draft.parent.mkdir()
            self._build(draft, pending)
            built = self._twin(draft)
            built._as_folder = self.is_folder
            have, due = built._framed_rows(), pending.rows
            if have != due:
                raise CorruptDataError(
                    f"what was built for {self.url} holds {have:,} records where {due:,} are due, so that "
                    "it is not swapped in; run the same call again"
                )
            replace_whole(draft, self.room.target)
        except OSError as error:
            raise as_store_error(error, self.path) from error

    def close(self) -> None:
        """Close the log; what is in it stays resumable."""
        self._log.close()
        self._writing = None

    def _framed_rows(self) -> int:
        """The records of a file just built, counted by its framing alone."""
        return self.count()

    def mark(self) -> Any:
        """Make the log durable. ``None`` when nothing is being written."""
        return self._log.mark() if self._writing is not None else None

    def rewind(self, mark: Any) -> None:
        """Cut the log back to ``mark``."""
        if self._writing is None:
            raise NotFoundError(f"{self.url} has nothing to rewind; prepare it first")
        if mark and not self._log.entries().size and self.exists():
            return  # finished, see `_resume`
        self._log.rewind(mark)

    # -- abilities ----------------------------------------------------------------------------

    def fetch(self, ids: Sequence[RecordId], *, fields: Fields = Fields.ALL) -> RecordBatch:
        """By an index of the ids (24 bytes each), made at the first call and kept while the file stays."""
        positions = self._key_index().positions(keys_of(ids))
        return self._at(positions[positions >= 0], fields)

    def _key_index(self) -> KeyIndex:
        stamp = self._stamp()
        if self._index is None or self._index[0] != stamp:
            located = self._located(_INDEX_BATCH, Fields.IDS)
            self._index = stamp, KeyIndex((keys_of(batch.ids), at) for batch, at in located)
        return self._index[1]

    def search(
        self, vector: Any, k: int = 10, *, field: str = "", where: Where | None = None
    ) -> list[VectorRecord]:
        """Exact, by reading everything once in bounded memory."""
        return self.search_many([vector], k, field=field, where=where)[0]

    def search_many(
        self,
        vectors: Sequence[Any],
        k: int = 10,
        *,
        field: str = "",
        where: Where | None = None,
        fields: Fields = Fields.ALL,
    ) -> list[list[VectorRecord]]:
        """As `search`, for several queries in one pass."""
        if not vectors:
            return []
        target = field_named(field, self.describe(), self.url)
        for vector in vectors:
            check_query(vector, target)
        best: list[list[tuple[float, int]]] = [[] for _ in vectors]
        read = Fields(vectors=(target.name,), text=False, metadata=where is not None)
        for batch, positions in self._located(_SEARCH_BATCH, read):
            for at, points in enumerate(score_batch(batch, target, vectors, where)):
                top = np.argsort(-points, kind="stable")[:k]
                found = [(float(points[i]), int(positions[i])) for i in top if np.isfinite(points[i])]
                best[at] = sorted(best[at] + found, key=lambda hit: -hit[0])[:k]
        wanted = sorted({position for hits in best for _, position in hits})
        known = dict(zip(wanted, self._at(np.array(wanted, dtype=np.int64), fields).records(), strict=True))
        return [[known[at].model_copy(update={"score": point}) for point, at in hits] for hits in best]

    def delete(self, ids: Sequence[RecordId]) -> int:
        """Rewrite the target without the ids."""
        index = self._key_index()
        known = np.unique(keys_of(list(ids)))
        gone = int((index.positions(known) >= 0).sum())
        if gone:
            self.prepare(self.describe(), WriteMode.UPSERT)
            self._dropped = known
            try:
                self.finish()
            finally:
                self._dropped = keys_of([])
        return gone

    def stages(self, mode: WriteMode) -> bool:
        """A new collection is built aside; an upsert goes through the log instead."""
        return mode in (WriteMode.CREATE, WriteMode.REPLACE)

    def shadow(self, tag: str) -> Self:
        """The store of the version under construction."""
        store = self._twin(self.room.begin(tag))
        store._front, store._as_folder = self, self.is_folder
        return store

    def publish(self, tag: str) -> Version:
        place = self.room.path(tag)
        count = self._twin(place).count() if place.exists() else None
        return self.room.publish(tag, count=count)

    def discard(self, tag: str) -> None:
        if tag == PENDING:
            shutil.rmtree(self.room.folder / PENDING, ignore_errors=True)
        self.room.discard(tag)
        self.room.sweep()

    def versions(self) -> list[Version]:
        """Also upserts that were begun and not finished: `discard` takes them."""
        begun = self.room.folder / PENDING / "marked"
        unfinished = [Version(PENDING, live=False, published=False)] if begun.exists() else []
        return [*unfinished, *self.room.versions()]

    def rollback(self) -> Version:
        return self.room.rollback()

    def roll_to(self, tag: str) -> Version:
        return self.room.roll_to(tag)

    def prune(self, keep: int = 0) -> list[str]:
        gone = self.room.prune(keep)
        self.room.sweep()
        return gone


class Pending:
    """What `FileStore.finish` builds from: rows kept of the old content, then rows of the log."""

    def __init__(self, store: FileStore, log: AppendLog, schema: CollectionSchema) -> None:
        self.store, self.log, self.schema = store, log, schema
        self.entries = log.entries()
        self.keep = last_of_each(self.entries["key"])
        self.base = store if log.about["keep"] and store.exists() else None
        self.rows = int(self.keep.sum())  # grows by what survives of the old content
        gone = np.concatenate([self.entries["key"], store._dropped])
        self._gone = KeyIndex([(gone, np.zeros(len(gone), dtype=np.int64))])

    @property
    def changes_nothing(self) -> bool:
        """Whether the old content is the new: so it is when a finish is repeated."""
        return self.base is not None and not len(self.entries) and not len(self.store._dropped)

    @property
    def untouched(self) -> bool:
        """Whether the log as it stands is the whole content."""
        return not self.log.about["keep"] and bool(self.keep.all())

    def id_kind(self) -> str:
        """One kind if all ids share it, else ``"mixed"``."""
        kinds = {ID_KINDS[k] for k in np.unique(self.entries["kind"])}
        if self.base is not None:
            for batch, _ in self.base._located(_INDEX_BATCH, Fields.IDS):
                kinds.add(kind_of(batch))
        return kinds.pop() if len(kinds) == 1 else "mixed" if kinds else "str"

    def stays(self, ids: Sequence[RecordId] | Array) -> Array:
        """bool ``(n,)``: true for ids that the log does not bring again and nobody deletes."""
        return self._gone.positions(keys_of(ids)) < 0

    def survivors(self, batch_size: int) -> Iterator[RecordBatch]:
        """Rows of the old content whose ids the log does not bring again."""
        if self.base is None:
            return
        for batch, _ in self.base._located(batch_size, Fields.ALL):
            stays = self.stays(batch.ids)
            self.rows += int(stays.sum())
            yield batch if stays.all() else batch.take(np.flatnonzero(stays))


def _fits(held: CollectionSchema, schema: CollectionSchema, url: str) -> bool:
    try:
        check_fits(held, schema, url)
    except PlanError:
        return False
    return True


__all__ = ["FileStore", "Pending"]
