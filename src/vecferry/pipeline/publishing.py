"""Shadow, swap, rollback, prune: what users call on any store that is `Publishable`."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any

from vecferry.connecting import Collection
from vecferry.errors import UnsupportedError
from vecferry.ports import Publishable, Version

__all__ = ["new_tag", "prune", "publishable", "rollback", "versions"]


def new_tag() -> str:
    """A fresh version tag that sorts by time: ``20261120T101112-1a2b``."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"


def publishable(collection: Collection) -> Any:
    """The store, if it can swap versions.

    Raises:
        UnsupportedError: if it cannot.
    """
    if not isinstance(collection.store, Publishable):
        raise UnsupportedError(
            f"{collection.url} keeps no versions; restore it from a snapshot or migrate it back"
        )
    return collection.store


def versions(collection: Collection) -> list[Version]:
    """The live version and those kept, newest first."""
    found: list[Version] = publishable(collection).versions()
    return found


def rollback(collection: Collection) -> Version:
    """Make the version before the live one the collection again.

    Raises:
        NotFoundError: if none is kept.
    """
    version: Version = publishable(collection).rollback()
    return version


def prune(collection: Collection, keep: int = 0) -> list[str]:
    """Delete the versions that are not live, but for the newest ``keep``; returns their tags."""
    tags: list[str] = publishable(collection).prune(keep)
    return tags
