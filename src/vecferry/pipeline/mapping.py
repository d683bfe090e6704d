"""From the source's schema to the target's: names, metrics, dtypes, ids; and what that loses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vecferry.errors import SchemaMismatchError
from vecferry.model import CollectionSchema, DType, Kind, Loss, Metric, VectorField
from vecferry.pipeline.profile import Census
from vecferry.ports import Capabilities

_EXACT = {
    DType.FLOAT16: (DType.FLOAT16, DType.FLOAT32),
    DType.INT8: (DType.INT8, DType.FLOAT32, DType.FLOAT16),
    DType.UINT8: (DType.UINT8, DType.FLOAT32, DType.FLOAT16),
    DType.FLOAT32: (DType.FLOAT32,),
    DType.BIT: (DType.BIT,),
}
"""Component types that hold every value of the source's type, the best first."""


def field_names(
    schema: CollectionSchema, wanted: Sequence[str] | Mapping[str, str] | None
) -> dict[str, str]:
    """Source field → target field, as the caller asked: all, a list of names, or ``{old: new}``.

    Raises:
        SchemaMismatchError: for a name the source does not have.
    """
    have = [field.name for field in schema.fields]
    if wanted is None:
        return {name: name for name in have}
    names = dict(wanted) if isinstance(wanted, Mapping) else {name: name for name in wanted}
    unknown = [name for name in names if name not in have]
    if unknown:
        raise SchemaMismatchError(f"the source has no vector field {unknown[0]!r}; it has {have}")
    if len(set(names.values())) != len(names):
        raise SchemaMismatchError(f"two fields would get one name: {names}")
    return names


def fit_names(names: dict[str, str], capabilities: Capabilities) -> dict[str, str]:
    """A target that holds one unnamed field gets the only field there is under ``""``.

    Raises:
        SchemaMismatchError: if there are several and only one fits.
    """
    if len(names) > 1 and not capabilities.several_fields:
        raise SchemaMismatchError(
            f"the target holds one vector field and the source has {list(names)}; "
            f"choose one, e.g. fields=[{next(iter(names))!r}]"
        )
    if len(names) == 1 and not capabilities.field_names:
        return dict.fromkeys(names, "")
    return names


def target_field(
    field: VectorField, name: str, capabilities: Capabilities, metric: Metric | None
) -> VectorField:
    """The field as the target will hold it.

    Raises:
        SchemaMismatchError: if the target has no such kind, metric or component type at all.
    """
    if field.kind not in capabilities.kinds:
        raise SchemaMismatchError(
            f"the target holds no {field.kind} vectors (field {field.name!r}); leave it out with fields=[…]"
        )
    chosen = metric or field.metric
    if chosen not in capabilities.metrics:
        have = ", ".join(sorted(capabilities.metrics))
        raise SchemaMismatchError(
            f"the target has no metric {chosen} (field {field.name!r}); choose one with metric=: {have}"
        )
    dtype = next((d for d in _EXACT[field.dtype] if d in capabilities.dtypes), None)
    if dtype is None:
        dtype = next((d for d in (DType.FLOAT32, DType.FLOAT16) if d in capabilities.dtypes), None)
    if dtype is None or (field.dtype is DType.BIT) is not (dtype is DType.BIT):
        raise SchemaMismatchError(
            f"the target cannot hold {field.dtype} components (field {field.name!r}); "
            "leave the field out with fields=[…]"
        )
    _check_dim(field, dtype, capabilities)
    return field.model_copy(update={"name": name, "metric": chosen, "dtype": dtype})


def _check_dim(field: VectorField, dtype: DType, capabilities: Capabilities) -> None:
    for kind, most in capabilities.max_dim:
        if kind is dtype and field.dim and field.dim > most:
            raise SchemaMismatchError(
                f"the target holds at most {most:,} components of {dtype}; "
                f"field {field.name!r} has {field.dim:,}"
            )


def find_losses(
    source: CollectionSchema, target: CollectionSchema, capabilities: Capabilities, census: Census
) -> list[Loss]:
    """Everything that changes on the way, with a count and an example."""
    pairs = list(zip(source.fields, target.fields, strict=False))
    return [
        *source.losses,
        *_vector_losses(pairs),
        *_magnitude_losses(pairs, capabilities, census),
        *_missing_vectors(pairs, capabilities, census),
        *_id_losses(capabilities, census),
        *_metadata_losses(capabilities, census),
        *_text_losses(capabilities, census),
        *capabilities.losses,
    ]


def _vector_losses(pairs: Iterable[tuple[VectorField, VectorField]]) -> Iterable[Loss]:
    for old, new in pairs:
        if new.dtype not in _EXACT[old.dtype]:
            yield Loss(kind="vector", detail=f"field {old.name!r}: {old.dtype} becomes {new.dtype}")
        if new.metric is not old.metric:
            yield Loss(
                kind="metric",
                detail=f"field {old.name!r} is searched by {new.metric}, not {old.metric}",
            )


def _magnitude_losses(
    pairs: Iterable[tuple[VectorField, VectorField]], capabilities: Capabilities, census: Census
) -> Iterable[Loss]:
    for old, new in pairs:
        norms = census.norms.get(old.name)
        if new.kind is Kind.SPARSE or new.metric not in capabilities.normalizes or norms is None:
            continue
        odd = norms[np.abs(norms - 1) > 1e-3]
        if len(odd):
            yield Loss(
                kind="magnitude",
                detail=f"of {census.looked_at:,} vectors looked at in field {old.name!r} "
                "not of unit length, which the target normalises",
                count=len(odd),
                example=f"length {odd[0]:.4g}",
                reversible=capabilities.keeps_norms,
            )


def _missing_vectors(
    pairs: Iterable[tuple[VectorField, VectorField]], capabilities: Capabilities, census: Census
) -> Iterable[Loss]:
    for old, _ in pairs:
        if census.missing[old.name] and not capabilities.missing_vectors:
            yield Loss(
                kind="field",
                detail=f"of {census.looked_at:,} records looked at without a vector in field "
                f"{old.name!r}, which the target refuses",
                count=census.missing[old.name],
            )


def _id_losses(capabilities: Capabilities, census: Census) -> Iterable[Loss]:
    for kind, n in census.id_types.items():
        if kind not in capabilities.id_types:
            yield Loss(
                kind="id",
                detail=f"{kind} ids get another form in the target",
                count=n,
                example=census.id_examples.get(kind),
                reversible=True,
            )


def _metadata_losses(capabilities: Capabilities, census: Census) -> Iterable[Loss]:
    if capabilities.metadata_types is None:
        return
    for kind, n in census.types.items():
        if kind not in capabilities.metadata_types:
            yield Loss(
                kind="metadata",
                detail=f"{kind} values are kept in another form",
                count=n,
                example=census.examples.get(kind),
                reversible=True,
            )


def _text_losses(capabilities: Capabilities, census: Census) -> Iterable[Loss]:
    texts = census.records - census.without_text
    if texts and not capabilities.text:
        yield Loss(kind="text", detail="the target has no place for texts", count=texts)
