"""Schemas: what fits what."""

import pytest

from vecferry.errors import SchemaMismatchError
from vecferry.model import CollectionSchema, VectorField
from vecferry.ports import check_fits


def one(**about: object) -> CollectionSchema:
    return CollectionSchema(fields=(VectorField(dim=2, **about),))


def test_a_metric_that_nobody_declared_gives_way() -> None:
    cosine, l2 = one(metric="cosine"), one(metric="l2")
    with pytest.raises(SchemaMismatchError, match=r"l2, not .* cosine"):
        check_fits(l2, cosine, "x:")
    check_fits(l2, one(metric="cosine", metric_declared=False), "x:")
    check_fits(one(metric_declared=False), l2, "x:")
    with pytest.raises(SchemaMismatchError):
        check_fits(l2, CollectionSchema(fields=(VectorField(dim=3, metric_declared=False),)), "x:")
