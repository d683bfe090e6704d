"""`Verifier`: the running account of a comparison. Its state is JSON, to be stored and restored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from vecferry.model import CollectionSchema, RecordBatch, dump_json, encode_id
from vecferry.model.canonical import canonical_rows, hash_rows, parse_canonical
from vecferry.model.equality import Measured, Tolerance, compare_vectors
from vecferry.model.vectors import Array
from vecferry.ports import Fields, Kept
from vecferry.verifying.digest import Digest, KeyedIds, hash_vectors, keyed
from vecferry.verifying.hash_join import HashIndex
from vecferry.verifying.pairs import explain_documents
from vecferry.verifying.result import Difference, FieldProof, Verification

UNEXPLAINED = "differs from what was written"
"""The reason of a difference that a second look no longer finds."""

Fault = tuple[str, str, float | None]
"""Place, reason, deviation."""


@dataclass(frozen=True, slots=True)
class FieldRule:
    """How the vectors of one field are compared, and the component type in which they are hashed."""

    tolerance: Tolerance
    dtype: str

    @property
    def exact(self) -> bool:
        return self.tolerance.exact


@dataclass(frozen=True, slots=True)
class Differing:
    """One record that differs: its id, the faults known, and what a second look has to explain.

    Attributes:
        row: where it came in the expected stream; ``None`` when all faults are known.
        places: ``"documents"`` or names of fields whose hashes differ.
    """

    id: str
    faults: tuple[Fault, ...]
    row: int | None = None
    documents: bool = False
    fields: tuple[str, ...] = ()


class Verifier:
    """Takes pairs, and what has no partner, in any order.

    Args:
        schema: of what is expected.
        rules: of each vector field that counts.
        fields: whether texts and metadata count.
        limit: how many ids and differences are named.
        kept: what the target keeps of its own in a record, and what is no difference in a pair.

    Attributes:
        share: which share of the target the next records come from. Whatever order the shares come in,
            what is named of them is named share after share.
    """

    def __init__(
        self,
        schema: CollectionSchema,
        rules: Mapping[str, FieldRule],
        *,
        fields: Fields = Fields.ALL,
        limit: int = 100,
        kept: Kept | None = None,
    ) -> None:
        self.schema, self.rules, self.fields, self.limit = schema, dict(rules), fields, limit
        self.kept = kept
        self.expected = _Sums(self.rules)
        self.share = 0
        self.forget_target()

    def forget_target(self) -> None:
        """Begin again with the target; what is known of the expected side stays."""
        self.found = _Sums(self.rules)
        self.counts = {"missing": 0, "extra": 0, "doubled": 0, "different": 0}
        self._named = {kind: _Firsts(self.limit) for kind in self.counts}
        self._vectors = {name: _Tally() for name in self.rules}
        self._explained: dict[str, tuple[Fault, ...]] = {}

    # -- pairs at hand ------------------------------------------------------------------------

    def pair(self, expected: RecordBatch, found: RecordBatch) -> KeyedIds:
        """Compare rows of equal ids in equal order; returns these ids."""
        ids = keyed(expected.ids)
        a, b = self._paired_forms(expected, found)
        hashes = hash_rows(b)
        self.found.documents.add(hashes, ids.buckets)
        self.expected.documents.add(hashes if a == b else hash_rows(a), ids.buckets)
        for row, faults in self._compare(expected, found, a, b, ids).items():
            self._note("different", [Differing(ids.encoded[row], tuple(faults))])
        return ids

    def differing(self, expected: RecordBatch, found: RecordBatch) -> list[int]:
        """The rows in which the two differ; nothing is counted."""
        a, b = self._paired_forms(expected, found)
        rows = {row for row, (x, y) in enumerate(zip(a, b, strict=True)) if x != y}
        for name, rule in self.rules.items():
            one, other = expected.column(name), found.column(name)
            rows |= compare_vectors(one, other, len(a), rule.tolerance).faults.keys()
        return sorted(rows)

    def _paired_forms(self, expected: RecordBatch, found: RecordBatch) -> tuple[list[bytes], list[bytes]]:
        a, b = self._forms(expected), self._forms(found)
        if self.kept is not None and a != b:
            b = [y if x == y else _without_own(x, y, self.kept) for x, y in zip(a, b, strict=True)]
        return a, b

    def _compare(
        self, expected: RecordBatch, found: RecordBatch, a: list[bytes], b: list[bytes], ids: KeyedIds
    ) -> dict[int, list[Fault]]:
        faults: dict[int, list[Fault]] = {}
        for row, (x, y) in enumerate(zip(a, b, strict=True) if a != b else ()):
            if x != y:
                faults.setdefault(row, []).append((*explain_documents(x, y), None))
        for name, rule in self.rules.items():
            measured = compare_vectors(expected.column(name), found.column(name), len(a), rule.tolerance)
            self._vectors[name].add(measured)
            hashes = hash_vectors(found.column(name), ids.keys, rule.dtype)
            self.found.add_vectors(name, hashes, ids.buckets)
            if rule.exact:
                if measured.faults:
                    hashes = hash_vectors(expected.column(name), ids.keys, rule.dtype)
                self.expected.add_vectors(name, hashes, ids.buckets)
            for row, fault in measured.faults.items():
                faults.setdefault(row, []).append((_place(name), *fault))
        return dict(sorted(faults.items()))

    def _forms(self, batch: RecordBatch) -> list[bytes]:
        """The canonical forms of a batch, of what counts."""
        return canonical_rows(batch, text=self.fields.text, metadata=self.fields.metadata)

    def _hashes(self, batch: RecordBatch) -> Array:
        """uint64 ``(n, 2)``: the digest of each record."""
        return hash_rows(self._forms(batch)).view("<u8")

    def missing(self, batch: RecordBatch) -> None:
        """Expected records that the target has not."""
        self._name("missing", batch.id_list)
        self._add(self.expected, batch)

    def surplus(self, batch: RecordBatch) -> None:
        """Records of the target that nobody expected."""
        self._name("extra", batch.id_list)
        self._add(self.found, batch)

    def doubled(self, batch: RecordBatch) -> None:
        """Records whose id the target has brought before."""
        self._name("doubled", batch.id_list)
        self._add(self.found, batch)

    def count_found(self, batch: RecordBatch) -> None:
        """Add records of the target to its sums, compared with nothing."""
        self._add(self.found, batch)

    def _add(self, sums: _Sums, batch: RecordBatch) -> tuple[KeyedIds, Array, dict[str, Array]]:
        ids = keyed(batch.ids)
        docs = self._hashes(batch)
        sums.documents.add(docs, ids.buckets)
        hashes = {}
        for name, rule in self.rules.items():
            if sums is self.expected and not rule.exact:
                continue  # what is kept within a tolerance has no bits to be held to
            hashes[name] = hash_vectors(batch.column(name), ids.keys, rule.dtype)
            sums.add_vectors(name, hashes[name], ids.buckets)
        return ids, docs, hashes

    # -- through a hash join ------------------------------------------------------------------

    def fill(self, batch: RecordBatch, index: HashIndex) -> None:
        """Put expected records into the index."""
        ids, docs, hashes = self._add(self.expected, batch)
        index.add(ids.keys, docs, hashes, {name: batch.column(name) for name in index.tolerant})

    def look_up(self, batch: RecordBatch, index: HashIndex, start: int, *, allow_extra: bool) -> Array:
        """Hold records of the target against the index.

        Args:
            start: how many records of its share came before.

        Returns:
            The keys ``(m, 2)`` of records that nobody expected.

        Raises:
            Overtaken: if an id was found before in a later share.
        """
        ids = keyed(batch.ids)
        places = index.find(ids.keys)
        rows = np.flatnonzero(places >= 0)
        first, overtaken = index.mark(places[rows], self.share, start + rows)
        if overtaken:
            raise Overtaken
        self._match(batch, ids, index, rows[first], places[rows[first]])
        unknown = np.flatnonzero(places < 0)
        if len(unknown) and not allow_extra:
            self.surplus(batch.take(unknown))
        if not first.all():
            self.doubled(batch.take(rows[~first]))
        empty: Array = np.empty((0, 2), np.uint64)
        return empty if allow_extra else ids.keys[unknown]

    def _match(
        self, batch: RecordBatch, ids: KeyedIds, index: HashIndex, rows: Array, places: Array
    ) -> None:
        if not len(rows):
            return
        if len(rows) < len(batch):
            batch, ids = batch.take(rows), ids.take(rows)
        docs = self._hashes(batch)
        self.found.documents.add(docs, ids.buckets)
        other_docs = (docs != index.docs(places)).any(axis=1)
        wrong = other_docs.copy()
        other: dict[str, Array] = {}
        faults: dict[int, list[Fault]] = {}
        for name, rule in self.rules.items():
            hashes = hash_vectors(batch.column(name), ids.keys, rule.dtype)
            self.found.add_vectors(name, hashes, ids.buckets)
            if rule.exact:
                expected = index.hashes(name, places)
                differs: Array = np.asarray(np.any(hashes != expected, axis=1))
                other[name] = differs
                both: Array = np.asarray(hashes.any(axis=1) & expected.any(axis=1))
                self._vectors[name].add_hashed(both, differs)
                wrong |= differs
                continue
            kept = index.vectors(name, places)
            measured = compare_vectors(kept, batch.column(name), len(batch), rule.tolerance)
            self._vectors[name].add(measured)
            for row, fault in measured.faults.items():
                faults.setdefault(row, []).append((_place(name), *fault))
                wrong[row] = True
        expected_rows = index.rows(places)
        self._note(
            "different",
            [
                Differing(
                    ids.encoded[row],
                    tuple(faults.get(row, ())),
                    int(expected_rows[row]),
                    bool(other_docs[row]),
                    tuple(name for name, odd in other.items() if odd[row]),
                )
                for row in np.flatnonzero(wrong).tolist()
            ],
        )

    def unexplained(self) -> dict[int, Differing]:
        """By row of the expected stream: records of which it is known that they differ, not how."""
        every = self._named["different"]
        return {d.row: d for d in every if d.row is not None and (d.documents or d.fields)}

    def explain(self, known: Differing, expected: RecordBatch, found: RecordBatch | None) -> None:
        """Say how a record differs, holding the two copies of it against one another."""
        faults: list[Fault] = []
        if found is not None:
            a, b = self._forms(expected), self._forms(found)
            if a != b:
                faults.append((*explain_documents(a[0], b[0]), None))
            for name in known.fields:
                rule = self.rules[name].tolerance
                measured = compare_vectors(expected.column(name), found.column(name), 1, rule)
                self._vectors[name].measure(measured)
                faults += [(_place(name), *fault) for fault in measured.faults.values()]
        self._explained[known.id] = tuple(faults or (_unexplained(known),)) + known.faults

    def name_missing(self, count: int, ids: Sequence[str]) -> None:
        """The expected records that were found nowhere: how many, and the first of them."""
        self.counts["missing"] += count
        self._named["missing"].add(0, ids)

    # -- names --------------------------------------------------------------------------------

    def _name(self, kind: str, ids: Sequence[Any]) -> None:
        self._note(kind, list(map(encode_id, ids)))

    def _note(self, kind: str, entries: Sequence[Any]) -> None:
        self.counts[kind] += len(entries)
        self._named[kind].add(self.share, entries)

    # -- state and result ---------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything seen so far, as JSON."""
        named: dict[str, Any] = {kind: firsts.state() for kind, firsts in self._named.items()}
        named["different"] = [
            [share, [[getattr(d, name) for name in Differing.__slots__] for d in entries]]
            for share, entries in named["different"]
        ]
        return {
            "expected": self.expected.state(),
            "found": self.found.state(),
            "named": named,
            "counts": self.counts,
            "vectors": {name: vars(tally) for name, tally in self._vectors.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a stored `state`."""
        self.expected.restore(state["expected"])
        self.found.restore(state["found"])
        self.counts = dict(state["counts"])
        for kind, entries in state["named"].items():
            read = _differing if kind == "different" else str
            self._named[kind].restore([(share, list(map(read, every))) for share, every in entries])
        for name, tally in state["vectors"].items():
            self._vectors[name] = _Tally(**tally)

    def _totals(self) -> dict[str, Any]:
        return {f"{kind}_count": count for kind, count in self.counts.items()}

    def result(self, strategy: str, **more: Any) -> Verification:
        """The proof as it stands. ``ok`` in ``more`` can only make it worse."""
        expected, found = self.expected.documents, self.found.documents
        clean = not any(self.counts.values()) and expected.hex == found.hex
        clean &= all(
            self.expected.vectors[name].hex == self.found.vectors[name].hex
            for name, rule in self.rules.items()
            if rule.exact
        )
        fine = more.pop("ok", True)
        named: dict[str, Any] = {kind: tuple(firsts) for kind, firsts in self._named.items()}
        faults = [
            Difference(id=d.id, place=place, reason=reason, deviation=deviation)
            for d in named.pop("different")
            for place, reason, deviation in self._explained.get(d.id, d.faults) or (_unexplained(d),)
        ]
        return Verification(
            ok=clean and fine,
            strategy=strategy,
            expected_count=expected.count,
            target_count=found.count,
            digest_expected=expected.hex,
            digest_target=found.hex,
            **named,
            **self._totals(),
            different=tuple(faults),
            vectors={n: tally.proof(str(self.rules[n].tolerance)) for n, tally in self._vectors.items()},
            buckets=tuple(expected.differing(found)),
            **more,
        )


class Overtaken(Exception):
    """An id that comes twice was found in a later share before it was found in this one."""


def _without_own(expected: bytes, found: bytes, kept: Kept) -> bytes:
    """The canonical form of a record of the target without what its application keeps beside ours."""
    _, text, metadata, _ = parse_canonical(expected)
    id_, other, body, types = parse_canonical(found)
    own = {key for key in body if key not in metadata and kept.metadata(key)}
    if kept.text and text is None:
        other = None
    body = {key: value for key, value in body.items() if key not in own}
    types = {pointer: name for pointer, name in types.items() if _key_of(pointer) not in own}
    return dump_json([id_, other, body, types], sort=True)


def _key_of(pointer: str) -> str:
    """The key at the top of the metadata to which a JSON pointer leads."""
    return pointer.split("/")[1].replace("~1", "/").replace("~0", "~")


def _place(name: str) -> str:
    return f"vector:{name}" if name else "vector"


def _unexplained(known: Differing) -> Fault:
    place = "record" if known.documents or not known.fields else _place(known.fields[0])
    return place, UNEXPLAINED, None


def _differing(values: Sequence[Any]) -> Differing:
    id_, faults, row, documents, fields = values
    return Differing(id_, tuple((p, r, d) for p, r, d in faults), row, documents, tuple(fields))


class _Sums:
    """The digests of one side: of documents, and of the vectors of each field."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        self.documents = Digest()
        self.vectors = {name: Digest() for name in names}

    def add_vectors(self, name: str, hashes: Array, buckets: Array) -> None:
        there = hashes.any(axis=1)
        if there.all():
            self.vectors[name].add(hashes, buckets)
        else:
            self.vectors[name].add(hashes[there], buckets[there])

    def state(self) -> dict[str, Any]:
        vectors = {name: digest.state() for name, digest in self.vectors.items()}
        return {"documents": self.documents.state(), "vectors": vectors}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.documents = Digest.restore(state["documents"])
        self.vectors = {name: Digest.restore(digest) for name, digest in state["vectors"].items()}


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
        self.faults += len(measured.faults)
        self.compared += len(measured.deviations)
        self.identical += int((measured.deviations == 0).sum())
        self.measure(measured)

    def add_hashed(self, both: Array, other: Array) -> None:
        """Vectors of which only hashes were compared: which both sides have, and whose bits differ."""
        self.faults += int(other.sum())
        self.compared += int(both.sum())
        self.identical += int((both & ~other).sum())

    def measure(self, measured: Measured) -> None:
        """Take the deviations of vectors that were counted before."""
        deviations = measured.deviations
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
