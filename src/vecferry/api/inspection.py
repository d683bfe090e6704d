"""`inspect`: what a collection holds, before anybody plans anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vecferry.connecting import Collection
from vecferry.model import CollectionSchema, VectorRecord, encode_id
from vecferry.pipeline.profile import SAMPLE, SourceProfile, profile_source


@dataclass(frozen=True)
class Inspection:
    """What was seen of one collection. ``samples`` are its first records."""

    url: str
    schema: CollectionSchema
    count: int
    profile: SourceProfile
    samples: tuple[VectorRecord, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        profile = self.profile
        return {
            "url": self.url,
            "count": self.count,
            "layout": self.schema.layout,
            "schema": self.schema.model_dump(mode="json"),
            "looked_at": profile.records,
            "complete": profile.complete,
            "id_types": dict(profile.id_types),
            "metadata": {key: dict(types) for key, types in sorted(profile.keys.items())},
            "without_text": profile.without_text,
            "duplicate_ids": profile.duplicate_count,
            "duplicate_examples": [encode_id(i) for i in profile.duplicates],
            "norms": {name: _norms(values) for name, values in profile.norms.items()},
            "missing_vectors": dict(profile.missing),
            "samples": [
                {"id": encode_id(r.id), "text": r.text, "metadata": r.metadata} for r in self.samples
            ],
        }

    def __str__(self) -> str:
        data, schema = self.to_dict(), self.schema
        lines = [f"{self.url}: {self.count:,} records, layout {schema.layout}"]
        for field in schema.fields:
            space = f", space {field.space}" if field.space else ", space unknown"
            lines.append(
                f"  vector {field.name!r}: {field.dim or '?'} d {field.dtype} {field.kind}, "
                f"{field.metric}{space}"
            )
        for name, norms in data["norms"].items():
            lines.append(f"  lengths {name!r}: {norms['min']:.4g} … {norms['max']:.4g}")
        lines += [f"  {n:,} × vector {name!r} missing" for name, n in data["missing_vectors"].items() if n]
        lines.append("  ids: " + ", ".join(f"{n:,} {kind}" for kind, n in data["id_types"].items()))
        lines.append(f"  duplicate ids: {data['duplicate_ids']:,}; without text: {data['without_text']:,}")
        for key, types in data["metadata"].items():
            lines.append(f"  metadata {key}: " + ", ".join(f"{n:,} {kind}" for kind, n in types.items()))
        lines += [f"  ! {loss.kind}: {loss}" for loss in schema.losses]
        if not self.profile.complete:
            lines.append(f"  (types from the first {self.profile.records:,} records)")
        lines += [f"  e.g. {r.id!r}: {(r.text or '')[:80]!r}" for r in self.samples]
        return "\n".join(lines)


def inspect_collection(collection: Collection, *, sample: int | None = SAMPLE) -> Inspection:
    """Look at a collection; ``sample=None`` looks at every record."""
    schema = collection.describe()
    profile = profile_source(collection.store, schema, sample=sample)
    first = next(iter(collection.scan(batch_size=3)), None)
    samples = tuple(first.records()) if first is not None else ()
    return Inspection(collection.url, schema, collection.count(), profile, samples)


def _norms(values: np.ndarray[Any, Any]) -> dict[str, float]:
    if not len(values):
        return {"min": 0.0, "max": 0.0, "mean": 0.0}
    return {"min": float(values.min()), "max": float(values.max()), "mean": float(values.mean())}
