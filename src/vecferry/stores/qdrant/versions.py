"""Versions of a collection: the name an app uses is an alias, each version is a collection behind it.

    questions ─alias─▶ questions__vf_TAG

A switch is one request to Qdrant, which applies it as one step. A name that is still a collection of its
own cannot become an alias while that collection stands, and Qdrant cannot rename: so on the first switch
its points are copied to ``NAME__vf_plain`` (the first version, to roll back to), the copy is counted, and
only then the collection gives way to the alias. Between these two requests the name answers "not found";
a run that is killed there is completed by publishing again.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from vecferry.errors import NotFoundError, PlanError, RequestTooLargeError, RetryableError
from vecferry.ports import Version
from vecferry.stores.qdrant.config import Record, page_limit
from vecferry.stores.qdrant.connection import Connection

MARK = "__vf_"
PLAIN = "plain"
_PAGE = 256


class Versions:
    """The versions of the collection ``name``."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._call, self.name = connection.call, name
        self._where = connection.where

    def behind(self) -> str | None:
        """The collection behind the alias ``name``; ``None`` if it is no alias."""
        for alias in self._call("get_aliases").aliases:
            if alias.alias_name == self.name:
                return str(alias.collection_name)
        return None

    def collection(self, tag: str) -> str:
        return f"{self.name}{MARK}{tag}"

    def publish(self, tag: str) -> Version:
        target = self.collection(tag)
        if not self._stands(target):
            raise NotFoundError(f"{self._where} has no version {tag!r} under construction")
        live = self.behind()
        if live == target:
            self._stamp(target, once=True)
            return self._version(target, live=True)
        before = None
        if live is not None and self._is_ours(live):
            self._stamp(live, once=True)
        elif live is not None:
            before = live  # the app's own alias, of a collection that stays as it is
        elif self._stands(self.name):
            self._copy(self.name, self.collection(PLAIN))
            self._call("delete_collection", self.name)
        if before is not None:
            self._note(target, previous=before)
        self._point_to(target)
        self._stamp(target)
        return self._version(target, live=True)

    def discard(self, tag: str) -> None:
        target = self.collection(tag)
        if self._stands(target) and self.behind() != target and not self._published(target):
            self._call("delete_collection", target)

    def all(self) -> list[Version]:
        live = self.behind()
        if live is None:
            return [Version(PLAIN, True, count=self._count(self.name))] if self._stands(self.name) else []
        return [self._version(name, live=name == live) for name in reversed(self._history(live))]

    def rollback(self) -> Version:
        live = self.behind()
        history = self._history(live)
        at = history.index(live) if live in history else 0
        if at == 0:
            raise NotFoundError(f"{self._where} keeps no earlier version to roll back to")
        self._point_to(history[at - 1])
        return self._version(history[at - 1], live=True)

    def prune(self, keep: int = 0) -> list[str]:
        live = self.behind()
        history = self._history(live)
        at = history.index(live) if live in history else len(history)
        others = [*history[at + 1 :], *history[:at]]  # one that was rolled back goes first
        past = sorted(others[: max(len(others) - keep, 0)], key=history.index)
        gone = [name for name in past if self._is_ours(name)]
        for name in gone:
            self._call("delete_collection", name)
        for name in self._history(live):  # a collection of the app's own is forgotten, not deleted
            if self._is_ours(name) and self._record(name).previous in past:
                self._note(name, previous=None)
        return [self._tag(name) for name in gone]

    # -- helpers ------------------------------------------------------------------------------

    def _point_to(self, target: str) -> None:
        """In one request, so that no reader ever finds the name without a collection."""
        from qdrant_client import models

        create = models.CreateAliasOperation(
            create_alias=models.CreateAlias(collection_name=target, alias_name=self.name)
        )
        delete = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=self.name))
        self._call("update_collection_aliases", [delete, create] if self.behind() else [create])

    def _history(self, live: str | None) -> list[str]:
        """Every version that was ever live, oldest first."""
        names = [c.name for c in self._call("get_collections").collections]
        records = {name: self._record(name) for name in names if self._is_ours(name)}
        stamps = {name: record.published for name, record in records.items()}
        if live in stamps and stamps[live] is None:  # the switch was made, the stamp not yet
            stamps[live] = time.time_ns()
        known = sorted((n for n in stamps if stamps[n] is not None), key=lambda n: stamps[n] or 0)
        apps = {records[name].previous for name in known} & {*names}
        return [*sorted(name for name in apps if name), *known]

    def _is_ours(self, name: str) -> bool:
        return name.startswith(self.name + MARK)

    def _version(self, name: str, *, live: bool) -> Version:
        record = self._record(name)
        return Version(self._tag(name), live, created=record.created, count=self._count(name))

    def _tag(self, name: str) -> str:
        return name.removeprefix(self.name + MARK)

    def _stands(self, name: str) -> bool:
        return any(c.name == name for c in self._call("get_collections").collections)

    def _count(self, name: str) -> int:
        return int(self._call("count", name, exact=True).count)

    def _record(self, name: str) -> Record:
        return Record.of(self._call("get_collection", name).config.metadata) or Record()

    def _published(self, name: str) -> int | None:
        return self._record(name).published

    def _stamp(self, name: str, *, once: bool = False) -> None:
        record = self._record(name)
        if once and record.published is not None:
            return
        record.published = time.time_ns()
        self._call("update_collection", name, metadata=record.as_metadata())

    def _note(self, name: str, *, previous: str | None) -> None:
        record = self._record(name)
        if record.previous != previous:
            record.previous = previous
            self._call("update_collection", name, metadata=record.as_metadata())

    def _copy(self, source: str, target: str) -> None:
        """All points with their payloads and vectors; again after an interruption is as once."""
        from qdrant_client import models

        info = self._call("get_collection", source)
        if self._stands(target) and self._published(target) is None:
            self._call("delete_collection", target)  # begun by a run that died: its source may have changed
        if not self._stands(target):
            self._call("create_collection", target, **_same_shape(info))
        offset, size = None, min(_PAGE, page_limit(info))
        while True:
            points, offset = self._call(
                "scroll", source, limit=size, offset=offset, with_payload=True, with_vectors=True
            )
            same = [models.PointStruct(id=p.id, vector=p.vector or {}, payload=p.payload) for p in points]
            self._put(target, same)
            if offset is None:
                break
        before, now = self._count(source), self._count(target)
        if before != now:
            raise RetryableError(
                f"{self._where} changed while it was kept as a version ({before} points, {now} copied); "
                "pause its writers and publish again"
            )
        for path, index in (info.payload_schema or {}).items():
            self._call("create_payload_index", target, path, field_schema=index.params or index.data_type)
        record = Record.of(info.config.metadata) or Record()
        record.created = record.created or datetime.now(UTC).isoformat(timespec="seconds")
        record.published = time.time_ns()
        self._call("update_collection", target, metadata=record.as_metadata())

    def _put(self, target: str, points: list[Any]) -> None:
        """Upsert, halved where it is too much for one request."""
        if not points:
            return
        try:
            self._call("upsert", target, points, wait=True)
        except RequestTooLargeError:
            if len(points) == 1:
                raise
            middle = len(points) // 2
            self._put(target, points[:middle])
            self._put(target, points[middle:])


def _same_shape(info: Any) -> dict[str, Any]:
    from qdrant_client import models

    params, config = info.config.params, info.config
    same = {
        "vectors_config": params.vectors,
        "sparse_vectors_config": params.sparse_vectors,
        "shard_number": params.shard_number,
        "replication_factor": params.replication_factor,
        "write_consistency_factor": params.write_consistency_factor,
        "on_disk_payload": params.on_disk_payload,
        "quantization_config": config.quantization_config,
        "metadata": config.metadata,
    }
    same["hnsw_config"] = models.HnswConfigDiff(**config.hnsw_config.model_dump(exclude_none=True))
    return {key: value for key, value in same.items() if value is not None}


def check_tag(tag: str) -> str:
    """A tag that may be part of a collection's name.

    Raises:
        PlanError: if it may not.
    """
    if tag in ("", PLAIN) or len(tag) > 64 or any(c in '<>:"/\\|?*\0\x1f' for c in tag):
        raise PlanError(
            f"{tag!r} cannot be part of a Qdrant collection's name; use letters, digits, - and _"
        )
    return tag
