"""Records as documents and back, over many inputs."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vecferry.errors import CorruptDataError
from vecferry.stores.llamacloud.mapping import (
    chunk_record,
    document_record,
    record_document,
    to_service,
)

EXCLUDED = "excluded_embed_metadata_keys"
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
    | st.datetimes() | st.uuids() | st.binary(max_size=5) | st.decimals(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
OURS = st.fixed_dictionaries(
    {},
    optional={
        "_llamaindex": VALUES
        | st.fixed_dictionaries({}, optional={EXCLUDED: st.lists(TEXTS) | VALUES, "ref_doc_id": TEXTS}),
        "_llamacloud": VALUES | st.fixed_dictionaries({"page_positions": st.lists(st.integers()) | VALUES}),
        "_vecferry": VALUES,
    },
)
METADATA = st.builds(lambda a, b: {**a, **b}, st.dictionaries(TEXTS, VALUES, max_size=4), OURS)
SCALARS = TEXTS | st.integers() | st.uuids()
IDS = SCALARS | st.lists(SCALARS, min_size=1, max_size=3).map(tuple) | st.sampled_from(["", ".", ".."])


@example(id_="a", text="", metadata={"_llamaindex": {EXCLUDED: [1e15]}})
@example(id_="a", text="", metadata={"_llamaindex": {EXCLUDED: ("a",)}})
@given(id_=IDS, text=TEXTS, metadata=METADATA)
def test_a_record_comes_back_as_it_was(id_: Any, text: str, metadata: dict[str, Any]) -> None:
    document = record_document(id_, text, metadata)
    over_the_wire = json.loads(json.dumps(document))
    assert document["id"] not in ("", ".", "..")
    back = document_record(over_the_wire)
    assert back == (id_, text, metadata)
    assert type(back[0]) is type(id_)


@given(document=st.fixed_dictionaries({
    "id": TEXTS.filter(bool), "text": TEXTS, "metadata": st.dictionaries(TEXTS, TEXTS),
    EXCLUDED: st.lists(TEXTS), "page_positions": st.none() | st.lists(st.integers(0, 2**40)),
}))  # fmt: skip
def test_a_document_comes_back_as_it_was(document: dict[str, Any]) -> None:
    if document["id"] in (".", ".."):
        return
    again = record_document(*document_record(document))
    kept = {key: again.get(key) for key in document}
    assert kept == document


def test_what_is_no_document_is_said() -> None:
    for odd in ({}, {"id": None, "text": "x"}, {"text": "x"}):
        with pytest.raises(CorruptDataError, match="without 'id'"):
            document_record(odd)
    with pytest.raises(CorruptDataError, match="without 'id_'"):
        chunk_record({"text": "x"})
    assert chunk_record({"id_": "a"}) == ("a", "", {})


def test_what_the_service_cannot_be_asked_is_left_out_of_its_filter() -> None:
    day = date(2026, 1, 1)
    assert to_service({"lang": "en", "day": {"$gt": day}})["filters"] == [
        {"key": "lang", "value": "en", "operator": "=="}
    ]
    for where in (
        {"$or": [{"lang": "en"}, {"day": day}]},
        {"$not": {"price": {"$in": [1, Decimal("2.5")]}}},
        {"$and": [{"lang": None}, {"$not": {"$or": [{"day": day}]}}]},
        {"n": {"$lt": float("inf")}},
    ):
        json.dumps(to_service(where), allow_nan=False)
        assert "key" not in json.dumps(to_service(where))
