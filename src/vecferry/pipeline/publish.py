"""Shadow, swap, rollback, prune: what users call on any store that is `Publishable`."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from vecferry.connecting import Collection
from vecferry.errors import NotFoundError, TargetExistsError, UnsupportedError
from vecferry.ports import Publishable, RollsTo, Version, WriteMode


def new_tag() -> str:
    """A fresh version tag that sorts by time: ``20261120T101112-1a2b``."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"


def publishable(collection: Collection) -> Publishable:
    """The store, if it can swap versions.

    Raises:
        UnsupportedError: if it cannot.
    """
    store: Any = collection.store
    if not isinstance(store, Publishable):
        raise UnsupportedError(
            f"{collection.url} keeps no versions; restore it from a snapshot or migrate it back"
        )
    return store


def live_tags(store: Publishable) -> set[str]:
    """The tags of the versions that are seen: one, or none."""
    try:
        return {version.tag for version in store.versions() if version.live}
    except NotFoundError:
        return set()


def swap_in(target: Collection, tag: str, mode: WriteMode, job: str) -> Version:
    """Let the shadow ``tag`` be the collection; the same again changes nothing.

    Raises:
        TargetExistsError: mode ``CREATE``, and another job or the application has made the collection
            meanwhile. The shadow is kept.
    """
    store: Any = target.store
    if mode is WriteMode.CREATE and tag not in live_tags(store) and _holds_something(store):
        raise TargetExistsError(
            f"{target.url} was made by somebody else while job {job} ran; its own work is kept as "
            f"version {tag}: "
            f"swap it in with vecferry publish {job} --replace, or drop it with vecferry jobs forget {job}"
        )
    version: Version = store.publish(tag)
    return version


def _holds_something(store: Any) -> bool:
    return bool(store.exists()) and store.describe().count != 0


def roll_to(collection: Collection, to: str | None) -> Version:
    """Make the version before the live one, or ``to``, the collection.

    Raises:
        NotFoundError: if it is not kept.
        UnsupportedError: if the store cannot go forward.
    """
    store = publishable(collection)
    if to is None:
        return store.rollback()
    versions = store.versions()
    tags = [version.tag for version in versions]
    if to not in tags:
        have = ", ".join(tags) or "none"
        raise NotFoundError(f"{collection.url} keeps no version {to!r}; there are {have}")
    live = next((version for version in versions if version.live), None)
    if live is not None and live.tag == to:
        return live
    if isinstance(store, RollsTo):
        return store.roll_to(to)
    if live is not None and tags.index(to) < tags.index(live.tag):
        raise UnsupportedError(f"{collection.url} cannot go forward to {to}; migrate it again")
    while live is None or live.tag != to:
        live = store.rollback()
    return live


def prunable(versions: Sequence[Version], keep: int) -> list[str]:
    """The tags that a prune would take, oldest first; ``versions`` newest first, as a store lists them."""
    tags = [version.tag for version in reversed(versions) if version.published or version.live]
    live = next((version.tag for version in versions if version.live), None)
    at = tags.index(live) if live in tags else len(tags)
    others = [*tags[at + 1 :], *tags[:at]]  # one that was rolled back goes first
    return sorted(others[: max(len(others) - keep, 0)], key=tags.index)
