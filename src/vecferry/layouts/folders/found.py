"""Which layout lies in a folder, told from the files that are there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vecferry.errors import ConfigurationError, CorruptDataError, NotFoundError
from vecferry.layouts.folders.langchain import read_langchain
from vecferry.layouts.folders.llamaindex import (
    DOCSTORE,
    GRAPH,
    ID_MAP,
    IMAGES,
    INDEX_STORE,
    VECTORS,
    read_llamaindex,
)
from vecferry.layouts.folders.own import JSONL, PARQUET, read_own
from vecferry.layouts.folders.raw import read_raw
from vecferry.layouts.folders.sidecar import Numbering, Sidecar

CARD = "vecferry.json"
"""Beside every collection that vecferry writes: schema, space, index factory. Other apps pass it over."""

NAMES = (
    "plain",
    "langchain",
    "llamaindex",
    "llamaindex-map",
    "llamaindex-simple",
    "raw-pkl",
    "raw-json",
    "raw-jsonl",
    "none",
)
INDEX_NAME = "index"
"""What LangChain calls an index that is given no name."""
_SUFFIXES = (".faiss", ".index", ".bin")
_RAW_STEMS = ("metadata", "meta", "docs", "documents", "records")
_LLAMA_FILES = frozenset({GRAPH, IMAGES, DOCSTORE, INDEX_STORE, ID_MAP, VECTORS})


@dataclass(frozen=True, slots=True)
class Found:
    """A collection on disk.

    Attributes:
        layout: one of `NAMES`.
        index: the index file (for ``llamaindex-simple`` the JSON file with the vectors).
        sidecar: the file with the records; ``None`` for ``none``.
    """

    layout: str
    index: Path
    sidecar: Path | None = None

    @property
    def folder(self) -> Path:
        return self.index.parent

    @property
    def card(self) -> dict[str, Any]:
        """What `CARD` holds; empty where there is none."""
        try:
            content = json.loads((self.folder / CARD).read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise CorruptDataError(
                f"{self.folder / CARD} is damaged; restore or remove it (schema and space are then unknown)"
            ) from error
        return content if isinstance(content, dict) else {}

    def files(self) -> set[Path]:
        """Every file that belongs to the collection."""
        own = {self.index, self.folder / CARD} | ({self.sidecar} if self.sidecar else set())
        if self.layout.startswith("llamaindex"):
            own |= {self.folder / name for name in _LLAMA_FILES}
        return {path for path in own if path.exists()}

    def open_sidecar(self, numbering: Numbering) -> Sidecar | None:
        """The records for an index so numbered; ``None`` if there are none beside it."""
        if self.layout in ("llamaindex", "llamaindex-map"):
            return read_llamaindex(self.folder, numbering)
        if self.sidecar is None:
            return None
        readers = {"langchain": read_langchain, "plain": read_own}
        return readers.get(self.layout, read_raw)(self.sidecar, numbering)


def find(path: Path, *, layout: str | None = None, index_name: str = INDEX_NAME) -> Found:
    """The collection in a folder, or around an index file.

    Args:
        layout: one of `NAMES` to insist on it; ``None`` to recognise it.
        index_name: of several LangChain stores in one folder.

    Raises:
        NotFoundError: if there is none.
        ConfigurationError: if several indexes lie there, or ``layout`` is unknown.
    """
    if layout is not None and layout not in NAMES:
        raise ConfigurationError(f"there is no layout {layout!r}; choose one of {', '.join(NAMES)}")
    if path.is_dir():
        found = _llamaindex(path) or _around(_index_in(path, index_name))
    elif path.is_file():
        found = (_llamaindex(path.parent) if path.name == VECTORS else None) or _around(path)
    else:
        raise NotFoundError(f"{path} is not there; check the path")
    return found if layout in (None, found.layout) else _insist(found, layout or "")


def _llamaindex(folder: Path) -> Found | None:
    vectors = folder / VECTORS
    if not vectors.is_file():
        return None
    with vectors.open("rb") as file:
        is_json = file.read(64).lstrip()[:1] == b"{"
    if is_json:
        return Found("llamaindex-simple", vectors, folder / DOCSTORE)
    kind = "llamaindex-map" if (folder / ID_MAP).exists() else "llamaindex"
    return Found(kind, vectors, folder / DOCSTORE)


def _index_in(folder: Path, index_name: str) -> Path:
    named = index_name != INDEX_NAME
    for name in (f"{index_name}.faiss",) if named else ("index.faiss", "faiss.index", "index.bin"):
        if (folder / name).is_file():
            return folder / name
    candidates = sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES and p.is_file())
    if named:
        there = f"there is {', '.join(path.name for path in candidates) or 'no index at all'}"
        raise NotFoundError(f"{folder} holds no {index_name}.faiss; {there}")
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        names = ", ".join(path.name for path in candidates)
        raise ConfigurationError(f"{folder} holds several indexes ({names}); name the file itself")
    raise NotFoundError(f"{folder} holds no FAISS index (*.faiss, faiss.index, {VECTORS}); check the path")


def _around(index: Path) -> Found:
    folder = index.parent
    for name in (JSONL, PARQUET):
        if (folder / CARD).is_file() and (folder / name).is_file():
            return Found("plain", index, folder / name)
    pickled = index.with_suffix(".pkl")
    if index.suffix == ".faiss" and pickled.is_file() and _is_langchain(pickled):
        return Found("langchain", index, pickled)
    for stem in (*_RAW_STEMS, index.stem, f"{index.stem}_metadata"):
        for suffix in (".pkl", ".json", ".jsonl"):
            path = folder / f"{stem}{suffix}"
            if path.is_file() and path != index:
                return Found(f"raw{suffix.replace('.', '-')}", index, path)
    return Found("none", index)


def _is_langchain(path: Path) -> bool:
    with path.open("rb") as file:
        return b"InMemoryDocstore" in file.read(512)


def _insist(found: Found, layout: str) -> Found:
    """The same index under another layout than the one recognised."""
    if layout == "none":
        return Found("none", found.index)
    candidates = {
        "plain": [found.folder / JSONL, found.folder / PARQUET],
        "langchain": [found.index.with_suffix(".pkl")],
    }
    if layout.startswith("raw-"):
        stems = (*_RAW_STEMS, found.index.stem)
        candidates[layout] = [found.folder / f"{stem}.{layout[4:]}" for stem in stems]
    for path in candidates.get(layout, []):
        if path.is_file():
            return Found(layout, found.index, path)
    raise NotFoundError(
        f"{found.folder} is in the layout {found.layout!r}, not {layout!r}; leave ?layout= out"
    )


__all__ = ["CARD", "NAMES", "Found", "find"]
