"""`Dedupe`: one rule, checked when it is written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from vecferry.errors import ConfigurationError
from vecferry.model import VectorRecord
from vecferry.ports import Fields

Choose: TypeAlias = Callable[[Sequence[VectorRecord]], VectorRecord]
Keep: TypeAlias = Literal["first", "last", "newest", "oldest"] | Choose

_KEEPS = ("first", "last", "newest", "oldest")
_METADATA = "metadata:"
_DEFAULT_THRESHOLDS = {"similar": 0.98, "minhash": 0.85}


@dataclass(frozen=True, slots=True, repr=False)
class Dedupe:
    """What makes two records duplicates, and which of them stays.

    Args:
        by: ``"id"``; ``"text"``; ``"metadata:KEY[,KEY…]"`` (equal values of all keys);
            ``"vector"`` (equal bit for bit); ``"similar"`` (cosine of the vectors at least
            ``threshold``); ``"minhash"`` (Jaccard similarity of the texts' shingles, found by MinHash
            signatures and then computed, at least ``threshold``, and a difference in more than signs,
            marks or digits). A record that lacks what a rule looks at is never a duplicate by that rule.
        keep: ``"first"`` or ``"last"`` in the order of the source, ``"newest"`` or ``"oldest"`` by
            ``timestamp``, or a callable that takes the records of one cluster (without vectors, in the
            order of the source) and returns the one to keep. Everything but ``"first"`` needs a first
            pass over the source. Equal or unreadable times fall back to the first.
        timestamp: ``"metadata:KEY"``: ISO 8601 strings, datetimes, dates, or epoch numbers in seconds,
            milliseconds or microseconds (told apart by their size). Naive times are taken as UTC.
        normalize: for ``by="text"``: compare after Unicode NFKC, case folding and collapsing white
            space.
        threshold: for ``similar`` (default 0.98) and ``minhash`` (default 0.85), in (0, 1].
        within: ``"metadata:KEY[,KEY…]"``: for ``similar`` and ``minhash``, compare only records that
            agree in these.
        field: the vector field of ``vector`` and ``similar``.
        merge: ``"union"`` gives the kept record the metadata keys that only the removed ones had, and
            joins lists. Values that both have stay those of the kept record.
        against_target: also remove what the target already holds; what lies there always stays.

    Raises:
        ConfigurationError: naming the setting that does not fit.

    >>> Dedupe(by="text", keep="newest", timestamp="metadata:created_at").label
    'text'
    """

    by: str = "id"
    keep: Keep = "first"
    timestamp: str | None = None
    normalize: bool = False
    threshold: float | None = None
    within: str | None = None
    field: str = ""
    merge: Literal["union"] | None = None
    against_target: bool = False

    def __post_init__(self) -> None:
        _check_by(self.by)
        self._check_keep()
        if self.near and self.threshold is None:
            object.__setattr__(self, "threshold", _DEFAULT_THRESHOLDS[self.by])
        if not self.near and (self.threshold is not None or self.within is not None):
            raise ConfigurationError(
                f'threshold and within belong to by="similar" and "minhash", not {self.by!r}'
            )
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ConfigurationError(f"threshold is {self.threshold}; give a number above 0 and at most 1")
        if self.normalize and self.by != "text":
            raise ConfigurationError('normalize=True belongs to by="text"')
        if self.merge not in (None, "union"):
            raise ConfigurationError(f'merge is {self.merge!r}; there is "union"')
        for name, value in (("timestamp", self.timestamp), ("within", self.within)):
            if value is not None:
                metadata_keys(value, name)

    def _check_keep(self) -> None:
        if not callable(self.keep) and self.keep not in _KEEPS:
            raise ConfigurationError(f"keep is {self.keep!r}; there are {', '.join(_KEEPS)} and callables")
        if self.keep in ("newest", "oldest") and not self.timestamp:
            raise ConfigurationError(f'keep="{self.keep}" needs timestamp="metadata:KEY"')
        if callable(self.keep) and self.near:
            raise ConfigurationError(f"keep=callable needs clusters of equals; by={self.by!r} has none")

    # -- what the rule needs ------------------------------------------------------------------

    @property
    def label(self) -> str:
        """How reports name the rule."""
        extra = ", normalised" if self.normalize else ""
        extra += f" ≥ {self.threshold:g}" if self.near else ""
        return f"{self.by}{extra}" + (f" within {self.within}" if self.within else "")

    @property
    def near(self) -> bool:
        """Whether the rule compares by similarity instead of by equal keys."""
        return self.by in _DEFAULT_THRESHOLDS

    @property
    def needs_vectors(self) -> bool:
        """Whether the rule can only run once the vectors are there, so behind an embedding stage."""
        return self.by in ("vector", "similar")

    @property
    def needs_first_pass(self) -> bool:
        """Whether the whole source must be seen before the first record can go on."""
        return self.keep != "first" or self.merge is not None

    @property
    def needs_records(self) -> bool:
        """Whether the first pass keeps texts and metadata aside (on disk)."""
        return callable(self.keep) or self.merge is not None

    @property
    def keys(self) -> tuple[str, ...]:
        """The metadata keys of ``by="metadata:…"``."""
        return metadata_keys(self.by, "by") if self.by.startswith(_METADATA) else ()

    @property
    def fields(self) -> Fields:
        """What must be read to decide: never vectors unless the rule compares them."""
        metadata = bool(self.keys or self.timestamp or self.within or self.needs_records)
        text = self.by in ("text", "minhash") or self.needs_records
        vectors = (self.field,) if self.needs_vectors and self.field else self.needs_vectors
        return Fields(vectors=vectors, text=text, metadata=metadata)

    def __repr__(self) -> str:
        given = {name: value for name, value in self.settings().items() if value not in (None, False, "")}
        return f"Dedupe({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    def settings(self) -> dict[str, Any]:
        """The rule as JSON, for the fingerprint of a job; a callable by its name."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if callable(self.keep):
            name = getattr(self.keep, "__qualname__", type(self.keep).__qualname__)
            values["keep"] = f"{self.keep.__module__}.{name}"
        return values


def metadata_keys(text: str, what: str) -> tuple[str, ...]:
    """``"metadata:a,b"`` → ``("a", "b")``.

    Raises:
        ConfigurationError: if it is not of that form.
    """
    keys = tuple(key.strip() for key in text.removeprefix(_METADATA).split(","))
    if not text.startswith(_METADATA) or not all(keys):
        raise ConfigurationError(f'{what} is {text!r}; write "metadata:KEY" or "metadata:KEY,KEY"')
    return keys


def rules_of(rules: Dedupe | str | Sequence[Dedupe | str]) -> tuple[Dedupe, ...]:
    """One rule or several, as a tuple; a string stands for ``Dedupe(by=string)``.

    Raises:
        ConfigurationError: if there is none.
    """
    given = [rules] if isinstance(rules, Dedupe | str) else list(rules)
    if not given:
        raise ConfigurationError('give at least one rule, such as Dedupe(by="text")')
    return tuple(Dedupe(by=rule) if isinstance(rule, str) else rule for rule in given)


def fields_for(rules: Sequence[Dedupe]) -> Fields:
    """What all the rules together read."""
    wanted = [rule.fields for rule in rules]
    named: tuple[str, ...] = ()
    for fields in wanted:
        if fields.vectors is True:
            return Fields(True, any(f.text for f in wanted), any(f.metadata for f in wanted))
        named += fields.vectors or ()
    vectors: bool | tuple[str, ...] = tuple(dict.fromkeys(named)) or False
    return Fields(vectors, any(f.text for f in wanted), any(f.metadata for f in wanted))


def _check_by(by: str) -> None:
    if by in ("id", "text", "vector", "similar", "minhash"):
        return
    if by.startswith(_METADATA):
        metadata_keys(by, "by")
        return
    raise ConfigurationError(
        f'by is {by!r}; there are id, text, vector, similar, minhash and "metadata:KEY[,KEY]"'
    )
