"""Against a real OpenAI-compatible server: infinity with all-MiniLM-L6-v2.

python tests/servers/infinity.py run pytest tests/embedding/test_infinity.py
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from vecferry.embedding import EmbedderChain, EmbedStage, OpenAIEmbedder, SentenceTransformersEmbedder
from vecferry.errors import FatalStoreError
from vecferry.ports import InFlightBatch

URL = os.environ.get("VECFERRY_TEST_INFINITY_URL")
pytestmark = pytest.mark.skipif(not URL, reason="VECFERRY_TEST_INFINITY_URL is not set")
TEXTS = [f"Sentence {i} about ships, cats and the weather in the north." for i in range(300)]
MINILM = "sentence-transformers:all-MiniLM-L6-v2"


@pytest.fixture
def remote() -> Iterator[OpenAIEmbedder]:
    provider = OpenAIEmbedder("minilm", base_url=URL, api_key="k", space=MINILM)
    yield provider
    provider.close()


def test_the_server_and_the_library_agree(
    remote: OpenAIEmbedder, minilm: SentenceTransformersEmbedder
) -> None:
    assert remote.space == minilm.space
    assert np.abs(remote.embed(TEXTS) - minilm.embed(TEXTS)).max() < 1e-4


def test_an_undeclared_model_is_measured() -> None:
    space = OpenAIEmbedder("minilm", base_url=URL, api_key="k").space
    assert (space.model, space.dim, space.normalized) == ("minilm", 384, True)


def test_a_wrong_key_is_refused() -> None:
    with pytest.raises(FatalStoreError, match="OPENAI_API_KEY"):
        OpenAIEmbedder("minilm", base_url=URL, api_key="wrong", space=MINILM).embed(["a"])


def test_a_chain_over_the_network_and_this_machine(
    remote: OpenAIEmbedder, minilm: SentenceTransformersEmbedder
) -> None:
    wrong_key = OpenAIEmbedder("minilm", base_url=URL, api_key="wrong", space=MINILM)
    chain = EmbedderChain([wrong_key, remote, minilm])
    assert np.abs(chain.embed(TEXTS[:50]) - minilm.embed(TEXTS[:50])).max() < 1e-4
    assert len(chain.switches) == 1


def test_the_stage_books_what_the_server_counts(
    remote: OpenAIEmbedder, parcel: Callable[..., InFlightBatch]
) -> None:
    stage = EmbedStage(remote)
    out = stage.apply(parcel(TEXTS))
    assert len(out.batch) == 300
    assert stage.report().tokens > 1000
    assert stage.report().usd == 0.0
    stage.replay_copy().apply(parcel(TEXTS))
    assert stage.report().misses == 300
