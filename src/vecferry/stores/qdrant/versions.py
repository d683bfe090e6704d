"""Versions of a collection: the name an app uses is an alias, each version is a collection behind it.

    questions ─alias─▶ questions__vf_TAG

A switch is one request to Qdrant, which applies it as one step. A name that is still a collection of its
own cannot become an alias while that collection stands, and Qdrant cannot rename: so on the first switch
its points are copied to ``NAME__vf_plain`` (the first version, to roll back to), the copy is counted, and
only then the collection gives way to the alias. Between these two requests the name answers "not found";
a run that is killed there is completed by publishing again.

Other aliases of the live version go along with every switch: deleting a collection would delete them.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from vecferry.errors import NotFoundError, PlanError, RetryableError
from vecferry.ports import Version
from vecferry.stores.kit.versions import before, surplus
from vecferry.stores.qdrant.points import Json
from vecferry.stores.qdrant.schema import Record, read_settings

MARK = "__vf_"
PLAIN = "plain"
_PAGE = 256
_WHOLE: Json = {"with_payload": True, "with_vector": True}


class Versions:
    """The versions of the collection ``name``."""

    def __init__(self, engine: Any, name: str) -> None:
        self._engine, self.name = engine, name
        self._where = engine.where

    def behind(self) -> str | None:
        """The collection behind the alias ``name``; ``None`` if it is no alias."""
        found: str | None = self._engine.aliases().get(self.name)
        return found

    def collection(self, tag: str) -> str:
        return f"{self.name}{MARK}{tag}"

    def publish(self, tag: str) -> Version:
        target = self.collection(tag)
        if not self._stands(target):
            raise NotFoundError(f"{self._where} has no version {tag!r} under construction")
        live = self.behind()
        if live == target:
            self._stamp(target, once=True)
            self._stamp_kept(target)
            return self._version(target, live=True)
        before, moving = None, [a for a, c in self._engine.aliases().items() if c in (live, self.name)]
        if live is not None and self._is_ours(live):
            self._stamp(live, once=True)
        elif live is not None:
            before = live  # the app's own alias, of a collection that stays as it is
        elif self._stands(self.name):
            moving = self._keep(moving)
        else:
            moving = self._kept_aliases()
        if before is not None:
            self._note(target, previous=before)
        self._point_to(target, moving)
        self._stamp(target)
        self._stamp_kept(target)
        return self._version(target, live=True)

    def discard(self, tag: str) -> None:
        target = self.collection(tag)
        if self._stands(target) and self.behind() != target and not self._published(target):
            self._engine.drop(target)

    def all(self) -> list[Version]:
        live = self.behind()
        found = [self._version(name, live=name == live) for name in reversed(self._history(live))]
        if live is None:
            alone = self._stands(self.name)
            found = [Version(PLAIN, True, count=self._count(self.name))] if alone else []
        return found + [self._version(name, live=False) for name in self._unpublished(live)]

    def rollback(self) -> Version:
        live = self.behind()
        history = self._history(live)
        previous = before(history, live, self._where)
        moving = [alias for alias, name in self._engine.aliases().items() if name == live]
        self._point_to(previous, moving)
        return self._version(previous, live=True)

    def prune(self, keep: int = 0) -> list[str]:
        """Delete all but the live version, ``keep`` before it, and those that an alias names.

        Versions that were built and never published (their proof failed) go as well.
        """
        live = self.behind()
        history = self._history(live)
        past = surplus(history, live, keep)
        failed = [name for name in self._unpublished(live) if self._record(name).state != "loading"]
        named = set(self._engine.aliases().values())
        gone = [name for name in [*past, *failed] if self._is_ours(name) and name not in named]
        for name in gone:
            self._engine.drop(name)
        for name in self._history(live):  # a collection of the app's own is forgotten, not deleted
            if self._is_ours(name) and self._record(name).previous in past:
                self._note(name, previous=None)
        return [self._tag(name) for name in gone]

    # -- helpers ------------------------------------------------------------------------------

    def _point_to(self, target: str, others: list[str]) -> None:
        """In one request, so that no reader ever finds the name without a collection."""
        there, actions = self._engine.aliases(), []
        for alias in dict.fromkeys([self.name, *others]):
            if alias in there:
                actions.append({"delete_alias": {"alias_name": alias}})
            actions.append({"create_alias": {"collection_name": target, "alias_name": alias}})
        self._engine.change_aliases(actions)

    def _history(self, live: str | None) -> list[str]:
        """Every version that was ever live, oldest first."""
        names = self._engine.collections()
        records = {name: self._record(name) for name in names if self._is_ours(name)}
        stamps = {name: record.published for name, record in records.items()}
        if live in stamps and stamps[live] is None:  # the switch was made, the stamp not yet
            stamps[live] = time.time_ns()
        known = sorted((n for n in stamps if stamps[n] is not None), key=lambda n: stamps[n] or 0)
        apps = {records[name].previous for name in known} & {*names}
        return [*sorted(name for name in apps if name), *known]

    def _unpublished(self, live: str | None) -> list[str]:
        """What was built, or is being built, and never was live; the newest first."""
        history = self._history(live)
        names = [n for n in self._engine.collections() if self._is_ours(n) and n not in history]
        return sorted(names, reverse=True)

    def _is_ours(self, name: str) -> bool:
        return name.startswith(self.name + MARK)

    def _version(self, name: str, *, live: bool) -> Version:
        record = self._record(name)
        published = live or record.published is not None or not self._is_ours(name)
        return Version(
            self._tag(name), live, created=record.created, count=self._count(name), published=published
        )

    def _tag(self, name: str) -> str:
        return name.removeprefix(self.name + MARK)

    def _stands(self, name: str) -> bool:
        return name in self._engine.collections()

    def _count(self, name: str) -> int:
        return int(self._engine.count(name))

    def _record(self, name: str) -> Record:
        return Record.of(self._engine.info(name)["config"].get("metadata")) or Record()

    def _published(self, name: str) -> int | None:
        return self._record(name).published

    def _stamp(self, name: str, *, once: bool = False) -> None:
        record = self._record(name)
        if once and record.published is not None:
            return
        record.published = time.time_ns()
        self._engine.update(name, {"metadata": record.as_metadata()})

    def _note(self, name: str, *, previous: str | None) -> None:
        record = self._record(name)
        if record.previous != previous:
            record.previous = previous
            self._engine.update(name, {"metadata": record.as_metadata()})

    # -- the first switch ---------------------------------------------------------------------

    def _keep(self, aliases: list[str]) -> list[str]:
        """Copy the collection of the name to a version, and let it give way; returns its aliases.

        The version counts as published only after the switch, so that a copy that was begun by a run
        that died is made anew as long as the collection stands, and is kept once it does not.
        """
        for name in self._copies():
            self._engine.drop(name)  # its source may have changed since
        kept = self._free_plain()
        self._copy(self.name, kept, aliases)
        self._engine.drop(self.name)
        return aliases

    def _copies(self) -> list[str]:
        """Copies of the collection that were begun and are not published yet."""
        names = [n for n in self._engine.collections() if n.startswith(self.collection(PLAIN))]
        return [name for name in names if self._published(name) is None]

    def _kept_aliases(self) -> list[str]:
        """The aliases of a collection whose switch was cut off after it gave way."""
        found: list[str] = []
        for name in self._copies():
            found += self._record(name).settings.get("aliases", [])
        return found

    def _stamp_kept(self, target: str) -> None:
        """Publish the copies before the version that took their place."""
        stamp = self._published(target) or time.time_ns()
        for name in self._copies():
            record = self._record(name)
            record.published = stamp - 1
            record.settings.pop("aliases", None)
            self._engine.update(name, {"metadata": record.as_metadata()})

    def _free_plain(self) -> str:
        """A name that no earlier version has: never write into one of those."""
        name, number = self.collection(PLAIN), 1
        while self._stands(name):
            number += 1
            name = self.collection(f"{PLAIN}-{number}")
        return name

    def _copy(self, source: str, target: str, aliases: list[str]) -> None:
        """All points with their payloads and vectors, and the collection's whole configuration."""
        info = self._engine.info(source)
        record = Record.of(info["config"].get("metadata")) or Record()
        record.created = record.created or datetime.now(UTC).isoformat(timespec="seconds")
        record.published = None
        record.settings = {**record.settings, "aliases": aliases}
        body = _same_shape(info, record, local=self._engine.local)
        body["metadata"] = {**(info["config"].get("metadata") or {}), **record.as_metadata()}
        strict = body.pop("strict_mode_config", None)  # it bounds applications, and holds up a copy
        self._engine.create(target, body)
        limit = (info["config"].get("strict_mode_config") or {}).get("max_query_limit") or _PAGE
        for page in self._engine.pages(source, dict(_WHOLE), most=min(_PAGE, limit)):
            self._engine.put(target, [_as_written(point) for point in page])
        before, now = self._count(source), self._count(target)
        if before != now:
            raise RetryableError(
                f"{self._where} changed while it was kept as a version ({before} points, {now} copied); "
                "pause its writers and publish again"
            )
        for path, index in (info.get("payload_schema") or {}).items():
            self._engine.index(target, path, index.get("params") or index["data_type"])
        if strict:
            self._engine.update(target, {"strict_mode_config": strict})


def _as_written(point: Json) -> Json:
    return {"id": point["id"], "payload": point.get("payload"), "vector": point.get("vector") or {}}


def _same_shape(info: Json, record: Record, *, local: bool) -> Json:
    params = info["config"]["params"]
    settings = read_settings(info, record, local=local)
    body = {key: value for key, value in settings.items() if key not in ("metadata", "read_fan_out_factor")}
    if record.settings and local:
        body = {}
    body["vectors"] = params.get("vectors") or {}
    if params.get("sparse_vectors"):
        body["sparse_vectors"] = params["sparse_vectors"]
    return body


def check_tag(tag: str) -> str:
    """A tag that may be part of a collection's name.

    Raises:
        PlanError: if it may not.
    """
    ours = tag == PLAIN or tag.startswith(f"{PLAIN}-")
    if tag == "" or ours or len(tag) > 64 or any(c in '<>:"/\\|?*\0\x1f' for c in tag):
        raise PlanError(
            f"{tag!r} cannot be part of a Qdrant collection's name; use letters, digits, - and _"
        )
    return tag
