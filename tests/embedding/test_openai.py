"""The OpenAI provider against a server that keeps OpenAI's rules and fails on request."""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import numpy as np
import pytest

from servers.openai_faults import Fault, FaultServer, vector_of
from vecferry.core.http import retry_after
from vecferry.core.retry import NO_RETRY, RetryPolicy
from vecferry.embedding import AzureEmbedder, Listener, OpenAIEmbedder, TextsRejected
from vecferry.embedding.base import listen
from vecferry.embedding.providers.openai import pack
from vecferry.errors import ConfigurationError, FatalStoreError, JobStopped, RetryableError

FAST = RetryPolicy(attempts=4, max_seconds=5.0, base=0.01, cap=0.02)
TEXTS = [f"text number {i}" for i in range(100)]


def expected(texts: list[str], dim: int = 8, model: str = "m") -> np.ndarray:
    return np.stack([vector_of(text, model, dim) for text in texts])


def test_vectors_are_exact_and_in_order(embedder: OpenAIEmbedder, server: FaultServer) -> None:
    vectors = embedder.embed(TEXTS)
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, expected(TEXTS))
    assert len(server.requests) > 2  # the space's probe, and several requests for 100 texts


def test_async_gives_the_same(embedder: OpenAIEmbedder) -> None:
    assert np.array_equal(asyncio.run(embedder.aembed(TEXTS[:3])), expected(TEXTS[:3]))


def test_no_texts_are_no_request(embedder: OpenAIEmbedder, server: FaultServer) -> None:
    assert embedder.space.dim == 8
    before = len(server.requests)
    assert embedder.embed([]).shape == (0, 8)
    assert len(server.requests) == before


def test_floats_are_accepted_where_base64_was_asked_for(
    embedder: OpenAIEmbedder, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("servers.openai_faults._encode", lambda vector, _: vector.tolist())
    assert np.allclose(embedder.embed(TEXTS[:3]), expected(TEXTS[:3]), atol=1e-7)


def test_base64_is_asked_for(embedder: OpenAIEmbedder, server: FaultServer) -> None:
    embedder.embed(["a"])
    assert {payload["encoding_format"] for payload in server.payloads} == {"base64"}


def test_dimensions_are_passed_on_and_part_of_the_space(server: FaultServer) -> None:
    provider = OpenAIEmbedder(
        "text-embedding-3-small", base_url=server.url, api_key="k", dimensions=256, retry=FAST
    )
    assert provider.space.dim == 256
    assert provider.embed(["a"]).shape == (1, 256)
    assert server.payloads[-1]["dimensions"] == 256
    with pytest.raises(ConfigurationError, match="cannot give 256"):
        OpenAIEmbedder("text-embedding-ada-002", base_url=server.url, dimensions=256)


def test_known_models_need_no_request_for_their_space(server: FaultServer) -> None:
    space = OpenAIEmbedder("text-embedding-3-large", base_url=server.url, api_key="k").space
    assert (space.model, space.dim, server.requests) == ("text-embedding-3-large", 3072, [])


def test_requests_are_packed_up_to_the_limits() -> None:
    texts = ["x" * 10] * 25
    packs = pack(range(25), texts, 10, 75)
    assert [len(rows) for rows in packs] == [7, 7, 7, 4]
    assert [row for rows in packs for row in rows] == list(range(25))
    assert [len(rows) for rows in pack(range(25), texts, 10, 10_000)] == [10, 10, 5]
    assert pack([0], ["x" * 1000], 10, 75) == [[0]]  # one text alone is sent whatever its length


def test_many_texts_stay_within_2048_inputs(server: FaultServer) -> None:
    provider = OpenAIEmbedder("m", base_url=server.url, api_key="k", concurrency=1, retry=FAST)
    texts = [f"t{i}" for i in range(5000)]
    assert np.array_equal(provider.embed(texts), expected(texts))
    assert max(map(len, server.requests)) == 2048


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=429),
        Fault(status=429, headers={"Retry-After": "0.05"}),
        Fault(status=500),
        Fault(status=503, headers={"Retry-After": "0"}),
        Fault(status=408),
        Fault(reset=True),
        Fault(cut=True),
        Fault(edit=lambda answer: {**answer, "data": answer["data"][:-1]}),  # a short answer
        Fault(edit=lambda answer: {**answer, "data": []}),
        Fault(edit=lambda answer: {**answer, "data": [{**item, "index": 0} for item in answer["data"]]}),
        Fault(
            edit=lambda answer: {**answer, "data": [{"index": 0, "embedding": "!!"}] * len(answer["data"])}
        ),
        Fault(edit=lambda _: "not json at all"),
    ],
    ids=lambda fault: str(fault.status) + str(fault.headers or ""),
)
def test_passing_faults_are_tried_again(
    fault: Fault, embedder: OpenAIEmbedder, server: FaultServer
) -> None:
    assert embedder.space.dim == 8
    server.fail(fault, times=2)
    assert np.array_equal(embedder.embed(TEXTS), expected(TEXTS))
    assert not server.faults


def test_a_reordered_answer_is_put_in_order(embedder: OpenAIEmbedder, server: FaultServer) -> None:
    server.fail(Fault(edit=lambda a: {**a, "data": a["data"][::-1]}), times=9)
    assert np.array_equal(embedder.embed(TEXTS), expected(TEXTS))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(status=401, code="invalid_api_key"), "OPENAI_API_KEY"),
        (Fault(status=403), "OPENAI_API_KEY"),
        (Fault(status=404, code="model_not_found"), "does not know this model"),
        (Fault(status=429, code="insufficient_quota"), "no quota left"),
        (Fault(status=402), "no quota left"),
    ],
)
def test_final_faults_stop_at_once(
    fault: Fault, message: str, embedder: OpenAIEmbedder, server: FaultServer
) -> None:
    assert embedder.space.dim == 8
    before = len(server.requests)
    server.rule = lambda _: fault
    with pytest.raises(FatalStoreError, match=message):
        embedder.embed(["a"])
    assert len(server.requests) == before + 1


def test_quota_running_out_in_the_middle_keeps_what_was_paid(server: FaultServer) -> None:
    provider = OpenAIEmbedder(
        "m", base_url=server.url, api_key="k", concurrency=1, max_inputs=10, retry=FAST
    )
    assert provider.space.dim == 8
    server.rule = lambda inputs: (
        Fault(status=429, code="insufficient_quota") if TEXTS[50] in inputs else None
    )
    parts: list[int] = []
    generator = provider.embed_parts(TEXTS)
    with pytest.raises(FatalStoreError, match="quota"):
        for part in generator:
            parts.extend(part.rows)
    assert sorted(parts) == list(range(50))


def test_retry_after_is_waited_for(embedder: OpenAIEmbedder, server: FaultServer) -> None:
    assert embedder.space.dim == 8
    server.fail(Fault(status=429, headers={"Retry-After": "1"}))
    start = time.monotonic()
    embedder.embed(["a"])
    assert 1.0 <= time.monotonic() - start < 3.0


def test_retry_after_in_all_its_forms() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert retry_after({"retry-after": "7"}) == 7.0
    assert retry_after({"retry-after-ms": "250", "retry-after": "7"}) == 0.25
    assert 27 < (retry_after({"retry-after": soon}) or 0) <= 30
    assert retry_after({"retry-after": "tomorrow"}) is None
    assert retry_after({}) is None


def test_a_hanging_server_times_out(server: FaultServer) -> None:
    provider = OpenAIEmbedder("m", base_url=server.url, api_key="k", timeout=0.3, retry=NO_RETRY)
    server.fail(Fault(hang=1.5))
    with pytest.raises(RetryableError, match="did not answer within"):
        provider.embed(["a"])


def test_a_body_that_trickles_in_times_out(server: FaultServer) -> None:
    provider = OpenAIEmbedder("m", base_url=server.url, api_key="k", timeout=0.4, retry=NO_RETRY)
    server.fail(Fault(drip=6.0))
    start = time.monotonic()
    with pytest.raises(RetryableError, match="did not finish its answer"):
        provider.embed(["a"])
    assert time.monotonic() - start < 2.0


def test_a_wrong_dimension_is_never_returned(embedder: OpenAIEmbedder, server: FaultServer) -> None:
    assert embedder.space.dim == 8
    server.dim = 9
    with pytest.raises(FatalStoreError, match="serves another model"):
        embedder.embed(["a"])


def test_a_server_that_changes_its_model_is_stopped(embedder: OpenAIEmbedder, server: FaultServer) -> None:
    embedder.embed(["a"])
    server.fail(Fault(edit=lambda answer: {**answer, "model": "another"}))
    with pytest.raises(FatalStoreError, match="now answers as 'another'"):
        embedder.embed(["b"])


@pytest.mark.parametrize("bad", [float("nan"), 0.0])
def test_nan_and_zero_vectors_are_refused_alone(
    bad: float, embedder: OpenAIEmbedder, server: FaultServer
) -> None:
    assert embedder.space.dim == 8

    def spoil(answer: dict[str, Any]) -> dict[str, Any]:
        answer["data"][1]["embedding"] = b64encode(np.full(8, bad, "<f4").tobytes()).decode()
        return answer

    server.fail(Fault(edit=spoil))
    with pytest.raises(TextsRejected) as caught:
        embedder.embed(TEXTS[:5])
    assert caught.value.ids == (1,)
    good = [0, 2, 3, 4]
    assert np.array_equal(caught.value.vectors[good], expected(TEXTS[:5])[good])


def test_texts_at_fault_are_found_and_the_others_embedded(
    embedder: OpenAIEmbedder, server: FaultServer
) -> None:
    assert embedder.space.dim == 8
    too_long = "word " * 9000
    texts = [*TEXTS[:20], too_long, *TEXTS[20:40], "", "half a pair \ud800"]
    with pytest.raises(TextsRejected) as caught:
        embedder.embed(texts)
    assert caught.value.ids == (20, 41, 42)
    good = [row for row in range(43) if row not in (20, 41, 42)]
    assert np.array_equal(caught.value.vectors[good], expected([texts[row] for row in good]))
    assert max(server.texts.values()) == 1  # nothing was paid twice


def test_a_request_that_is_wrong_whatever_the_text_is_fatal(
    embedder: OpenAIEmbedder, server: FaultServer
) -> None:
    assert embedder.space.dim == 8
    server.rule = lambda _: Fault(status=400, message="this endpoint takes no base64")
    with pytest.raises(FatalStoreError, match="also a plain one"):
        embedder.embed(TEXTS)


def test_requests_too_large_are_halved(embedder: OpenAIEmbedder, server: FaultServer) -> None:
    assert embedder.space.dim == 8
    server.rule = lambda inputs: Fault(status=413) if len(inputs) > 5 else None
    assert np.array_equal(embedder.embed(TEXTS), expected(TEXTS))


def test_a_429_slows_down_and_successes_speed_up(server: FaultServer) -> None:
    provider = OpenAIEmbedder(
        "m", base_url=server.url, api_key="k", concurrency=8, max_inputs=2, retry=FAST
    )
    assert provider.space.dim == 8
    server.latency = 0.05
    assert provider.limiter.value == 4
    provider.embed(TEXTS)
    assert provider.limiter.value == 8
    assert 4 < server.most_at_once <= 8
    server.fail(Fault(status=429), times=3)
    provider.embed(TEXTS[:2])
    assert provider.limiter.value == 2  # 8, 4, 2, 1, and one success


def test_stopping_ends_a_wait(embedder: OpenAIEmbedder, server: FaultServer) -> None:
    assert embedder.space.dim == 8
    embedder.retry = RetryPolicy(max_seconds=180)
    server.rule = lambda _: Fault(status=503, headers={"Retry-After": "60"})
    start = time.monotonic()
    listen(embedder, Listener(should_stop=lambda: time.monotonic() - start > 0.3))
    with pytest.raises(JobStopped):
        embedder.embed(["a"])
    assert time.monotonic() - start < 3.0


def test_nobody_there_is_a_passing_fault() -> None:
    provider = OpenAIEmbedder("m", base_url="http://127.0.0.1:9", api_key="k", retry=NO_RETRY)
    with pytest.raises(RetryableError, match=r"127\.0\.0\.1:9"):
        provider.embed(["a"])


def test_settings_that_cannot_work_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        OpenAIEmbedder("text-embedding-3-small")
    with pytest.raises(ConfigurationError, match="usable address"):
        OpenAIEmbedder("m", base_url="nonsense://x").embed(["a"])


def test_the_key_is_in_no_text(server: FaultServer) -> None:
    key = "sk-very-secret-0123456789"
    provider = OpenAIEmbedder("m", base_url=server.url, api_key=key, retry=FAST)
    with pytest.raises(FatalStoreError) as caught:
        provider.embed(["a"])
    texts = [repr(provider), str(caught.value), repr(provider._end), repr(caught.value.__cause__)]
    assert not any(key in text or "sk-abcdef" in text for text in texts)


def test_azure_speaks_its_own_address_and_header(server: FaultServer) -> None:
    server.dim = 1536
    provider = AzureEmbedder(
        "my-deployment", model="text-embedding-ada-002", endpoint=server.root, api_key="k", retry=FAST
    )
    assert provider.space.model == "text-embedding-ada-002"
    assert np.array_equal(provider.embed(["a"]), expected(["a"], 1536, "my-deployment"))
    assert server.paths[-1] == "/openai/deployments/my-deployment/embeddings?api-version=2024-10-21"
    assert server.headers[-1]["api-key"] == "k"
    assert "authorization" not in server.headers[-1]


def test_azure_takes_fresh_tokens(server: FaultServer) -> None:
    server.dim = 1536
    calls = iter(["k", "k", "expired"])
    provider = AzureEmbedder(
        "d", model="text-embedding-3-small", endpoint=server.root, token=lambda: next(calls), retry=FAST
    )
    provider.embed(["a"])
    provider.embed(["b"])
    with pytest.raises(FatalStoreError, match="AZURE_OPENAI_API_KEY"):
        provider.embed(["c"])


def test_azure_asks_which_model_is_behind_a_deployment(server: FaultServer) -> None:
    with pytest.raises(ConfigurationError, match="which model is behind"):
        AzureEmbedder("my-deployment", endpoint=server.root, api_key="k")
    with pytest.raises(ConfigurationError, match="AZURE_OPENAI_ENDPOINT"):
        AzureEmbedder("text-embedding-3-small", api_key="k")
