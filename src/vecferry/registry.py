"""URL scheme → adapter. The core knows adapters as strings only.

A third party adds one without touching this project, in its own ``pyproject.toml``::

    [project.entry-points."vecferry.stores"]
    mystore = "my_package.store:MyStore"

The class needs ``from_url(url: StoreURL, **options)`` and the ports it wants to serve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from vecferry.errors import ConfigurationError, FatalStoreError, UnknownSchemeError
from vecferry.ports import Collection, StoreURL, is_secret
from vecferry.redaction import hide

STORES = {
    "faiss": "vecferry.stores.faiss:FaissStore",
    "jsonl": "vecferry.stores.jsonl:JsonlStore",
    "llamacloud": "vecferry.stores.llamacloud:LlamaCloudStore",
    "memory": "vecferry.stores.memory:MemoryStore",
    "parquet": "vecferry.stores.parquet:ParquetStore",
    "pgvector": "vecferry.stores.pgvector:PgVectorStore",
    "qdrant": "vecferry.stores.qdrant:QdrantStore",
    "s3": "vecferry.snapshots.opening:S3FolderStore",
}
EMBEDDERS = {
    "azure": "vecferry.embedding.openai:AzureEmbedder",
    "ollama": "vecferry.embedding.ollama:OllamaEmbedder",
    "openai": "vecferry.embedding.openai:OpenAIEmbedder",
    "sentence-transformers": "vecferry.embedding.sentence_transformers:SentenceTransformersEmbedder",
}


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


def find(group: str, name: str) -> Any:
    """The class registered as ``name`` in ``"vecferry.stores"`` or ``"vecferry.embedders"``.

    Raises:
        UnknownSchemeError: naming the closest that exists.
    """
    outside = _outside(group)
    if name in outside:
        return outside[name].load()
    known = STORES if group == "vecferry.stores" else EMBEDDERS
    if name not in known:
        names = sorted({*known, *outside})
        close = get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
        raise UnknownSchemeError(f"nothing is registered as {name!r}; {hint}")
    module, _, attribute = known[name].partition(":")
    return getattr(import_module(module), attribute)


@cache
def _outside(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}
