"""Shadow, swap, rollback, prune: what users call on any store that is `Publishable`."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any

from vecferry.connecting import Collection
from vecferry.errors import NotFoundError, TargetExistsError, UnsupportedError
from vecferry.ports import Publishable, Version, WriteMode


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
