"""Which layout lies in a folder, told from the files that are there."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vecferry.errors import ConfigurationError, CorruptDataError, NotFoundError
from vecferry.layouts.folders.entries import Numbering, Sidecar
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
from vecferry.layouts.folders.scripts import SUFFIXES, read_script
from vecferry.model import Loss

MANIFEST = "vecferry.json"
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
    "raw-csv",
    "raw-parquet",
    "raw-sqlite",
    "none",
)
INDEX_NAME = "index"
"""What LangChain calls an index that is given no name."""
_SUFFIXES = (".faiss", ".index", ".bin")
_RAW_STEMS = ("metadata", "meta", "docs", "documents", "records", "chunks", "texts", "passages", "docstore")
_RAW_NAMES = {  # suffix → the layout's name
    ".pkl": "raw-pkl",
    ".pickle": "raw-pkl",
    ".json": "raw-json",
    ".jsonl": "raw-jsonl",
    ".ndjson": "raw-jsonl",
    ".csv": "raw-csv",
    ".parquet": "raw-parquet",
    ".db": "raw-sqlite",
    ".sqlite": "raw-sqlite",
}
_DATA = (*SUFFIXES, ".npy", ".npz", ".txt", ".tsv")
"""Files that may hold something of a collection; others beside an index (a README) are no data."""
_LLAMA_FILES = frozenset({GRAPH, IMAGES, DOCSTORE, INDEX_STORE, ID_MAP, VECTORS})


@dataclass(frozen=True, slots=True)
class Found:
    """A collection on disk.

    Attributes:
        layout: one of `NAMES`.
        index: the index file (for ``llamaindex-simple`` the JSON file with the vectors).
        sidecar: the file with the records; ``None`` for ``none``.
        named_as_folder: whether the folder was named, not a file in it.
    """

    layout: str
    index: Path
    sidecar: Path | None = None
    named_as_folder: bool = True

    @property
    def folder(self) -> Path:
        return self.index.parent

    @property
    def manifest(self) -> dict[str, Any]:
        """What `MANIFEST` holds; empty where there is none."""
        try:
            content = json.loads((self.folder / MANIFEST).read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise CorruptDataError(
                f"{self.folder / MANIFEST} is damaged; restore it, or remove it (schema and space are then "
                "unknown)"
            ) from error
        return content if isinstance(content, dict) else {}

    def files(self) -> set[Path]:
        """Every file that belongs to the collection."""
        own = {self.index, self.folder / MANIFEST} | ({self.sidecar} if self.sidecar else set())
        if self.layout.startswith("llamaindex"):
            own |= {self.folder / name for name in _LLAMA_FILES}
        return {path for path in own if path.exists()}

    def open_sidecar(self, numbering: Numbering, *, id: str | None = None) -> Sidecar | None:
        """The records for an index so numbered; ``None`` if there are none beside it.

        Args:
            id: see `vecferry.layouts.folders.scripts.read_script`.
        """
        if self.layout in ("llamaindex", "llamaindex-map"):
            return read_llamaindex(self.folder, numbering)
        if self.sidecar is None:
            return None
        if self.layout in ("langchain", "plain"):
            return {"langchain": read_langchain, "plain": read_own}[self.layout](self.sidecar, numbering)
        return read_script(self.sidecar, numbering, id=id)

    def foreign_files(self) -> tuple[Loss, ...]:
        """Files of data beside the index that are not read, as a loss that names them."""
        own = self.files() | {self.index.with_suffix(".ivfdata"), self.folder / "ids.npy"}
        whole = self.named_as_folder or self.layout.startswith("llamaindex")
        names = sorted(
            path.name
            for path in self.folder.iterdir()
            if path.suffix in _DATA
            and path.is_file()
            and path not in own
            and (whole or path.name.startswith(self.index.stem))
        )
        hint = "; name the one that holds the records with ?sidecar=FILE" if self.layout == "none" else ""
        return Loss.not_carried("files beside the index", names, hint=hint)


def find(
    path: Path, *, layout: str | None = None, index_name: str = INDEX_NAME, sidecar: str | None = None
) -> Found:
    """The collection in a folder, or around an index file.

    Args:
        layout: one of `NAMES` to insist on it; ``None`` to recognise it.
        index_name: of several LangChain stores in one folder.
        sidecar: the file beside the index that holds the records; ``None`` to look for it.

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
        found = replace(found, named_as_folder=False)
    else:
        raise NotFoundError(f"{path} is not there; check the path")
    if sidecar is not None:
        found = _beside(found, sidecar)
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
        if (folder / MANIFEST).is_file() and (folder / name).is_file():
            return Found("plain", index, folder / name)
    pickled = index.with_suffix(".pkl")
    if index.suffix == ".faiss" and pickled.is_file() and _is_langchain(pickled):
        return Found("langchain", index, pickled)
    database = folder / "faiss_document_store.db"
    if database.is_file():  # haystack; its index.json holds settings
        return Found("raw-sqlite", index, database)
    stems: tuple[str, ...] = (*_RAW_STEMS, index.stem, f"{index.stem}_metadata", f"{index.stem}.metadata")
    stems += tuple(f"{index.name}{tail}" for tail in (".metadata", ".meta", ".docs", ""))
    if index.with_suffix(".pkl").is_file() and index.suffix == ".faiss":  # mem0 keeps {name}.pkl
        stems = (index.stem, *stems)
    for stem in stems:
        for suffix, name in _RAW_NAMES.items():
            path = folder / f"{stem}{suffix}"
            if path.is_file() and path != index and name != "raw-sqlite":
                return Found(name, index, path)
    return Found("none", index)


def _beside(found: Found, name: str) -> Found:
    """The same index with the records in the file that the caller names."""
    path = found.folder / name
    if not path.is_file():
        raise NotFoundError(f"{path} is not there; ?sidecar= names a file beside the index")
    if path.suffix not in _RAW_NAMES:
        raise ConfigurationError(
            f"{path.name} is not a sidecar that can be read; write {', '.join(_RAW_NAMES)}"
        )
    if path.suffix == ".pkl" and _is_langchain(path):
        return replace(found, layout="langchain", sidecar=path)
    return replace(found, layout=_RAW_NAMES[path.suffix], sidecar=path)


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
        suffixes = [suffix for suffix, name in _RAW_NAMES.items() if name == layout]
        stems: tuple[str, ...] = (*_RAW_STEMS, found.index.stem)
        candidates[layout] = [found.folder / f"{stem}{suffix}" for stem in stems for suffix in suffixes]
    for path in candidates.get(layout, []):
        if path.is_file():
            return Found(layout, found.index, path)
    raise NotFoundError(
        f"{found.folder} is in the layout {found.layout!r}, not {layout!r}; leave ?layout= out"
    )


__all__ = ["MANIFEST", "NAMES", "Found", "find"]
