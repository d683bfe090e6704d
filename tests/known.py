"""What a test knows and a type cannot tell."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def some(value: T | None) -> T:
    """The value, which is there: an assertion of its own."""
    assert value is not None
    return value
