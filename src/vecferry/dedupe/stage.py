"""`DedupeStage`: the rules as a stage of the stream."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import numpy as np

from vecferry.dedupe import log
from vecferry.dedupe.features import features, matcher_for
from vecferry.dedupe.first_pass import Decisions, FirstPass
from vecferry.dedupe.matchers import Matcher
from vecferry.dedupe.report import DedupeReport, audit_file, summary
from vecferry.dedupe.rules import Dedupe, fields_for, rules_of
from vecferry.dedupe.similar import SimilarMatcher
from vecferry.errors import ConfigurationError
from vecferry.model import RecordBatch
from vecferry.model.vectors import Array
from vecferry.ports import Fields, InFlightBatch, Source

MEMORY_KEYS = 20_000_000
"""Keys of one rule held in memory, at 24 bytes each; beyond, they move to disk."""


def dedupe_stages(
    rules: Dedupe | str | Sequence[Dedupe | str], *, embeds: bool = False
) -> list[DedupeStage]:
    """The stages that apply ``rules`` in order.

    Args:
        embeds: whether the stream embeds the texts. Then the rules that need no vectors come first, as
            one stage to be put before the embedding, so that no duplicate is paid for; the others
            are a second stage behind it, whose ``needs_vectors`` is true.

    Raises:
        ConfigurationError: if a rule behind the embedding needs a first pass, which would embed twice.
    """
    chosen = rules_of(rules)
    if not embeds:
        return [DedupeStage(chosen)]
    early = [rule for rule in chosen if not rule.needs_vectors]
    late = [rule for rule in chosen if rule.needs_vectors]
    for rule in late:
        if rule.needs_first_pass:
            raise ConfigurationError(
                f"by={rule.by!r} compares vectors that are only being made, so it can keep only the first: "
                "drop keep= and merge=, or dedupe in a second step, once the vectors are there"
            )
    stages = [DedupeStage(early)] if early else []
    return [*stages, DedupeStage(late, name="dedupe-vectors")] if late else stages


class DedupeStage:
    """Drops duplicates from the stream; see `Dedupe` for what they are.

    Before the stream begins: `bind_job`, `restore`, then `bind_target` where `against_target` is true,
    then `prepass` where ``prepass_fields`` is not ``None``. Each may be left out where nothing has
    to survive this process.

    Args:
        rules: applied in order; a later rule sees only what the earlier ones kept.
        name: of the stage, in reports and in the job's file.
        memory_keys: see `MEMORY_KEYS`.
    """

    ordered = True

    def __init__(
        self,
        rules: Dedupe | str | Sequence[Dedupe | str],
        *,
        name: str = "dedupe",
        memory_keys: int = MEMORY_KEYS,
    ) -> None:
        self.rules = rules_of(rules)
        self.name = name
        self._memory_keys = memory_keys
        self._matchers: list[Matcher] = [matcher_for(rule, memory_keys) for rule in self.rules]
        self._counts = [0] * len(self.rules)
        self._decisions: Decisions | None = None
        self._target: Source | None = None
        self._seeds: Path | None = None
        self._token = uuid4().hex
        self._folder: Path | None = None
        self._own_folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def needs_vectors(self) -> bool:
        """Whether a rule compares vectors, so that the stage belongs behind an embedding one."""
        return any(rule.needs_vectors for rule in self.rules)

    @property
    def needs_first_pass(self) -> bool:
        """Whether the source is read twice."""
        return any(rule.needs_first_pass for rule in self.rules)

    @property
    def against_target(self) -> bool:
        """Whether `bind_target` is wanted before the first record is written."""
        return any(rule.against_target for rule in self.rules)

    # -- before the stream ----------------------------------------------------------------------

    def bind_job(self, folder: Path) -> None:
        """Keep what must outlive this process in the job's folder."""
        self._folder = folder

    def restore(self, connection: sqlite3.Connection) -> None:
        """Make the tables, and load what was committed."""
        with connection:
            log.create(connection)
            self._token = self._token_of(connection)
        self._sweep()
        if self._decisions_file.exists():
            self._decisions = Decisions(self._decisions_file, self._memory_keys)
            query = "SELECT repeats FROM dedupe_parcel WHERE stage = ? AND repeats IS NOT NULL"
            for (repeats,) in connection.execute(query, (self.name,)):
                self._decisions.count(np.frombuffer(repeats, np.int64))
        elif not self.needs_first_pass:
            self._load_seeds()
            self._load(connection)

    def bind_target(self, target: Source) -> None:
        """Take in what the target holds now; done once in the life of a job.

        With a first pass it is taken in by `prepass`.
        """
        if self.needs_first_pass:
            self._target = target
            return
        if self._seeds is not None or not self.against_target:
            return
        unfinished = self._seeds_file.with_suffix(".part")
        unfinished.unlink(missing_ok=True)
        wanted = [n for n, rule in enumerate(self.rules) if rule.against_target]
        with closing(sqlite3.connect(unfinished)) as connection:
            log.create(connection)
            for batch in target.scan(fields=fields_for([self.rules[n] for n in wanted])):
                for number in wanted:
                    self._decide(number, batch, connection)
            connection.commit()
        unfinished.replace(self._seeds_file)
        self._seeds = self._seeds_file

    @property
    def prepass_fields(self) -> Fields | None:
        """What the first pass reads; ``None`` without one, and when it has been made."""
        return fields_for(self.rules) if self.needs_first_pass and self._decisions is None else None

    def prepass(self, inflights: Iterator[InFlightBatch]) -> None:
        """Decide everything, and keep the decisions beside the job."""
        first_pass = FirstPass(self.rules, self._memory_keys, self._decisions_file)
        if self._target is not None and self.against_target:
            for batch in self._target.scan(fields=fields_for(self.rules)):
                first_pass.add(batch, pinned=True)
        for inflight in inflights:
            first_pass.add(inflight.batch)
        first_pass.resolve()
        self._decisions = Decisions(self._decisions_file, self._memory_keys)

    # -- the stream ---------------------------------------------------------------------------

    def apply(self, inflight: InFlightBatch) -> InFlightBatch:
        """Without the duplicates."""
        if self.needs_first_pass:
            if self._decisions is None:
                raise ConfigurationError(
                    "this dedupe rule needs a first pass: call prepass() before apply()"
                )
            batch, keep, repeats = self._decisions.apply(inflight.batch)
            return self._dropped(inflight.carry(batch), keep, repeats)
        rows = np.arange(len(inflight.batch))
        effects = []
        for number, rule in enumerate(self.rules):
            batch = inflight.batch if rule.needs_vectors else _without_vectors(inflight.batch)
            entries, effect = self._decided(number, batch if len(rows) == len(batch) else batch.take(rows))
            effects.append(effect)
            rows = rows[entries < 0]
        done = self._dropped(inflight, rows, None)
        return replace(done, commit_hooks=(*done.commit_hooks, *effects))

    def replay_copy(self) -> DedupeStage:
        """The same decisions from the beginning, for a second reading of the same source."""
        copy = DedupeStage(self.rules, name=self.name, memory_keys=self._memory_keys)
        copy._folder, copy._token, copy._own_folder = self._folder, self._token, self._own_folder
        if self._decisions is not None:
            copy._decisions = Decisions(self._decisions_file, self._memory_keys)
        elif not self.needs_first_pass:
            copy._load_seeds()
        return copy

    # -- afterwards ---------------------------------------------------------------------------

    def report(self, connection: sqlite3.Connection) -> DedupeReport:
        """What was removed and why, over all runs of the job."""
        notes = self._decisions.notes() if self._decisions else {}
        recalls = [self._recall(number, notes) for number in range(len(self.rules))]
        return summary(self.name, self.rules, connection, self._removals(connection), recalls, notes)

    def _recall(self, number: int, notes: dict[str, int]) -> float | None:
        matcher = self._matchers[number]
        found, due = matcher.sample if isinstance(matcher, SimilarMatcher) else (0, 0)
        found, due = notes.get(f"recall_found_{number}", found), notes.get(f"recall_due_{number}", due)
        return found / due if due else None

    def write_audit(self, connection: sqlite3.Connection, path: Path) -> int:
        """One JSON line for each removed record: its id, the id it was removed for, and the reason.

        Returns the number of lines. Written to a temporary file and renamed.
        """
        return audit_file(path, self.rules, self._removals(connection))

    def _removals(self, connection: sqlite3.Connection) -> Iterator[log.Removal]:
        if self.needs_first_pass:
            yield from self._decisions.removals() if self._decisions else ()
            return
        with closing(sqlite3.connect(self._seeds or ":memory:")) as before:
            log.create(before)
            for number in range(len(self.rules)):
                yield from log.removals(connection, before, self.name, number)

    # -- helpers ------------------------------------------------------------------------------

    def _decided(self, number: int, batch: RecordBatch) -> tuple[Array, log.Entry]:
        found = features(self.rules[number], batch)
        verdicts = self._matchers[number].match(found)
        entry = log.Entry(self.name, number, self._counts[number], batch, found, verdicts)
        self._counts[number] += len(verdicts.new)
        return verdicts.entries, entry

    def _decide(self, number: int, batch: RecordBatch, connection: sqlite3.Connection) -> None:
        self._decided(number, batch)[1](connection)

    def _dropped(self, inflight: InFlightBatch, keep: Array, repeats: Array | None) -> InFlightBatch:
        mask = np.ones(len(inflight.batch), dtype=np.bool_)
        mask[keep] = False
        gone = np.flatnonzero(mask)
        texts = inflight.batch.text_list
        characters = sum(len(texts[row] or "") for row in gone.tolist())
        size = inflight.batch.nbytes * len(gone) // len(mask) if len(gone) else 0
        values = (self.name, len(gone), size, characters, None if repeats is None else repeats.tobytes())

        def note(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO dedupe_parcel VALUES (?,?,?,?,?)", values)

        done = inflight.drop(self.name, keep.tolist())
        return replace(done, commit_hooks=(*done.commit_hooks, note))

    def _load(self, connection: sqlite3.Connection) -> None:
        for number, matcher in enumerate(self._matchers):
            for found, notes in log.kept_features(connection, self.name, number, self.rules[number]):
                matcher.load(found, notes)
                self._counts[number] += len(found)

    def _load_seeds(self) -> None:
        if not self._seeds_file.exists():
            return
        self._seeds = self._seeds_file
        with closing(sqlite3.connect(self._seeds)) as connection:
            self._load(connection)

    def _token_of(self, connection: sqlite3.Connection) -> str:
        """Ties the files beside the job to its current life: a job that begins anew empties its tables."""
        row = connection.execute("SELECT token FROM dedupe_token WHERE stage = ?", (self.name,)).fetchone()
        if row:
            return str(row[0])
        connection.execute("INSERT INTO dedupe_token VALUES (?, ?)", (self.name, self._token))
        return self._token

    def _sweep(self) -> None:
        """Remove files of earlier lives of the job."""
        for path in self._home.glob(f"{self.name}.*.sqlite*"):
            if path.name not in (self._decisions_file.name, self._seeds_file.name):
                path.unlink(missing_ok=True)

    @property
    def _home(self) -> Path:
        if self._folder is None:
            self._own_folder = self._own_folder or tempfile.TemporaryDirectory(prefix="vecferry-dedupe-")
            self._folder = Path(self._own_folder.name)
        return self._folder

    @property
    def _decisions_file(self) -> Path:
        return self._home / f"{self.name}.{self._token}.decisions.sqlite"

    @property
    def _seeds_file(self) -> Path:
        return self._home / f"{self.name}.{self._token}.target.sqlite"


def _without_vectors(batch: RecordBatch) -> RecordBatch:
    return batch.replace(vectors={}, sparse_vectors={})
