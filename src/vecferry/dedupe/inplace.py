"""`dedupe`: remove the duplicates of one collection where it lies."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vecferry.connecting import Collection, connect
from vecferry.dedupe.exact import KeyLedger
from vecferry.dedupe.features import id_keys
from vecferry.dedupe.report import DedupeReport
from vecferry.dedupe.rules import Dedupe, fields_for, rules_of
from vecferry.dedupe.stage import DedupeStage
from vecferry.errors import ConfigurationError, PlanError, SchemaMismatchError, UnsupportedError
from vecferry.model import RecordId, decode_id, parse_json
from vecferry.ports import (
    Deletable,
    Fetchable,
    Fields,
    InFlightBatch,
    OnProgress,
    Partition,
    Progress,
    ignore_progress,
)

_DELETE = 500


@dataclass(frozen=True, slots=True)
class InPlace:
    """What `dedupe` did: the report, and the two files that let it be audited and undone."""

    report: DedupeReport
    records: int
    deleted: int
    audit: Path | None
    backup: str | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        audit = None if self.audit is None else str(self.audit)
        return {
            "records": self.records,
            "deleted": self.deleted,
            "audit": audit,
            "backup": self.backup,
            **self.report.to_dict(),
        }

    def __str__(self) -> str:
        if self.backup is None:
            why = " (dry run)" if self.report.removed else ""
            return f"{self.records:,} records read, nothing deleted{why}\n{self.report}"
        return (
            f"{self.deleted:,} of {self.records:,} records deleted; undo with: "
            f"vecferry migrate {self.backup} COLLECTION --mode upsert\n{self.report}"
        )


def dedupe(
    collection: Any,
    rules: Dedupe | str | Sequence[Dedupe | str],
    *,
    dry_run: bool = False,
    audit: str | Path | None = None,
    backup: str | None = None,
    on_progress: OnProgress = ignore_progress,
) -> InPlace:
    """Find the duplicates in a collection and delete them.

    The audit file and a copy of every record that will go are complete before the first one is deleted.
    Stopped at any point, the same call with another backup goes on: it finds what is left.

    Args:
        collection: a URL, or what ``connect`` returned.
        rules: see `Dedupe`; ``merge`` and ``against_target`` have no meaning here.
        dry_run: decide and report, delete nothing.
        audit: where to write removed id → kept id with the reason (JSON lines).
        backup: a collection URL for the records that go, such as ``"parquet:./removed.parquet"``. Needed
            unless ``dry_run``; it must not exist yet.

    Raises:
        UnsupportedError: if the store cannot delete, or holds an id twice.
        ConfigurationError: if a rule does not fit here, or ``backup`` is missing.
    """
    opened = connect(collection)
    chosen = rules_of(rules)
    _check(opened, chosen, dry_run=dry_run, backup=backup)
    if audit and Path(audit).is_dir():
        raise ConfigurationError(f"{audit} is a folder; name a file for the audit")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vecferry-dedupe-")))
        state = stack.enter_context(closing(sqlite3.connect(folder / "dedupe.sqlite")))
        stage = DedupeStage(chosen)
        stage.bind_job(folder)
        stage.restore(state)
        records = _decide(opened, stage, state, on_progress)
        path = Path(audit) if audit else folder / "audit.jsonl"
        lines = stage.write_audit(state, path)
        report = stage.report(state)
        deleted, filled = 0, None
        if not dry_run and lines:
            assert backup is not None
            filled = _back_up(opened, path, backup)
            deleted = _delete(opened, path, lines, on_progress)
        return InPlace(report, records, deleted, Path(audit) if audit else None, filled)


def _check(opened: Collection, rules: Sequence[Dedupe], *, dry_run: bool, backup: str | None) -> None:
    for rule in rules:
        if rule.merge or rule.against_target:
            raise ConfigurationError(
                "merge= and against_target= need a target: use migrate(…, dedupe=…) into a new collection"
            )
    if dry_run:
        return
    if not isinstance(opened.store, Deletable) or not isinstance(opened.store, Fetchable):
        raise UnsupportedError(
            f"{opened.url} cannot delete in place; use migrate(…, dedupe=…) into a new collection"
        )
    if backup is None:
        raise ConfigurationError(
            "give backup=URL for the records that go, such as parquet:./removed.parquet"
        )


def _decide(
    opened: Collection, stage: DedupeStage, state: sqlite3.Connection, on_progress: OnProgress
) -> int:
    fields = fields_for(stage.rules)
    schema = opened.describe()
    if stage.needs_vectors and not schema.fields:
        raise SchemaMismatchError(f"{opened.url} holds no vectors to compare; dedupe it by text instead")
    total = schema.count
    if stage.prepass_fields is not None:
        stage.prepass(_parcels(opened, fields))
    ids = KeyLedger()
    done = 0
    for inflight in _parcels(opened, fields):
        if (ids.match(id_keys(inflight.batch)) >= 0).any():
            raise UnsupportedError(
                f"{opened.url} holds an id twice, so deleting one would delete both; "
                "use migrate(…, dedupe=…) into a new collection"
            )
        for effect in stage.apply(inflight).commit_hooks:
            effect(state)
        done += inflight.read
        on_progress(Progress("dedupe", done, total))
    state.commit()
    return done


def _parcels(opened: Collection, fields: Fields) -> Iterator[InFlightBatch]:
    for batch in opened.scan(fields=fields):
        if len(batch):
            yield InFlightBatch(batch, Partition("all"), batch.cursor, len(batch))


def _back_up(opened: Collection, audit: Path, backup: str) -> str:
    """Copy what will go, and make sure that it is there. Returns where it is, without secrets."""
    target = connect(backup)
    if target.store.exists():
        raise PlanError(f"the backup {target.url} is there already; name a new one")
    schema = opened.describe().model_copy(update={"count": None})
    copied = 0
    for ids in _removed_ids(audit):
        batch = opened.store.fetch(ids, fields=Fields.ALL)
        copied += target.write(batch, schema=schema)
    target.close()
    kept = connect(backup)
    if kept.count() != copied:
        raise PlanError(
            f"the backup {kept.url} holds {kept.count():,} of {copied:,} records; nothing was deleted"
        )
    kept.close()
    return kept.url


def _delete(opened: Collection, audit: Path, lines: int, on_progress: OnProgress) -> int:
    deleted = 0
    for ids in _removed_ids(audit):
        deleted += opened.delete(ids)
        on_progress(Progress("delete", deleted, lines))
    return deleted


def _removed_ids(audit: Path) -> Iterator[list[RecordId]]:
    with audit.open("rb") as file:
        ids: list[RecordId] = []
        for line in file:
            ids.append(decode_id(parse_json(line)["removed"]))
            if len(ids) == _DELETE:
                yield ids
                ids = []
        if ids:
            yield ids
