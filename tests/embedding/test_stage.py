"""The embed stage: who gets a vector, from where, and what happens to the rest."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servers.openai_faults import Fault, FaultServer, vector_of
from vecferry.core.retry import NO_RETRY
from vecferry.embedding import (
    Budget,
    EmbedderChain,
    EmbedStage,
    OpenAIEmbedder,
    SentenceTransformersEmbedder,
    Survey,
)
from vecferry.embedding.space import PROBE
from vecferry.errors import (
    BudgetExceeded,
    ConfigurationError,
    EmbedderExhausted,
    LossRefusedError,
    SpaceMismatchError,
)
from vecferry.model import (
    CollectionSchema,
    DenseColumn,
    EmbeddingSpace,
    Kind,
    Metric,
    VectorField,
)
from vecferry.ports import InFlightBatch, Stage

SPACE = EmbeddingSpace(model="m", dim=8)
OLD = EmbeddingSpace(model="old", dim=8)
TEXTS = [f"text {i}" for i in range(6)]
MakeParcel = Callable[..., InFlightBatch]


@pytest.fixture
def provider(server: FaultServer) -> OpenAIEmbedder:
    return OpenAIEmbedder("m", base_url=server.url, api_key="k", space=SPACE, retry=NO_RETRY)


def truth(texts: list[str]) -> np.ndarray:
    return np.stack([vector_of(text, "m", 8) for text in texts])


def kept(rows: int, missing: tuple[int, ...] = (), dim: int = 8) -> dict[str, DenseColumn]:
    mask = np.ones(rows, dtype=bool)
    mask[list(missing)] = False
    return {"": DenseColumn(np.full((rows, dim), 7, np.float32), mask if missing else None)}


def test_it_is_a_stage(provider: OpenAIEmbedder) -> None:
    assert isinstance(EmbedStage(provider), Stage)


def test_everything_gets_a_vector_and_keeps_its_place(provider: OpenAIEmbedder, parcel: MakeParcel) -> None:
    out = EmbedStage(provider).apply(parcel(TEXTS))
    column = out.batch.vectors[""]
    assert np.array_equal(column.values, truth(TEXTS))
    assert column.mask is None
    assert list(out.batch.ids) == list(range(6))
    assert out.batch.texts == TEXTS


def test_auto_keeps_vectors_of_the_same_space_and_fills_the_gaps(
    provider: OpenAIEmbedder, parcel: MakeParcel, server: FaultServer
) -> None:
    stage = EmbedStage(provider, source_space=SPACE)
    out = stage.apply(parcel(TEXTS, vectors=kept(6, missing=(1, 4))))
    column = out.batch.vectors[""]
    assert (column.values[[0, 2, 3, 5]] == 7).all()
    assert np.array_equal(column.values[[1, 4]], truth([TEXTS[1], TEXTS[4]]))
    assert column.mask is None
    assert set(server.texts) == {TEXTS[1], TEXTS[4]}
    report = stage.report()
    assert (report.embedded, report.kept) == (2, 4)


@pytest.mark.parametrize("source", [OLD, None, SPACE.model_copy(update={"revision": "2"})])
def test_auto_never_keeps_vectors_of_another_or_an_unknown_space(
    source: EmbeddingSpace | None, provider: OpenAIEmbedder, parcel: MakeParcel
) -> None:
    out = EmbedStage(provider, source_space=source).apply(parcel(TEXTS, vectors=kept(6)))
    assert np.array_equal(out.batch.vectors[""].values, truth(TEXTS))


def test_always_embeds_what_has_a_vector_already(provider: OpenAIEmbedder, parcel: MakeParcel) -> None:
    stage = EmbedStage(provider, source_space=SPACE, reembed="always")
    out = stage.apply(parcel(TEXTS, vectors=kept(6)))
    assert np.array_equal(out.batch.vectors[""].values, truth(TEXTS))


def test_never_touches_nothing_and_refuses_a_mixture(
    provider: OpenAIEmbedder, parcel: MakeParcel, server: FaultServer
) -> None:
    before = parcel(TEXTS, vectors=kept(6))
    assert EmbedStage(provider, source_space=SPACE, reembed="never").apply(before) is before
    assert server.requests == []
    with pytest.raises(SpaceMismatchError, match="would mix two spaces"):
        EmbedStage(provider, source_space=OLD, reembed="never")


def test_other_fields_stay(provider: OpenAIEmbedder, parcel: MakeParcel) -> None:
    title = DenseColumn(np.ones((6, 3), np.float32))
    out = EmbedStage(provider, field="body").apply(parcel(TEXTS, vectors={"title": title}))
    assert out.batch.vectors["title"] is title
    assert np.array_equal(out.batch.vectors["body"].values, truth(TEXTS))


@pytest.mark.parametrize("bare", [None, "", " \n\t"])
def test_records_without_text_are_set_aside_and_never_get_zeros(
    bare: str | None, provider: OpenAIEmbedder, parcel: MakeParcel
) -> None:
    texts = [TEXTS[0], bare, TEXTS[2]]
    stage = EmbedStage(provider, source_space=OLD, on_no_text="quarantine")
    out = stage.apply(parcel(texts, vectors=kept(3)))
    assert list(out.batch.ids) == [0, 2]
    assert np.array_equal(out.batch.vectors[""].values, truth([TEXTS[0], TEXTS[2]]))
    (rejection,) = out.rejections
    assert (list(rejection.batch.ids), rejection.stage) == ([1], "embed")
    assert "no text" in rejection.reason
    assert (rejection.batch.vectors[""].values == 7).all()  # the record is kept as it was
    with pytest.raises(LossRefusedError, match="record 1 needs a vector"):
        EmbedStage(provider, source_space=OLD).apply(parcel(texts))


def test_a_record_that_keeps_its_vector_needs_no_text(provider: OpenAIEmbedder, parcel: MakeParcel) -> None:
    out = EmbedStage(provider, source_space=SPACE).apply(parcel([None, "a"], vectors=kept(2)))
    assert len(out.batch) == 2


def test_texts_the_provider_refuses_are_set_aside_with_its_reason(
    provider: OpenAIEmbedder, parcel: MakeParcel, server: FaultServer
) -> None:
    server.rule = lambda texts: Fault(status=400, message="not this one") if TEXTS[3] in texts else None
    stage = EmbedStage(provider, on_no_text="quarantine")
    first = parcel([*TEXTS, None])
    out = stage.apply(first)
    assert list(out.batch.ids) == [0, 1, 2, 4, 5]
    assert np.array_equal(out.batch.vectors[""].values, truth([t for t in TEXTS if t != TEXTS[3]]))
    assert [list(r.batch.ids) for r in out.rejections] == [[6], [3]]
    assert "not this one" in out.rejections[1].reason
    assert stage.report().rejected == 2
    before = len(server.requests)
    again = stage.replay_copy().apply(first)  # neither the good nor the bad ones are asked for again
    assert len(server.requests) == before
    assert list(again.batch.ids) == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("shared", [True, False])
def test_the_twin_makes_the_same_vectors_and_calls_nobody(
    shared: bool, provider: OpenAIEmbedder, parcel: MakeParcel, server: FaultServer, tmp_path: Path
) -> None:
    stage = EmbedStage(provider, cache=shared, job_cache_path=tmp_path / "job.sqlite")
    first = stage.apply(parcel(TEXTS))
    before = len(server.requests)
    second = stage.replay_copy().apply(parcel(TEXTS))
    assert len(server.requests) == before
    assert second.batch.vectors[""].values.tobytes() == first.batch.vectors[""].values.tobytes()
    assert (tmp_path / "job.sqlite").exists() is not shared


def test_a_second_run_of_the_same_migration_calls_nobody(
    provider: OpenAIEmbedder, parcel: MakeParcel, server: FaultServer
) -> None:
    EmbedStage(provider).apply(parcel(TEXTS))
    before = len(server.requests)
    again = EmbedStage(provider)
    again.apply(parcel(TEXTS))
    assert server.requests[before:] == [[PROBE]]  # is it still the same model?
    assert (again.report().hits, again.report().misses, again.report().hit_rate) == (6, 0, 1.0)
    assert again.report().tokens == 0


def test_a_text_that_stands_often_is_embedded_once(
    provider: OpenAIEmbedder, parcel: MakeParcel, server: FaultServer
) -> None:
    out = EmbedStage(provider, cache=False).apply(parcel(["a", "b", "a", "a"]))
    assert np.array_equal(out.batch.vectors[""].values, truth(["a", "b", "a", "a"]))
    assert server.texts == {"a": 1, "b": 1}


def test_what_was_paid_before_a_failure_is_not_paid_again(parcel: MakeParcel, server: FaultServer) -> None:
    texts = [f"t{i}" for i in range(50)]
    provider = OpenAIEmbedder(
        "m", base_url=server.url, api_key="k", space=SPACE, retry=NO_RETRY, concurrency=1, max_inputs=10
    )
    server.rule = lambda inputs: Fault(status=429, code="insufficient_quota") if "t25" in inputs else None
    with pytest.raises(EmbedderExhausted, match="no quota left"):
        EmbedStage(provider).apply(parcel(texts))
    server.rule = lambda _: None
    out = EmbedStage(provider).apply(parcel(texts))
    assert np.array_equal(out.batch.vectors[""].values, truth(texts))
    assert set(server.texts.values()) == {1}


def test_an_outage_beyond_the_retries_stops_the_job(
    provider: OpenAIEmbedder, parcel: MakeParcel, server: FaultServer
) -> None:
    server.rule = lambda _: Fault(status=503)
    with pytest.raises(EmbedderExhausted, match="goes on from here"):
        EmbedStage(provider).apply(parcel(TEXTS))


def test_the_budget_stops_before_the_call(parcel: MakeParcel, server: FaultServer, tmp_path: Path) -> None:
    prices = tmp_path / "prices.json"
    prices.write_text(json.dumps({"as_of": "2030-01-01", "prices": {"127.0.0.1:m": 1e6}}))
    provider = OpenAIEmbedder("m", base_url=server.url, api_key="k", space=SPACE, retry=NO_RETRY)
    budget = Budget(usd_per_job=40, prices=prices)
    stage = EmbedStage(provider, budget=budget, job="j")
    stage.apply(parcel(TEXTS[:3]))
    before = len(server.requests)
    with pytest.raises(BudgetExceeded):
        stage.apply(parcel([f"a longer text {i}" for i in range(6)]))
    assert len(server.requests) == before
    stage.apply(parcel(TEXTS[:3]))  # from the cache: costs nothing
    report = stage.report()
    assert (report.tokens, report.usd) == (6, 6.0)
    richer = EmbedStage(provider, budget=Budget(usd_per_job=1000, prices=prices), job="j")
    assert len(richer.apply(parcel([f"a longer text {i}" for i in range(6)])).batch) == 6


def test_a_chain_switches_inside_the_stage_and_reports_it(parcel: MakeParcel, server: FaultServer) -> None:
    with FaultServer() as second:
        hosts = [
            OpenAIEmbedder("m", base_url=s.url, api_key="k", space=SPACE, retry=NO_RETRY)
            for s in (server, second)
        ]
        events: list[str] = []
        stage = EmbedStage(EmbedderChain(hosts), on_event=events.append)
        stage.apply(parcel(TEXTS[:3]))
        server.rule = lambda _: Fault(status=401)
        out = stage.apply(parcel(TEXTS))
        assert np.array_equal(out.batch.vectors[""].values, truth(TEXTS))
        (switch,) = stage.report().switches
        assert second.url in switch.target
        assert any("switched" in event for event in events)


# -- planning ---------------------------------------------------------------------------------


def test_the_target_field_takes_metric_and_index_from_the_source(provider: OpenAIEmbedder) -> None:
    old = VectorField(name="body", dim=3, metric=Metric.L2, space=None, index={"hnsw_m": 8, "ivf_lists": 9})
    stage = EmbedStage(provider)
    field = stage.target_field(CollectionSchema(fields=(old,)))
    assert (field.name, field.dim, field.metric, field.space) == ("body", 8, Metric.L2, SPACE)
    assert field.index == {"hnsw_m": 8}
    assert stage.field == "body"
    sparse = CollectionSchema(fields=(VectorField(name="", kind=Kind.SPARSE, metric="ip"),))
    assert EmbedStage(provider).target_field(sparse).metric is Metric.COSINE
    assert EmbedStage(provider).target_field(CollectionSchema()).name == ""


def test_a_survey_counts_and_an_estimate_scales(parcel: MakeParcel, server: FaultServer) -> None:
    server.dim = 1536
    provider = OpenAIEmbedder("text-embedding-3-small", base_url=server.url, api_key="k")
    stage = EmbedStage(provider)
    survey = stage.survey(parcel(["one two three", None, "word " * 9000, "  "]).batch)
    assert survey == Survey(records=4, to_embed=2, no_text=2, too_long=1, tokens=9004)
    assert server.requests == []  # looking costs nothing
    estimate = stage.estimate(survey + survey, total=80)
    assert estimate.survey == Survey(80, 40, 40, 20, 180080)
    assert (estimate.usd, estimate.exact, estimate.seconds) == (0.0, False, None)
    assert stage.estimate(survey).exact
    assert (stage.estimate(survey, sample=[*TEXTS, *"abcdef"]).seconds or 0) > 0
    assert stage.estimate(survey, sample=[*TEXTS, *"abcdef"]).seconds is None  # all known: nobody is asked


def test_an_estimate_has_a_price_where_there_is_one() -> None:
    stage = EmbedStage(OpenAIEmbedder("text-embedding-3-large", api_key="k"))
    estimate = stage.estimate(Survey(records=10, to_embed=10, tokens=1_000_000), sample=TEXTS)
    assert estimate.usd == pytest.approx(0.13) and estimate.seconds is None
    assert estimate.prices_as_of


def test_unknown_choices_are_refused(provider: OpenAIEmbedder) -> None:
    for wrong in ({"reembed": "maybe"}, {"on_no_text": "zero"}, {"long_text": "drop"}):
        with pytest.raises(ConfigurationError, match="is not one of"):
            EmbedStage(provider, **wrong)  # type: ignore[arg-type]


# -- long texts -------------------------------------------------------------------------------

LONG = " ".join(f"Sentence number {i} speaks about the sea and the ships on it." for i in range(60))


def test_long_texts_are_cut_for_the_model_but_kept_in_the_record(
    parcel: MakeParcel, server: FaultServer
) -> None:
    server.dim = 1536
    provider = OpenAIEmbedder("text-embedding-3-small", base_url=server.url, api_key="k", retry=NO_RETRY)
    text = "word " * 9000
    out = EmbedStage(provider).apply(parcel([text]))
    assert out.batch.texts == [text]
    (sent,) = server.texts
    assert text.startswith(sent)
    assert provider.count_tokens([sent]) == [8192]


def test_long_texts_become_records_with_their_origin(
    minilm: SentenceTransformersEmbedder, parcel: MakeParcel
) -> None:
    stage = EmbedStage(minilm, long_text="split", chunk_size=64, chunk_overlap=8)
    first = parcel(["short", LONG, "short too"], ids=["a", "b", "c"])
    out = stage.apply(first)
    chunks = [i for i, meta in enumerate(out.batch.metadata or []) if "vecferry_parent" in meta]
    assert chunks == list(range(1, len(out.batch) - 1))
    assert len(chunks) > 5
    texts = [out.batch.text_list[i] or "" for i in chunks]
    assert max(minilm.count_tokens(texts)) <= 64
    for number, i in enumerate(chunks):
        meta = out.batch.metadata_list[i]
        assert (meta["vecferry_parent"], meta["vecferry_chunk"]) == ("b", number)
        assert (meta["vecferry_chunks"], meta["row"]) == (len(chunks), 1)
        start = meta["vecferry_start"]
        assert LONG[start : start + len(texts[number])] == texts[number]
    assert np.allclose(out.batch.vectors[""].values[chunks], minilm.embed(texts), atol=1e-5)
    assert [out.batch.id_list[0], out.batch.id_list[-1]] == ["a", "c"]
    again = stage.replay_copy().apply(first)
    assert again.batch.id_list == out.batch.id_list
    assert len(set(out.batch.id_list)) == len(out.batch)
    assert "vecferry_parent" not in (first.batch.metadata_list[1])


def test_long_texts_can_be_set_aside_or_refused(
    minilm: SentenceTransformersEmbedder, parcel: MakeParcel
) -> None:
    out = EmbedStage(minilm, long_text="quarantine").apply(parcel(["short", LONG]))
    assert list(out.batch.ids) == [0]
    assert "256 tokens" in out.rejections[0].reason
    with pytest.raises(LossRefusedError, match="record 1"):
        EmbedStage(minilm, long_text="refuse").apply(parcel(["short", LONG]))


def test_a_splitter_of_the_users_own(provider: OpenAIEmbedder, parcel: MakeParcel) -> None:
    stage = EmbedStage(provider, long_text="split", splitter=lambda text: text.split("|"))
    out = stage.apply(parcel(["a|b| ", "c"]))
    assert out.batch.texts == ["a", "b", "c"]
    from llama_index.core.node_parser import TokenTextSplitter

    stage = EmbedStage(
        provider, long_text="split", splitter=TokenTextSplitter(chunk_size=5, chunk_overlap=0)
    )
    assert len(stage.apply(parcel(["one two three four five six seven eight"])).batch) > 1
    with pytest.raises(ConfigurationError, match="say chunk_size"):
        EmbedStage(provider, long_text="split", chunk_overlap=1).apply(parcel(["x" * 100]))
    with pytest.raises(ConfigurationError, match="must be smaller"):
        EmbedStage(provider, long_text="split", chunk_size=5, chunk_overlap=5).apply(parcel(["x" * 100]))


def test_no_text_and_no_key_reaches_a_log(
    parcel: MakeParcel, server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    provider: Any = OpenAIEmbedder("m", base_url=server.url, api_key="sk-secret-key", retry=NO_RETRY)
    caplog.set_level(logging.DEBUG)
    with pytest.raises(EmbedderExhausted):
        EmbedStage(OpenAIEmbedder("m", base_url=server.url, api_key="sk-secret-key", space=SPACE)).apply(
            parcel(TEXTS)
        )
    assert "sk-secret-key" not in caplog.text + repr(provider)
