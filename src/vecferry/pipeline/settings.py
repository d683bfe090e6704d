"""Everything a caller may set on a migration, validated in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vecferry.errors import ConfigurationError
from vecferry.model import Metric, check_where
from vecferry.ports import WriteMode


class Settings(BaseModel):
    """The keyword arguments of `vecferry.migrate` and `vecferry.plan`.

    Attributes:
        mode: ``create`` (there must be nothing yet), ``upsert`` (by id, into what is there), ``replace``
            (build beside, verify, then swap).
        where: a filter on the source's metadata (see `vecferry.model.filters`), or whatever native
            filter the source's adapter takes.
        transform: ``VectorRecord -> VectorRecord | None``, or ``RecordBatch -> RecordBatch``. It is called
            again by a resume and by the verification, and must give the same result then.
        fields: the vector fields to carry: names, or ``{source name: target name}``.
        metric: of the target, where it shall differ.
        space: what made the source's vectors, where the source does not know.
        embed, reembed, embed_field, on_no_text, long_text, chunk_size, chunk_overlap, cache, budget,
            on_exhausted: see ``docs/embedding.md``.
        dedupe: a rule or several; see ``docs/dedupe.md``.
        lossy: ``refuse`` raises on any loss that is not kept reversibly.
        on_error: ``stop`` at a record that cannot go on, or put it into ``quarantine``.
        max_rejected: how many (int) or what share (float below 1) may be put aside before it stops.
        batch_size: records a batch; by default about 4 MiB of them.
        resume: go on with an unfinished job of the same source and target.
        state_dir: the job's folder, instead of one under ``VECFERRY_HOME``.
        publish: ``auto`` after a verification without difference, or ``manual``.
        verify: compare the target with the source at the end. Without it ``Report.check`` fails.
        workers: threads that read the target at once while it is compared; they change no result.
        sample: how many records the plan looks at; ``None`` for all.
        backup: write the source to this place (a path or a URL) first, then migrate from there.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, frozen=True)

    mode: Literal["create", "upsert", "replace"] = "create"
    where: Any = None
    transform: Callable[..., Any] | None = None
    fields: Sequence[str] | Mapping[str, str] | None = None
    metric: Metric | None = None
    space: Any = None
    embed: Any = None
    reembed: Literal["auto", "always", "never"] = "auto"
    embed_field: str | None = None
    on_no_text: Literal["quarantine", "refuse"] = "refuse"
    long_text: Literal["truncate", "split", "quarantine", "refuse"] = "truncate"
    chunk_size: int | None = Field(default=None, gt=0)
    chunk_overlap: int | None = Field(default=None, ge=0)
    cache: Any = True
    budget: Any = None
    on_exhausted: Literal["stop", "restart"] = "stop"
    dedupe: Any = None
    lossy: Literal["allow", "refuse"] = "allow"
    on_error: Literal["stop", "quarantine"] = "stop"
    max_rejected: int | float | None = Field(default=None, ge=0, allow_inf_nan=False)
    batch_size: int | None = Field(default=None, gt=0)
    resume: bool = True
    state_dir: Path | None = None
    publish: Literal["auto", "manual"] = "auto"
    verify: bool = True
    workers: int = Field(default=1, gt=0)
    sample: int | None = Field(default=50_000, gt=0)
    backup: str | Path | None = None

    @field_validator("where")
    @classmethod
    def _well_formed(cls, where: Any) -> Any:
        return check_where(where) if isinstance(where, Mapping) else where

    @field_validator("state_dir")
    @classmethod
    def _at_home(cls, folder: Path | None) -> Path | None:
        return folder and folder.expanduser()

    @property
    def write_mode(self) -> WriteMode:
        return WriteMode(self.mode)

    def identity(self) -> dict[str, Any]:
        """The settings that decide *what* is written: a resume must find them unchanged."""
        return {
            "mode": self.mode,
            "where": None if self.where is None else _named(self.where),
            "transform": self.transform and _named(self.transform),
            "fields": dict(self.fields) if isinstance(self.fields, Mapping) else self.fields,
            "metric": self.metric,
            "space": None if self.space is None else str(self.space),
            "reembed": self.reembed,
            "embed_field": self.embed_field,
            "long_text": [self.long_text, self.chunk_size, self.chunk_overlap],
            "dedupe": None if self.dedupe is None else repr(self.dedupe),
        }


class Options(TypedDict, total=False):
    """The same as keyword arguments, for editors and type checkers."""

    mode: Literal["create", "upsert", "replace"]
    where: Any
    transform: Callable[..., Any] | None
    fields: Sequence[str] | Mapping[str, str] | None
    metric: Metric | str | None
    space: Any
    embed: Any
    reembed: Literal["auto", "always", "never"]
    embed_field: str | None
    on_no_text: Literal["quarantine", "refuse"]
    long_text: Literal["truncate", "split", "quarantine", "refuse"]
    chunk_size: int | None
    chunk_overlap: int | None
    cache: Any
    budget: Any
    on_exhausted: Literal["stop", "restart"]
    dedupe: Any
    lossy: Literal["allow", "refuse"]
    on_error: Literal["stop", "quarantine"]
    max_rejected: int | float | None
    batch_size: int | None
    resume: bool
    state_dir: str | Path | None
    publish: Literal["auto", "manual"]
    verify: bool
    workers: int
    sample: int | None
    backup: str | Path | None


class CallOptions(Options, total=False):
    """`Options`, and what goes to the adapters."""

    layout: str | None
    source_options: Mapping[str, Any] | None
    target_options: Mapping[str, Any] | None


def read_settings(options: Mapping[str, Any]) -> Settings:
    """Validate keyword arguments.

    Raises:
        ConfigurationError: naming the argument and what it takes.
    """
    try:
        return Settings(**options)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        if first["type"] == "extra_forbidden":
            raise ConfigurationError(
                f"migrate() has no argument {name!r}; there are {', '.join(Settings.model_fields)}"
            ) from None
        raise ConfigurationError(f"{name}: {first['msg']}") from None


def _named(value: Any) -> str:
    """A text that is the same in the next process: no memory addresses."""
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    return str(value)
