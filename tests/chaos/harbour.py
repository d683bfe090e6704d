"""Places of every kind to ferry from and to, and eyes that look into them without vecferry."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecferry as vf
from servers.postgres import postgres
from vecferry.testing import sample_records

__all__ = ["BATCH", "FILES", "ROWS", "SOURCES", "TARGETS", "Harbour", "harbour", "postgres", "sources"]

ROWS = 600
BATCH = 20
FILES = {
    "faiss": "faiss:{}/kb",
    "faiss-langchain": "faiss:{}/kb?layout=langchain",
    "faiss-hnsw": "faiss:{}/kb?index=HNSW16",
    "parquet": "parquet:{}/kb",
    "jsonl": "jsonl:{}/kb.jsonl",
}
SOURCES = ("faiss", "parquet", "jsonl", "qdrant", "pgvector")
TARGETS = (*FILES, "qdrant", "pgvector")


class Harbour:
    """Makes URLs of every kind, each of its own, and looks into them."""

    def __init__(self, folder: Path, server: Any) -> None:
        self.folder, self.server = folder, server
        self._numbers = itertools.count()

    def url(self, kind: str) -> str:
        folder = self.folder / f"{kind}-{next(self._numbers)}"
        folder.mkdir()
        if kind == "qdrant":
            return f"qdrant:{folder}/q#kb"
        if kind == "pgvector":
            return str(self.server.url("kb"))
        return FILES[kind].format(folder)

    def peek(self, url: str) -> Any:
        """A value that is equal exactly for equal contents: the bytes of files, all rows elsewhere."""
        scheme = url.partition(":")[0]
        return {"qdrant": self._qdrant, "pgvector": self._postgres}.get(scheme, self._files)(url)

    @staticmethod
    def _files(url: str) -> dict[str, str]:
        path = Path(url.partition(":")[2].partition("?")[0])
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in found if p.is_file()}
        assert hashes, f"{path} is empty"
        return hashes

    @staticmethod
    def _qdrant(url: str) -> list[Any]:
        from qdrant_client import QdrantClient

        client = QdrantClient(path=url.partition(":")[2].partition("#")[0])
        points, _ = client.scroll("kb", limit=10**6, with_payload=True, with_vectors=True)
        client.close()
        rows = [(str(p.id), repr(p.payload), np.array(p.vector, np.float32).tobytes()) for p in points]
        assert len({row[0] for row in rows}) == len(rows)
        return sorted(rows)

    def _postgres(self, url: str) -> list[Any]:
        with self.server.connect(url) as connection:
            names = connection.execute(
                "select column_name from information_schema.columns where table_name = 'kb' order by 1"
            ).fetchall()
            columns = ", ".join(f'"{name}"::text' for (name,) in names)
            rows = connection.execute(f"select {columns} from kb").fetchall()
        assert len(set(rows)) == len(rows)
        return sorted(rows)


@pytest.fixture(scope="session")
def harbour(tmp_path_factory: pytest.TempPathFactory, postgres: Any) -> Iterator[Harbour]:
    yield Harbour(tmp_path_factory.mktemp("harbour"), postgres)


@pytest.fixture(scope="session")
def sources(harbour: Harbour) -> dict[str, str]:
    """The same records in every kind of source."""
    records = sample_records(ROWS, unit=True)
    found = {}
    for kind in SOURCES:
        url = harbour.url(kind)
        with vf.connect("memory:") as origin:
            origin.write(records)
            vf.migrate(origin, url).check()
        found[kind] = url
    return found
