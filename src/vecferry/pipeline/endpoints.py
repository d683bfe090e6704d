"""The two ends of a migration: how each is opened, and when two URLs are one place."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from os.path import realpath
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from vecferry.connecting import Collection, borrowed, connect
from vecferry.core.redaction import redact
from vecferry.errors import PlanError
from vecferry.ports import Placed, StoreURL, is_secret

_EPHEMERAL = ("memory:", "qdrant::memory:")


@dataclass(frozen=True)
class Endpoint:
    """A collection by URL, or an object of the caller's; opened anew by each use.

    Attributes:
        place: what `connect` takes.
        options: for the adapter.
    """

    place: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    def opened(self) -> AbstractContextManager[Collection]:
        """Open it; closed again at the end where it was named by URL, so that no lock is left."""
        return borrowed(partial(connect, self.place, **self.options))


def refuse_one_place(source: Collection, target: Collection) -> None:
    """Raises: PlanError: if the two are one collection, or one lies inside the other."""
    here, there = _place(source.url), _place(target.url)
    if source.store is target.store or (here and here == there) or _known_as_one(source, target):
        raise PlanError(f"source and target are the same collection ({source.url}); name another target")
    if here and there and here[0] == there[0] and _nested(here[1], there[1]):
        raise PlanError(
            f"one of {source.url} and {target.url} lies inside the other; name a target elsewhere"
        )


def is_ephemeral(collection: Collection) -> bool:
    """Whether it does not outlive this process."""
    return collection.url.startswith(_EPHEMERAL) or ":" not in collection.url


def absolute_url(url: str) -> str:
    """The same text for the same place, from whatever folder it is named."""
    scheme, _, rest = url.partition(":")
    return url if rest.startswith(("//", ":")) else f"{scheme}:{Path(rest).absolute()}"


def absolute_place(place: str) -> str:
    """A path or a URL, the same from whatever folder it is used."""
    if _is_url(place):
        return absolute_url(str(StoreURL.parse(place)))
    return str(Path(place).expanduser().absolute())


def backup_url(place: str, now: datetime | None = None) -> str:
    """A URL as it is; a folder gets a timestamped JSON Lines file."""
    if _is_url(place):
        return place
    name = f"backup-{now or datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    names = (f"{name}.jsonl", *(f"{name}-{n}.jsonl" for n in range(2, 1000)))
    return f"jsonl:{next(path for path in map(Path(place).joinpath, names) if not path.exists())}"


def repeatable(call: Mapping[str, Any]) -> dict[str, Any] | None:
    """The call as JSON, without secrets and with absolute paths; ``None`` if it holds objects.

    ``hidden`` names the sides that must be given again, since something of their URL is not stored.
    """
    named = {"state_dir", "resume"}
    kept = {key: value for key, value in call.items() if value is not None and key not in named}
    hidden = []
    for side in ("source", "target"):
        if not isinstance(kept.get(side), str):
            return None
        url = StoreURL.parse(kept[side])
        hidden += [side] if url.hides else []
        kept[side] = absolute_url(str(url))
    if isinstance(kept.get("backup"), str | Path):
        kept["backup"] = absolute_place(str(kept["backup"]))
    try:
        text = json.dumps(kept)
    except TypeError:
        return None
    if redact(text) != text:
        return None  # a key in the name of a model, say
    options = [*kept.get("source_options", {}), *kept.get("target_options", {})]
    if any(map(is_secret, options)):
        return None
    return {**kept, "hidden": hidden} if hidden else kept


def _is_url(place: str) -> bool:
    scheme, colon, _ = place.partition(":")
    return bool(colon) and len(scheme) > 1


def _place(url: str) -> tuple[str, Path | None, str] | None:
    """Scheme, path and the rest of a URL, equal for two names of one place: links are followed.

    A server's collection has no path; what lives in this process only has no place.
    """
    scheme, colon, rest = url.partition(":")
    if not colon or url.startswith(_EPHEMERAL):
        return None
    if rest.startswith("//"):
        return scheme, None, rest
    path = re.split("[?#]", rest, maxsplit=1)[0]
    return scheme, Path(realpath(unquote(path))), rest.removeprefix(path)


def _nested(a: Path | None, b: Path | None) -> bool:
    return a is not None and b is not None and (a in b.parents or b in a.parents)


def _known_as_one(source: Collection, target: Collection) -> bool:
    """Whether the stores themselves say so, whatever their URLs."""
    a, b = source.store, target.store
    if not (isinstance(a, Placed) and isinstance(b, Placed)):
        return False
    here = a.place()
    return here is not None and here == b.place()
