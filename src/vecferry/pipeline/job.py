"""One job: its states, its counters, and the SQLite file that knows where a resume has to go on.

One job is one pair of source and target. What a resume needs (partition bounds, the schema and the
embedding space of the target, the shadow's tag, a stamp of the source) is fixed at the first start;
cursors, counters, marks and the state of stages are committed in one transaction after the target
acknowledged the records.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any

from vecferry.core.locks import Lock
from vecferry.core.state import StateFile
from vecferry.errors import JobChangedError, JobError
from vecferry.ports import CommitHook, Cursor, Partition


class JobState(StrEnum):
    """Where a job stands. Each state names what is to be done next."""

    STREAM = "stream"
    """Records are read, changed and written."""
    FINISH = "finish"
    """All are written; indexes are to be built, the target to be flushed."""
    VERIFY = "verify"
    """The target is to be compared with the source."""
    FAILED = "failed"
    """The proof was negative; nothing was published."""
    PUBLISH = "publish"
    """Proved (or not to be proved); what was built is to be swapped in."""
    DONE = "done"
    """Nothing is left to do."""


TRANSITIONS: dict[JobState | None, frozenset[JobState]] = {
    None: frozenset({JobState.STREAM}),
    JobState.STREAM: frozenset({JobState.FINISH}),
    JobState.FINISH: frozenset({JobState.VERIFY}),
    JobState.VERIFY: frozenset({JobState.PUBLISH, JobState.FAILED}),
    JobState.FAILED: frozenset({JobState.VERIFY}),
    JobState.PUBLISH: frozenset({JobState.DONE, JobState.VERIFY}),
    JobState.DONE: frozenset(),
}
"""What may follow what. `JobFile.begin` leads from any state back to ``STREAM``: it is another job then."""

_TABLES = """
CREATE TABLE IF NOT EXISTS job (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS partition (
    position INTEGER PRIMARY KEY, key TEXT NOT NULL, bounds TEXT NOT NULL, count INTEGER,
    cursor TEXT, done INTEGER NOT NULL DEFAULT 0
);
"""


@dataclass
class Counters:
    """What a job, or a part of it, has done so far, over all its runs. They add up.

    Attributes:
        read: records of the source.
        dropped, added: rows that a stage removed on purpose, and made besides (a text that was split).
        rejected: rows put aside.
        written: rows that the target has acknowledged: ``read − dropped − rejected + added``.
    """

    read: int = 0
    written: int = 0
    rejected: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    added: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def due(self) -> int:
        """The rows that the target must have been given."""
        return self.read - sum(self.dropped.values()) - self.rejected + sum(self.added.values())

    def drop(self, dropped: Mapping[str, int]) -> None:
        add_counts(self.dropped, dropped)

    def __add__(self, other: Counters) -> Counters:
        total = Counters(
            self.read + other.read, self.written + other.written, self.rejected + other.rejected,
            dict(self.dropped), dict(self.added), self.bytes + other.bytes, dict(self.seconds),
        )  # fmt: skip
        add_counts(total.dropped, other.dropped)
        add_counts(total.added, other.added)
        for name, seconds in other.seconds.items():
            total.seconds[name] = total.seconds.get(name, 0.0) + seconds
        return total


def add_counts(counts: dict[str, int], more: Mapping[str, int]) -> None:
    """Add ``more`` to ``counts``, name by name."""
    for name, n in more.items():
        counts[name] = counts.get(name, 0) + n


@dataclass(frozen=True)
class Progressing:
    """One partition and how far it got; ``cursor`` is ``None`` at its beginning."""

    partition: Partition
    cursor: Cursor | None = None
    done: bool = False


def job_id(source: str, target: str) -> str:
    """The name of the job that ferries ``source`` to ``target``: both schemes and a digest.

    The URLs are those without secrets, with absolute paths, so that the same job is found from any
    folder and with any password.
    """
    digest = sha256(f"{source}\n{target}".encode()).hexdigest()[:12]
    return f"{source.split(':', maxsplit=1)[0]}-{target.split(':', maxsplit=1)[0]}-{digest}"


class JobFile:
    """What is stored of one job, locked against a second run while it is open.

    Args:
        folder: the job's own folder; made if it is not there.

    Raises:
        JobLockedError: if another process has it open.
        JobError: if the folder or the file cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        busy = f"job {folder.name} is running in another process; wait for it, or stop it first"
        try:
            self._lock = Lock(folder / "lock", busy=busy)
        except OSError as error:
            raise JobError(
                f"the state folder {folder} cannot be written ({error.strerror}); "
                "set VECFERRY_HOME or state_dir to another place"
            ) from error
        try:
            self._file = _open(folder)
        except JobError:
            self._lock.release()
            raise

    def __enter__(self) -> JobFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file and the lock."""
        self._file.close()
        self._lock.release()

    @property
    def connection(self) -> sqlite3.Connection:
        """For the tables of stages."""
        return self._file.connection

    # -- the job ------------------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """Whether an unfinished run is there to go on with."""
        return self.state not in (None, JobState.DONE)

    @property
    def state(self) -> JobState | None:
        """Where the job stands; ``None`` before it began."""
        value = self.get("stage")
        return None if value is None else JobState(value)

    def begin(
        self, settings: Mapping[str, Any], fixed: Mapping[str, Any], parts: Sequence[Partition]
    ) -> None:
        """Store what is fixed for the whole life of the job, in one transaction, before any write."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        values = {**fixed, "settings": dict(settings), "started": now, "stage": JobState.STREAM}
        with self._file.transaction():
            self._clear()
            self._put(values)
            self.connection.executemany(
                "INSERT INTO partition (position, key, bounds, count) VALUES (?, ?, ?, ?)",
                [(i, p.key, json.dumps(p.bounds), p.count) for i, p in enumerate(parts)],
            )

    def _clear(self) -> None:
        """Empty every table, those of stages included: an earlier job must not speak for this one."""
        names = self.connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in names:
            self.connection.execute(f'DELETE FROM "{name}"')  # noqa: S608 - names from the file itself

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Compare with the settings the job began with.

        Raises:
            JobChangedError: showing each difference.
        """
        before = self.get("settings") or {}
        now = json.loads(json.dumps(dict(settings)))
        changed = [
            f"{key}: {before.get(key)!r} → {now.get(key)!r}"
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key)
        ]
        if changed:
            raise JobChangedError(
                f"job {self.folder.name} is unfinished and began with other settings "
                f"({'; '.join(changed)}); go on with the old ones, or start anew with resume=False"
            )

    def get(self, key: str) -> Any:
        """One stored value, or ``None``."""
        row = self.connection.execute("SELECT value FROM job WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, **values: Any) -> None:
        """Store values durably."""
        with self._file.transaction():
            self._put(values)

    def advance(self, state: JobState, **values: Any) -> None:
        """Enter a state, and store what belongs to it in the same transaction.

        Raises:
            JobError: if it cannot follow the present one.
        """
        now = self.state
        if state not in TRANSITIONS[now]:
            raise JobError(
                f"job {self.folder.name} is at {now}, which {state} cannot follow; please report this"
            )
        self.put(stage=state, **values)

    # -- partitions ---------------------------------------------------------------------------

    def partitions(self) -> list[Progressing]:
        """All partitions in order, with their cursors."""
        rows = self.connection.execute(
            "SELECT key, bounds, count, cursor, done FROM partition ORDER BY position"
        )
        return [
            Progressing(
                Partition(key, json.loads(bounds), count),
                None if cursor is None else json.loads(cursor),
                bool(done),
            )
            for key, bounds, count, cursor, done in rows
        ]

    @property
    def counters(self) -> Counters:
        return Counters(**(self.get("counters") or {}))

    def commit(
        self,
        counters: Counters,
        *,
        cursors: Mapping[str, Cursor],
        done: Iterable[str] = (),
        hooks: Iterable[CommitHook] = (),
        **values: Any,
    ) -> None:
        """Commit cursors, counters, marks and stage state in one transaction.

        Raises:
            JobError: if the file cannot be written; nothing of it is committed then.
        """
        with self._file.transaction():
            self.connection.executemany(
                "UPDATE partition SET cursor = ? WHERE key = ?",
                [(json.dumps(cursor), key) for key, cursor in cursors.items()],
            )
            self.connection.executemany(
                "UPDATE partition SET done = 1 WHERE key = ?", [(key,) for key in done]
            )
            for hook in hooks:
                hook(self.connection)
            self._put({"counters": vars(counters), **values})

    def _put(self, values: Mapping[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.connection.executemany(
            "INSERT OR REPLACE INTO job VALUES (?, ?)",
            [(key, json.dumps(value)) for key, value in {**values, "updated": now}.items()],
        )


def _open(folder: Path, *, read_only: bool = False) -> StateFile:
    return StateFile(
        folder / "job.sqlite",
        _TABLES,
        what="the state file",
        hint=f"remove it with: vecferry jobs forget {folder.name}",
        timeout=10,
        read_only=read_only,
        unusable=JobError,
        failed=JobError,
    )


# -- jobs on disk -----------------------------------------------------------------------------


def list_jobs(folder: Path) -> list[dict[str, Any]]:
    """The jobs kept in ``folder`` (``VECFERRY_HOME/jobs``), the last touched first.

    One whose file cannot be read is at stage ``damaged`` and says why as ``error``.
    """
    found = []
    for path in folder.glob("*/job.sqlite"):
        try:
            found.append(peek_job(path.parent))
        except JobError as error:
            about = {"id": path.parent.name, "folder": str(path.parent), "stage": "damaged"}
            found.append({**about, "error": str(error)})
    return sorted(filter(None, found), key=lambda job: str(job.get("updated")), reverse=True)


def peek_job(folder: Path) -> dict[str, Any]:
    """What is stored of one job, read without locking it; ``{}`` where there is none.

    Raises:
        JobError: if the file is there and cannot be read.
    """
    path = folder / "job.sqlite"
    if not path.exists():
        return {}
    try:
        with _open(folder, read_only=True) as file:
            rows = file.rows("SELECT key, value FROM job WHERE key != 'verifying'")
            done = file.rows("SELECT count(*), coalesce(sum(done), 0) FROM partition")[0]
    except JobError as error:
        if "no such table" in str(error):
            return {}  # another process is just making it, or was killed at that
        raise
    values = {str(key): json.loads(str(value)) for key, value in rows}
    return {"id": folder.name, "folder": str(folder), "partitions": done[0], "finished": done[1], **values}


def describe_state(job: Mapping[str, Any]) -> str:
    """Where an unfinished job stands, for people; takes what `peek_job` returns."""
    counters, total = job.get("counters") or {}, job.get("total")
    of = f" of {total:,}" if total else ""
    return (
        f"{counters.get('read', 0):,}{of} records read, {counters.get('written', 0):,} written, "
        f"at stage {job.get('stage')}"
    )


_FILES = ("quarantine.*", "*-removed.jsonl", "*.decisions.sqlite*", "*.target.sqlite*", "verify.sqlite*",
          "embeddings.sqlite*", "report.json", "receipt.json", "id-map.*", "job.log*",
          "job.sqlite*")  # fmt: skip
"""What a job and its stages keep in its folder, the file that makes it a job last."""


def forget_job(folder: Path) -> bool:
    """Delete the state of a job; false if there is none.

    Its target stays as it is, and so does all else that lies in a folder named by ``state_dir``.

    Raises:
        JobLockedError: if the job is running.
    """
    if not (folder / "job.sqlite").exists():
        return False
    with Lock(folder / "lock", busy=f"job {folder.name} is running; stop it first"):
        forget_job(folder / "backup")
        shutil.rmtree(folder / "verify", ignore_errors=True)
        for path in (path for pattern in _FILES for path in sorted(folder.glob(pattern), reverse=True)):
            path.unlink()
    with suppress(OSError):
        (folder / "lock").unlink(missing_ok=True)
        folder.rmdir()
    return True
