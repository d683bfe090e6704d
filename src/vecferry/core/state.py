"""State files: every SQLite file of vecferry is opened here, in one way, with one meaning of damage.

| durability | journal | synchronous | for |
|---|---|---|---|
| ``"full"`` | WAL | FULL | what a resume depends on: checkpoints, journals, sync state |
| ``"normal"`` | WAL | NORMAL | what may lose its last instant in a power cut: caches, ledgers |
| ``"scratch"`` | off | OFF | what is thrown away after a crash: spools, listings |
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeAlias

from vecferry.errors import (
    ConfigurationError,
    CorruptStateError,
    JobLockedError,
    LocalStateError,
    VecferryError,
)

Durability: TypeAlias = Literal["full", "normal", "scratch"]
Value: TypeAlias = str | bytes | int | float | None
Row: TypeAlias = tuple[Value, ...] | list[Value]

_PRAGMAS: dict[str, tuple[str, ...]] = {
    "full": ("journal_mode = WAL", "synchronous = FULL"),
    "normal": ("journal_mode = WAL", "synchronous = NORMAL"),
    "scratch": ("journal_mode = OFF", "synchronous = OFF"),
}
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class StateFile:
    """One SQLite file: pragmas, schema, transactions, and its errors in our words. Thread-safe.

    Args:
        path: the file, made with its folder if it is not there; ``":memory:"``; or ``None`` for a private
            temporary file that is gone when this object is closed.
        schema: SQL scripts. The first makes the tables (write ``IF NOT EXISTS``), each further one brings
            the version before it up to date. ``user_version`` counts those that have run.
        what: how messages call the file, such as ``"the embedding cache"``.
        hint: the next move for whoever cannot use it.
        durability: see the table above.
        timeout: seconds to wait for another process that writes.
        exclusive: hold the file against every other process until it is closed.
        read_only: the file must be there; nothing is made or changed.
        unusable: raised if there can be no such file (no right, no folder, no room).
        failed: raised if a later read or write fails.

    Raises:
        CorruptStateError: if the file is damaged, another kind of file, or of a newer vecferry.
        JobLockedError: with ``exclusive``, while another process holds it.
    """

    def __init__(
        self,
        path: Path | str | None,
        schema: str | Sequence[str] = (),
        *,
        what: str,
        hint: str = "move it away, or name another file",
        durability: Durability = "full",
        timeout: float = 30.0,
        exclusive: bool = False,
        read_only: bool = False,
        unusable: type[VecferryError] = ConfigurationError,
        failed: type[VecferryError] = LocalStateError,
    ) -> None:
        self.path = path if path in (None, ":memory:") else Path(str(path)).expanduser()
        self.what, self._hint = what, hint
        self._unusable, self._failed = unusable, failed
        self._lock = threading.RLock()
        scripts = (schema,) if isinstance(schema, str) else tuple(schema)
        try:
            self.connection = self._open(timeout, read_only)
        except (OSError, sqlite3.Error) as error:
            raise self._opening(error) from error
        try:
            if not read_only:
                self._configure(durability, exclusive, timeout)
                self._migrate(scripts)
            else:
                self.connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        except sqlite3.Error as error:
            self.connection.close()
            if exclusive and _code(error) in _BUSY:
                raise JobLockedError(f"another process holds {self}; wait for it to end") from error
            raise self._opening(error) from error
        except VecferryError:
            self.connection.close()
            raise

    def __str__(self) -> str:
        return f"{self.what} {self.path}" if self.path else self.what

    def __repr__(self) -> str:
        return f"StateFile({str(self.path)!r})"

    def __enter__(self) -> StateFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            self.connection.close()

    # -- statements ---------------------------------------------------------------------------

    def execute(self, query: str, values: Sequence[Value] = ()) -> sqlite3.Cursor:
        """One statement; outside of `transaction` it is one of its own."""
        with self._lock, self.errors():
            return self.connection.execute(query, values)

    def executemany(self, query: str, rows: Iterable[Row]) -> None:
        """One statement for every row, all or nothing."""
        with self.transaction(), self.errors():
            self.connection.executemany(query, rows)

    def rows(self, query: str, values: Sequence[Value] = ()) -> list[tuple[Value, ...]]:
        """All rows of a question."""
        with self._lock, self.errors():
            return self.connection.execute(query, values).fetchall()

    def value(self, query: str, values: Sequence[Value] = ()) -> Value:
        """The first value of the first row; ``None`` where there is no row."""
        with self._lock, self.errors():
            row = self.connection.execute(query, values).fetchone()
        return row[0] if row else None

    def chosen(self, query: str, keys: Sequence[Value], size: int = 500) -> Iterator[tuple[Value, ...]]:
        """Rows of a ``query`` with ``IN ({})``, asked for in groups of ``size`` keys."""
        for start in range(0, len(keys), size):
            part = keys[start : start + size]
            yield from self.rows(query.format(",".join("?" * len(part))), part)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block or nothing of it; other threads and processes wait. May be nested."""
        with self._lock:
            if self._inside():
                yield self.connection
                return
            with self.errors():
                self.connection.execute("BEGIN IMMEDIATE")
            try:
                with self.errors():
                    yield self.connection
                    self.connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk has rolled it back already
                    self.connection.execute("ROLLBACK")
                raise

    def _inside(self) -> bool:
        try:
            return self.connection.in_transaction
        except sqlite3.ProgrammingError:
            return False

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what sqlite3 raises into our errors."""
        try:
            yield
        except sqlite3.ProgrammingError as error:
            if "closed" in str(error):
                raise ConfigurationError(f"{self} was closed; open it again") from error
            raise
        except sqlite3.Error as error:
            if _code(error) in _DAMAGED:
                raise CorruptStateError(f"{self} is damaged ({error}); {self._hint}") from error
            raise self._failed(
                f"{self} cannot be used ({error}); free the disk or give the right to write, "
                "and run the same call again"
            ) from error

    @property
    def nbytes(self) -> int:
        """Bytes in use, without the free pages of the file."""
        pages, free, size = (
            int(self.value(f"PRAGMA {name}") or 0) for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    # -- opening ------------------------------------------------------------------------------

    def _open(self, timeout: float, read_only: bool) -> sqlite3.Connection:
        if isinstance(self.path, Path) and not read_only:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        name = (
            f"{self.path.resolve().as_uri()}?mode=ro" if read_only and isinstance(self.path, Path) else None
        )
        return sqlite3.connect(
            name or str(self.path or ""),
            uri=name is not None,
            timeout=timeout,
            isolation_level=None,
            check_same_thread=False,
        )

    def _configure(self, durability: Durability, exclusive: bool, timeout: float) -> None:
        if exclusive:
            # A lock that the operating system gives back when this process dies.
            self.connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        end = time.monotonic() + timeout
        while True:
            try:
                for pragma in _PRAGMAS[durability]:
                    self.connection.execute(f"PRAGMA {pragma}")
                if exclusive:
                    self.connection.execute("BEGIN EXCLUSIVE")
                    self.connection.execute("COMMIT")
                return
            except sqlite3.OperationalError as error:
                # Two that make the file WAL at once: SQLite does not wait here, whatever the timeout.
                if exclusive or _code(error) not in _BUSY or time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def _migrate(self, scripts: Sequence[str]) -> None:
        if self._version() > len(scripts):
            raise CorruptStateError(f"{self} was written by a newer vecferry; {self._hint}")
        while (version := self._version()) < len(scripts):
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                if self._version() == version:  # else another process has just done it
                    for statement in _statements(scripts[version]):
                        self.connection.execute(statement)
                    self.connection.execute(f"PRAGMA user_version = {version + 1}")
                self.connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self.connection.execute("ROLLBACK")
                raise

    def _version(self) -> int:
        return int(self.connection.execute("PRAGMA user_version").fetchone()[0])

    def _opening(self, error: Exception) -> VecferryError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if isinstance(error, sqlite3.Error) and _code(error) in _DAMAGED:
            return CorruptStateError(f"{self} cannot be opened ({reason}); {self._hint}")
        return self._unusable(f"{self} cannot be opened ({reason}); {self._hint}")


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, so that all of them fit into one transaction."""
    pending = ""
    for line in script.splitlines(keepends=True):
        for piece in line.replace(";", ";\0").split("\0"):
            pending += piece
            if pending.strip() and sqlite3.complete_statement(pending):
                yield pending
                pending = ""
    if pending.strip():
        yield pending
