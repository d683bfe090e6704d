"""The promises of every store, on Postgres 18 and 16, and in the embedded server."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psycopg
import pytest

import vecferry as vf
from servers.postgres import Postgres
from vecferry.model import Metric
from vecferry.ports import StoreURL
from vecferry.stores.pgvector import embedded
from vecferry.testing import StoreContract, VendorView


def peek_table(dsn: str, table: str) -> dict[Any, VendorView]:
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(f'select id, text, embedding::text from "{table}"').fetchall()
    return {
        id_: VendorView(text, np.array(vector[1:-1].split(","), dtype=np.float32))
        for id_, text, vector in rows
    }


class OnServer(StoreContract):
    """One database for all tests of a server; tables of their own for each."""

    version = "postgres"
    last_index = 999_999_999  # of a sparsevec
    databases: ClassVar[dict[int, str]] = {}

    @pytest.fixture(autouse=True)
    def _server(self, request: pytest.FixtureRequest) -> None:
        self.server: Postgres = request.getfixturevalue(self.version)
        if self.server.port not in self.databases:
            self.databases[self.server.port] = self.server.database()

    def open(self, folder: Path, name: str) -> Any:
        table = f"{folder.name}_{name}"
        return vf.connect(self.server.url(table, self.databases[self.server.port])).store

    def vendor_view(self, store: Any) -> Mapping[Any, VendorView]:
        url = StoreURL.parse(store.url)
        return peek_table(self.server.dsn(url.path), url.fragment)


class TestPostgres18(OnServer):
    pass


class TestCosine(OnServer):
    metric = Metric.COSINE


class TestPostgres16(OnServer):
    version = "postgres16"


@pytest.fixture(scope="module")
def embedded_folder() -> Any:
    folder = Path(tempfile.mkdtemp(prefix="vecferry-kb-"))
    yield folder
    embedded.stop(folder)
    shutil.rmtree(folder, ignore_errors=True)


class TestEmbedded(StoreContract):
    """One server folder for all; a table a test."""

    last_index = 999_999_999

    @pytest.fixture(autouse=True)
    def _folder(self, embedded_folder: Path) -> None:
        self.folder = embedded_folder

    def open(self, folder: Path, name: str) -> Any:
        return vf.connect(f"pgvector:{self.folder}#{folder.name[:40]}_{name}").store

    def vendor_view(self, store: Any) -> Mapping[Any, VendorView]:
        url = StoreURL.parse(store.url)
        return peek_table(embedded.server_uri(url.path), url.fragment)
