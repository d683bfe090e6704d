"""Every layout gives back what it was given, and reads what the frameworks write."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.schema import Document, IndexNode, Node, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from vecferry.errors import ConfigurationError
from vecferry.layouts import find_layout, recognise_layout
from vecferry.layouts.llamaindex import NODE_KEY, LlamaIndexLayout, build_node, read_node
from vecferry.model import ENVELOPE, RecordId

NAMES = ("plain", "langchain", "llamaindex", "both")
SPECIAL_KEYS = (
    "text",
    "page_content",
    "metadata",
    "doc_id",
    "_node_content",
    "_payload",
    NODE_KEY,
    ENVELOPE,
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.datetimes(timezones=st.none() | st.just(UTC))
    | st.dates()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.binary()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
metadata = st.dictionaries(st.text() | st.sampled_from(SPECIAL_KEYS), values, max_size=4)
ids = st.integers() | st.text() | st.uuids() | st.tuples(st.integers(), st.text())


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.tuples(ids, st.none() | st.text(), metadata), max_size=3))
def test_what_goes_in_comes_out(name, rows):
    layout = find_layout(name)
    keys, texts, metas = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
    payloads = layout.encode(keys, texts, metas, foreign=[True] * len(rows))
    columns = layout.decode(payloads)
    assert columns.ids == keys
    assert [type(i) for i in columns.ids] == [type(i) for i in keys]
    assert columns.texts == texts
    assert columns.metadata == metas
    for after, before in zip(columns.metadata, metas, strict=True):
        assert {k: type(v) for k, v in after.items()} == {k: type(v) for k, v in before.items()}


@pytest.mark.parametrize("name", NAMES)
def test_its_own_payloads_are_recognised(name):
    layout = find_layout(name)
    payloads = layout.encode([1, 2], ["a", "b"], [{"k": 1}, {}])
    assert recognise_layout(payloads).name == name


@pytest.mark.parametrize("key", ["text", "content", "page_content", "document"])
def test_the_text_key_of_plain_payloads_is_found(key):
    layout = recognise_layout([{key: "hello", "page": 1}, {key: "world"}])
    columns = layout.decode([{key: "hello", "page": 1}])
    assert (layout.name, columns.texts, columns.metadata) == ("plain", ["hello"], [{"page": 1}])


def test_a_plain_record_needs_no_envelope():
    payloads = find_layout("plain").encode([7], ["hi"], [{"page": 1}])
    assert payloads == [{"text": "hi", "page": 1}]


def test_norms_are_kept():
    for name in NAMES:
        payloads = find_layout(name).encode([7], ["hi"], [{}], norms=[{"": 2.5}])
        assert find_layout(name).decode(payloads).norms == [{"": 2.5}]


def test_an_unknown_layout_names_those_there_are():
    with pytest.raises(ConfigurationError, match="plain, langchain, llamaindex, both"):
        find_layout("haystack")


def test_what_an_app_keeps_beside_langchains_keys_survives():
    payload = {"page_content": "x", "metadata": {"a": 1}, "group_id": "g7"}
    layout = recognise_layout([payload])
    columns = layout.decode([payload])
    assert layout.name == "langchain"
    assert columns.metadata == [{"a": 1, "_payload": {"group_id": "g7"}}]
    assert layout.encode(["u"], columns.texts, columns.metadata) == [payload]


# -- against LlamaIndex itself ----------------------------------------------------------------


def chunk() -> TextNode:
    node = TextNode(id_="n1", text="the chunk", metadata={"page": 3, "tags": ["a"]}, start_char_idx=5)
    node.excluded_llm_metadata_keys = ["page"]
    node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="d1", metadata={"file": "x"})
    node.relationships[NodeRelationship.NEXT] = RelatedNodeInfo(node_id="n2")
    return node


NODES = [
    chunk(),
    TextNode(id_="n2", text="bare"),
    IndexNode(id_="i1", text="summary", index_id="sub"),
    Document(id_="d1", text="whole", metadata={"file": "x"}),
    Node(id_="m1"),
]


@pytest.mark.parametrize("node", NODES, ids=lambda n: type(n).__name__)
def test_a_node_survives_the_crossing(node):
    layout = find_layout("llamaindex")
    before = node_to_metadata_dict(node)
    columns = layout.decode([before])
    (after,) = layout.encode(cast(list[RecordId], columns.ids), columns.texts, columns.metadata)
    assert metadata_dict_to_node(after) == metadata_dict_to_node(before)
    assert {k: after[k] for k in ("doc_id", "ref_doc_id", "document_id", "_node_type")} == {
        k: before[k] for k in ("doc_id", "ref_doc_id", "document_id", "_node_type")
    }
    assert layout.decode([after]) == columns


def test_the_relations_of_a_chunk_are_metadata_elsewhere():
    columns = find_layout("llamaindex").decode([node_to_metadata_dict(chunk())])
    assert columns.ids == ["n1"]
    assert columns.texts == ["the chunk"]
    (meta,) = columns.metadata
    relations = meta[NODE_KEY]
    assert {k: v for k, v in meta.items() if k != NODE_KEY} == {"page": 3, "tags": ["a"]}
    assert relations["ref_doc_id"] == "d1"
    assert relations["start_char_idx"] == 5
    assert relations["relationships"]["3"]["node_id"] == "n2"
    (payload,) = find_layout("plain").encode(
        cast(list[RecordId], columns.ids), columns.texts, columns.metadata
    )
    assert payload[NODE_KEY]["ref_doc_id"] == "d1"


def test_a_record_that_never_was_a_node_is_one_to_llamaindex():
    (payload,) = find_layout("llamaindex").encode([7], ["hello"], [{"page": 1, "doc_id": "mine"}])
    node = metadata_dict_to_node(payload)
    assert isinstance(node, TextNode)
    assert (node.node_id, node.text, node.metadata) == ("7", "hello", {"page": 1, "doc_id": "mine"})
    assert payload["doc_id"] == "None"


def test_ref_doc_id_alone_makes_the_relation():
    node = build_node("n", "t", {NODE_KEY: {"ref_doc_id": "d9"}})
    assert TextNode.from_dict(node).ref_doc_id == "d9"
    assert read_node(node) == ("n", "t", {NODE_KEY: {"ref_doc_id": "d9"}})


def test_removed_text_leaves_the_node_whole():
    layout = find_layout("llamaindex")
    assert isinstance(layout, LlamaIndexLayout)
    layout.remove_text = True
    (payload,) = layout.encode(["n"], ["secret words"], [{}])
    assert "secret words" not in payload["_node_content"]
    assert metadata_dict_to_node(payload, text="secret words").get_content() == "secret words"


def test_typed_metadata_is_json_in_the_payload():
    meta = {"when": datetime(2024, 5, 1, tzinfo=UTC), "price": Decimal("1.50"), "day": date(2024, 5, 1)}
    (payload,) = find_layout("plain").encode([UUID(int=1)], [None], [meta])
    assert payload["when"] == "2024-05-01T00:00:00+00:00"
    assert payload[ENVELOPE]["types"] == {"/when": "datetime", "/price": "decimal", "/day": "date"}


@pytest.mark.parametrize("name", ["llamaindex", "both"])
@pytest.mark.parametrize(
    "odd", [{"metadata": "x"}, {"id_": "other"}, {"text": "other"}, {"embedding": [1]}]
)
def test_what_stands_under_the_node_key_by_hand_survives(name, odd):
    layout, metadata = find_layout(name), {"_llamaindex": odd, "_payload": 1}
    columns = layout.decode(layout.encode(["n"], ["a text"], [metadata]))
    assert (columns.ids, columns.texts, columns.metadata) == (["n"], ["a text"], [metadata])


@pytest.mark.parametrize("name", ["llamaindex", "both"])
def test_copies_that_differ_are_counted(name: str) -> None:
    from vecferry.layouts import differing_copies

    layout = find_layout(name)
    metadata: list[dict[str, Any]] = [
        {"lang": "en", "_llamaindex": {"ref_doc_id": "d1"}},
        {"lang": "de"},
        {"lang": "fr"},
        {},
    ]
    payloads = layout.encode(["a", "b", "c", "d"], ["one", "two", "three", "four"], metadata)
    assert differing_copies(layout, payloads) == ()
    payloads[1]["lang"] = "xx"
    payloads[0]["ref_doc_id"] = "d9"
    (loss,) = differing_copies(layout, payloads)
    assert loss.count == 2 and loss.where == "source" and "_node_content" in loss.detail
    assert differing_copies(find_layout("langchain"), payloads) == ()
