"""`Verification`: what a comparison found, for people, for JSON and for a repair."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from vecferry.model import RecordId, decode_id


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Difference(_Frozen):
    """One record that is on both sides and not the same.

    Attributes:
        id: the typed id, as `encode_id` writes it.
        place: ``text``, ``metadata/KEY…`` (an RFC 6901 pointer) or ``vector`` / ``vector:NAME``.
        reason: what was expected and what is there.
        deviation: for vectors, the largest difference of a component.
    """

    id: str
    place: str
    reason: str
    deviation: float | None = None

    def __str__(self) -> str:
        return f"{decode_id(self.id)!r} {self.place}: {self.reason}"


class FieldProof(_Frozen):
    """How the vectors of one field compare.

    Attributes:
        compared: vectors that both sides have.
        identical: of these, equal bit for bit.
        max_deviation, mean_deviation: of the largest difference of a component in each vector
            (at unit length where directions are compared).
        tolerance: the rule, in words.
        faults: vectors outside the rule, or on one side only.
    """

    compared: int = 0
    identical: int = 0
    max_deviation: float = 0.0
    mean_deviation: float = 0.0
    tolerance: str = ""
    faults: int = 0


class SearchProof(_Frozen):
    """Whether the target finds what an exact search over the expected vectors finds.

    ``overlap`` is the mean share of the exact ``k`` nearest that the target returned, or that are no
    nearer than the last it returned (ties). ``worst`` is the lowest share of one query.
    """

    field: str
    queries: int
    k: int
    overlap: float
    worst: float


class Verification(_Frozen):
    """The proof, or what speaks against it.

    Attributes:
        ok: nothing is missing, surplus, doubled or different, and no two expected records have one id.
        strategy: ``merge``, ``hash`` or ``fetch``.
        expected_count, target_count: records compared on each side.
        expected_ids, target_ids: distinct ids among these.
        digest_expected, digest_target: see `vecferry.verifying.digest`.
        missing, extra, doubled: the first ids of each (as `encode_id` writes them), and how many there are.
        collided: expected records whose id another expected record had before: a store keeps one of them.
        different: the first records that differ, and how many there are.
        vectors: by field name.
        search: by field, where the target can search.
        buckets: of the 256 buckets of ids, those that differ.
        notes: what was not compared, and why.
    """

    ok: bool
    strategy: str
    expected_count: int
    target_count: int
    expected_ids: int = 0
    target_ids: int = 0
    digest_expected: str
    digest_target: str
    missing: tuple[str, ...] = ()
    missing_count: int = 0
    extra: tuple[str, ...] = ()
    extra_count: int = 0
    doubled: tuple[str, ...] = ()
    doubled_count: int = 0
    collided: tuple[str, ...] = ()
    collided_count: int = 0
    different: tuple[Difference, ...] = ()
    different_count: int = 0
    vectors: dict[str, FieldProof] = Field(default_factory=dict)
    search: tuple[SearchProof, ...] = ()
    buckets: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def missing_ids(self) -> list[RecordId]:
        """The typed ids of ``missing``."""
        return [decode_id(text) for text in self.missing]

    @property
    def extra_ids(self) -> list[RecordId]:
        """The typed ids of ``extra``."""
        return [decode_id(text) for text in self.extra]

    @property
    def collided_ids(self) -> list[RecordId]:
        """The typed ids of ``collided``, each once."""
        return [decode_id(text) for text in dict.fromkeys(self.collided)]

    @property
    def different_ids(self) -> list[RecordId]:
        """The typed ids of ``different``, each once."""
        return [decode_id(text) for text in dict.fromkeys(d.id for d in self.different)]

    @property
    def summary(self) -> str:
        """One sentence."""
        if self.ok:
            return f"{self.expected_count:,} records are equal"
        parts = [
            f"{self.missing_count:,} missing" if self.missing_count else "",
            f"{self.extra_count:,} extra" if self.extra_count else "",
            f"{self.doubled_count:,} doubled" if self.doubled_count else "",
            f"{self.different_count:,} different" if self.different_count else "",
            f"{self.collided_count:,} under the id of another" if self.collided_count else "",
            "searches find something else" if self._search_fails() else "",
            f"{len(self.buckets)} of 256 buckets of documents differ" if self.strategy == "receipt" else "",
        ]
        return ", ".join(part for part in parts if part) or "the digests differ"

    def _search_fails(self) -> bool:
        counts = (self.missing_count, self.extra_count, self.doubled_count, self.different_count)
        return self.strategy != "receipt" and not (any(counts) or self.collided_count or self.ok)

    def __str__(self) -> str:
        lines = [f"verified ({self.strategy}, {self.seconds:.1f} s): {self.summary}"]
        lines.append(f"  records  {self.expected_count:,} expected, {self.target_count:,} found")
        if (self.expected_ids, self.target_ids) != (self.expected_count, self.target_count):
            lines.append(f"  ids      {self.expected_ids:,} expected, {self.target_ids:,} found")
        lines.append(f"  digest   {self.digest_expected} {self._relation()} {self.digest_target}")
        for name, proof in self.vectors.items():
            lines.append(f"  vectors  {name or '(unnamed)'}: {_vector_line(proof)}")
        for proof_ in self.search:
            lines.append(
                f"  search   {proof_.field or '(unnamed)'}: {proof_.overlap:.1%} of the exact top "
                f"{proof_.k} over {proof_.queries} queries, worst {proof_.worst:.0%}"
            )
        for name, ids, count in self._lists():
            more = f" … and {count - len(ids):,} more" if count > len(ids) else ""
            lines.append(f"  {name:<8} {', '.join(repr(decode_id(i)) for i in ids[:10])}{more}")
        lines += [f"  differs  {difference}" for difference in self.different[:10]]
        lines += [f"  note     {note}" for note in self.notes]
        return "\n".join(lines)

    def _relation(self) -> str:
        return "=" if self.digest_expected == self.digest_target else "≠"

    def _lists(self) -> list[tuple[str, tuple[str, ...], int]]:
        every = [
            ("missing", self.missing, self.missing_count),
            ("extra", self.extra, self.extra_count),
            ("doubled", self.doubled, self.doubled_count),
            ("collided", self.collided, self.collided_count),
        ]
        return [(name, ids[:10], count) for name, ids, count in every if count]


def _vector_line(proof: FieldProof) -> str:
    if not proof.compared:
        return "none to compare" + (f", {proof.faults:,} at fault" if proof.faults else "")
    line = f"{proof.compared:,} compared, {proof.tolerance}; {proof.identical:,} identical"
    if proof.identical < proof.compared:
        line += f", deviation at most {proof.max_deviation:.3g}, {proof.mean_deviation:.3g} on average"
    return line + (f"; {proof.faults:,} at fault" if proof.faults else "")
