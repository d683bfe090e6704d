"""Faults of providers, each told apart, through our own HTTP and through clients of ``openai``."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from servers.openai_faults import Fault, FaultServer, vector_of
from vecferry.core.retry import RetryPolicy
from vecferry.embedding import (
    AzureEmbedder,
    CallableEmbedder,
    EmbedStage,
    OllamaEmbedder,
    OpenAIEmbedder,
    TextsRejected,
    resolve,
)
from vecferry.embedding.base import Listener, listen
from vecferry.errors import (
    ConfigurationError,
    EmbedderExhausted,
    FatalStoreError,
    LossRefusedError,
    RetryableError,
    VecferryError,
)
from vecferry.model import EmbeddingSpace

FAST = RetryPolicy(max_seconds=5.0, base=0.01, cap=0.02)
SPACE = EmbeddingSpace(model="m", dim=8)
TEXTS = [f"text number {i}" for i in range(40)]
Make = Callable[..., OpenAIEmbedder]


def truth(texts: list[str]) -> np.ndarray:
    return np.stack([vector_of(text, "m", 8) for text in texts])


@pytest.fixture(params=["own", "OpenAI", "AsyncOpenAI"])
def make(request: pytest.FixtureRequest, server: FaultServer) -> Make:
    """An embedder of ``server`` through each end."""

    def build(**options: Any) -> OpenAIEmbedder:
        settings: dict[str, Any] = {"retry": FAST, "space": SPACE, "concurrency": 2, **options}
        if request.param == "own":
            return OpenAIEmbedder("m", base_url=server.url, api_key="k", **settings)
        client = getattr(openai, request.param)(base_url=server.url, api_key="k")
        return OpenAIEmbedder("m", client=client, **settings)

    return build


def only_refused(embedder: OpenAIEmbedder, texts: list[str], bad: int) -> str:
    """Embed, and see that exactly one text is refused; why."""
    with pytest.raises(TextsRejected) as caught:
        embedder.embed(texts)
    assert caught.value.ids == (bad,)
    good = [row for row in range(len(texts)) if row != bad]
    assert np.allclose(caught.value.vectors[good], truth([texts[row] for row in good]), atol=1e-6)
    return caught.value.reasons[bad]


# -- whose fault is it? ---------------------------------------------------------------------------


def test_vectors_come_through_every_end(make: Make, server: FaultServer) -> None:
    assert np.array_equal(make().embed(TEXTS), truth(TEXTS))
    assert {payload["encoding_format"] for payload in server.payloads} == {"base64"}


@pytest.mark.parametrize("kind", ["own", "OpenAI"])
def test_azure_through_both_ends(kind: str, server: FaultServer) -> None:
    if kind == "own":
        embedder = AzureEmbedder("d", endpoint=server.root, api_key="k", space=SPACE, retry=FAST)
    else:
        client = openai.AzureOpenAI(azure_endpoint=server.root, api_key="k", api_version="2024-10-21")
        embedder = AzureEmbedder("d", client=client, space=SPACE, retry=FAST)
    assert np.array_equal(embedder.embed(["a"]), np.stack([vector_of("a", "d", 8)]))
    assert server.paths[-1] == "/openai/deployments/d/embeddings?api-version=2024-10-21"


@pytest.mark.parametrize(("status", "message"), [
    (500, "json: unsupported value: NaN"), (500, "input is too large to process"), (424, "inference error"),
    (413, "inputs must have less than 512 tokens. Given: 600"), (400, "this text is not allowed"),
    (422, "tokenization error"),
])  # fmt: skip
def test_a_texts_fault_is_found_and_the_others_embedded(
    status: int, message: str, make: Make, server: FaultServer
) -> None:
    bad = TEXTS[17]
    server.rule = lambda inputs: Fault(status, message=message) if bad in inputs else None
    assert message.split(".", maxsplit=1)[0] in only_refused(make(), TEXTS, 17)


def test_null_is_a_texts_fault(make: Make, server: FaultServer) -> None:
    def edit(answer: dict[str, Any], at: int) -> dict[str, Any]:
        answer["data"][at]["embedding"] = None
        return answer

    def rule(inputs: list[str]) -> Fault | None:
        return Fault(edit=lambda a: edit(a, inputs.index(TEXTS[3]))) if TEXTS[3] in inputs else None

    server.rule = rule
    assert "null" in only_refused(make(), TEXTS, 3)


@pytest.mark.parametrize("fault", [
    Fault(500, message="out of memory"), Fault(502), Fault(503), Fault(reset=True), Fault(429),
])  # fmt: skip
def test_a_servers_fault_is_waited_out_and_no_text_blamed(
    fault: Fault, make: Make, server: FaultServer
) -> None:
    until = time.monotonic() + (1.5 if fault.status == 500 else 0.3)
    server.rule = lambda _: fault if time.monotonic() < until else None
    assert np.array_equal(make().embed(TEXTS), truth(TEXTS))


def test_a_server_that_fails_at_random_loses_no_text(make: Make, server: FaultServer) -> None:
    count = [0]

    def rule(_: list[str]) -> Fault | None:
        count[0] += 1
        return Fault(500, message="now and then") if count[0] % 3 == 0 else None

    server.rule = rule
    assert np.array_equal(make(max_inputs=4).embed(TEXTS), truth(TEXTS))


@pytest.mark.parametrize(("fault", "said"), [
    (Fault(401, code="invalid_api_key"), "API key"), (Fault(404, message="no such model"), "no such model"),
    (Fault(429, code="insufficient_quota"), "no quota left"),
    (Fault(edit=lambda _: {"error": "Unexpected endpoint or method"}), "Unexpected endpoint"),
    (Fault(edit=lambda _: "<html>welcome</html>"), "web page"),
    (Fault(500, headers={"x-should-retry": "false"}, message="for good"), "for good"),
])  # fmt: skip
def test_a_configurations_fault_stops_at_once(
    fault: Fault, said: str, make: Make, server: FaultServer
) -> None:
    server.rule = lambda _: fault
    start = len(server.requests)
    with pytest.raises((FatalStoreError, ConfigurationError), match=said):
        make(concurrency=1).embed(["a"])
    assert len(server.requests) == start + 1


def test_a_server_may_ask_to_be_asked_again(make: Make, server: FaultServer) -> None:
    server.fail(Fault(400, headers={"x-should-retry": "true"}), times=2)
    assert np.array_equal(make().embed(["a"]), truth(["a"]))


def test_a_slow_server_is_asked_for_less_and_not_for_ever_more(server: FaultServer) -> None:
    """400 texts at 400 texts a second, with a time-out that four requests at once overstep."""
    turn = threading.Lock()

    def work(inputs: list[str]) -> None:
        with turn:
            time.sleep(len(inputs) / 400)

    server.rule = work
    embedder = OpenAIEmbedder(
        "m", base_url=server.url, api_key="k", space=SPACE, timeout=0.25, concurrency=8, retry=FAST
    )
    texts = [f"t{i}" for i in range(400)]
    assert np.array_equal(embedder.embed(texts), truth(texts))
    asked = sum(map(len, server.requests))
    assert asked < 5 * len(texts)
    assert embedder.limiter.most < 8 and embedder.batch_size < 50
    before = len(server.requests)
    embedder.embed([f"u{i}" for i in range(20)])  # what was learnt is kept for the rest of the job
    assert max(map(len, server.requests[before:])) <= embedder.batch_size


# -- what servers of this world do ----------------------------------------------------------------


@pytest.mark.parametrize("how", ["refused", "no data", "empty strings"])
def test_a_server_that_cannot_do_base64(how: str, make: Make, server: FaultServer) -> None:
    def empty(answer: dict[str, Any]) -> dict[str, Any]:
        for item in answer["data"]:
            item["embedding"] = ""
        return answer

    faults = {
        "refused": Fault(400, message="encoding_format base64 is not supported"),
        "no data": Fault(edit=lambda answer: {**answer, "data": []}),
        "empty strings": Fault(edit=empty),
    }
    server.rule = lambda _: faults[how] if server.payloads[-1].get("encoding_format") == "base64" else None
    embedder = make(concurrency=1)
    assert np.allclose(embedder.embed(TEXTS[:3]), truth(TEXTS[:3]), atol=1e-6)
    embedder.embed(TEXTS[3:5])
    assert [payload["encoding_format"] for payload in server.payloads] == ["base64", "float", "float"]


def test_answers_without_an_index_are_in_the_order_of_the_texts(make: Make, server: FaultServer) -> None:
    def strip(answer: dict[str, Any]) -> dict[str, Any]:
        for item in answer["data"]:
            del item["index"]
        return answer

    server.rule = lambda _: Fault(edit=strip)
    assert np.array_equal(make().embed(TEXTS[:5]), truth(TEXTS[:5]))


def test_dimensions_that_are_ignored_are_noticed(make: Make, server: FaultServer) -> None:
    server.rule = lambda inputs: Fault(
        edit=lambda a: {**a, "data": [{"index": i, "embedding": [1.0] * 8} for i in range(len(inputs))]}
    )
    with pytest.raises(FatalStoreError, match="ignores dimensions=4 and answers 8"):
        make(dimensions=4, space="openai:m?dim=4").embed(["a"])


def test_vectors_of_no_dimensions_are_none(make: Make, server: FaultServer) -> None:
    server.rule = lambda inputs: Fault(
        edit=lambda a: {**a, "data": [{"index": i, "embedding": []} for i in range(len(inputs))]}
    )
    with pytest.raises(RetryableError, match="no dimensions"):
        make(space=None, retry=RetryPolicy(attempts=2, base=0.01)).space  # noqa: B018


@pytest.mark.parametrize("numbers", [True, False])
def test_texts_beyond_the_model_are_really_truncated(
    numbers: bool, make: Make, server: FaultServer, parcel: Callable[..., Any]
) -> None:
    """TEI refuses them, whatever the job's settings say."""

    def rule(inputs: list[str]) -> Fault | None:
        longest = max(len(text.split()) for text in inputs)
        if longest < 50:
            return None
        detail = f" Given: {longest}" if numbers else ""
        return Fault(413, message=f"Validation error: `inputs` must have less than 50 tokens.{detail}")

    server.rule = rule
    long = " ".join(f"w{i}" for i in range(400))
    out = EmbedStage(make(), long_text="truncate").apply(parcel(["short", long, "also short"]))
    assert out.batch.text_list == ["short", long, "also short"] and not out.rejections
    [sent] = [text for text in server.texts if text.startswith("w0 ")]
    assert long.startswith(sent) and (25 if not numbers else 40) <= len(sent.split()) < 50
    assert np.allclose(out.batch.vectors[""].values[1], vector_of(sent, "m", 8), atol=1e-6)
    aside = EmbedStage(make(), long_text="quarantine", cache=False).apply(parcel(["short", long]))
    assert [list(r.batch.ids) for r in aside.rejections] == [[1]]
    with pytest.raises(LossRefusedError, match="record 1"):
        EmbedStage(make(), long_text="refuse", cache=False).apply(parcel(["short", long]))


def test_without_a_tokenizer_no_text_is_cut_to_its_bytes(
    server: FaultServer, parcel: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vecferry.embedding.tokens._load", lambda name: None)
    server.dim = 1536
    model = OpenAIEmbedder("text-embedding-3-small", base_url=server.url, api_key="k", retry=FAST)
    text = "한국어 " * 2000  # 20,000 bytes, 2,000 tokens of the server
    stage = EmbedStage(model, long_text="quarantine")
    counts = stage.count(parcel([text]).batch)
    assert (counts.too_long, counts.maybe_too_long) == (0, 1)
    out = stage.apply(parcel([text]))
    assert not out.rejections and server.texts[text] == 1


def test_keys_and_texts_never_go_to_strangers(make: Make, server: FaultServer) -> None:
    with FaultServer() as thief:
        server.rule = lambda _: Fault(307, {"location": f"{thief.url}/embeddings"})
        with pytest.raises(ConfigurationError, match="another origin"):
            make().embed(["a secret"])
        # The package follows the redirect by itself; it has left the key behind at least.
        assert all(headers.get("authorization") in (None, "") for headers in thief.headers)


def test_what_the_environment_asks_for(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-2")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Team: search\nX-Trace: on")
    embedder = OpenAIEmbedder(
        "m", base_url=server.url, api_key="k", space=SPACE, headers={"X-Trace": "off"}, body={"user": "me"}
    )
    embedder.embed(["a"])
    sent = server.headers[-1]
    names = ("openai-organization", "openai-project", "x-team", "x-trace")
    assert [sent[name] for name in names] == ["org-1", "proj-2", "search", "off"]
    assert server.payloads[-1]["user"] == "me"
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", "k")
    AzureEmbedder("d", endpoint=server.root, space=SPACE).embed(["a"])
    assert server.headers[-1]["authorization"] == "Bearer k" and "api-key" not in server.headers[-1]


def test_a_transport_of_ones_own(server: FaultServer) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        inputs = json.loads(request.content)["input"]
        data = [{"index": i, "embedding": vector_of(t, "m", 8).tolist()} for i, t in enumerate(inputs)]
        return httpx.Response(200, json={"data": data})

    own = httpx.Client(transport=httpx.MockTransport(answer))
    embedder = OpenAIEmbedder("m", base_url="http://inside/v1", http_client=own, space=SPACE)
    assert np.allclose(embedder.embed(["a"]), truth(["a"]), atol=1e-6)
    embedder.close()
    assert asked == ["inside"] and not own.is_closed


def test_a_client_that_is_none() -> None:
    with pytest.raises(ConfigurationError, match="client of the openai package"):
        OpenAIEmbedder("m", client=object())


def test_the_clients_own_key_is_in_no_text(server: FaultServer) -> None:
    client = openai.OpenAI(base_url=server.url, api_key="my-very-own-key-123")
    embedder = OpenAIEmbedder("m", client=client, space=SPACE, retry=FAST)
    with pytest.raises(FatalStoreError) as caught:
        embedder.embed(["a"])
    assert "my-very-own" not in str(caught.value) + repr(embedder)


def test_a_token_provider_that_fails_stops_at_once(server: FaultServer) -> None:
    def token() -> str:
        raise RuntimeError("az login has expired")

    client = openai.AzureOpenAI(
        azure_endpoint=server.root, azure_ad_token_provider=token, api_version="2024-10-21"
    )
    with pytest.raises(ConfigurationError, match="az login has expired"):
        AzureEmbedder("d", client=client, space=SPACE, retry=FAST).embed(["a"])


# -- functions, objects, Ollama -------------------------------------------------------------------


class Refused(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"it said {status}")
        self.status_code = status


def failing(*faults: Exception | None, bad: str = "") -> Callable[[list[str]], Any]:
    left = list(faults)

    def function(texts: list[str]) -> Any:
        if left and (fault := left.pop(0)) is not None:
            raise fault
        if bad and bad in texts:
            raise ValueError("cannot tokenize")
        return truth(texts)

    return function


@pytest.mark.parametrize("fault", [
    Refused(429), Refused(503), ConnectionError("reset"), TimeoutError("late"), httpx.ReadTimeout("late"),
    httpx.ConnectError("refused"),
])  # fmt: skip
def test_what_a_function_raises_in_passing_is_waited_out(fault: Exception) -> None:
    wrapped = RuntimeError("the SDK gave up")
    wrapped.__cause__ = fault
    for error in (fault, wrapped):
        embedder = CallableEmbedder(failing(error, error), space=SPACE, retry=FAST)
        assert np.array_equal(embedder.embed(TEXTS[:3]), truth(TEXTS[:3]))


def test_a_text_that_makes_a_function_fail_is_found() -> None:
    embedder = CallableEmbedder(failing(bad=TEXTS[5]), space=SPACE, retry=FAST)
    with pytest.raises(TextsRejected) as caught:
        embedder.embed(TEXTS)
    assert caught.value.ids == (5,) and "cannot tokenize" in str(caught.value)


def test_a_function_whose_key_is_refused_stops_at_once() -> None:
    calls = []

    def function(texts: list[str]) -> Any:
        calls.append(texts)
        raise Refused(401)

    with pytest.raises(FatalStoreError, match="401"):
        CallableEmbedder(function, space=SPACE).embed(["a"])
    assert len(calls) == 1


def test_a_foreign_object_gets_the_same_treatment() -> None:
    class Foreign:
        space = SPACE

        def __init__(self, function: Callable[[list[str]], Any]) -> None:
            self.embed = function

    from vecferry.embedding.base import assemble

    listener = Listener()
    foreign: Any = Foreign(failing(Refused(503), None, bad=TEXTS[7]))
    listen(foreign, listener)
    with pytest.raises(TextsRejected) as caught:
        assemble(foreign, TEXTS)
    assert caught.value.ids == (7,)


def test_ollamas_own_faults(server: FaultServer) -> None:
    embedder = OllamaEmbedder("m", base_url=server.root, space=SPACE, retry=FAST)
    server.rule = lambda inputs: Fault(500, message="value: NaN") if TEXTS[2] in inputs else None
    with pytest.raises(TextsRejected) as caught:
        embedder.embed(TEXTS)
    assert caught.value.ids == (2,)


def test_names_that_say_nothing_need_a_space() -> None:
    def inside(texts: list[str]) -> Any:
        return truth(texts)

    script: dict[str, Any] = {"__name__": "__main__"}
    exec("def embed(texts): return [[1.0]] * len(texts)", script)
    for function in (inside, script["embed"], lambda texts: truth(texts)):
        with pytest.raises(ConfigurationError, match="space="):
            resolve(function)
        assert resolve(function, space=SPACE).space == SPACE


# -- one name, two models -------------------------------------------------------------------------


def other(texts: list[str]) -> np.ndarray:
    return np.stack([vector_of(text, "another model", 8) for text in texts])


def stage(function: Callable[[list[str]], Any], **options: Any) -> EmbedStage:
    return EmbedStage(CallableEmbedder(function, space=SPACE, retry=FAST), **options)


@pytest.mark.parametrize("cache", [True, False])
def test_another_model_under_one_name_is_refused(cache: bool, parcel: Callable[..., Any]) -> None:
    stage(truth, cache=cache).apply(parcel(TEXTS))
    with pytest.raises(VecferryError, match=r"cosine .*of its own: space=") as caught:
        stage(other, cache=cache).apply(parcel(TEXTS))
    assert not isinstance(caught.value, EmbedderExhausted)
    out = stage(lambda texts: truth(texts) * np.float32(1.0001), cache=cache).apply(parcel(TEXTS))
    assert len(out.batch) == len(TEXTS)  # rounding is no other model


def test_a_cache_of_another_machine_is_compared(
    parcel: Callable[..., Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared.sqlite"
    stage(truth, cache=shared).apply(parcel(TEXTS))
    monkeypatch.setenv("VECFERRY_HOME", str(tmp_path / "another home"))
    with pytest.raises(VecferryError, match="cache holds vectors of another model"):
        stage(other, cache=shared).apply(parcel(TEXTS))


def test_a_target_that_another_model_filled_is_another_space(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vecferry as vf

    source = vf.connect(f"jsonl:{tmp_path}/source.jsonl")
    source.write([{"id": f"a{i}", "text": text} for i, text in enumerate(TEXTS)])
    target = f"jsonl:{tmp_path}/target.jsonl"
    model = CallableEmbedder(truth, space=SPACE, retry=FAST)
    vf.migrate(source, target, embed=model).check()
    kept = vf.connect(target).describe().field().space
    assert kept is not None and kept.probe
    monkeypatch.setenv("VECFERRY_HOME", str(tmp_path / "another home"))  # no cache and no ledger know it
    imposter = CallableEmbedder(other, space=SPACE, retry=FAST)
    with pytest.raises(VecferryError, match=r"two models go by one name|holds vectors of"):
        vf.migrate(source, target, embed=imposter, mode="upsert")
    vf.migrate(source, target, embed=model, mode="upsert").check()


def test_signatures_tell_models_apart() -> None:
    from vecferry.model import same_model, signature

    rng = np.random.default_rng(0)
    for dim in (8, 384, 3072):
        vector = rng.standard_normal(dim).astype(np.float32)
        near = vector + rng.standard_normal(dim).astype(np.float32) * 0.01
        assert same_model(signature(vector), signature(near * 3)) and same_model(vector, signature(near))
        for _ in range(50):
            assert not same_model(signature(vector), signature(rng.standard_normal(dim)))
        assert not same_model(signature(vector), signature(np.roll(vector, 1)))
    assert len(signature(vector)) == 172
    assert not same_model("no signature", signature(vector))
    kept = "OlEpPzGr"
    a = EmbeddingSpace(model="m", dim=8)
    assert a == a.model_copy(update={"probe": kept}) and hash(a) == hash(
        a.model_copy(update={"probe": kept})
    )
    assert a.fingerprint == a.model_copy(update={"probe": kept}).fingerprint


def test_a_private_cache_goes_when_the_job_is_done(parcel: Callable[..., Any], tmp_path: Any) -> None:
    path = tmp_path / "embeddings.sqlite"
    one = stage(truth, cache=False, job_cache_path=path)
    one.apply(parcel(TEXTS))
    assert path.exists()
    one.close()
    one.discard_private()
    assert not list(tmp_path.glob("embeddings.sqlite*"))
