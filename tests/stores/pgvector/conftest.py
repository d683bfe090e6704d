from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vecferry as vf
from servers.postgres import Postgres, postgres, postgres16

__all__ = ["postgres", "postgres16"]


class Sandbox:
    """A fresh database: `sql` looks behind the adapter, `store` opens a table of it."""

    def __init__(self, server: Postgres) -> None:
        self.server = server
        self.database = server.database()
        self._connection = server.connect(self.database)
        self._opened: list[Any] = []

    def sql(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        cursor = self._connection.execute(query, params or None)
        return cursor.fetchall() if cursor.description else []

    def connect(self, table: str = "items", **options: Any) -> vf.Collection:
        opened = vf.connect(self.server.url(table, self.database), **options)
        self._opened.append(opened)
        return opened

    def store(self, table: str = "items", **options: Any) -> Any:
        return self.connect(table, **options).store

    def close(self) -> None:
        for opened in self._opened:
            opened.close()
        self._connection.close()
        # A thousand files each: deleted now rather than all at the end of the session.
        with self.server.connect("postgres") as connection:
            connection.execute(f"drop database {self.database} with (force)")


@pytest.fixture
def db(postgres: Postgres) -> Iterator[Sandbox]:
    """A database on Postgres 18."""
    sandbox = Sandbox(postgres)
    yield sandbox
    sandbox.close()


@pytest.fixture(params=[18, 16])
def both(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A database on Postgres 18, and again on 16."""
    sandbox = Sandbox(request.getfixturevalue("postgres" if request.param == 18 else "postgres16"))
    yield sandbox
    sandbox.close()


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """For an embedded server: not under pytest's own folder, which each session locks."""
    folder = Path(tempfile.mkdtemp(prefix="vecferry-kb-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
