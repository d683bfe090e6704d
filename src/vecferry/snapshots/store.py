"""`SnapshotStore`: versioned copies of a collection, in a bucket or a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from vecferry.api.migration import migrate
from vecferry.connecting import Collection, connect
from vecferry.core.durable import check_swappable, swap_in
from vecferry.errors import ConfigurationError, CorruptDataError, NotFoundError, TargetExistsError
from vecferry.pipeline.publish import new_tag, publishable
from vecferry.ports import OnProgress, ShouldStop, StoreURL, WriteMode, ignore_progress, never_stop
from vecferry.snapshots import catalog
from vecferry.snapshots.catalog import MANIFEST, Catalog, Snapshot, SnapshotFile
from vecferry.snapshots.comparing import SnapshotDiff, compare
from vecferry.snapshots.local import LocalObjects
from vecferry.snapshots.objects import Conflict, Objects, safe_path
from vecferry.snapshots.opening import SnapshotSource, fetch, file_url, unknown_version
from vecferry.snapshots.s3 import S3Objects, s3_options
from vecferry.snapshots.saving import ByteCounter, Journal, entry_of, visible_files
from vecferry.snapshots.workspace import Workspace

ABANDONED = timedelta(days=1)
"""A version without an entry is taken for an interrupted save once its newest file is older than this."""
_OWN_FILES = ("faiss", "parquet", "jsonl")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")


@dataclass(frozen=True, slots=True)
class Problem:
    """A file of a version that is not what was saved."""

    path: str
    reason: str


class SnapshotStore:
    """Versions below one prefix::

        PREFIX/metadata.json        the versions, newest first
        PREFIX/VERSION/…            the files of one version
        PREFIX/VERSION/manifest.json    its entry, written last

    Any number of processes may save, read and prune at once.

    Args:
        url: ``"s3://bucket/prefix"`` (also ``?endpoint_url=…&region=…&profile=…``) or ``"file:PATH"``.
        endpoint_url, region, profile, anonymous, requester_pays: see `S3Objects`.
        temp_dir: where versions are put while they are read or built.
        should_stop: asked between requests.
    """

    def __init__(
        self,
        url: str,
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        anonymous: bool | str | None = None,
        requester_pays: bool | str | None = None,
        temp_dir: str | Path | None = None,
        should_stop: ShouldStop = never_stop,
    ) -> None:
        given: dict[str, Any] = {"endpoint_url": endpoint_url, "region": region, "profile": profile}
        given |= {"anonymous": anonymous, "requester_pays": requester_pays}
        self._objects = _objects_at(StoreURL.parse(url), given, should_stop)
        self.url = self._objects.url
        self._temp_dir = Path(temp_dir) if temp_dir else None

    def __repr__(self) -> str:
        return f"<SnapshotStore {self.url}>"

    def __enter__(self) -> SnapshotStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release connections."""
        self._objects.close()

    # -- saving -------------------------------------------------------------------------------

    def save(
        self,
        collection: Any,
        *,
        note: str = "",
        version: str | None = None,
        format: str = "auto",
        dedupe: Any = None,
        on_progress: OnProgress = ignore_progress,
    ) -> Snapshot:
        """Save a collection as a new version.

        It is seen only when all of it is there. Interrupted, the same call goes on with what was sent.

        Args:
            collection: a URL, or what ``connect`` returned.
            version: its name; default the time and a random end.
            format: ``"auto"`` keeps the own files of a FAISS, Parquet or JSONL collection and writes
                Parquet for all others; ``"parquet"`` always writes Parquet.
            dedupe: a `DedupeReport` or its dict, to be kept with the version.

        Raises:
            TargetExistsError: if there is a version of that name.
            CorruptDataError: if a file changed while it was saved.
        """
        if version is not None and not _VERSION.fullmatch(version):
            raise ConfigurationError(
                "a version is named with letters, digits, dots, dashes and underscores"
            )
        if version in ("latest", catalog.NAME):
            raise ConfigurationError(f"{version!r} has a meaning already; choose another name")
        if format not in ("auto", "parquet"):
            raise ConfigurationError(f'format is {format!r}; there are "auto" and "parquet"')
        opened = connect(collection)
        have, _ = catalog.load(self._objects)
        if version and have.find(version):
            raise TargetExistsError(f"{self.url} has a version {version!r} already; choose another name")
        if version in have.removing:
            raise TargetExistsError(
                f"{self.url} is still removing a version {version!r}; run prune, or choose another name"
            )
        with ExitStack() as stack:
            known = {v.version for v in have.versions} | set(have.removing)
            journal = stack.enter_context(Journal(self.url, opened.url, version, known))
            place, scheme = self._files_of(opened, format, stack)
            schema = opened.describe()
            if scheme == "parquet" and place.name == _EXPORT:
                count = connect(file_url("parquet", place)).count()
            else:
                count = opened.count()
            files = self._upload(place, journal, on_progress)
            snapshot = entry_of(journal.version, note, opened.url, scheme, schema, count, files, dedupe)
            created = have.after_all(snapshot.created)
            open_as = place.name if place.is_file() else ""
            snapshot = snapshot.model_copy(update={"open_as": open_as, "created": created})
            self._announce(snapshot)
            journal.done()
        return snapshot

    def _files_of(self, opened: Collection, wanted: str, stack: ExitStack) -> tuple[Path, str]:
        """A file or folder to upload, and the scheme that opens it."""
        scheme = opened.url.partition(":")[0]
        path = getattr(opened.store, "path", None)
        if wanted == "auto" and scheme in _OWN_FILES and isinstance(path, Path):
            opened.describe()  # raises where there is nothing
            if path.is_dir() or scheme != "faiss":
                return path, scheme
        workspace = stack.enter_context(Workspace(parent=self._temp_dir))
        place = workspace.folder / _EXPORT
        sink = connect(file_url("parquet", place))
        sink.store.prepare(opened.describe(), WriteMode.CREATE)
        for batch in opened.scan():
            if len(batch):
                sink.store.write(batch)
        sink.store.finish()
        sink.close()
        return place, "parquet"

    def _upload(self, place: Path, journal: Journal, on_progress: OnProgress) -> tuple[SnapshotFile, ...]:
        version = journal.version
        paths = [place] if place.is_file() else visible_files(place)
        names = {p: p.name if place.is_file() else p.relative_to(place).as_posix() for p in paths}
        for name in names.values():
            safe_path(place, name)  # what could not be fetched again is not saved
        advance = ByteCounter("save", sum(p.stat().st_size for p in paths), on_progress)
        files = [(p, f"{version}/{name}") for p, name in names.items()]
        sums = self._objects.upload(files, advance, resumes=journal.resumes)
        return tuple(
            SnapshotFile(path=name, bytes=p.stat().st_size, sha256=sums[f"{version}/{name}"])
            for p, name in sorted(names.items(), key=lambda item: item[1])
        )

    def _announce(self, snapshot: Snapshot) -> None:
        manifest = snapshot.model_dump_json(indent=1, exclude_none=True).encode()
        key = f"{snapshot.version}/{MANIFEST}"
        try:
            self._objects.write(key, manifest, replaces=None)
        except Conflict:
            self._objects.write(key, manifest, replaces=self._objects.read(key)[1])
        catalog.change(self._objects, lambda have: have.with_version(snapshot))

    # -- reading ------------------------------------------------------------------------------

    def list(self) -> list[Snapshot]:
        """The versions, newest first."""
        return list(catalog.load(self._objects)[0].versions)

    def get(self, version: str = "latest") -> Snapshot:
        """One entry.

        Raises:
            NotFoundError: naming the versions there are.
        """
        have, _ = catalog.load(self._objects)
        found = have.find(version)
        if found is None:
            raise NotFoundError(unknown_version(self.url, version, have.versions))
        return found

    def open(self, version: str = "latest", *, on_progress: OnProgress = ignore_progress) -> Collection:
        """A version to be read: fetched and verified at the first use, removed by ``close()``."""
        snapshot = self.get(version)
        advance = ByteCounter("fetch", snapshot.bytes, on_progress)
        source = SnapshotSource(self._objects, snapshot, advance, self._temp_dir)
        return Collection(source, source.url)

    def download(
        self,
        folder: str | Path,
        version: str = "latest",
        *,
        replace: bool = False,
        on_progress: OnProgress = ignore_progress,
    ) -> Snapshot:
        """Put the very files of a version at ``folder`` (or file), complete and verified or not at all.

        Raises:
            TargetExistsError: if something is there and ``replace`` is false.
        """
        snapshot, target = self.get(version), Path(folder).absolute()
        if target.exists() and not replace:
            raise TargetExistsError(f"{target} is there already; pass replace=True or name another folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        advance = ByteCounter("fetch", snapshot.bytes, on_progress)
        room = target.parent / f".{target.name}.fetching"
        workspace = Workspace(snapshot.version, room)
        try:
            with workspace:
                swap_in(fetch(self._objects, snapshot, workspace.folder, advance), target)
        finally:
            with suppress(OSError):  # another download to the same place may be under way
                workspace.home.rmdir()
                room.rmdir()
        return snapshot

    def restore(
        self,
        version: str,
        target: Any,
        *,
        mode: Literal["create", "upsert", "replace"] = "create",
        on_progress: OnProgress = ignore_progress,
        **options: Any,
    ) -> Any:
        """Copy a version into a collection, and prove that it arrived.

        Args:
            target: a URL, or what ``connect`` returned. Where it is a path of the version's own format
                (``"faiss:./kb"`` for a saved FAISS folder) and no options are given, the very files are
                put there in one step instead.
            mode: ``"create"``, ``"replace"`` or ``"upsert"``, as in ``vecferry.migrate``. What is replaced
                is kept as a version, to which ``vecferry rollback`` goes back.
            options: passed to ``vecferry.migrate``.

        Returns:
            the `Report` of the migration, or the `Snapshot` whose files were put in place.
        """
        snapshot = self.get(version)
        path = _plain_path(target, snapshot)
        if path is not None and not options and mode in ("create", "replace"):
            place = Path(path).absolute()
            if mode == "replace" and place.exists() and not place.is_symlink():
                return self._publish(snapshot, place, on_progress)
            return self.download(path, snapshot.version, replace=mode == "replace", on_progress=on_progress)
        with self.open(snapshot.version) as source:
            return migrate(source, target, mode=mode, on_progress=on_progress, **options)

    def _publish(self, snapshot: Snapshot, target: Path, on_progress: OnProgress) -> Snapshot:
        """Put the files in the place of a collection, which is kept as every replace keeps it."""
        check_swappable(target)
        with connect(file_url(snapshot.format, target)) as goal:
            store, tag = publishable(goal), new_tag()
            shadow: Any = store.shadow(tag)
            try:
                self.download(shadow.path, snapshot.version, on_progress=on_progress)
            except BaseException:
                store.discard(tag)
                raise
            store.publish(tag)
        return snapshot

    def diff(self, old: str, new: str, *, limit: int = 10_000) -> SnapshotDiff:
        """Which ids were added, removed and changed from version ``old`` to ``new``.

        Args:
            limit: ids listed of each sort; the counts are exact.
        """
        with self.open(old) as before, self.open(new) as after:
            return compare(before, after, limit, self._temp_dir)

    # -- keeping ------------------------------------------------------------------------------

    def verify(
        self, version: str = "latest", *, on_progress: OnProgress = ignore_progress
    ) -> tuple[Problem, ...]:
        """Read every file of a version and compare its SHA-256. Empty if all is well."""
        snapshot = self.get(version)
        advance = ByteCounter("verify", snapshot.bytes, on_progress)
        problems: tuple[Problem, ...] = ()
        with Workspace(parent=self._temp_dir) as workspace:
            for file in snapshot.files:
                one = snapshot.model_copy(update={"files": (file,)})
                try:
                    fetch(self._objects, one, workspace.folder, advance)
                    safe_path(workspace.folder, file.path).unlink()
                except CorruptDataError as error:
                    problems += (Problem(file.path, str(error)),)
        return problems

    def prune(self, keep: int, *, abandoned_after: timedelta = ABANDONED) -> tuple[str, ...]:
        """Delete all but the newest ``keep`` versions, and what interrupted saves left behind.

        A version first stops being seen, then its files go. Interrupted, the next call goes on.

        Returns:
            the versions that are no longer there.
        """
        if keep < 1:
            raise ConfigurationError("prune keeps at least one version; give keep=1 or more")

        def hide(have: Catalog) -> Catalog:
            gone = [v.version for v in have.versions[keep:]]
            removing = tuple(dict.fromkeys([*have.removing, *gone]))
            return have.model_copy(update={"versions": have.versions[:keep], "removing": removing})

        removing = catalog.change(self._objects, hide).removing
        for version in removing:
            self._delete(version)
        catalog.change(
            self._objects,
            lambda have: have.model_copy(
                update={"removing": tuple(v for v in have.removing if v not in removing)}
            ),
        )
        self._sweep(abandoned_after)
        return removing

    def _delete(self, version: str) -> None:
        """The manifest goes first, so that `repair` cannot find half a version."""
        self._objects.delete([f"{version}/{MANIFEST}"])
        self._objects.delete([info.key for info in self._objects.list(f"{version}/")])

    def _sweep(self, abandoned_after: timedelta) -> None:
        """Remove files of versions that were begun and never announced."""
        oldest = catalog.now() - abandoned_after
        self._objects.abort_uploads("", oldest)
        youngest: dict[str, Any] = {}
        for info in self._objects.list():
            version, slash, _ = info.key.partition("/")
            if slash and _VERSION.fullmatch(version) and info.modified is not None:
                youngest[version] = max(info.modified, youngest.get(version, info.modified))
        known = {v.version for v in catalog.load(self._objects)[0].versions}
        for version, modified in youngest.items():
            if version not in known and modified < oldest and self._was_begun(version):
                self._delete(version)

    def _was_begun(self, version: str) -> bool:
        """Only folders named as `save` names them: others may be somebody's data."""
        return _OWN_NAME.fullmatch(version) is not None

    def repair(self) -> tuple[Snapshot, ...]:
        """Write ``metadata.json`` anew from the complete versions that lie there."""
        return catalog.repair(self._objects).versions


_EXPORT = "snapshot.parquet"
_OWN_NAME = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")


def _objects_at(url: StoreURL, given: Mapping[str, Any], should_stop: ShouldStop) -> Objects:
    """Where a store's URL leads: a bucket or a folder.

    Raises:
        ConfigurationError: for anything else, or an option that is not known.
    """
    if url.scheme == "file":
        path = f"/{url.path}" if url.netloc else url.path
        if not path:
            raise ConfigurationError("write file:PATH, such as file:./snapshots")
        return LocalObjects(Path(path).expanduser().absolute())
    if url.scheme != "s3" or not url.host:
        raise ConfigurationError("snapshots lie in s3://BUCKET/PREFIX or file:PATH")
    return S3Objects(url.host, url.path, **s3_options(url, given), should_stop=should_stop)


def _plain_path(target: Any, snapshot: Snapshot) -> str | None:
    """The path, if the target is a bare one of the snapshot's own format."""
    if not isinstance(target, str):
        return None
    url = StoreURL.parse(target)
    bare = url.scheme == snapshot.format and not (url.options or url.fragment or url.netloc)
    return url.path if bare and url.path else None


__all__ = ["ABANDONED", "Problem", "SnapshotStore"]
