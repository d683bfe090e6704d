from __future__ import annotations

import numpy as np
import pytest

from vecferry.embedding import (
    CallableEmbedder,
    EmbeddingRouter,
    canonical,
    check_sample,
    check_source,
    declared_space,
)
from vecferry.embedding.space import KNOWN
from vecferry.errors import ConfigurationError, SpaceMismatchError
from vecferry.model import EmbeddingSpace, RecordBatch


def space(model: str = "m", dim: int = 4, **more: object) -> EmbeddingSpace:
    return EmbeddingSpace(model=model, dim=dim, **more)


def provider(seed: int, which: EmbeddingSpace) -> CallableEmbedder:
    def embed(texts: list[str]) -> np.ndarray:
        rows = [np.random.default_rng([seed, *text.encode()]).standard_normal(which.dim) for text in texts]
        return np.stack([row / np.linalg.norm(row) for row in rows])

    return CallableEmbedder(embed, space=which)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("openai/text-embedding-ada-002", "text-embedding-ada-002"),
        ("intfloat/multilingual-e5-small", "intfloat/multilingual-e5-small"),
        ("my/own", "my/own"),
    ],
)
def test_one_model_has_one_name(given: str, name: str) -> None:
    assert canonical(given) == name


def test_declarations() -> None:
    ada = declared_space("openai:text-embedding-ada-002")
    assert (ada.model, ada.dim, ada.normalized) == ("text-embedding-ada-002", 1536, True)
    assert declared_space("azure:text-embedding-ada-002").fingerprint == ada.fingerprint
    short = declared_space("openai:text-embedding-3-large?dimensions=256")
    assert short.dim == 256
    assert declared_space("openai:text-embedding-3-large", 256) == short  # the vectors say how long
    e5 = declared_space("sentence-transformers:intfloat/e5-small-v2")
    assert e5.prompt == "passage: "
    bare = declared_space("sentence-transformers:intfloat/e5-small-v2?prompt=")
    assert bare.prompt is None
    own = declared_space("custom:mine?dim=7&normalized=false&revision=r1")
    assert (own.dim, own.normalized, own.revision) == (7, False, "r1")
    assert declared_space("custom:mine", 7).dim == 7
    assert declared_space("ollama:all-minilm:latest").model == "ollama/all-minilm"


def test_declarations_that_cannot_be() -> None:
    with pytest.raises(ConfigurationError, match="dim=768"):
        declared_space("custom:mine")
    with pytest.raises(SpaceMismatchError, match="1536 d"):
        declared_space("openai:text-embedding-ada-002", 384)
    with pytest.raises(ConfigurationError):
        declared_space("ada")


def test_known_models_are_consistent() -> None:
    for name, model in KNOWN.items():
        assert canonical(name) == name
        assert model.dim > 0 < model.max_tokens


def test_a_sample_proves_or_disproves_a_declared_space() -> None:
    ours, other = provider(1, space()), provider(2, space())
    texts = [f"text {i}" for i in range(8)]
    same = check_sample(ours, texts, ours.embed(texts) * 3.0)  # the length does not matter
    assert same.agrees
    assert min(same.cosines) > 0.999
    wrong = check_sample(ours, texts, other.embed(texts))
    assert not wrong.agrees
    assert "another model" in wrong.detail
    assert not check_sample(ours, texts, np.ones((8, 5))).agrees
    assert not check_sample(ours, texts, np.zeros((8, 4))).agrees


def test_a_batch_is_checked_where_it_has_both_text_and_vector() -> None:
    ours = provider(1, space())
    texts = ["a", None, "c", " "]
    rows = [{"id": i, "text": text, "vector": ours.embed([text or ""])[0]} for i, text in enumerate(texts)]
    found = check_source(ours, RecordBatch.from_records(rows))
    assert found is not None
    assert (found.agrees, len(found.cosines)) == (True, 2)
    assert check_source(ours, RecordBatch.from_records(rows[1:2])) is None
    assert check_source(ours, RecordBatch.from_records([{"id": 1, "text": "a"}])) is None


def test_a_router_goes_by_purpose_within_one_space() -> None:
    slow, fast = provider(1, space()), provider(1, space())
    router = EmbeddingRouter(indexing=slow, query=fast)
    assert router.space == space()
    assert router.route("indexing") is slow
    assert router.route("batch") is slow
    assert router.route("query") is fast
    assert np.array_equal(router.embed(["a"]), slow.embed(["a"]))


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (space("n"), "model ('m' and 'n')"),
        (space(dim=5), "dim (4 and 5)"),
        (space(prompt="query: "), "prompt"),
        (space(normalized=False), "normalized"),
        (space(revision="2"), "revision"),
    ],
)
def test_a_router_refuses_routes_of_two_spaces(other: EmbeddingSpace, difference: str) -> None:
    with pytest.raises(SpaceMismatchError, match="not be comparable") as caught:
        EmbeddingRouter(indexing=provider(1, space()), query=provider(1, other))
    assert difference in str(caught.value)
