"""The receipt of a verification: sums by which anybody can hold a collection later, without the source.

docs/verification.md specifies the format; ``examples/check_receipt.py`` is an independent reader of it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import vecferry
from vecferry.core.durable import write_durably
from vecferry.errors import ConfigurationError, CorruptDataError, NotFoundError
from vecferry.model import CollectionSchema, Loss
from vecferry.model.equality import EXACT
from vecferry.ports import Fields, ShouldStop, Source, never_stop
from vecferry.verifying.digest import Digest, key_halves
from vecferry.verifying.hash_join import KEY_FIELDS, Runs, add_keys
from vecferry.verifying.reading import Reader
from vecferry.verifying.result import FieldProof, Verification
from vecferry.verifying.verifier import FieldRule, Verifier

FORMAT = "vecferry-receipt/1"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sums(_Frozen):
    """A count and a sum of hashes, in total and by bucket (``count:digest``)."""

    count: int
    digest: str
    buckets: tuple[str, ...]

    @classmethod
    def of(cls, digest: Digest) -> Sums:
        return cls(count=digest.count, digest=digest.hex, buckets=tuple(digest.buckets()))

    def differing(self, other: Sums) -> tuple[int, ...]:
        """The buckets in which the two differ."""
        pairs = enumerate(zip(self.buckets, other.buckets, strict=True))
        return tuple(i for i, (a, b) in pairs if a != b)


class VectorSums(Sums):
    """Of one vector field.

    Attributes:
        dtype: the component type in which the vectors were hashed.
        tolerance: the rule by which they were compared. Where it is not ``bit for bit``, the sums are of
            what the target gave back that time; only the numbers of vectors can be held.
    """

    dtype: str
    tolerance: str

    @property
    def exact(self) -> bool:
        return self.tolerance == str(EXACT)


class End(_Frozen):
    """What one side of the verification was."""

    url: str
    collection: CollectionSchema


class Receipt(_Frozen):
    """What a target held when it was found equal to what was expected.

    Attributes:
        records, ids: how many, and how many distinct ids.
        text, metadata: whether they are part of the sums of ``documents``.
        vectors: by field name.
        counts: what the job read, wrote, dropped and rejected.
        losses: as the plan announced them.
    """

    format: str = FORMAT
    made: str
    by: str = Field(default_factory=lambda: f"vecferry {vecferry.__version__}")
    source: End
    target: End
    records: int
    ids: int
    text: bool = True
    metadata: bool = True
    documents: Sums
    vectors: dict[str, VectorSums] = Field(default_factory=dict)
    counts: dict[str, int] = Field(default_factory=dict)
    losses: tuple[Loss, ...] = ()

    @classmethod
    def of(
        cls,
        proof: Verification,
        verifier: Verifier,
        source: End,
        target: End,
        *,
        counts: dict[str, int] | None = None,
        losses: Iterable[Loss] = (),
    ) -> Receipt:
        """The receipt of a proof without a difference, from the account of it.

        Raises:
            ConfigurationError: if there was a difference.
        """
        if not proof.ok:
            raise ConfigurationError("there is no receipt for a verification that found a difference")
        found = verifier.found
        return cls(
            made=datetime.now(UTC).isoformat(timespec="seconds"),
            source=source,
            target=target,
            records=proof.target_count,
            ids=proof.target_ids,
            text=verifier.fields.text,
            metadata=verifier.fields.metadata,
            documents=Sums.of(found.documents),
            vectors={
                name: VectorSums(
                    **Sums.of(found.vectors[name]).model_dump(),
                    dtype=rule.dtype,
                    tolerance=str(rule.tolerance),
                )
                for name, rule in verifier.rules.items()
            },
            counts=counts or {},
            losses=tuple(losses),
        )

    @classmethod
    def read(cls, path: str | Path) -> Receipt:
        """From a file.

        Raises:
            NotFoundError, CorruptDataError: if there is none, or it is no receipt.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise NotFoundError(f"there is no receipt at {path}: {error.strerror}") from None
        try:
            receipt = cls.model_validate_json(data)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"])) or "the whole"
            raise CorruptDataError(f"{path} is not a receipt of vecferry ({where})") from None
        if receipt.format != FORMAT:
            raise CorruptDataError(f"{path} has the format {receipt.format!r}, and {FORMAT!r} is read here")
        return receipt

    def write(self, path: Path) -> None:
        """To a file, as JSON, atomically."""
        write_durably(path, self.model_dump_json(indent=1, exclude_none=True).encode() + b"\n")

    def hold(
        self,
        target: Source,
        *,
        workers: int = 1,
        on_progress: Callable[[int], None] = lambda _: None,
        should_stop: ShouldStop = never_stop,
    ) -> Verification:
        """Read a collection and hold it against the sums.

        Which record differs only the source can tell; the buckets narrow it down.
        """
        start = time.monotonic()
        have = target.describe()
        names = {field.name for field in have.fields}
        rules = {name: FieldRule(EXACT, sums.dtype) for name, sums in self.vectors.items() if name in names}
        fields = Fields(tuple(rules), self.text, self.metadata)
        verifier = Verifier(have, rules, fields=fields)
        reader = Reader(target, fields, workers, should_stop)
        notes = [f"there is no vector field {name!r}" for name in sorted(self.vectors.keys() - names)]
        with tempfile.TemporaryDirectory(prefix="vecferry-verify-") as folder:
            runs = Runs(KEY_FIELDS, Path(folder) / "ids")
            with closing(reader.shares(reader.split(self.records))) as batches:
                for _, batch in batches:
                    verifier.count_found(batch)
                    add_keys(runs, key_halves(batch.ids))
                    on_progress(len(runs))
                    if should_stop():
                        notes.append("stopped before the end")
                        break
            ids = len(runs) - runs.collided(0)[0]
        found = verifier.found
        documents = Sums.of(found.documents)
        proofs: dict[str, FieldProof] = {}
        clean = not notes
        for name in rules:
            proofs[name], fine, note = self._hold_vectors(name, Sums.of(found.vectors[name]))
            clean &= fine
            notes += [note] if note else []
        return Verification(
            ok=clean and (ids, documents) == (self.ids, self.documents),
            strategy="receipt",
            expected_count=self.records,
            target_count=len(runs),
            expected_ids=self.ids,
            target_ids=ids,
            digest_expected=self.documents.digest,
            digest_target=documents.digest,
            vectors=proofs,
            buckets=self.documents.differing(documents),
            notes=tuple(notes),
            seconds=time.monotonic() - start,
        )

    def _hold_vectors(self, name: str, found: Sums) -> tuple[FieldProof, bool, str | None]:
        mine, place = self.vectors[name], name or "the vector field"
        odd = mine.differing(found)
        proof = FieldProof(
            compared=found.count, identical=0 if odd else found.count, tolerance="by sums in 256 buckets"
        )
        if not odd:
            return proof, True, None
        if mine.exact:
            return proof, False, f"the vectors of {place} differ in {len(odd)} of 256 buckets"
        there = [part.partition(":")[0] for part in found.buckets]
        if there != [part.partition(":")[0] for part in mine.buckets]:
            return proof, False, f"another number of records has vectors of {place}"
        return (
            proof,
            True,
            f"the vectors of {place} were held by their number alone: they were compared {mine.tolerance}, "
            "and only the source can tell whether they are equal",
        )


__all__ = ["FORMAT", "End", "Receipt", "Sums", "VectorSums"]
