"""Nothing lost, nothing doubled: kill -9 at random instants on every pair of stores, then go on.

The target must equal that of an uninterrupted run: byte for byte where the store is a file, record for
record as the vendor's own client sees it elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

import vecferry as vf
from chaos.conftest import Zygote
from servers.postgres import postgres
from vecferry.testing import sample_records

__all__ = ["postgres"]

KILLS = int(os.environ.get("VECFERRY_CHAOS_KILLS", "5"))
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

pytestmark = pytest.mark.chaos


class Harbour:
    """Makes URLs of every kind, and looks into them without vecferry."""

    def __init__(self, folder: Path, server: Any) -> None:
        self.folder, self.server = folder, server

    def url(self, kind: str, name: str) -> str:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        if kind == "qdrant":
            return f"qdrant:{folder}/q#kb"
        if kind == "pgvector":
            return str(self.server.url("kb"))
        return FILES[kind].format(folder)

    def peek(self, url: str) -> Any:
        """A value that is equal exactly for equal contents."""
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
        rows = [(str(p.id), repr(p.payload), np.float32(p.vector).tobytes()) for p in points]
        assert len({row[0] for row in rows}) == len(rows)
        return sorted(rows)

    def _postgres(self, url: str) -> list[Any]:
        with self.server.connect(url) as connection:
            names = connection.execute(
                "select column_name from information_schema.columns where table_name = 'kb' order by 1"
            ).fetchall()
            columns = ", ".join(f'"{name}"::text' for (name,) in names)
            rows = connection.execute(f"select {columns} from kb").fetchall()
        return sorted(rows)


@pytest.fixture(scope="module")
def harbour(tmp_path_factory: pytest.TempPathFactory, postgres: Any) -> Iterator[Harbour]:
    yield Harbour(tmp_path_factory.mktemp("harbour"), postgres)


@pytest.fixture(scope="module")
def sources(harbour: Harbour) -> dict[str, str]:
    """The same records in every kind of source."""
    records = sample_records(ROWS, unit=True)
    found = {}
    for kind in SOURCES:
        url = harbour.url(kind, f"source-{kind}")
        with vf.connect("memory:") as origin:
            origin.write(records)
            vf.migrate(origin, url).check()
        found[kind] = url
    return found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
def test_a_killed_migration_goes_on_as_if_nothing_happened(
    source: str,
    target: str,
    zygote: Zygote,
    harbour: Harbour,
    sources: dict[str, str],
    dice: random.Random,
    tmp_path: Path,
) -> None:
    quiet = harbour.url(target, f"{source}-{target}-quiet")
    first = zygote.run(sources[source], quiet, batch_size=BATCH, state_dir=str(tmp_path / "quiet"))
    assert first and first["outcome"] == "ok", first
    url = harbour.url(target, f"{source}-{target}-chaos")
    options: dict[str, Any] = {"batch_size": BATCH, "state_dir": str(tmp_path / "chaos")}
    killed = 0
    for _ in range(KILLS):
        at = (dice.randint(1, 45), dice.random() * 0.02)
        last = zygote.run(sources[source], url, kill=at, pause=0.004, **options)
        killed += last is None
        if last is not None and last["outcome"] == "ok":
            break
        assert last is None, last
    if killed == KILLS or last is None:
        last = zygote.run(sources[source], url, **options)
    assert killed, "no kill hit: the test proves nothing"
    assert last and last["outcome"] == "ok", last
    assert harbour.peek(url) == harbour.peek(quiet)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("stage", ["finish", "verify", "publish"])
def test_a_kill_at_the_end_loses_nothing(
    stage: str,
    target: str,
    zygote: Zygote,
    harbour: Harbour,
    sources: dict[str, str],
    dice: random.Random,
    tmp_path: Path,
) -> None:
    """Kills inside finish, verify and publish of a replacement; the old version stays until the swap."""
    url = harbour.url(target, f"{stage}-{target}")
    options: dict[str, Any] = {"batch_size": BATCH, "mode": "replace", "state_dir": str(tmp_path / "job")}
    vf.migrate(sources["jsonl"], url, where={"n": {"$lt": 50}}).check()
    events = _events_until(zygote, stage, harbour, target, sources, tmp_path)
    last = zygote.run(sources["jsonl"], url, kill=(events, dice.random() * 0.03), pause=0.01, **options)
    if last is None:
        with vf.connect(url) as collection:
            assert collection.count() in (50, ROWS), "neither the old nor the new version is there"
        last = zygote.run(sources["jsonl"], url, **options)
    assert last and last["outcome"] == "ok", last
    with vf.connect(url) as collection:
        assert collection.count() == ROWS
    assert vf.verify(sources["jsonl"], url).ok


_COUNTED: dict[tuple[str, str], int] = {}


def _events_until(
    zygote: Zygote, stage: str, harbour: Harbour, target: str, sources: dict[str, str], folder: Path
) -> int:
    """The number of the first progress event of ``stage`` in such a migration."""
    seen: list[str] = []
    url = harbour.url(target, f"count-{stage}-{target}")
    vf.migrate(sources["jsonl"], url, where={"n": {"$lt": 50}}).check()
    vf.migrate(
        sources["jsonl"],
        url,
        mode="replace",
        batch_size=BATCH,
        state_dir=folder / "count",
        on_progress=lambda step: seen.append(step.stage),
    ).check()
    return seen.index(stage) + 1 if stage in seen else len(seen)


def test_two_runs_of_one_job_cannot_meet(sources: dict[str, str], tmp_path: Path) -> None:
    from vecferry.errors import JobLockedError

    def again(_: Any) -> None:
        with pytest.raises(JobLockedError):
            vf.migrate(sources["jsonl"], target, state_dir=tmp_path / "job")
        met.append(True)

    met: list[bool] = []
    target = f"jsonl:{tmp_path / 'out.jsonl'}"
    vf.migrate(sources["jsonl"], target, state_dir=tmp_path / "job", on_progress=again).check()
    assert met


def test_the_state_file_survives_a_kill(zygote: Zygote, sources: dict[str, str], tmp_path: Path) -> None:
    job = tmp_path / "job"
    target = f"jsonl:{tmp_path / 'out.jsonl'}"
    zygote.run(sources["jsonl"], target, kill=(12, 0.0), pause=0.01, batch_size=BATCH, state_dir=str(job))
    with sqlite3.connect(job / "job.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_killed_postgres_is_waited_for_or_resumed(tmp_path: Path, sources: dict[str, str]) -> None:
    """kill -9 of the server itself in the middle of a load; the same call goes on when it is back."""
    from vecferry.errors import VecferryError

    url = f"pgvector:{tmp_path / 'server'}#kb"
    struck: list[bool] = []

    def strike(step: Any) -> None:
        if step.stage == "stream" and step.done > 200 and not struck:
            struck.append(True)
            pid = int((tmp_path / "server").rglob("postmaster.pid").__next__().read_text().split()[0])
            os.kill(pid, 9)

    options: dict[str, Any] = {"batch_size": BATCH, "state_dir": tmp_path / "job"}
    try:
        vf.migrate(sources["jsonl"], url, on_progress=strike, **options).check()
    except VecferryError:
        vf.migrate(sources["jsonl"], url, **options).check()
    assert struck
    with vf.connect(url) as collection:
        assert collection.count() == ROWS
        with psycopg.connect(collection.store.dsn) as connection:
            assert connection.execute("select count(*), count(distinct id) from kb").fetchone() == (
                ROWS,
                ROWS,
            )
