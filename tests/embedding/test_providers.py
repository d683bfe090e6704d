"""Ollama, LlamaIndex, LangChain, functions, and how texts become embedders."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from servers.openai_faults import Fault, FaultServer, vector_of
from vecferry.core.retry import NO_RETRY
from vecferry.embedding import (
    CallableEmbedder,
    OllamaEmbedder,
    OpenAIEmbedder,
    RedisCache,
    TextsRejected,
    plot_costs,
    resolve,
)
from vecferry.embedding.chunking import sentence_splitter
from vecferry.errors import (
    ConfigurationError,
    FatalStoreError,
    MissingDependencyError,
    RetryableError,
    UnknownSchemeError,
)
from vecferry.model import EmbeddingSpace
from vecferry.ports import Embedder

SPACE = EmbeddingSpace(model="test", dim=4)


def four(texts: list[str]) -> list[list[float]]:
    return [vector_of(text, "four", 4).tolist() for text in texts]


async def four_async(texts: list[str]) -> list[list[float]]:
    await asyncio.sleep(0)
    return four(texts)


# -- Ollama -----------------------------------------------------------------------------------


def test_ollama_embeds_with_prompts_and_knows_its_digest(server: FaultServer) -> None:
    provider = OllamaEmbedder("nomic-embed-text", base_url=server.root, batch_size=3)
    texts = [f"t{i}" for i in range(10)]
    prompted = np.stack([vector_of(f"search_document: {t}", "nomic-embed-text", 8) for t in texts])
    assert np.array_equal(provider.embed(texts), prompted)
    space = provider.space
    assert (space.model, space.revision) == ("ollama/nomic-embed-text", "0a1b2c3d4e5f")
    assert (space.prompt, provider.max_tokens) == ("search_document: ", 2048)
    question = provider.for_queries().embed(["t0"])
    assert np.array_equal(question[0], vector_of("search_query: t0", "nomic-embed-text", 8))


def test_ollama_faults(server: FaultServer) -> None:
    provider = OllamaEmbedder("m", base_url=server.root, retry=NO_RETRY, timeout=0.5)
    assert provider.space.dim == 8
    server.fail(Fault(status=500))
    with pytest.raises(RetryableError):
        provider.embed(["a"])
    server.fail(Fault(edit=lambda answer: {**answer, "embeddings": answer["embeddings"][1:]}))
    with pytest.raises(RetryableError, match="1 vectors for 2"):
        provider.embed(["a", "b"])
    server.fail(Fault(status=404, message="model 'm' not found"))
    with pytest.raises(FatalStoreError, match="not found"):
        provider.embed(["a"])
    server.rule = lambda inputs: Fault(status=400, message="too long") if "bad" in inputs else None
    with pytest.raises(TextsRejected) as caught:
        provider.embed(["a", "bad", "c"])
    assert caught.value.ids == (1,)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("otherhost", "http://otherhost:11434"),
        ("0.0.0.0:8080", "http://localhost:8080"),
        ("https://ollama.example:443/", "https://ollama.example:443"),
    ],
)
def test_ollama_host_in_its_usual_forms(given: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", given)
    assert OllamaEmbedder("m").url == url


# -- frameworks -------------------------------------------------------------------------------


def test_llamaindex_objects_embed_as_they_do_themselves() -> None:
    from llama_index.core.base.embeddings.base import BaseEmbedding

    class Mine(BaseEmbedding):  # type: ignore[misc]
        def _get_text_embedding(self, text: str) -> list[float]:
            return [float(x) for x in vector_of(text, "mine", 4)]

        def _get_query_embedding(self, query: str) -> list[float]:
            return [float(x) for x in vector_of(f"query: {query}", "mine", 4)]

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_query_embedding(query)

    model = Mine(model_name="BAAI/bge-tiny-test")
    provider = resolve(model)
    texts = [f"t{i}" for i in range(50)]
    assert np.allclose(provider.embed(texts), model.get_text_embedding_batch(texts))
    assert (provider.space.model, provider.space.dim) == ("BAAI/bge-tiny-test", 4)
    question = provider.for_queries()  # type: ignore[attr-defined]
    assert np.allclose(question.embed(["q"])[0], model.get_query_embedding("q"))
    assert question.space == provider.space
    with pytest.raises(ConfigurationError, match="does not say which model"):
        resolve(Mine())
    assert resolve(Mine(), space=SPACE).space == SPACE


def test_langchain_objects_embed_as_they_do_themselves() -> None:
    from langchain_core.embeddings import DeterministicFakeEmbedding

    model = DeterministicFakeEmbedding(size=6)
    provider = resolve(model, space="fake:m?dim=6&normalized=false")
    assert np.allclose(provider.embed(["a", "b"]), model.embed_documents(["a", "b"]))
    with pytest.raises(ConfigurationError, match="does not say which model"):
        resolve(model)


# -- functions --------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [four, four_async])
def test_functions_are_measured(function: Any) -> None:
    provider = resolve(function)
    assert np.allclose(provider.embed(["a", "b"]), four(["a", "b"]))
    assert provider.space.dim == 4
    assert provider.space.normalized
    assert provider.space.model.endswith(f".{function.__name__}")


def test_an_async_function_works_inside_a_running_loop() -> None:
    async def inside() -> np.ndarray:
        return resolve(four_async).embed(["a"])

    assert np.allclose(asyncio.run(inside()), four(["a"]))


def test_a_lambda_must_say_its_space() -> None:
    with pytest.raises(ConfigurationError, match="lambda"):
        resolve(lambda texts: four(texts))
    assert resolve(lambda texts: four(texts), space=SPACE).embed(["a"]).shape == (1, 4)


def test_a_function_that_raises_or_lies_is_told_apart_from_ours() -> None:
    def leaks(_: list[str]) -> Any:
        raise ValueError("bad request with api_key=sk-123456 in it")

    with pytest.raises(FatalStoreError, match="ValueError") as caught:
        CallableEmbedder(leaks, space=SPACE).embed(["a"])
    assert "sk-123456" not in str(caught.value)
    with pytest.raises(FatalStoreError, match="shape"):
        CallableEmbedder(lambda texts: four(texts)[1:], space=SPACE).embed(["a", "b"])
    with pytest.raises(FatalStoreError, match="shape"):
        CallableEmbedder(lambda _: [[1.0, 2.0]], space=SPACE).embed(["a"])


# -- resolve ----------------------------------------------------------------------------------


def test_texts_name_providers_models_and_options(server: FaultServer) -> None:
    provider = resolve(f"openai:text-embedding-3-small?dimensions=64&base_url={server.url}&api_key=k")
    assert isinstance(provider, OpenAIEmbedder)
    assert isinstance(provider, Embedder)
    assert provider.space.dim == 64
    assert provider.embed(["a"]).shape == (1, 64)


def test_texts_that_name_nothing_say_what_would() -> None:
    with pytest.raises(UnknownSchemeError, match="did you mean 'openai'"):
        resolve("opanai:text-embedding-3-small")
    with pytest.raises(ConfigurationError, match="PROVIDER:MODEL"):
        resolve("text-embedding-3-small")
    with pytest.raises(ConfigurationError, match="no option 'colour'"):
        resolve("ollama:m?colour=red")
    with pytest.raises(ConfigurationError, match="not int"):
        resolve(7)


def test_embedders_are_taken_as_they_are() -> None:
    provider = CallableEmbedder(four)
    assert resolve(provider) is provider


def test_entry_points_add_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "mine"

        def load(self) -> Any:
            return lambda model, **options: CallableEmbedder(four, name=json.dumps([model, options]))

    monkeypatch.setattr("vecferry.core.registry._outside", lambda _: {"mine": Point()})
    assert resolve("mine:m?a=b").space.model == '["m", {"a": "b"}]'


# -- dependencies -----------------------------------------------------------------------------


def test_importing_the_room_imports_no_kit() -> None:
    code = (
        "import sys, vecferry.embedding\n"
        "kits = 'openai httpx torch sentence_transformers transformers llama_index redis tiktoken "
        "huggingface_hub matplotlib'.split()\n"
        "print([kit for kit in kits if kit in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("module", "extra", "use"),
    [
        ("httpx", "openai", lambda: OpenAIEmbedder("m", base_url="http://localhost:9").embed(["a"])),
        ("httpx", "ollama", lambda: OllamaEmbedder("m").embed(["a"])),
        ("redis", "redis", lambda: RedisCache("redis://localhost")),
        ("llama_index.core.node_parser", "llamaindex", lambda: sentence_splitter(10)),
        (
            "huggingface_hub",
            "sentence-transformers",
            lambda: resolve("sentence-transformers:x/y").embed(["a"]),
        ),
        ("matplotlib.figure", "plot", lambda: plot_costs([], "x.png")),
    ],
)
def test_what_is_missing_is_named_with_its_extra(
    module: str, extra: str, use: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'vecferry\[{extra}\]'"):
        use()
