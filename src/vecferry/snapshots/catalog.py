"""``metadata.json``: the versions of one prefix, newest first, changed only by compare-and-swap."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vecferry.errors import CorruptDataError, NotFoundError, RetryableError
from vecferry.snapshots.objects import Conflict, NoBucketError, Objects

NAME = "metadata.json"
MANIFEST = "manifest.json"
_FORMAT = "vecferry-snapshots"
_PATIENCE = 300.0


class SnapshotFile(BaseModel):
    """One file of a version: its path below the version's folder, bytes, SHA-256 (hexadecimal)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    path: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Snapshot(BaseModel):
    """One version.

    Attributes:
        version: its name, and that of its folder.
        created: UTC.
        note: what the saver wanted to say.
        source: the URL it was saved from, without secrets.
        format: the scheme that opens its files: ``parquet``, ``faiss`` or ``jsonl``.
        open_as: the path to open below the version's folder; empty for the folder itself.
        count, dim, metric, dtype, space: of the collection; those of its first vector field.
        files: with checksums. ``bytes`` is their sum.
        dedupe: statistics of the dedupe that made it, if there was one.
        library: the version of vecferry that saved it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,120}$")
    created: datetime
    note: str = ""
    source: str = ""
    format: str = Field(pattern="^(faiss|parquet|jsonl)$")
    open_as: str = ""
    count: int | None = None
    dim: int | None = None
    metric: str | None = None
    dtype: str | None = None
    space: dict[str, Any] | None = None
    layout: str | None = None
    bytes: int = 0
    files: tuple[SnapshotFile, ...] = ()
    dedupe: dict[str, Any] | None = None
    library: str = ""

    @field_validator("created")
    @classmethod
    def _in_utc(cls, value: datetime) -> datetime:
        """A time written by hand may lack the zone."""
        return value if value.tzinfo else value.replace(tzinfo=UTC)


class Catalog(BaseModel):
    """What ``metadata.json`` holds. ``removing`` are versions whose files are being deleted."""

    model_config = ConfigDict(frozen=True, extra="allow")

    format: str = _FORMAT
    format_version: int = 1
    versions: tuple[Snapshot, ...] = ()
    removing: tuple[str, ...] = ()

    def find(self, version: str) -> Snapshot | None:
        """The version of this name; ``latest`` is the newest."""
        if version == "latest":
            return self.versions[0] if self.versions else None
        return next((v for v in self.versions if v.version == version), None)

    def after_all(self, moment: datetime) -> datetime:
        """``moment``, or just after the newest version, should this clock lag behind another one.

        Otherwise the version saved last would not be the latest, and the first that `prune` deletes.
        """
        return max([moment, *(v.created + timedelta(microseconds=1) for v in self.versions)])

    def with_version(self, snapshot: Snapshot) -> Catalog:
        """With one more version, newest first."""
        others = [v for v in self.versions if v.version != snapshot.version]
        versions = sorted([snapshot, *others], key=lambda v: (v.created, v.version), reverse=True)
        return self.model_copy(update={"versions": tuple(versions)})


def load(objects: Objects) -> tuple[Catalog, str | None]:
    """The catalog and its ETag; an empty one and ``None`` where there is none yet.

    Raises:
        CorruptDataError: if what is there is not a catalog.
    """
    try:
        data, etag = objects.read(NAME)
    except NoBucketError:
        raise
    except NotFoundError:
        return Catalog(), None
    return parse(data, objects.url), etag


def parse(data: bytes, url: str) -> Catalog:
    """Read a catalog.

    Raises:
        CorruptDataError: naming what is wrong and the next move.
    """
    advice = f"restore it with `vecferry snapshots repair {url}`, or choose another prefix"
    try:
        catalog = Catalog.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the top"
        raise CorruptDataError(f"{url}/{NAME} is damaged at {where} ({first['msg']}); {advice}") from None
    if catalog.format != _FORMAT or b'"format"' not in data:
        raise CorruptDataError(f"{url}/{NAME} was not written by vecferry; {advice}")
    if catalog.format_version > 1:
        raise CorruptDataError(f"{url}/{NAME} was written by a newer vecferry; upgrade this one")
    return catalog


def change(objects: Objects, edit: Callable[[Catalog], Catalog]) -> Catalog:
    """Apply ``edit`` to the present catalog, again and again until nobody else was faster.

    ``edit`` must give the same when its effect is there already: an answer may be lost on the way.

    Raises:
        RetryableError: if others were faster for five minutes.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        have, etag = load(objects)
        wanted = edit(have)
        if wanted == have:
            return have
        data = wanted.model_dump_json(indent=1, exclude_none=True).encode()
        try:
            objects.write(NAME, data, replaces=etag)
        except Conflict:
            if time.monotonic() > deadline:
                raise RetryableError(
                    f"{objects.url}/{NAME} is changed by others all the time; run again"
                ) from None
            time.sleep(random.uniform(0, 0.2))
            continue
        return wanted


def read_manifest(data: bytes, version: str) -> Snapshot | None:
    """What the manifest of ``version`` says; ``None`` if these are no bytes of one."""
    try:
        found = Snapshot.model_validate_json(data)
    except ValidationError:
        return None
    return found if found.version == version else None


def repair(objects: Objects) -> Catalog:
    """Write the catalog anew from the manifests of complete versions, whatever it holds now.

    Where no version lies it is left alone: then it is somebody's own file.
    """
    found = Catalog()
    for info in objects.list():
        version, _, name = info.key.partition("/")
        if name != MANIFEST:
            continue
        if snapshot := read_manifest(objects.read(info.key)[0], version):
            found = found.with_version(snapshot)
    if not found.versions:
        return found
    try:
        _, etag = objects.read(NAME)
    except NotFoundError:
        etag = None
    objects.write(NAME, found.model_dump_json(indent=1, exclude_none=True).encode(), replaces=etag)
    return found


def now() -> datetime:
    """The time, UTC, to the microsecond."""
    return datetime.now(UTC)
