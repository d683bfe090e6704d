"""From a URL to an opened collection, and closed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vecferry.connecting.collection import Collection
from vecferry.core.redaction import hide
from vecferry.core.registry import find
from vecferry.errors import ConfigurationError, FatalStoreError
from vecferry.ports import StoreURL, is_secret


def connect(target: Any, **options: Any) -> Collection:
    """Open a collection.

    Args:
        target: a URL such as ``"faiss:./kb"`` or ``"qdrant://localhost:6333/kb"``, an adapter
            object, or a `Collection` (returned as it is).
        options: passed to the adapter; they win over the URL's ``?option=value``.

    Raises:
        UnknownSchemeError: naming the closest scheme that exists.
        MissingDependencyError: naming the pip extra.
        ConfigurationError: for a malformed URL or an option that the adapter does not know.

    >>> connect("memory:").describe().count
    0
    """
    if isinstance(target, Collection):
        return target
    if not isinstance(target, str | StoreURL):
        return Collection(target)
    url = StoreURL.parse(target) if isinstance(target, str) else target
    adapter = find("vecferry.stores", url.scheme)
    for name, value in options.items():
        if is_secret(name):
            hide(value)
    try:
        store = adapter.from_url(url, **{**url.options, **options})
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        name = str(error).rsplit("'", 2)[-2]
        raise ConfigurationError(
            f"{url.scheme}: has no option {name!r}; see its page in the docs"
        ) from error
    return Collection(store, str(url))


@contextmanager
def borrowed(opener: Callable[[], Collection]) -> Iterator[Collection]:
    """Open a collection and close it afterwards, unless it was the caller's own object.

    Args:
        opener: ``functools.partial(connect, target, …)``.

    Raises:
        FatalStoreError: for a file that this user may not read.
    """
    collection = opener()
    named = isinstance(getattr(opener, "args", (None,))[0], str | StoreURL)
    try:
        yield collection
    except PermissionError as error:
        raise denied(error) from error
    finally:
        if named:
            collection.close()


def denied(error: PermissionError) -> FatalStoreError:
    """What the system forbids, in words that name the next move."""
    what = error.filename or "the system"
    return FatalStoreError(f"{what}: {error.strerror}; change its permissions or choose another path")
