"""What a store promises when it is written."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from vecferry.model import CollectionSchema, DType, Kind, Loss, Metric, RecordBatch, RecordId


class WriteMode(StrEnum):
    """What to do with what the target already holds."""

    CREATE = "create"
    """There must be nothing yet."""
    UPSERT = "upsert"
    """Records with a known id replace the old ones; the others are added."""
    REPLACE = "replace"
    """The old collection is replaced as a whole, in one step, at the end."""
    RESUME = "resume"
    """Go on with what an earlier, unfinished `prepare` of the same job began."""


@dataclass(frozen=True, slots=True)
class WriteReceipt:
    """The target has acknowledged ``written`` records.

    Attributes:
        refused: where a target answers for each record: the ids it took not, with its reason. The others of
            the batch are written. A target that takes all of a request or nothing of it raises
            `RejectedRecord` instead.
    """

    written: int
    bytes: int = 0
    refused: tuple[tuple[RecordId, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a sink, as configured, can hold without changing it. The plan compares; nothing is probed.

    Attributes:
        kinds, metrics, dtypes: of vector fields.
        id_types: kept as they are; ids of other types are mapped and restored on the way back.
        metadata_types: type names (see `vecferry.model.type_name`) held natively; others travel
            in a reversible form. ``None`` means all.
        normalizes: metrics under which vectors are stored at unit length.
        keeps_norms: whether the magnitude that ``normalizes`` takes is kept with the record.
        several_fields: whether more than one vector field fits.
        field_names: false if a single field loses its name.
        missing_vectors: whether a record may lack a vector.
        needs_vectors: whether a collection must have a vector field at all.
        text: whether text has a place.
        needs_text: whether a record without a text gets an empty one (the layout of a framework).
        max_dim: by dtype, the most components a field may have.
        losses: what the chosen settings lose by themselves (a PQ index).
    """

    kinds: frozenset[Kind] = frozenset({Kind.DENSE})
    metrics: frozenset[Metric] = frozenset({Metric.COSINE, Metric.L2, Metric.IP})
    dtypes: frozenset[DType] = frozenset({DType.FLOAT32})
    id_types: frozenset[str] = frozenset({"int", "str", "uuid", "tuple"})
    metadata_types: frozenset[str] | None = None
    normalizes: frozenset[Metric] = frozenset()
    keeps_norms: bool = False
    several_fields: bool = True
    field_names: bool = True
    missing_vectors: bool = True
    needs_vectors: bool = True
    text: bool = True
    needs_text: bool = False
    max_dim: tuple[tuple[DType, int], ...] = ()
    losses: tuple[Loss, ...] = ()


@runtime_checkable
class Sink(Protocol):
    """A store that can be written. Every verb is idempotent."""

    def capabilities(self) -> Capabilities:
        """What this sink can hold. Works before the target exists and without writing."""
        ...

    def exists(self) -> bool:
        """Whether a collection of this name is there (published, not merely begun)."""
        ...

    def prepare(self, schema: CollectionSchema, mode: WriteMode) -> None:
        """Make the target ready for records of ``schema``. Idempotent.

        The embedding space of each field is recorded with the target, durably, before the first
        record. With ``UPSERT`` on an existing target, and with ``RESUME``, the schema is checked
        against what is there.

        Raises:
            TargetExistsError: mode ``CREATE`` and there is a collection.
            SchemaMismatchError: another dimension, metric or field set is there.
            SpaceMismatchError: another embedding space is there.
        """
        ...

    def write(self, batch: RecordBatch) -> WriteReceipt:
        """Upsert by id; acknowledged when it returns. Idempotent.

        Called from one thread at a time. A sink that gains by parallel requests makes them inside.
        Either all records are written but those that the receipt names as refused, or an error is raised;
        after an error the same or a smaller batch may be written again.

        An upsert replaces exactly: afterwards the record says what the batch says. Metadata keys, texts
        and vectors that an earlier write put there and this one does not bring are gone. Only what an
        application keeps beside them and the source does not know of may stay, see `KeepsOwn`.

        Raises:
            RejectedRecord: the target refuses some records for what they contain.
            RequestTooLargeError: the batch is too big for one request.
            RetryableError: a passing fault.
            FatalStoreError: the target said no for good.
        """
        ...

    def finish(self) -> None:
        """Build indexes and flush; when it returns the collection can be read and searched.

        Idempotent, also when an earlier call was cut short."""
        ...

    def close(self) -> None:
        """Release connections and files. What is unfinished stays resumable. Idempotent."""
        ...
