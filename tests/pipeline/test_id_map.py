"""A target that cannot keep the ids: which record became what, as a file."""

from __future__ import annotations

import csv
from contextlib import closing
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

import vecferry as vf


def test_ids_that_get_another_form_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECFERRY_HOME", str(tmp_path / "home"))
    source = f"jsonl:{tmp_path / 'in.jsonl'}"
    vf.connect(source).write([{"id": i, "vector": [1.0, n]} for n, i in enumerate(["a", "b", 7])])
    report = vf.migrate(source, f"qdrant:{tmp_path / 'q'}#kb").check()
    with Path(str(report.id_map)).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted((row["type"], row["id"]) for row in rows) == [("str", "a"), ("str", "b")]
    with closing(QdrantClient(path=str(tmp_path / "q"))) as client:
        points = {str(point.id) for point in client.scroll("kb", limit=9)[0]}
    assert {row["target_id"] for row in rows} | {"7"} == points
    kept = vf.migrate(source, f"parquet:{tmp_path / 'out.parquet'}").check()
    assert kept.id_map is None
