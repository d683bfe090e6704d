"""A line says the same with its vector cut out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vecferry.ports import Fields
from vecferry.stores.jsonl import JsonlStore

TRICKY: list[dict[str, Any]] = [
    {"id": 1, "vector": [1.0, 2.0], "metadata": {"vector": [9.0, 9.0]}},
    {"id": 1, "metadata": {"vector": [9.0, 9.0]}, "vector": [1.0, 2.0]},
    {"id": 1, "text": '} "vector":[9,9]', "metadata": {"a": 1}, "vector": [1.0, 2.0]},
    {"id": 1, "text": "}", "metadata": {"vector": [9.0, 9.0]}, "embedding": [1.0, 2.0]},
    {"id": 1, "embedding": [1.0, 2.0], "text": "t"},
    {"id": 1, "vector": [[1.0, 2.0], [3.0, 4.0]]},
    {"id": 1, "vector": [1, 2]},
]


@pytest.mark.parametrize("row", TRICKY)
@pytest.mark.parametrize("compact", [True, False])
def test_a_line_says_the_same_whichever_way_it_is_read(
    row: Any, compact: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    separators = (",", ":") if compact else None
    (tmp_path / "x.jsonl").write_text(json.dumps(row, separators=separators) + "\n")

    def read() -> list[Any]:
        batches = JsonlStore(tmp_path / "x.jsonl").scan(fields=Fields.NO_VECTORS)
        return [(r.id, r.text, r.metadata) for batch in batches for r in batch.records()]

    one = read()
    monkeypatch.setattr("vecferry.stores.jsonl.cut_vectors", lambda *_: None)
    assert one == read()


def test_ids_alone_are_read_without_a_number(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("".join(f'{{"id":{i},"vector":[{i}.5,x]}}\n' for i in range(9)))
    batches = list(JsonlStore(tmp_path / "x.jsonl").scan(fields=Fields.IDS, batch_size=4))
    assert [i for batch in batches for i in batch.id_list] == list(range(9))
    assert not any(batch.vectors for batch in batches)
