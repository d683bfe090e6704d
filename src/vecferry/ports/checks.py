"""Checks that every sink makes alike."""

from __future__ import annotations

from vecferry.errors import SchemaMismatchError, SpaceMismatchError
from vecferry.model import CollectionSchema


def check_fits(have: CollectionSchema, want: CollectionSchema, url: str) -> None:
    """Whether records of ``want`` may be written to a collection that is ``have``.

    Raises:
        SpaceMismatchError: if a field holds vectors of another embedding space, equal dimension or not.
        SchemaMismatchError: if a field is absent or has another kind, dimension or declared metric.
    """
    names = {field.name: field for field in have.fields}
    for new in want.fields:
        old = names.get(new.name)
        if old is None:
            raise SchemaMismatchError(
                f"{url} has no vector field {new.name!r}, only {sorted(names)}; migrate to a new target"
            )
        if old.space and new.space and not old.space.same_as(new.space):
            alike = old.space.fingerprint == new.space.fingerprint
            other = "another model of that name" if alike else str(new.space)
            raise SpaceMismatchError(
                f"{url} holds vectors of {old.space}, not of {other}; "
                "re-embed (embed=…) or write to another target"
            )
        same_metric = old.metric == new.metric or not (old.metric_declared and new.metric_declared)
        if (old.kind, old.dim) != (new.kind, new.dim) or not same_metric:
            raise SchemaMismatchError(
                f"{url} field {new.name!r} is {old.kind} {old.dim} d {old.metric}, "
                f"not {new.kind} {new.dim} d {new.metric}; write to another target"
            )
