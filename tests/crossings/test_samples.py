"""Every sample folder goes to every kind of target and still equals the truth it was made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import vecferry as vf
from servers.postgres import postgres

__all__ = ["postgres"]

DATA = Path(__file__).parents[1] / "data" / "faiss_samples"
SAMPLES = sorted(path.name for path in DATA.iterdir() if path.is_dir())
TRUTH = {row["id"]: row for row in json.loads((DATA / "docs.json").read_text(encoding="utf-8"))}
VECTORS = np.load(DATA / "embeddings.npy")
ROW = {id_: i for i, id_ in enumerate(TRUTH)}

FOLDERS: dict[str, str] = {
    "faiss": "faiss:{}/out",
    "faiss-langchain": "faiss:{}/out?layout=langchain",
    "faiss-llamaindex": "faiss:{}/out?layout=llamaindex",
    "parquet": "parquet:{}/out.parquet",
    "jsonl": "jsonl:{}/out.jsonl",
    "qdrant": "qdrant:{}/q#out",
    "qdrant-langchain": "qdrant:{}/q?layout=langchain#out",
    "qdrant-both": "qdrant:{}/q?layout=both#out",
}
TARGETS = (*FOLDERS, "pgvector")
EXACT = set(TARGETS) - {"qdrant", "qdrant-langchain", "qdrant-both"}
"""Targets that keep float32 vectors bit for bit; Qdrant normalises under the cosine metric."""


@pytest.fixture
def place(tmp_path: Path, postgres: Any) -> Callable[[str], str]:
    def url(kind: str) -> str:
        return str(postgres.url("out")) if kind == "pgvector" else FOLDERS[kind].format(tmp_path)

    return url


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("sample", SAMPLES)
def test_a_sample_keeps_its_truth(sample: str, target: str, place: Callable[[str], str]) -> None:
    url = place(target)
    vf.migrate(f"faiss:{DATA / sample}", url, metric="cosine").check()
    with vf.connect(url) as collection:
        records = list(collection.records())
        hit = collection.search(VECTORS[7], k=1)[0]
    assert len(records) == len(TRUTH)
    for record in records:
        truth = TRUTH[record.id]
        assert record.text == truth["text"]
        for key, value in truth["metadata"].items():
            assert record.metadata[key] == value and type(record.metadata[key]) is type(value), key
        came, was = np.asarray(record.vector), VECTORS[ROW[record.id]]
        np.testing.assert_allclose(came, was, rtol=0, atol=0 if target in EXACT else 1e-6)
    assert hit.id == list(TRUTH)[7]


@pytest.mark.parametrize("middle", TARGETS)
def test_there_and_back_is_the_same_folder(
    middle: str, place: Callable[[str], str], tmp_path: Path
) -> None:
    """FAISS → X → FAISS: vectors bit for bit where X does not normalise, everything else always."""
    start, home = f"faiss:{DATA / 'langchain_faiss'}", f"faiss:{tmp_path / 'home'}"
    url = place(middle)
    vf.migrate(start, url, metric="l2" if middle in EXACT else "cosine").check()
    vf.migrate(url, home, layout="langchain").check()
    proof = vf.verify(start, home)
    assert proof.ok, str(proof)
    if middle in EXACT:
        import faiss

        before = faiss.read_index(str(DATA / "langchain_faiss" / "index.faiss"))
        after = faiss.read_index(str(tmp_path / "home" / "index.faiss"))
        np.testing.assert_array_equal(
            sorted(before.reconstruct_n(0, 200).tolist()), sorted(after.reconstruct_n(0, 200).tolist())
        )


# -- any metadata, any id ---------------------------------------------------------------------

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
    st.datetimes(timezones=st.sampled_from([None, UTC])).map(lambda t: t.replace(fold=0)),
    st.dates(date(1000, 1, 1)),
    st.decimals(allow_nan=False, allow_infinity=False, places=3),
    st.uuids(),
    st.binary(max_size=6),
)
_KEYS = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=6)
_NESTED = st.recursive(
    _SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(_KEYS, x, max_size=3), max_leaves=6
)
_METADATA = st.dictionaries(_KEYS, _NESTED, max_size=4)
_IDS = st.one_of(
    st.integers(0, 2**62), st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8), st.uuids()
)


@pytest.mark.parametrize("target", TARGETS)
@settings(
    max_examples=6,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(ids=st.lists(_IDS, min_size=1, max_size=6, unique_by=lambda i: (type(i), i)), data=st.data())
def test_any_record_survives(
    target: str, ids: list[Any], data: st.DataObject, tmp_path: Path, postgres: Any
) -> None:
    rows = [
        {"id": id_, "text": f"t{i}", "vector": [1.0, float(i), 2.0], "metadata": data.draw(_METADATA)}
        for i, id_ in enumerate(ids)
    ]
    folder = tmp_path / str(UUID(int=data.draw(st.integers(0, 2**100))))
    folder.mkdir(exist_ok=True)
    url = str(postgres.url("out")) if target == "pgvector" else FOLDERS[target].format(folder)
    with vf.connect("memory:") as origin:
        origin.write(rows)
        vf.migrate(origin, url, mode="replace").check()
    with vf.connect(url) as collection:
        back = {(type(r.id), r.id): r for r in collection.records()}
    for row in rows:
        found = back[type(row["id"]), row["id"]]
        assert _typed(found.metadata) == _typed(row["metadata"])


def _typed(value: Any) -> Any:
    """A form in which 1, 1.0 and True differ."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [type(value).__name__, *map(_typed, value)]
    return (type(value).__name__, repr(value))
