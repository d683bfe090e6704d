"""A version, or a plain folder in a bucket, as a source: fetched, verified, read by the fitting store."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from vecferry.connecting import Collection, connect
from vecferry.errors import ConfigurationError, CorruptDataError, NotFoundError
from vecferry.model import CollectionSchema, RecordBatch, RecordId, VectorRecord, Where
from vecferry.ports import Cursor, Fields, Partition, StoreURL
from vecferry.snapshots import catalog
from vecferry.snapshots.catalog import Snapshot
from vecferry.snapshots.objects import Advance, NoBucketError, ObjectInfo, Objects, safe_path
from vecferry.snapshots.s3 import S3Objects, is_yes, refuse_login
from vecferry.snapshots.transfer import sha256_of
from vecferry.snapshots.workspace import Workspace, check_space

_FAISS_NAMES = frozenset({"index.pkl", "default__vector_store.json", "docstore.json", "metadata.pkl"})


def fetch(objects: Objects, snapshot: Snapshot, folder: Path, advance: Advance) -> Path:
    """Download the files of a version into ``folder`` and verify each; what is there and right is kept.

    Returns what to open. Raises `CorruptDataError` if a file is not what was saved.
    """
    places = [(file, safe_path(folder, file.path)) for file in snapshot.files]
    due = [(f, p) for f, p in places if not _is_right(p, f.bytes, f.sha256)]
    check_space(folder, sum(file.bytes for file, _ in due))
    listed = {info.key: info for info in objects.list(f"{snapshot.version}/")} if due else {}
    infos = []
    for file, place in due:
        key = f"{snapshot.version}/{file.path}"
        info = listed.get(key) or _looked_up(objects, key)
        if info.size != file.bytes:
            raise CorruptDataError(
                f"{objects.url}/{key} has {info.size:,} bytes where {file.bytes:,} were saved; "
                "choose another version"
            )
        infos.append((info, place))
    objects.download(infos, advance)
    for file, place in due:
        if sha256_of(place) != file.sha256:
            place.unlink()
            raise CorruptDataError(
                f"{objects.url}/{snapshot.version}/{file.path} is not what was saved "
                "(its SHA-256 differs); choose another version"
            )
    place = safe_path(folder, snapshot.open_as) if snapshot.open_as else folder
    if not place.exists():
        raise CorruptDataError(
            f"{objects.url}: version {snapshot.version} has no file {snapshot.open_as!r}; "
            f"restore {catalog.NAME} with `vecferry snapshots repair {objects.url}`"
        )
    return place


def _is_right(path: Path, size: int, checksum: str) -> bool:
    return path.is_file() and path.stat().st_size == size and sha256_of(path) == checksum


def _looked_up(objects: Objects, key: str) -> ObjectInfo:
    """An object that the listing does not show (yet)."""
    try:
        if isinstance(objects, S3Objects):
            return objects.head(key)
    except NotFoundError:
        pass
    raise CorruptDataError(
        f"{objects.url}/{key} is missing, so the version is incomplete; choose another one"
    )


class OpenedFiles:
    """A source whose files are fetched at the first use and removed by `close`.

    Subclasses say where they come from; the store that reads them is found by their names.
    """

    def __init__(self, url: str, temp_dir: Path | None = None) -> None:
        self.url = url
        self._temp_dir = temp_dir
        self._inner: Collection | None = None
        self._workspace: Workspace | None = None

    def _name(self) -> str:
        """Names the workspace: equal for equal content."""
        raise NotImplementedError

    def _fill(self, folder: Path) -> StoreURL:
        """Fetch into ``folder`` and return the URL of what to open."""
        raise NotImplementedError

    @property
    def inner(self) -> Any:
        """The store that reads the files."""
        if self._inner is None:
            self._workspace = Workspace(sha256(self._name().encode()).hexdigest()[:32], self._temp_dir)
            weakref.finalize(self, self._workspace.close)
            try:
                self._inner = connect(self._fill(self._workspace.folder))
            except BaseException as error:
                if not isinstance(error, KeyboardInterrupt):
                    self._workspace.close()
                raise
        return self._inner.store

    def describe(self) -> CollectionSchema:
        schema: CollectionSchema = self.inner.describe()
        return schema

    def count(self) -> int:
        return int(self.inner.count())

    def partitions(self, want: int) -> Sequence[Partition]:
        parts: Sequence[Partition] = self.inner.partitions(want)
        return parts

    def scan(
        self,
        *,
        partition: Partition | None = None,
        after: Cursor | None = None,
        batch_size: int = 1024,
        fields: Fields = Fields.ALL,
        where: Where | None = None,
    ) -> Iterator[RecordBatch]:
        batches: Iterator[RecordBatch] = self.inner.scan(
            partition=partition, after=after, batch_size=batch_size, fields=fields, where=where
        )
        return batches

    def fetch(self, ids: Sequence[RecordId], *, fields: Fields = Fields.ALL) -> RecordBatch:
        batch: RecordBatch = self.inner.fetch(ids, fields=fields)
        return batch

    def search(
        self, vector: Any, k: int = 10, *, field: str = "", where: Where | None = None
    ) -> list[VectorRecord]:
        hits: list[VectorRecord] = self.inner.search(vector, k, field=field, where=where)
        return hits

    def close(self) -> None:
        """Remove the files. The next use fetches them again."""
        if self._inner is not None:
            self._inner.close()
        if self._workspace is not None:
            self._workspace.close()
        self._inner = self._workspace = None


class SnapshotSource(OpenedFiles):
    """One version of a `SnapshotStore`, to be read."""

    def __init__(
        self, objects: Objects, snapshot: Snapshot, advance: Advance, temp_dir: Path | None = None
    ) -> None:
        super().__init__(f"{objects.url}?version={snapshot.version}", temp_dir)
        self._objects, self.snapshot, self._advance = objects, snapshot, advance

    def _name(self) -> str:
        return self.url + "".join(file.sha256 for file in self.snapshot.files)

    def _fill(self, folder: Path) -> StoreURL:
        place = fetch(self._objects, self.snapshot, folder, self._advance)
        return file_url(self.snapshot.format, place)


class S3FolderStore(OpenedFiles):
    """``s3://bucket/prefix``: what lies there, be it versions (`SnapshotStore`) or a plain folder or file.

    Args:
        version: of a prefix with versions; default the latest.
        endpoint_url, region, profile, anonymous, requester_pays: see `S3Objects`.
        temp_dir: where the files are put while they are read.
        layout: handed to the store that reads the files.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        version: str = "latest",
        endpoint_url: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        anonymous: bool | str | None = None,
        requester_pays: bool | str | None = None,
        temp_dir: str | Path | None = None,
        layout: str | None = None,
    ) -> None:
        self._objects = S3Objects(
            bucket,
            prefix,
            endpoint_url=endpoint_url,
            region=region,
            profile=profile,
            anonymous=is_yes(anonymous),
            requester_pays=is_yes(requester_pays),
        )
        url = self._objects.url + (f"?version={version}" if version != "latest" else "")
        super().__init__(url, Path(temp_dir) if temp_dir else None)
        self._version, self._layout = version, layout
        self._prefix = self._objects.prefix
        self._snapshot: Snapshot | None = None
        self._found: list[ObjectInfo] = []

    @classmethod
    def from_url(cls, url: StoreURL, **options: Any) -> S3FolderStore:
        if not url.host:
            raise ConfigurationError("write s3://BUCKET/PREFIX, such as s3://my-bucket/vectorstore")
        refuse_login(url)
        return cls(url.host, url.path, **options)

    def _name(self) -> str:
        """Look what is there, once: either a version or a plain listing."""
        self._objects.prefix = self._prefix
        self._snapshot = self._version_of_prefix()
        if self._snapshot is not None:
            return self.url + "".join(file.sha256 for file in self._snapshot.files)
        self._found = list(self._objects.list()) or self._single()
        if not self._found:
            raise NotFoundError(f"{self._objects.url} holds nothing; check the bucket and the prefix")
        self._refuse_versions()
        return self.url + "".join(f"{info.key}{info.etag}" for info in self._found)

    def _version_of_prefix(self) -> Snapshot | None:
        try:
            data, _ = self._objects.read(catalog.NAME)
        except NoBucketError:
            raise
        except NotFoundError:
            return None
        if b"vecferry-snapshots" not in data and self._version == "latest":
            return None  # somebody's own metadata.json beside an index
        versions = catalog.parse(data, self._objects.url)
        found = versions.find(self._version)
        if found is None:
            raise NotFoundError(unknown_version(self._objects.url, self._version, versions.versions))
        return found

    def _refuse_versions(self) -> None:
        """Read as one plain folder, the files of all versions would come out mixed."""
        for info in self._found:
            version, _, name = info.key.partition("/")
            if name == catalog.MANIFEST and catalog.read_manifest(self._objects.read(info.key)[0], version):
                raise CorruptDataError(
                    f"{self._objects.url} holds versions, but no {catalog.NAME} that lists them; "
                    f"restore it with `vecferry snapshots repair {self._objects.url}`"
                )

    def _single(self) -> list[ObjectInfo]:
        """The prefix may be the key of one file."""
        prefix = PurePosixPath(self._objects.prefix)
        if not prefix.name:
            return []
        self._objects.prefix = "" if str(prefix.parent) == "." else str(prefix.parent)
        try:
            return [self._objects.head(prefix.name)]
        except NotFoundError:
            self._objects.prefix = str(prefix)
            return []

    def _fill(self, folder: Path) -> StoreURL:
        if self._snapshot is not None:
            place = fetch(self._objects, self._snapshot, folder, _ignore)
            return file_url(self._snapshot.format, place, self._layout)
        infos = [(info, safe_path(folder, info.key)) for info in self._found]
        check_space(folder, sum(info.size for info, _ in infos))
        self._objects.download(infos, _ignore)
        scheme = scheme_of([info.key for info in self._found], self.url)
        place = infos[0][1] if len(infos) == 1 and scheme != "faiss" else folder
        return file_url(scheme, place, self._layout)

    def close(self) -> None:
        super().close()
        self._objects.close()


def scheme_of(names: Sequence[str], url: str) -> str:
    """Which store reads files of these names.

    Raises:
        ConfigurationError: if none does.
    """
    plain = [PurePosixPath(name).name for name in names]
    if any(name.endswith((".faiss", ".index")) or name in _FAISS_NAMES for name in plain):
        return "faiss"
    if any(name.endswith(".parquet") for name in plain):
        return "parquet"
    if any(name.endswith((".jsonl", ".jsonl.gz", ".ndjson")) for name in plain):
        return "jsonl"
    raise ConfigurationError(
        f"{url} holds no index, Parquet or JSONL file (but {', '.join(plain[:3])}); "
        "name the folder with the store"
    )


def file_url(scheme: str, place: Path, layout: str | None = None) -> StoreURL:
    """The URL of a local file or folder, whatever characters its path has."""
    return StoreURL(scheme=scheme, path=str(place), options={"layout": layout} if layout else {})


def unknown_version(url: str, version: str, versions: Sequence[Snapshot]) -> str:
    """The message for a version that is not there."""
    if not versions:
        return f"{url} holds no version yet; save one first"
    names = ", ".join(v.version for v in versions[:5])
    return f"{url} has no version {version!r}; the newest are {names}"


def _ignore(_: int) -> None:
    """Nobody wants to know."""
