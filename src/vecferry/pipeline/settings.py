"""Everything a caller may set on a migration, defined once.

The keyword arguments of `vecferry.migrate` and `vecferry.plan`, the options of both commands, the table in
``docs/settings.md`` and the identity of a job all derive from the fields below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vecferry.core.retry import RetryPolicy
from vecferry.errors import ConfigurationError
from vecferry.model import Metric, check_where
from vecferry.ports import OnProgress, ShouldStop, WriteMode, ignore_progress, is_secret, never_stop

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Option:
    """How a setting looks on the command line, and whether it decides *what* is written.

    Attributes:
        flag: ``--name``; derived from the field's name where it is empty, absent where it is ``None``.
        reads: how the text is read: as it is, a filter, field names, one or many, a number of some kind, or
            a switch that turns the setting off (``no``) or on (``yes``).
        identity: a resume must find the setting unchanged.
    """

    flag: str | None = ""
    reads: Literal["value", "where", "fields", "many", "share", "sample", "pairs", "no", "yes"] = "value"
    identity: bool = False


def _setting(
    default: Any, text: str, option: Option | None = None, *, identity: bool = False, **limits: Any
) -> Any:
    """A field with its documentation and its place on the command line."""
    chosen = option or Option(identity=identity)
    return Field(default=default, description=text, json_schema_extra={"option": chosen}, **limits)  # type: ignore[dict-item]


_OBJECTS_ONLY = Option(None)


class Settings(BaseModel):
    """The settings of a migration; ``Settings.model_fields`` documents each."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, frozen=True)

    mode: Literal["create", "upsert", "replace"] = _setting(
        "create",
        "`create` (there must be nothing yet), `upsert` (by id, into what is there), or `replace` "
        "(build beside, verify, then swap).",
        identity=True,
    )
    where: Any = _setting(
        None,
        "Only the records that pass this filter on the source's metadata, or whatever native filter the "
        "source's adapter takes; `\"lang == 'en' and page >= 3\"` on the command line.",
        Option("--where", "where", identity=True),
    )
    allow_empty: bool = _setting(
        False, "Let a `replace` go through whose filter matches no record.", Option("--allow-empty", "yes")
    )
    transform: Callable[..., Any] | None = _setting(
        None,
        "`VectorRecord -> VectorRecord | None`, or `RecordBatch -> RecordBatch`. It is called again by a "
        "resume and by the verification, and must give the same result then.",
        Option(None, identity=True),
    )
    fields: Sequence[str] | Mapping[str, str] | None = _setting(
        None,
        "The vector fields to carry: names, or `{source name: target name}`; `--field NAME` or "
        "`--field OLD=NEW`, repeatable.",
        Option("--field", "fields", identity=True),
    )
    metric: Metric | str | None = _setting(
        None, "The target's metric, where it shall differ: `cosine`, `l2`, `ip`, …", identity=True
    )
    space: Any = _setting(
        None, "The model that made the source's vectors, where the source does not know.", identity=True
    )
    embed: Any = _setting(
        None,
        "Embed the texts with this model; several are alternatives for the whole job. See embedding.md.",
        Option("--embed", "many"),
    )
    reembed: Literal["auto", "always", "never"] = _setting(
        "auto",
        "Which records are embedded: those that lack a vector of the space, all, none.",
        identity=True,
    )
    embed_field: str | None = _setting(None, "The vector field that is embedded into.", identity=True)
    on_no_text: Literal["quarantine", "refuse"] = _setting(
        "refuse", "What happens to a record that needs a vector and has no text."
    )
    long_text: Literal["truncate", "split", "quarantine", "refuse"] = _setting(
        "truncate", "What happens to a text that is longer than the model reads.", identity=True
    )
    chunk_size: int | None = _setting(None, "Tokens of a chunk, with `split`.", identity=True, gt=0)
    chunk_overlap: int | None = _setting(None, "Tokens shared by neighbours.", identity=True, ge=0)
    cache: Any = _setting(
        True, "Where vectors are kept between runs: a path, a Redis URL, an object, or off.",
        Option("--no-cache", "no"),
    )  # fmt: skip
    budget: Any = _setting(
        None,
        "Bounds of what embedding may cost: a `Budget`, or `{'usd_per_month': 100}`; `--budget "
        "usd_per_month=100`.",
        Option("--budget", "pairs"),
    )
    on_exhausted: Literal["stop", "restart"] = _setting(
        "stop", "When no provider of the space answers any more: stop, or start anew with the next model."
    )
    dedupe: Any = _setting(
        None,
        "A rule or several: `id`, `text`, `metadata:KEY`, `vector`, … See dedupe.md.",
        Option("--dedupe", "many", identity=True),
    )
    lossy: Literal["allow", "refuse"] = _setting(
        "allow", "`refuse` stops before the first write at any loss that is not kept reversibly."
    )
    on_error: Literal["stop", "quarantine"] = _setting(
        "stop", "Stop at a record that cannot go on, or put it aside."
    )
    max_rejected: int | float | None = _setting(
        None, "Stop beyond this many rejected records, or this share of those read (below 1).",
        Option("--max-rejected", "share"), ge=0, allow_inf_nan=False,
    )  # fmt: skip
    batch_size: int | None = _setting(None, "Records of a batch; by default about 4 MiB of them.", gt=0)
    resume: bool = _setting(
        True, "Go on with an unfinished job of the same source and target.", Option("--no-resume", "no")
    )
    state_dir: str | Path | None = _setting(None, "The job's folder, instead of one under `VECFERRY_HOME`.")
    publish: Literal["auto", "manual"] = _setting(
        "auto", "Swap the new target in after a verification without difference, or leave that to a call."
    )
    verify: bool = _setting(
        True, "Compare the target with the source at the end. Without it nothing is proved.",
        Option("--no-verify", "no"),
    )  # fmt: skip
    min_overlap: float = _setting(
        0.5, "The least share of an exact search's hits that the target's search must find.", ge=0, le=1
    )
    workers: int = _setting(
        1, "Partitions that are read, written and compared at once; they change no result.", gt=0
    )
    sample: int | None = _setting(
        50_000, "How many records the plan looks at; `None` (0 on the command line) for all.",
        Option("--sample", "sample"), gt=0,
    )  # fmt: skip
    backup: str | Path | None = _setting(
        None, "Write the source to this place (a path or a URL) first, then migrate from there."
    )
    retry_seconds: float | None = _setting(
        None,
        "How long a server that is away is waited for; 180 s, or what `VECFERRY_RETRY_SECONDS` says.",
        ge=0,
        allow_inf_nan=False,
    )

    @field_validator("where")
    @classmethod
    def _well_formed(cls, where: Any) -> Any:
        return check_where(where) if isinstance(where, Mapping) else where

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: Metric | str | None) -> Metric | None:
        return None if metric is None else Metric(metric)

    @field_validator("state_dir")
    @classmethod
    def _at_home(cls, folder: str | Path | None) -> Path | None:
        return None if folder is None else Path(folder).expanduser()

    @property
    def write_mode(self) -> WriteMode:
        return WriteMode(self.mode)

    @property
    def folder(self) -> Path | None:
        """``state_dir`` as it was read."""
        return None if self.state_dir is None else Path(self.state_dir)

    @property
    def retry(self) -> RetryPolicy:
        """The bound of every wait: a time, not a number of attempts."""
        return RetryPolicy() if self.retry_seconds is None else RetryPolicy(max_seconds=self.retry_seconds)

    def identity(self) -> dict[str, Any]:
        """The settings that decide *what* is written, as JSON: a resume must find them unchanged."""
        return {
            name: _as_json(_public(name, getattr(self, name)))
            for name, option in options_of(type(self))
            if option.identity
        }


class CallSettings(Settings):
    """The settings, and what goes to the adapters."""

    layout: str | None = _setting(
        None, "How records lie in the target: `plain`, `langchain`, `llamaindex`, `both`.", identity=True
    )
    source_options: Mapping[str, Any] | None = _setting(
        None, "Options for the source's adapter, as in `connect`.", Option(None, identity=True)
    )
    target_options: Mapping[str, Any] | None = _setting(
        None, "Options for the target's adapter, as in `connect`.", Option(None, identity=True)
    )


class RunSettings(CallSettings):
    """What `vecferry.migrate` takes besides: who is told, and who may stop it."""

    on_progress: OnProgress = _setting(
        ignore_progress, "Called with a `Progress` after every batch.", _OBJECTS_ONLY
    )
    should_stop: ShouldStop = _setting(
        never_stop, "Asked after every batch; true stops at a checkpoint with `JobStopped`.", _OBJECTS_ONLY
    )


def takes(
    settings: Callable[P, Settings],
) -> Callable[[Callable[..., R]], Callable[Concatenate[Any, Any, P], R]]:
    """Give a function ``(source, target, **options)`` the signature of ``settings``, for editors and
    checkers.
    """

    def dress(function: Callable[..., R]) -> Callable[Concatenate[Any, Any, P], R]:
        own = [
            p for p in signature(function).parameters.values() if p.kind is Parameter.POSITIONAL_OR_KEYWORD
        ]
        model = cast("type[Settings]", settings)
        more = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=info.default, annotation=info.annotation)
            for name, info in model.model_fields.items()
        ]
        function.__signature__ = Signature([*own, *more])  # type: ignore[attr-defined]
        return cast("Callable[Concatenate[Any, Any, P], R]", function)

    return dress


def options_of(model: type[Settings]) -> Iterator[tuple[str, Option]]:
    """Each field of ``model`` with its `Option`."""
    for name, info in model.model_fields.items():
        extra = cast("dict[str, Any]", info.json_schema_extra)
        option: Option = extra["option"]
        flag = option.flag if option.flag != "" else "--" + name.replace("_", "-")
        yield name, Option(flag, option.reads, option.identity)


def read_settings(options: Mapping[str, Any]) -> CallSettings:
    """Validate keyword arguments.

    Raises:
        ConfigurationError: naming the argument and what it takes.
    """
    try:
        return CallSettings(**options)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        if first["type"] == "extra_forbidden":
            raise ConfigurationError(
                f"migrate() has no argument {name!r}; there are {', '.join(CallSettings.model_fields)}"
            ) from None
        raise ConfigurationError(f"{name}: {first['msg']}") from None


def settings_table() -> str:
    """Every setting as a Markdown table: keyword, option, values, default, meaning."""
    rows = ["| keyword | option | values | default | what it does |", "| --- | --- | --- | --- | --- |"]
    for name, option in options_of(CallSettings):
        info = CallSettings.model_fields[name]
        flag = f"`{option.flag}`" if option.flag else ""
        rows.append(
            f"| `{name}` | {flag} | {_values(info.annotation)} | `{info.default!r}` | {info.description} |"
        )
    return "\n".join(rows)


def _values(annotation: Any) -> str:
    choices = (
        [c for c in get_args(annotation) if isinstance(c, str)] if get_origin(annotation) is Literal else []
    )
    return ", ".join(f"`{choice}`" for choice in choices)


def _public(name: str, value: Any) -> Any:
    """Adapters' options without the secret ones; ``None`` where nothing is left."""
    if name.endswith("_options") and value is not None:
        return {key: str(value[key]) for key in sorted(value) if not is_secret(key)} or None
    return value


def _as_json(value: Any) -> Any:
    """A value that is the same in the next process: no memory addresses, no secrets."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return str(value)
