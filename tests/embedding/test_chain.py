"""Chains switch hosts of one space; alternatives are chosen once for a job."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from servers.openai_faults import Fault, FaultServer, vector_of
from vecferry.core.retry import NO_RETRY, RetryPolicy
from vecferry.embedding import (
    CallableEmbedder,
    EmbedderChain,
    Listener,
    OpenAIEmbedder,
    choose_alternative,
)
from vecferry.embedding.base import listen
from vecferry.errors import (
    ConfigurationError,
    EmbedderExhausted,
    RetryableError,
    SpaceMismatchError,
    UnknownSchemeError,
)
from vecferry.model import EmbeddingSpace

SPACE = EmbeddingSpace(model="m", dim=8)
TEXTS = [f"text {i}" for i in range(100)]
TRUTH = np.stack([vector_of(text, "m", 8) for text in TEXTS])
DEAD = Fault(status=401, code="invalid_api_key")


@pytest.fixture
def second() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def host(server: FaultServer, **options: object) -> OpenAIEmbedder:
    settings = {"api_key": "k", "space": SPACE, "retry": NO_RETRY, "concurrency": 1, "max_inputs": 10}
    return OpenAIEmbedder("m", base_url=server.url, **{**settings, **options})  # type: ignore[arg-type]


def chain(*servers: FaultServer) -> EmbedderChain:
    policy = RetryPolicy(attempts=3, max_seconds=2.0, base=0.01, cap=0.02)
    return EmbedderChain([host(server) for server in servers], retry=policy)


def test_the_first_host_does_the_work(server: FaultServer, second: FaultServer) -> None:
    embedder = chain(server, second)
    assert np.array_equal(embedder.embed(TEXTS), TRUTH)
    assert (second.requests, embedder.switches) == ([], [])


@pytest.mark.parametrize("fault", [DEAD, Fault(status=503), Fault(reset=True)])
def test_a_host_that_dies_in_the_middle_is_followed_by_the_next(
    fault: Fault, server: FaultServer, second: FaultServer
) -> None:
    embedder = chain(server, second)
    events: list[str] = []
    listen(embedder, Listener(on_event=events.append))
    server.rule = lambda inputs: fault if TEXTS[50] in inputs else None
    assert np.array_equal(embedder.embed(TEXTS), TRUTH)
    answered = server.texts + second.texts
    assert all(answered[text] == 1 for text in TEXTS)  # what the first host did is not done again
    assert len(embedder.switches) == 1
    assert server.url in embedder.switches[0].source
    assert any("switched from" in event for event in events)


def test_hosts_of_two_spaces_are_refused(server: FaultServer, second: FaultServer) -> None:
    other = host(second, space=EmbeddingSpace(model="n", dim=8))
    with pytest.raises(SpaceMismatchError, match="use alternatives"):
        EmbedderChain([host(server), other])
    with pytest.raises(ConfigurationError):
        EmbedderChain([])


def test_a_host_that_lies_about_its_space_is_found_out(server: FaultServer, second: FaultServer) -> None:
    liar = OpenAIEmbedder("another", base_url=second.url, api_key="k", space=SPACE, retry=NO_RETRY)
    embedder = EmbedderChain([host(server), liar], retry=NO_RETRY)
    embedder.embed(TEXTS[:1])
    server.rule = lambda _: DEAD
    with pytest.raises(EmbedderExhausted, match="cosine"):
        embedder.embed(TEXTS[1:])
    assert not set(second.texts) & set(TEXTS)


def test_all_hosts_out_for_now_or_for_good(server: FaultServer, second: FaultServer) -> None:
    server.rule = second.rule = lambda _: Fault(status=503)
    with pytest.raises(RetryableError):
        chain(server, second).embed(TEXTS)
    server.rule = second.rule = lambda _: DEAD
    with pytest.raises(EmbedderExhausted, match="OPENAI_API_KEY"):
        chain(server, second).embed(TEXTS)


def test_an_outage_of_all_hosts_is_outlived(server: FaultServer, second: FaultServer) -> None:
    server.fail(Fault(status=503), times=2)
    second.fail(Fault(status=503), times=2)
    assert np.array_equal(chain(server, second).embed(TEXTS), TRUTH)


# -- alternatives -----------------------------------------------------------------------------


def named(name: str, *, fails: Exception | None = None) -> CallableEmbedder:
    def embed(texts: list[str]) -> np.ndarray:
        if fails:
            raise fails
        return np.stack([vector_of(text, name, 4) for text in texts])

    return CallableEmbedder(embed, space=EmbeddingSpace(model=name, dim=4), name=name, retry=NO_RETRY)


def test_the_first_that_answers_is_chosen() -> None:
    events: list[str] = []
    choice = choose_alternative(
        [
            "openai:text-embedding-3-small",
            named("big", fails=RetryableError("429")),
            named("small"),
            named("x"),
        ],
        listener=Listener(on_event=events.append),
    )
    assert (choice.embedder.space.model, choice.index) == ("small", 2)
    assert [name for name, _ in choice.skipped] == ["openai:text-embedding-3-small", "callable:big"]
    assert "OPENAI_API_KEY" in choice.skipped[0][1]
    assert "429" in str(choice)
    assert len(events) == 2


def test_a_job_goes_on_with_the_space_it_began_with() -> None:
    small, big = named("small"), named("big")
    began_with = small.space.fingerprint
    assert choose_alternative([big, small], fingerprint=began_with).embedder is small
    with pytest.raises(EmbedderExhausted, match="began with"):
        choose_alternative([big, named("small", fails=RetryableError("429"))], fingerprint=began_with)


def test_a_restart_takes_the_next_one() -> None:
    choices = [named("a"), named("b")]
    assert choose_alternative(choices, start=1).embedder is choices[1]
    with pytest.raises(EmbedderExhausted):
        choose_alternative(choices, start=2)


def test_a_typing_error_is_no_outage() -> None:
    with pytest.raises(UnknownSchemeError):
        choose_alternative(["opnai:m", named("small")])


def test_no_secret_of_an_entry_is_repeated() -> None:
    entry = "openai:m?api_key=sk-verysecret&base_url=http://me:hunter2@127.0.0.1:9/v1&timeout=1"
    choice = choose_alternative([entry, named("small")], retry=NO_RETRY)
    assert "sk-verysecret" not in str(choice)
    assert "hunter2" not in str(choice)


def test_one_embedder_is_a_list_of_one() -> None:
    small = named("small")
    assert choose_alternative(small).embedder is small
