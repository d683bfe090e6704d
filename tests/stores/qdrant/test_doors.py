"""Which server it is: two on one machine, ports that belong to another, and things that are no Qdrant."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient, models

import vecferry as vf
from servers.qdrant import QdrantServer
from vecferry.errors import ConfigurationError, FatalStoreError, PlanError
from vecferry.ports import StoreURL
from vecferry.stores.qdrant.connection import Address

REAL_TOO = True
PAIR = [{"id": 1, "vector": [1.0, 2.0], "text": "a"}, {"id": 2, "vector": [2.0, 1.0], "text": "b"}]


def neighbours() -> int:
    """A free port behind which the next one is free as well."""
    while True:
        with closing(socket.socket()) as one, closing(socket.socket()) as two:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


@pytest.fixture
def other() -> Iterator[QdrantServer]:
    with QdrantServer() as running:
        yield running


def names(server: QdrantServer) -> list[str]:
    return sorted(c.name for c in server.client.get_collections().collections)


@pytest.mark.parametrize(("port", "grpc"), [(6333, 6334), (7333, 7334), (443, 444)])
def test_the_grpc_port_follows_the_other(port: int, grpc: int) -> None:
    assert Address.of(StoreURL.parse(f"qdrant://h:{port}/c")).grpc_target == ("h", grpc)
    asked = Address.of(StoreURL.parse(f"qdrant://h:{port}/c"), grpc_port="9")
    assert asked.grpc_target == ("h", 9)


def test_two_servers_on_one_machine_keep_to_themselves(tmp_path: Path) -> None:
    """As the docs write it: no option names a gRPC port."""
    ports = [neighbours(), neighbours()]
    with (
        QdrantServer(rest_port=ports[0], port=ports[0] + 1) as old,
        QdrantServer(rest_port=ports[1], port=ports[1] + 1) as new,
    ):
        urls = [f"qdrant://127.0.0.1:{port}" for port in ports]
        with vf.connect(f"{urls[0]}/docs") as there:
            there.write(PAIR)
        vf.migrate(f"{urls[0]}/docs", f"{urls[1]}/docs_new", state_dir=tmp_path).check()
        assert (names(old), names(new)) == (["docs"], ["docs_new"])
        assert new.calls["Upsert"] == 1 and new.upserts, "points came to the right one"


@pytest.mark.wire_only  # two servers
@pytest.mark.parametrize("copied", [False, True], ids=["another server", "a copy of its storage"])
def test_a_port_of_another_server_is_not_used(
    server: QdrantServer, other: QdrantServer, copied: bool
) -> None:
    other.peer = server.peer if copied else other.peer
    other.client.create_collection("c", models.VectorParams(size=2, distance=models.Distance.COSINE))
    with vf.connect(server.url("c", grpc_port=other.port)) as there:
        there.write(PAIR)
        assert not there.store._engine.grpc("c")
    assert (server.client.count("c").count, other.client.count("c").count) == (2, 0)
    assert other.calls["Upsert"] == 0


@pytest.mark.wire_only  # two servers
def test_grpc_that_was_asked_for_and_leads_elsewhere_is_an_error(
    server: QdrantServer, other: QdrantServer
) -> None:
    other.client.create_collection("c", models.VectorParams(size=2, distance=models.Distance.COSINE))
    with (
        vf.connect(server.url("c", grpc_port=other.port, prefer_grpc=1)) as there,
        pytest.raises(ConfigurationError, match="does not lead to the same server"),
    ):
        there.write(PAIR)
    assert other.client.count("c").count == 0


def test_two_names_of_one_collection_are_one(server: QdrantServer, tmp_path: Path) -> None:
    with vf.connect(server.url("c")) as there:
        there.write(PAIR)
    alias = models.CreateAlias(collection_name="c", alias_name="a")
    server.client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
    for name in (server.url("a"), server.url("c").replace("127.0.0.1", "localhost")):
        with vf.connect(server.url("c")) as one, vf.connect(name) as two:
            assert one.store.place() == two.store.place() is not None
        with pytest.raises(PlanError):
            vf.plan(server.url("c"), name, mode="upsert", state_dir=tmp_path)
    with vf.connect(server.url("b")) as nothing:
        assert nothing.store.place() is None


@pytest.mark.parametrize("name", [".", ".."])
def test_names_that_are_folders_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="not the name of a collection"):
        vf.connect(f"qdrant://h/{name}")
    with pytest.raises(ConfigurationError, match="not the name of a collection"):
        vf.connect(f"qdrant:folder#{name}")


def test_folder_and_server_both_ways(server: QdrantServer, tmp_path: Path) -> None:
    client = QdrantClient(path=str(tmp_path / "db"))
    client.create_collection("kb", models.VectorParams(size=2, distance=models.Distance.DOT))
    client.upsert("kb", [models.PointStruct(id=1, vector=[1, 2], payload={"a": 1})])
    client.close()
    vf.migrate(f"qdrant:{tmp_path / 'db'}#kb", server.url("kb"), state_dir=tmp_path / "1").check()
    assert server.client.count("kb").count == 1
    vf.migrate(server.url("kb"), f"qdrant:{tmp_path / 'back'}#kb", state_dir=tmp_path / "2").check()
    client = QdrantClient(path=str(tmp_path / "back"))
    assert [(p.id, p.payload, p.vector) for p in client.scroll("kb", with_vectors=True)[0]] == [
        (1, {"a": 1}, [1.0, 2.0])
    ]
    client.close()


# -- what is no Qdrant ------------------------------------------------------------------------------


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        text = b"<!doctype html><title>My shop</title>"
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def page() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def test_a_page_for_people_is_no_qdrant(page: HTTPServer) -> None:
    with pytest.raises(FatalStoreError, match="something else than Qdrant"):
        vf.connect(f"qdrant://127.0.0.1:{page.server_address[1]}/c").describe()


def test_tls_against_a_plain_port_says_what_to_pass(server: QdrantServer) -> None:
    with pytest.raises(FatalStoreError, match="https=0"):
        vf.connect(server.url("c", https=1)).describe()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A private CA, a server's certificate and a client's."""
    trustme = pytest.importorskip("trustme")
    folder = tmp_path_factory.mktemp("tls")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    for name in ("127.0.0.1", "client"):
        issued = ca.issue_cert(name)
        issued.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        issued.cert_chain_pems[0].write_to_path(str(folder / f"{name}.pem"))
    return folder


@pytest.fixture
def encrypted(server: QdrantServer, certificates: Path) -> Iterator[QdrantServer]:
    """REST by TLS, for clients with a certificate only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "127.0.0.1.pem", certificates / "127.0.0.1.key")
    context.load_verify_locations(certificates / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    assert server._http is not None
    server._http.socket = context.wrap_socket(server._http.socket, server_side=True)
    yield server


@pytest.mark.wire_only  # needs a server with certificates
def test_a_private_ca_and_a_clients_certificate(encrypted: QdrantServer, certificates: Path) -> None:
    ours = {"cert_file": certificates / "client.pem", "cert_key_file": certificates / "client.key"}
    options = {"ca_file": certificates / "ca.pem", "prefer_grpc": 0, **ours}
    with vf.connect(encrypted.url("c", **options)) as there:
        assert there.write(PAIR) == 2
    with pytest.raises(FatalStoreError, match="ca_file="):
        vf.connect(encrypted.url("c", https=1, prefer_grpc=0)).describe()
