"""`Verifier`: the running account of a comparison. Its state is JSON, to be stored and restored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from vecferry.model import CollectionSchema, RecordBatch, RecordId, encode_id
from vecferry.model.canonical import canonical_rows, hash_rows
from vecferry.model.equality import Measured, Tolerance, compare_vectors
from vecferry.ports import Fields
from vecferry.verifying.digest import Digest, buckets_of
from vecferry.verifying.pairs import explain_documents
from vecferry.verifying.result import Difference, FieldProof, Verification


class Verifier:
    """Takes pairs, and what has no partner, in any order.

    Args:
        schema: of what is expected.
        rules: the `Tolerance` of each vector field that counts.
        fields: whether texts and metadata count.
        limit: how many ids and differences are named.

    Attributes:
        share: which share of the target the next records come from. Whatever order the shares come in,
            what is named of them is named share after share.
    """

    def __init__(
        self,
        schema: CollectionSchema,
        rules: Mapping[str, Tolerance],
        *,
        fields: Fields = Fields.ALL,
        limit: int = 100,
    ) -> None:
        self.schema, self.rules, self.fields, self.limit = schema, dict(rules), fields, limit
        self.expected, self.found = Digest(), Digest()
        self.counts = {"missing": 0, "extra": 0, "doubled": 0, "different": 0}
        self.share = 0
        self._named = {kind: _Firsts(limit) for kind in self.counts}
        self._vectors = {name: _Tally() for name in self.rules}

    # -- taking records -----------------------------------------------------------------------

    def pair(
        self, expected: RecordBatch, found: RecordBatch, forms: list[bytes] | None = None
    ) -> list[RecordId]:
        """Compare rows of equal ids in equal order; returns the ids that differ.

        Args:
            forms: the canonical forms of ``expected``, where they are known; it then needs no texts and
                no metadata.
        """
        a, b = forms or self.canonical(expected), self.canonical(found)
        ids = expected.id_list
        buckets = buckets_of(ids)
        hashes = hash_rows(a)
        self.expected.add(hashes, buckets)
        self.found.add(hashes if a == b else hash_rows(b), buckets)
        faults: dict[int, list[tuple[str, str, float | None]]] = {}
        for row, (x, y) in enumerate(zip(a, b, strict=True) if a != b else ()):
            if x != y:
                faults.setdefault(row, []).append((*explain_documents(x, y), None))
        for name in self.rules:
            for row, (reason, deviation) in self._vector_faults(name, expected, found).items():
                place = f"vector:{name}" if name else "vector"
                faults.setdefault(row, []).append((place, reason, deviation))
        for row in sorted(faults):
            self._differs(ids[row], faults[row])
        return [ids[row] for row in sorted(faults)]

    def canonical(self, batch: RecordBatch) -> list[bytes]:
        """The canonical forms of a batch, of what counts."""
        return canonical_rows(batch, text=self.fields.text, metadata=self.fields.metadata)

    def missing(self, batch: RecordBatch) -> None:
        """Expected records that the target has not."""
        self._name("missing", batch.id_list)
        self.expected.add(hash_rows(self.canonical(batch)), buckets_of(batch.id_list))

    def surplus(self, batch: RecordBatch) -> None:
        """Records of the target that nobody expected."""
        self._name("extra", batch.id_list)
        self.found.add(hash_rows(self.canonical(batch)), buckets_of(batch.id_list))

    def doubled(self, batch: RecordBatch) -> None:
        """Records whose id the target has brought before."""
        self._name("doubled", batch.id_list)
        self.found.add(hash_rows(self.canonical(batch)), buckets_of(batch.id_list))

    def _vector_faults(self, name: str, a: RecordBatch, b: RecordBatch) -> dict[int, Any]:
        measured = compare_vectors(a.column(name), b.column(name), len(a), self.rules[name])
        self._vectors[name].add(measured)
        return measured.faults

    def _differs(self, id_: RecordId, faults: Sequence[tuple[str, str, float | None]]) -> None:
        key = encode_id(id_)
        self._note("different", [[[key, *fault] for fault in faults]])

    def _name(self, kind: str, ids: Sequence[RecordId]) -> None:
        self._note(kind, list(map(encode_id, ids)))

    def _note(self, kind: str, entries: Sequence[Any]) -> None:
        self.counts[kind] += len(entries)
        self._named[kind].add(self.share, entries)

    # -- state and result ---------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything seen so far, as JSON."""
        return {
            "expected": self.expected.state(),
            "found": self.found.state(),
            "named": {kind: firsts.state() for kind, firsts in self._named.items()},
            "counts": self.counts,
            "vectors": {name: vars(tally) for name, tally in self._vectors.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a stored `state`."""
        self.expected, self.found = Digest.restore(state["expected"]), Digest.restore(state["found"])
        self.counts = dict(state["counts"])
        for kind, entries in state["named"].items():
            self._named[kind].restore(entries)
        for name, tally in state["vectors"].items():
            self._vectors[name] = _Tally(**tally)

    def result(self, strategy: str, **more: Any) -> Verification:
        """The proof as it stands. ``ok`` in ``more`` can only make it worse."""
        clean = not any(self.counts.values()) and self.expected.hex == self.found.hex
        fine = more.pop("ok", True)
        named = {kind: tuple(firsts) for kind, firsts in self._named.items()}
        faults = [fault for record in named.pop("different") for fault in record]
        return Verification(
            ok=clean and fine,
            strategy=strategy,
            expected_count=self.expected.count,
            target_count=self.found.count,
            digest_expected=self.expected.hex,
            digest_target=self.found.hex,
            **named,
            **{f"{kind}_count": count for kind, count in self.counts.items()},
            different=tuple(Difference(**dict(zip(_FAULT, fault, strict=True))) for fault in faults),
            vectors={n: tally.proof(str(self.rules[n])) for n, tally in self._vectors.items()},
            buckets=tuple(self.expected.differing(self.found)),
            **more,
        )


_FAULT = ("id", "place", "reason", "deviation")


class _Firsts:
    """The first few entries of each share, and so the first few of all."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._shares: dict[int, list[Any]] = {}

    def add(self, share: int, entries: Sequence[Any]) -> None:
        kept = self._shares.setdefault(share, [])
        kept += entries[: self._limit - len(kept)]

    def __iter__(self) -> Iterator[Any]:
        entries = (entry for share in sorted(self._shares) for entry in self._shares[share])
        return islice(entries, self._limit)

    def state(self) -> list[Any]:
        return sorted(self._shares.items())

    def restore(self, state: Sequence[Any]) -> None:
        self._shares = {share: list(entries) for share, entries in state}


class _Tally:
    """Sums over the vectors of one field."""

    def __init__(
        self, compared: int = 0, identical: int = 0, worst: float = 0.0, total: float = 0.0, faults: int = 0
    ) -> None:
        self.compared, self.identical, self.faults = compared, identical, faults
        self.worst, self.total = worst, total

    def add(self, measured: Measured) -> None:
        deviations = measured.deviations
        self.faults += len(measured.faults)
        self.compared += len(deviations)
        self.identical += int((deviations == 0).sum())
        self.worst = max(self.worst, float(deviations.max(initial=0.0)))
        self.total += float(np.minimum(deviations, np.finfo(np.float32).max).sum())

    def proof(self, tolerance: str) -> FieldProof:
        return FieldProof(
            compared=self.compared,
            identical=self.identical,
            max_deviation=self.worst,
            # To six digits: the last bits of a sum depend on the order of its terms.
            mean_deviation=float(f"{self.total / self.compared:.6g}") if self.compared else 0.0,
            tolerance=tolerance,
            faults=self.faults,
        )
