"""Lines of JSON that others wrote: what is read of them, and what is left when they are changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecferry
from known import some
from vecferry.errors import CorruptDataError
from vecferry.model import VectorRecord
from vecferry.stores.jsonl import JsonlStore

MARK = b"\xef\xbb\xbf"
ROWS: list[dict[str, Any]] = [{"id": i, "text": f"t{i}", "vector": [i, 1.5]} for i in range(3)]
NEW = {"id": 9, "text": "new", "vector": [0.25, 0.5]}


def lay(path: Path, rows: Sequence[Any], mark: bytes = b"") -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_bytes(mark + "".join(f"{line}\r\n" for line in lines).encode())
    return path


def found(url: str) -> dict[Any, Any]:
    with vecferry.connect(url) as kb:
        records = {r.id: (r.text, None if r.vector is None else r.vector.tolist()) for r in kb.records()}
        assert kb.count() == len(records) and [r.id for r in kb.fetch(list(records))] == list(records)
        return records


def change(url: str, gone: Any) -> dict[Any, Any]:
    """Delete a record, then write one."""
    with vecferry.connect(url) as kb:
        assert kb.delete([gone]) == 1
        assert kb.write([NEW]) == 1
    return found(url)


@pytest.mark.parametrize("gone", [0, 1])
def test_a_byte_order_mark_is_no_part_of_the_first_record(gone: int, tmp_path: Path) -> None:
    url = f"jsonl:{lay(tmp_path / 'a.jsonl', ROWS, MARK)}"
    wanted = {i: (f"t{i}", [i, 1.5]) for i in range(3) if i != gone}
    assert change(url, gone) == {**wanted, 9: ("new", [0.25, 0.5])}


def test_a_record_keeps_the_id_that_it_has_from_its_place(tmp_path: Path) -> None:
    url = f"jsonl:{lay(tmp_path / 'a.jsonl', [{**row, 'id': None} for row in ROWS])}"
    before = found(url)
    first = next(iter(before))
    after = change(url, first)
    assert after == {**{k: v for k, v in before.items() if k != first}, 9: ("new", [0.25, 0.5])}


def test_a_file_with_keys_of_its_own_can_be_changed(tmp_path: Path) -> None:
    rows = [{"docid": f"d{i}", "emb": [i, 1.5], "passage": f"t{i}", "lang": "en"} for i in range(3)]
    url = f"jsonl:{lay(tmp_path / 'a.jsonl', rows)}?id=docid&vector=emb&text=passage"
    wanted = {"d1": ("t1", [1, 1.5]), "d2": ("t2", [2, 1.5]), 9: ("new", [0.25, 0.5])}
    assert change(url, "d0") == wanted
    assert found(f"jsonl:{tmp_path / 'a.jsonl'}") == wanted
    assert vecferry.connect(url).fetch(["d1"])[0].metadata == {"lang": "en"}


@pytest.mark.parametrize("sort", [True, False])
def test_our_lines_may_be_laid_out_anew_by_other_tools(sort: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with vecferry.connect(f"jsonl:{path}") as kb:
        kb.write([{"id": i, "vector": [i, 1.5], "metadata": {"s": {1, 2}}} for i in range(3)])
    path.write_text("".join(json.dumps(json.loads(x), sort_keys=sort) + "\n" for x in path.open()))
    assert set(change(f"jsonl:{path}", 0)) == {1, 2, 9}
    assert vecferry.connect(f"jsonl:{path}").fetch([1])[0].metadata == {"s": {1, 2}}


def test_nulls_of_tools_that_write_every_key_are_nothing(tmp_path: Path) -> None:
    empty = dict.fromkeys(["text", "vector", "vectors", "sparse_vectors", "metadata"])
    path = lay(tmp_path / "a.jsonl", [ROWS[0], {"id": 1, **empty, "lang": None}])
    assert list(vecferry.connect(f"jsonl:{path}").records())[1] == VectorRecord(
        id=1, metadata={"lang": None}
    )


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"vector": [1, None]}, "holds null"),
        ({"vector": ["a", 1]}, "no number"),
        ({"vectors": {"": 5}}, "no list of numbers"),
        ({"sparse_vectors": {"s": {"indices": [-1], "values": [1]}}}, "sparse vector 's'.*-1"),
        ({"sparse_vectors": {"s": {"indices": [1], "values": [None]}}}, "'s' holds null"),
        ({"sparse_vectors": {"s": {"indices": [1], "values": []}}}, "one value for each"),
        ({"_vecferry": {"id": 5}}, "line 2"),
        ({"_vecferry": 5}, "line 2"),
    ],
)
def test_a_bad_record_is_named_by_its_line_and_can_be_skipped(
    bad: Any, message: str, tmp_path: Path
) -> None:
    row = {k: v for k, v in ROWS[1].items() if k != "vector" or "vectors" not in bad}
    path = lay(tmp_path / "a.jsonl", [ROWS[0], {**row, **bad}, ROWS[2]])
    with pytest.raises(
        CorruptDataError, match=rf"line 2 .*{message if 'line' not in message else ''}.*skip"
    ):
        list(JsonlStore(path).scan())
    url = f"jsonl:{path}?on_bad_line=skip"
    assert set(found(url)) == {0, 2}
    assert vecferry.connect(url).fetch([1]) == []


def test_only_a_schema_tells_which_of_two_dimensions_is_the_bad_one(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "vector": [1, 2, 3]}, *ROWS[1:]]
    foreign = JsonlStore(lay(tmp_path / "a.jsonl", rows), on_bad_line="skip")
    with pytest.raises(CorruptDataError, match=r"line 2 .*2 components where 3 are due; repair the line$"):
        list(foreign.scan())
    with vecferry.connect(f"jsonl:{tmp_path / 'b.jsonl'}") as kb:
        kb.write([NEW])
    with (tmp_path / "b.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    assert set(found(f"jsonl:{tmp_path / 'b.jsonl'}?on_bad_line=skip")) == {9, 1, 2}


def test_ids_of_an_array_are_ids(tmp_path: Path) -> None:
    with vecferry.connect(f"jsonl:{lay(tmp_path / 'a.jsonl', ROWS)}") as kb:
        assert [r.id for r in kb.fetch(np.array([2, 0]))] == [2, 0]  # type: ignore[arg-type]
        assert kb.delete(np.array([2])) == 1  # type: ignore[arg-type]


def test_an_emptied_file_is_searched_with_a_filter(tmp_path: Path) -> None:
    with vecferry.connect(f"jsonl:{tmp_path / 'a.jsonl'}") as kb:
        kb.write([NEW])
        kb.delete([9])
        assert kb.search([1.0, 2.0], where={"lang": "en"}) == []


def test_integers_beyond_64_bits_are_exact(tmp_path: Path) -> None:
    row = {
        "id": 2**70,
        "vector": [1e20, 2.0],
        "n": -(2**65) - 1,
        "f": 1e20,
        "metadata": {"deep": {"n": 2**64}},
    }
    (record,) = vecferry.connect(f"jsonl:{lay(tmp_path / 'a.jsonl', [row])}").records()
    assert record.id == 2**70 and some(record.vector).tolist() == np.array([1e20, 2], np.float32).tolist()
    assert record.metadata == {"n": -(2**65) - 1, "f": 1e20, "deep": {"n": 2**64}}
