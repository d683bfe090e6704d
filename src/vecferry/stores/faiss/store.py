"""``faiss:PATH``: a FAISS index and the records beside it, in the layouts that apps leave on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from vecferry.core.locks import Lock
from vecferry.errors import (
    ConfigurationError,
    CorruptDataError,
    NotFoundError,
    TargetExistsError,
)
from vecferry.layouts.folders import INDEX_NAME, NAMES, find
from vecferry.model import (
    CollectionSchema,
    Metric,
    RecordBatch,
    RecordId,
    VectorRecord,
    Where,
)
from vecferry.ports import (
    Capabilities,
    Cursor,
    Fields,
    Partition,
    StoreURL,
    Version,
    WriteMode,
    WriteReceipt,
    check_fits,
)
from vecferry.stores.faiss.building import build
from vecferry.stores.faiss.searching import search
from vecferry.stores.faiss.snapshot import Snapshot, blocks
from vecferry.stores.faiss.stage import Plan, Stage
from vecferry.stores.faiss.target import TargetOptions, look_at
from vecferry.stores.kit.checks import field_named
from vecferry.stores.kit.options import flag, one_of
from vecferry.stores.kit.staging import StagingRoom, fsync_tree
from vecferry.stores.kit.stamps import stamp_of_files

_DIRECT, _BESIDE = "direct", "upsert-"
_COPY_BLOCK = 4096


class FaissStore:
    """Source, sink and every ability but change tracking, on a folder (or, to read, an index file).

    Args:
        path: the folder, or an index file.
        layout: one of `vecferry.layouts.folders.NAMES`; recognised when reading, ``plain`` when writing.
        index: FAISS's factory string for the index that is written; default ``Flat``.
        sidecar: of the plain layout that is written, ``jsonl`` or ``parquet``; or, to read, the name of
            the file beside the index that holds the records.
        id: the key of a hand-written sidecar's records that holds the id; ``row`` for row numbers.
        live: read only vectors that have a record, and of several for one record the last.
        metric: read the index as if it had this metric.
        index_name: of several LangChain stores in one folder.
        tag: the version under construction, for `shadow`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        layout: str | None = None,
        index: str | None = None,
        sidecar: str = "jsonl",
        id: str | None = None,
        live: bool | str = False,
        metric: str | None = None,
        index_name: str = INDEX_NAME,
        tag: str | None = None,
    ) -> None:
        self.url = f"faiss:{path}"
        self.target = Path(path).expanduser()
        self._options = {"layout": layout, "index": index, "sidecar": sidecar, "metric": metric}
        one_of("faiss", "layout", layout, NAMES)
        if "." not in sidecar:
            one_of("faiss", "sidecar", sidecar, ("jsonl", "parquet", "a file beside the index"))
        written = sidecar if sidecar in ("jsonl", "parquet") else "jsonl"
        self._reading: dict[str, Any] = {
            "sidecar": None if written == sidecar else sidecar,
            "id": id,
            "live": flag("faiss", "live", live),
        }
        self._writing = TargetOptions(layout, index, written, index_name)
        self._metric = Metric(name) if (name := one_of("faiss", "metric", metric, tuple(Metric))) else None
        self._index_name = index_name
        self._room = StagingRoom(self.target)
        self._tag = tag
        self._direct = _DIRECT
        self._writer: Lock | None = None
        self._stage: Stage | None = None
        self._snapshot: Snapshot | None = None

    @classmethod
    def from_url(cls, url: StoreURL, **options: Any) -> FaissStore:
        if not url.path:
            raise ConfigurationError("faiss: needs a path; write for example faiss:./vectorstore")
        if url.fragment:
            options.setdefault("index_name", url.fragment)
        return cls(url.path, **options)

    @property
    def path(self) -> Path:
        """What is read: the target, or the version under construction."""
        return self._room.path(self._tag) if self._tag else self.target

    # -- source -------------------------------------------------------------------------------

    def describe(self) -> CollectionSchema:
        return self._open().schema(self.target.name)

    def count(self) -> int:
        return len(self._open())

    def stamp(self) -> dict[str, Any]:
        """What tells one state of the folder from another; see `vecferry.ports.Stamped`."""
        return stamp_of_files(self._open().found.files())

    def search_exact(
        self, vectors: Sequence[Any], k: int = 10, *, field: str = ""
    ) -> list[list[VectorRecord]]:
        """As `search_many`, over the stored vectors instead of the index."""
        return search(self._searched(field), vectors, k, None, Fields.ALL, exact=True)

    def partitions(self, want: int) -> Sequence[Partition]:
        n = self.count()
        edges = [n * i // max(want, 1) for i in range(max(want, 1) + 1)]
        spans = [(a, b) for a, b in pairwise(edges) if b > a] or [(0, n)]
        return [Partition(str(i), [a, b], b - a) for i, (a, b) in enumerate(spans)]

    def scan(
        self,
        *,
        partition: Partition | None = None,
        after: Cursor | None = None,
        batch_size: int = 1024,
        fields: Fields = Fields.ALL,
        where: Where | None = None,
    ) -> Iterator[RecordBatch]:
        snapshot = self._open()
        start, stop = partition.bounds if partition else (0, len(snapshot))
        start, stop = start if after is None else int(after), min(stop, len(snapshot))
        for low, high in blocks(start, stop, batch_size):
            yield snapshot.batch(low, high, fields, where)

    # -- sink ---------------------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        return self._writing.capabilities()

    def exists(self) -> bool:
        try:
            find(self.path, index_name=self._index_name)
        except NotFoundError:
            return False
        except ConfigurationError:  # several indexes: it is not empty
            return True
        return True

    def prepare(self, schema: CollectionSchema, mode: WriteMode) -> None:
        self._close_stage()
        found = look_at(self.target, self._index_name)
        if mode is WriteMode.CREATE and found is not None:
            raise TargetExistsError(f'{self.url} holds a collection; pass mode="upsert" or mode="replace"')
        if mode is WriteMode.RESUME and self._resume(schema):
            return
        # A resumed upsert that was killed before its first record begins anew.
        upserts = mode in (WriteMode.UPSERT, WriteMode.RESUME) and self._tag is None
        old = Snapshot(found) if upserts and found is not None else None
        self._begin(self._writing.plan(schema, self.url, self.target.name, old), old)

    def write(self, batch: RecordBatch) -> WriteReceipt:
        return WriteReceipt(len(batch), self._staged().append(batch))

    def finish(self) -> None:
        stage = self._stage
        if stage is None:
            return
        place, draft = self._room.path(self._work_tag), self._folder / "draft"
        for left in (draft, place):  # of an earlier finish; its files may be those of the stage
            shutil.rmtree(left, ignore_errors=True)
        draft.mkdir()
        count = build(stage, draft)
        if self._tag is not None:  # else publishing, which follows, makes it durable
            fsync_tree(draft)
        draft.rename(place)
        if self._tag is None:
            self._close_stage()
            self._publish_direct(count)

    def close(self) -> None:
        self._close_stage()
        self._close_snapshot()

    # -- abilities ----------------------------------------------------------------------------

    def mark(self) -> Any:
        return self._staged().mark()

    def rewind(self, mark: Any) -> None:
        stage = self._staged()
        if self._tag is None:
            if mark and mark.get("stage", stage.plan.token) != stage.plan.token:
                other = self._turn_to(mark["stage"])
                if other is None:
                    return  # what was staged is in the target already
                stage = other
            if stage.plan.over and stage.plan.over != self._over():
                raise CorruptDataError(
                    f"{self.url} was changed by another job since this upsert began; begin it anew"
                )
        stage.rewind(mark)

    def fetch(self, ids: Sequence[RecordId], *, fields: Fields = Fields.ALL) -> RecordBatch:
        snapshot = self._open()
        return snapshot.pick(np.array(snapshot.positions_of(list(ids)), dtype=np.int64), fields)

    def search(
        self,
        vector: Any,
        k: int = 10,
        *,
        field: str = "",
        where: Where | None = None,
        ef_search: int | None = None,
        nprobe: int | None = None,
    ) -> list[VectorRecord]:
        """See `vecferry.ports.Searchable`. Without a filter, any index but Flat answers approximately.

        Args:
            ef_search: how widely HNSW searches; default 8 k, at least 64.
            nprobe: how many lists IVF searches; default a tenth of them, at least 16.
        """
        snapshot = self._searched(field)
        return search(snapshot, [vector], k, where, Fields.ALL, ef_search=ef_search, nprobe=nprobe)[0]

    def search_many(
        self,
        vectors: Sequence[Any],
        k: int = 10,
        *,
        field: str = "",
        where: Where | None = None,
        fields: Fields = Fields.ALL,
    ) -> list[list[VectorRecord]]:
        return search(self._searched(field), vectors, k, where, fields)

    def delete(self, ids: Sequence[RecordId]) -> int:
        """Delete by id. The collection is written anew without them and swapped in."""
        snapshot = self._open()
        gone = set(snapshot.positions_of(list(ids)))
        if not gone:
            return 0
        if self._tag is None:
            look_at(self.target, self._index_name)
        self._close_stage()
        self._begin(self._writing.plan(self.describe(), self.url, self.target.name, snapshot), None)
        self._copy(snapshot, lambda position: position not in gone)
        self.finish()
        return len(gone)

    def stages(self, mode: WriteMode) -> bool:
        return mode in (WriteMode.CREATE, WriteMode.REPLACE)

    def shadow(self, tag: str) -> FaissStore:
        return FaissStore(self.target, **self._options, index_name=self._index_name, tag=tag)  # type: ignore[arg-type]

    def publish(self, tag: str) -> Version:
        self._snapshot = None
        self._clear_empty_target()
        place = self._room.path(tag)
        count = find(place).manifest.get("schema", {}).get("count") if place.exists() else None
        return self._room.publish(tag, count=count)

    def discard(self, tag: str) -> None:
        self._room.discard(tag)

    def versions(self) -> list[Version]:
        return self._room.versions()

    def rollback(self) -> Version:
        self._snapshot = None
        return self._room.rollback()

    def roll_to(self, tag: str) -> Version:
        self._snapshot = None
        return self._room.roll_to(tag)

    def prune(self, keep: int = 0) -> list[str]:
        return self._room.prune(keep)

    # -- how reading is kept open -------------------------------------------------------------

    def _open(self) -> Snapshot:
        if self._snapshot is not None and not self._snapshot.is_current():
            self._snapshot = None  # not closed: a scan may still read it
        if self._snapshot is None:
            layout = None if self._tag else self._writing.layout
            reading = {} if self._tag else self._reading
            self._snapshot = Snapshot.open(
                self.path, layout=layout, index_name=self._index_name, metric=self._metric, **reading
            )
        return self._snapshot

    def _searched(self, field: str) -> Snapshot:
        snapshot = self._open()
        field_named(field, CollectionSchema(fields=(snapshot.field,)), self.url)
        return snapshot

    def _close_snapshot(self) -> None:
        if self._snapshot is not None:
            self._snapshot.close()
        self._snapshot = None

    # -- how writing is staged ----------------------------------------------------------------

    @property
    def _work_tag(self) -> str:
        return self._tag or self._direct

    @property
    def _folder(self) -> Path:
        return self._room.path(self._work_tag).parent

    def _over(self) -> str:
        """The stamp of the collection that is there now; empty if none is."""
        try:
            found = find(self.target, index_name=self._index_name)
        except (NotFoundError, ConfigurationError):
            return ""
        return json.dumps(stamp_of_files(found.files()))

    def _hold(self) -> None:
        """One process at a time writes to a target, whichever of its stages."""
        if self._writer is None and self._tag is None:
            self._writer = Lock(
                self._room.folder / "writer",
                busy=f"another process writes to {self.target}; wait for it, or stop it, and run the same "
                "call again",
            )

    def _stages(self) -> list[str]:
        """The tags of stages without a shadow, the last begun first."""
        folder = self._room.folder
        found = [
            *folder.glob(f"v-{_DIRECT}/stage/stage.json"),
            *folder.glob(f"v-{_BESIDE}*/stage/stage.json"),
        ]
        found.sort(key=lambda path: -path.stat().st_mtime_ns)
        return [path.parent.parent.name.removeprefix("v-") for path in found]

    def _turn_to(self, token: str) -> Stage | None:
        """Go on with the stage of that token, of whichever job it is."""
        for tag in self._stages():
            stage = Stage.open(self._room.path(tag).parent / "stage") if tag != self._direct else None
            if stage is not None and stage.plan.token == token:
                self._close_stage(keep_writer=True)
                self._direct, self._stage = tag, stage
                return stage
            if stage is not None:
                stage.close()
        return None

    def _begin(self, plan: Plan, old: Snapshot | None) -> None:
        self._hold()
        if self._tag is None:
            self._direct = _DIRECT
            known = _plan_in(self._folder / "stage")
            if known is not None and known.marked:  # the work of another job
                self._direct = f"{_BESIDE}{plan.token}"
            plan.over = self._over()
        self._room.begin(self._work_tag)
        plan.base = {"rows": 0, "bytes": 0} if old is None else None
        self._stage = Stage.create(self._folder / "stage", plan)
        if old is not None:
            self._copy(old, None)
            self._stage.settle_base()

    def _copy(self, old: Snapshot, keep: Callable[[int], bool] | None) -> None:
        stage = self._staged()
        for low, high in blocks(0, len(old), _COPY_BLOCK):
            batch = old.batch(low, high, Fields.ALL)
            if keep is not None:
                batch = batch.take([i for i in range(high - low) if keep(low + i)])
            stage.append(batch)

    def _resume(self, schema: CollectionSchema) -> bool:
        self._hold()
        if self._tag is None:
            self._direct = next(iter(self._stages()), _DIRECT)
        stage = Stage.open(self._folder / "stage")
        if stage is None:
            return False
        if stage.plan.base is None:  # killed while the old records were being copied
            stage.close()
            return False
        staged = CollectionSchema.model_validate(stage.plan.schema)
        known = [field for field in schema.fields if field.dim is not None]
        if known:
            check_fits(staged, schema, self.url)
        self._stage = stage
        return True

    def _staged(self) -> Stage:
        if self._stage is None:
            raise NotFoundError(f"{self.url} was not prepared; call prepare() first")
        return self._stage

    def _close_stage(self, *, keep_writer: bool = False) -> None:
        if self._stage is not None:
            self._stage.close()
        self._stage = None
        if self._writer is not None and not keep_writer:
            self._writer.release()
            self._writer = None

    def _publish_direct(self, count: int) -> None:
        """Swap in what was written without a shadow, and keep no more versions than there were."""
        self._snapshot = None
        self._clear_empty_target()
        kept = len([version for version in self._room.versions() if not version.live and version.published])
        self._room.publish(self._direct, count=count)
        self._room.prune(kept)
        self._room.sweep()

    def _clear_empty_target(self) -> None:
        place = self._room.target  # where a symbolic link leads
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()


def _plan_in(folder: Path) -> Plan | None:
    try:
        return Plan(**json.loads((folder / "stage.json").read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
