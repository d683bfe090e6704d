"""Which version comes back, and which may go."""

from __future__ import annotations

import pytest

from vecferry.errors import NotFoundError
from vecferry.stores.kit.versions import before, surplus


def test_the_version_before_the_live_one_comes_back() -> None:
    assert before(["a", "b", "c"], "c", "kb") == "b"
    for live in ("a", None, "gone"):
        with pytest.raises(NotFoundError, match="kb keeps no earlier version"):
            before(["a", "b"], live, "kb")


def test_what_was_rolled_back_goes_first_then_the_oldest() -> None:
    history = ["a", "b", "c", "d"]
    assert surplus(history, "c", 0) == ["a", "b", "d"]
    assert surplus(history, "c", 1) == ["a", "d"]
    assert surplus(history, "c", 2) == ["d"]
    assert surplus(history, "c", 9) == [] == surplus([], None, 0)
    assert surplus(history, None, 1) == ["a", "b", "c"]
