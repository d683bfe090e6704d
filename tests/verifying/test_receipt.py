"""A receipt holds a collection without its source; an independent reader of it never disagrees."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import vecferry as vf
from servers.postgres import postgres
from vecferry.cli import app
from vecferry.errors import ConfigurationError, CorruptDataError, NotFoundError
from vecferry.model import VectorRecord
from vecferry.testing import sample_records
from vecferry.verifying import Receipt

__all__ = ["postgres"]

_PHASES = [phase for phase in Phase if phase is not Phase.shrink]  # each example is two migrations

EXAMPLE = Path(__file__).parents[2] / "examples" / "check_receipt.py"
check: Callable[..., bool] = runpy.run_path(str(EXAMPLE))["main"]


def test_the_independent_reader_is_short_and_on_its_own() -> None:
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) <= 80
    assert "import vecferry" not in text and "from vecferry" not in text


def kept(source: str, target: str, folder: Path, **options: Any) -> Path:
    vf.migrate(source, target, state_dir=folder / "job", **options).check()
    return folder / "job" / "receipt.json"


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=True)
    | st.text(max_size=5)
    | st.dates()
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.uuids(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(st.text(max_size=3).filter(lambda key: key != "_vecferry"), inner, max_size=3)
    ),
    max_leaves=5,
)
keys = st.sampled_from(["a", "b", "ü", "with/slash", "z"])
ids = st.integers(-(2**63), 2**63 - 1) | st.text(max_size=6) | st.uuids()


@st.composite
def records(draw: st.DrawFn) -> list[VectorRecord]:
    chosen = draw(st.lists(ids, min_size=1, max_size=8, unique_by=lambda i: (type(i), i)))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    return [
        VectorRecord(
            id=id_,
            text=draw(st.none() | st.text(max_size=8)),
            vectors={"": rng.normal(size=3).astype(np.float32)} if draw(st.integers(0, 4)) else {},
            metadata=draw(st.dictionaries(keys, values, max_size=3)),
        )
        for id_ in chosen
    ]


@settings(max_examples=30, deadline=None, phases=_PHASES, suppress_health_check=[HealthCheck.too_slow])
@given(rows=records(), data=st.data(), kinds=st.permutations(["jsonl", "parquet"]))
def test_the_independent_reader_never_disagrees(
    rows: list[VectorRecord], data: st.DataObject, kinds: list[str], tmp_path_factory: Any
) -> None:
    """On what was written it finds what the receipt says, and after any one change it does not."""
    folder = tmp_path_factory.mktemp("receipt")
    source, target = (f"{kind}:{folder}/kb.{kind}" for kind in kinds)
    with vf.connect("memory:") as origin:
        origin.write(rows)
        vf.migrate(origin, source).check()
    receipt = kept(source, target, folder)
    places = [place.partition(":")[2] for place in (source, target)]
    for url, place in zip((source, target), places, strict=True):
        assert vf.verify(url, receipt=receipt).ok
        assert not check(receipt, place)
    at = data.draw(st.integers(0, len(rows) - 1))
    row = rows[at]
    changed = data.draw(
        st.sampled_from(
            [
                row.replace(text=(row.text or "") + "x"),
                row.replace(metadata={**row.metadata, "new": None}),
                row.replace(vectors={"": np.array([9, 9, 9], np.float32)}),
            ]
        )
    )
    with vf.connect(target) as goal:
        if data.draw(st.booleans()):
            goal.write([changed])
        else:
            goal.delete([row.id])
    proof = vf.verify(target, receipt=receipt)
    assert not proof.ok and check(receipt, places[1])


@pytest.mark.parametrize("mixed", [False, True])
def test_it_reads_postgres_too(mixed: bool, postgres: Any, tmp_path: Path) -> None:
    rows = sample_records(30)
    rows = [row.replace(id=f"s:{row.id}") if mixed and row.id % 2 else row for row in rows]
    with vf.connect(f"jsonl:{tmp_path / 'a.jsonl'}") as origin:
        origin.write(rows)
    url = postgres.url("items")
    receipt = kept(f"jsonl:{tmp_path / 'a.jsonl'}", url, tmp_path)
    dsn = postgres.dsn(url.rpartition("/")[2].partition("#")[0])
    assert not check(receipt, dsn, "items") and vf.verify(url, receipt=receipt).ok
    with psycopg.connect(dsn) as connection:
        connection.execute("update items set text = text || '.' where metadata->>'n' = '7'")
    assert check(receipt, dsn, "items")
    proof = vf.verify(url, receipt=receipt)
    assert not proof.ok and len(proof.buckets) == 1 and "1 of 256 buckets" in proof.summary


# -- what it says, and when there is none -------------------------------------------------------


def filled(folder: Path, n: int = 20) -> str:
    url = f"jsonl:{folder / 'a.jsonl'}"
    with vf.connect(url) as origin:
        origin.write(sample_records(n))
    return url


def test_it_says_what_the_ends_were_and_keeps_no_secret(tmp_path: Path) -> None:
    receipt = Receipt.read(kept(filled(tmp_path), f"parquet:{tmp_path / 'b.parquet'}", tmp_path))
    assert receipt.records == receipt.ids == receipt.documents.count == 20
    assert receipt.source.url.startswith("jsonl:") and receipt.target.collection.fields[0].dim == 8
    assert receipt.vectors[""].tolerance == "bit for bit" and receipt.counts["read"] == 20
    assert receipt.by == f"vecferry {vf.__version__}"


def test_every_way_of_verifying_gives_the_same_sums(tmp_path: Path) -> None:
    """In one order (a merge), in another (a hash join)."""
    url = filled(tmp_path)
    target = f"parquet:{tmp_path / 'b.parquet'}"
    first = Receipt.read(kept(url, target, tmp_path))
    turned = f"jsonl:{tmp_path / 'c.jsonl'}"
    with vf.connect(turned) as other:
        other.write(sample_records(20)[::-1])
    accounts: list[Any] = []
    proof = vf.verify(turned, target, on_account=accounts.append)
    assert proof.strategy == "hash"
    again = Receipt.of(proof, accounts[0], first.source, first.target)
    assert (again.documents, again.vectors) == (first.documents, first.vectors)


def test_vectors_within_a_tolerance_are_held_by_their_number_and_it_is_said(tmp_path: Path) -> None:
    # An index of float16 gives other bits back than the source has.
    url, target = filled(tmp_path), f"faiss:{tmp_path / 'half'}?index=SQfp16"
    receipt = kept(url, target, tmp_path)
    for one in (target, url):
        assert vf.verify(one, receipt=receipt).ok
    assert "only the source can tell whether they are equal" in str(vf.verify(url, receipt=receipt))
    with vf.connect(url) as origin:
        origin.write([sample_records(20)[3].replace(vectors={})])
    assert not vf.verify(url, receipt=receipt).ok


def test_two_swapped_vectors_and_a_doubled_id_are_found(tmp_path: Path) -> None:
    url, target = filled(tmp_path), f"jsonl:{tmp_path / 'b.jsonl'}"
    receipt = kept(url, target, tmp_path)
    lines = (tmp_path / "b.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows[3]["vector"], rows[5]["vector"] = rows[5]["vector"], rows[3]["vector"]
    swapped = tmp_path / "swapped.jsonl"
    swapped.write_text("".join(json.dumps(row) + "\n" for row in rows))
    proof = vf.verify(f"jsonl:{swapped}", receipt=receipt)
    assert not proof.ok and "differ in 2 of 256 buckets" in str(proof)
    assert check(receipt, str(swapped))
    doubled = tmp_path / "doubled.jsonl"
    doubled.write_text("\n".join([*lines[:-1], lines[3]]) + "\n")
    found = vf.verify(f"jsonl:{doubled}", receipt=receipt)
    assert not found.ok and found.target_ids < 20


def test_no_receipt_for_what_is_not_proved(tmp_path: Path) -> None:
    url, target = filled(tmp_path), f"parquet:{tmp_path / 'b.parquet'}"
    assert kept(url, target, tmp_path).exists()
    receipt = kept(url, target, tmp_path, mode="upsert")
    assert not receipt.exists(), "the target may hold more than was compared"
    with pytest.raises(NotFoundError, match="no receipt"):
        vf.verify(target, receipt=receipt)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(CorruptDataError, match="not a receipt"):
        vf.verify(target, receipt=tmp_path / "other.json")
    with pytest.raises(ConfigurationError, match="stands for the source"):
        vf.verify(url, target, receipt=receipt)
    with pytest.raises(ConfigurationError, match="receipt=FILE"):
        vf.verify(url)


def test_on_the_command_line(tmp_path: Path) -> None:
    target = f"parquet:{tmp_path / 'b.parquet'}"
    receipt = kept(filled(tmp_path), target, tmp_path)
    for damaged, status in ((False, 0), (True, 1)):
        if damaged:
            with vf.connect(target) as goal:
                goal.delete([3])
        done = CliRunner().invoke(app, ["verify", "--receipt", str(receipt), target])
        assert done.exit_code == status, done.output
    assert "20 expected, 19 found" in done.output
