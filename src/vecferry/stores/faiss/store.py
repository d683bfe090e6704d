"""``faiss:PATH``: a FAISS index and the records beside it, in the layouts that apps leave on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from vecferry.errors import (
    ConfigurationError,
    NotFoundError,
    SchemaMismatchError,
    TargetExistsError,
    UnsupportedError,
)
from vecferry.layouts.folders import NAMES, find
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
from vecferry.records import (
    CollectionSchema,
    DType,
    Kind,
    Metric,
    RecordBatch,
    RecordId,
    VectorRecord,
    Where,
)
from vecferry.stores._staging import StagingRoom, fsync_tree
from vecferry.stores.faiss.building import build, header_of, losses_of, make_index
from vecferry.stores.faiss.searching import search
from vecferry.stores.faiss.snapshot import Snapshot, blocks
from vecferry.stores.faiss.stage import Plan, Stage

_DIRECT = "direct"
_COPY_BLOCK = 4096
_FLOATS = frozenset({DType.FLOAT32, DType.FLOAT16, DType.INT8, DType.UINT8})
_METRICS = frozenset({Metric.COSINE, Metric.L2, Metric.IP, Metric.L1})


class FaissStore:
    """Source, sink and every ability but change tracking, on a folder (or, to read, an index file).

    Args:
        path: the folder, or an index file.
        layout: one of `vecferry.layouts.folders.NAMES`; recognised when reading, ``plain`` when writing.
        index: FAISS's factory string for the index that is written; default ``Flat``.
        sidecar: of the plain layout, ``jsonl`` or ``parquet``.
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
        metric: str | None = None,
        index_name: str = "index",
        tag: str | None = None,
    ) -> None:
        self.url = f"faiss:{path}"
        self.target = Path(path).expanduser()
        self._options = {"layout": layout, "index": index, "sidecar": sidecar, "metric": metric}
        self._layout = _one_of("layout", layout, NAMES)
        self._factory = index
        self._sidecar = _one_of("sidecar", sidecar, ("jsonl", "parquet")) or "jsonl"
        self._metric = Metric(name) if (name := _one_of("metric", metric, tuple(Metric))) else None
        self._index_name = index_name
        self._room = StagingRoom(self.target)
        self._tag = tag
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
        start = start if after is None else int(after)
        for low, high in blocks(start, stop, batch_size):
            yield snapshot.batch(low, high, fields, where).replace(cursor=high)

    # -- sink ---------------------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        layout, factory = self._layout or "plain", self._factory or "Flat"
        bits = layout in ("plain", "raw-pkl", "raw-json", "raw-jsonl") and factory == "Flat"
        return Capabilities(
            kinds=frozenset({Kind.DENSE}),
            metrics=_METRICS | ({Metric.HAMMING} if bits else frozenset()),
            dtypes=_FLOATS | ({DType.BIT} if bits else frozenset()),
            several_fields=False,
            missing_vectors=False,
            losses=losses_of(factory),
        )

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
        existing = self._existing()
        if mode is WriteMode.CREATE and existing is not None:
            raise TargetExistsError(f'{self.url} holds a collection; pass mode="upsert" or mode="replace"')
        if self._tag or mode is not WriteMode.UPSERT:
            old = None
        else:
            old = existing
        if mode is WriteMode.RESUME and self._resume(schema):
            return
        self._begin(self._plan(schema, old), old)

    def write(self, batch: RecordBatch) -> WriteReceipt:
        return WriteReceipt(len(batch), self._staged().append(batch))

    def finish(self) -> None:
        stage = self._stage
        if stage is None:
            return
        place, draft = self._room.path(self._work_tag), self._folder / "draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        count = build(stage, draft)
        fsync_tree(draft)
        shutil.rmtree(place, ignore_errors=True)
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
        self._staged().rewind(mark)

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
        """See `vecferry.ports.Searchable`. An index other than Flat answers approximately without ``where``.

        Args:
            ef_search: how widely HNSW searches; default 8 k, at least 64.
            nprobe: how many lists IVF searches; default a tenth of them, at least 16.
        """
        return search(self._open(), vector, k, where, ef_search=ef_search, nprobe=nprobe)

    def delete(self, ids: Sequence[RecordId]) -> int:
        """Delete by id. The collection is written anew without them and swapped in."""
        snapshot = self._open()
        gone = set(snapshot.positions_of(list(ids)))
        if not gone:
            return 0
        self._close_stage()
        self._begin(self._plan(self.describe(), snapshot), None)
        self._copy(snapshot, lambda position: position not in gone)
        self.finish()
        return len(gone)

    def stages(self, mode: WriteMode) -> bool:
        return mode in (WriteMode.CREATE, WriteMode.REPLACE)

    def shadow(self, tag: str) -> FaissStore:
        return FaissStore(self.target, **self._options, index_name=self._index_name, tag=tag)  # type: ignore[arg-type]

    def publish(self, tag: str) -> Version:
        self._close_snapshot()
        self._clear_empty_target()
        place = self._room.path(tag)
        count = len(find(place).card) and _count_of(place) if place.exists() else None
        version = self._room.publish(tag, count=count)
        return version

    def discard(self, tag: str) -> None:
        self._room.discard(tag)

    def versions(self) -> list[Version]:
        return self._room.versions()

    def rollback(self) -> Version:
        self._close_snapshot()
        return self._room.rollback()

    def prune(self, keep: int = 0) -> list[str]:
        return self._room.prune(keep)

    # -- how reading is kept open -------------------------------------------------------------

    def _open(self) -> Snapshot:
        if self._snapshot is not None and not self._snapshot.is_current():
            self._close_snapshot()
        if self._snapshot is None:
            layout = None if self._tag else self._reading_layout()
            self._snapshot = Snapshot.open(
                self.path, layout=layout, index_name=self._index_name, metric=self._metric
            )
        return self._snapshot

    def _reading_layout(self) -> str | None:
        return self._layout

    def _close_snapshot(self) -> None:
        if self._snapshot is not None:
            self._snapshot.close()
        self._snapshot = None

    def _existing(self) -> Snapshot | None:
        """The published collection, whichever layout it has; ``None`` if there is none.

        Raises:
            ConfigurationError: if the path holds something that a swap would sweep away.
        """
        if self.target.is_file() or self.target.suffix in (".faiss", ".index"):
            raise ConfigurationError(f"{self.url}: a collection is written as a folder; name the folder")
        if not self.target.is_dir() or not any(self.target.iterdir()):
            return None
        try:
            found = find(self.target, index_name=self._index_name)
            strangers = sorted(set(self.target.iterdir()) - found.files())
        except NotFoundError:
            found, strangers = None, sorted(self.target.iterdir())
        if found is None or strangers:
            names = ", ".join(path.name for path in strangers[:3])
            raise ConfigurationError(
                f"{self.url} also holds {names}, which is no part of a collection and would be swapped away; "
                "name another folder or move these files"
            )
        return Snapshot(found)

    # -- how writing is staged ----------------------------------------------------------------

    @property
    def _work_tag(self) -> str:
        return self._tag or _DIRECT

    @property
    def _folder(self) -> Path:
        return self._room.path(self._work_tag).parent

    def _plan(self, schema: CollectionSchema, old: Snapshot | None) -> Plan:
        schema = schema.model_copy(update={"name": self.target.name, "losses": ()})
        layout = self._layout or "plain"
        factory = self._factory or "Flat"
        sidecar = self._sidecar
        if old is not None:
            have = old.schema(self.target.name)
            check_fits(have, schema, self.url)
            layout = self._layout or (have.layout if have.layout != "none" else "plain")
            factory = self._factory or _factory_of(old, self.url)
            sidecar = "parquet" if str(old.found.sidecar).endswith(".parquet") else sidecar
            schema = have.model_copy(update={"losses": (), "fields": (old.field,)})
        if layout == "none":
            raise ConfigurationError(f'{self.url}: layout "none" is for reading; leave it out')
        if layout == "llamaindex-simple":
            factory = "Flat"
        self._check_field(schema, layout, factory)
        field = schema.fields[0]
        gap = len(header_of(field.metric, layout, field.dim or 0, 0))
        return Plan(schema.model_dump(mode="json"), layout, factory, sidecar, gap)

    def _check_field(self, schema: CollectionSchema, layout: str, factory: str) -> None:
        if len(schema.fields) != 1 or schema.fields[0].kind is not Kind.DENSE:
            names = [f"{field.name!r} ({field.kind})" for field in schema.fields]
            raise SchemaMismatchError(
                f"{self.url} holds one dense vector field, not {', '.join(names) or 'none'}; choose one of them"
            )
        field = schema.fields[0]
        can = FaissStore(self.target, layout=layout, index=factory).capabilities()
        if field.metric not in can.metrics or field.dtype not in can.dtypes:
            raise SchemaMismatchError(
                f"{self.url} cannot hold {field.dtype} vectors under {field.metric} in this layout and index"
            )
        if (field.dtype is DType.BIT) != (field.metric is Metric.HAMMING) or (
            field.dtype is DType.BIT and (field.dim or 0) % 8
        ):
            raise SchemaMismatchError(
                f"{self.url} holds bit vectors of whole bytes under hamming, not {field.dim} d {field.metric}"
            )
        if factory != "Flat":
            make_index(factory, field.dim or 1, Metric.L2)

    def _begin(self, plan: Plan, old: Snapshot | None) -> None:
        self._room.begin(self._work_tag)
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

    def _close_stage(self) -> None:
        if self._stage is not None:
            self._stage.close()
        self._stage = None

    def _publish_direct(self, count: int) -> None:
        """Swap in what was written without a shadow, and keep no more versions than there were."""
        self._close_snapshot()
        self._clear_empty_target()
        kept = len([version for version in self._room.versions() if not version.live])
        self._room.publish(_DIRECT, count=count)
        self._room.prune(kept)
        self._room.sweep()

    def _clear_empty_target(self) -> None:
        if self.target.is_dir() and not any(self.target.iterdir()):
            self.target.rmdir()


def _one_of(option: str, value: str | None, names: Sequence[str]) -> str | None:
    if value is not None and value not in names:
        raise ConfigurationError(f"faiss: has no {option} {value!r}; choose one of {', '.join(names)}")
    return value


def _count_of(folder: Path) -> int | None:
    count = find(folder).card.get("schema", {}).get("count")
    return count if isinstance(count, int) else None


def _factory_of(old: Snapshot, url: str) -> str:
    """The factory string that makes such an index again.

    Raises:
        UnsupportedError: if it lost something already: building it anew would lose more.
    """
    if old.index.loss:
        raise UnsupportedError(
            f"{url}: {old.index.loss}; changing it would lose more. Migrate it to a new target, or from the "
            "original vectors"
        )
    noted = old.found.card.get("index")
    if isinstance(noted, str):
        return noted
    settings = old.index.settings
    if "ivf_lists" in settings:
        return f"IVF{settings['ivf_lists']},Flat"
    return f"HNSW{settings['hnsw_m']}" if "hnsw_m" in settings else "Flat"
