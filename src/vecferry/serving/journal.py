"""What a pair of collections must still agree on: a small SQLite file that survives a crash.

Before a write touches either side, its ids are noted here; they are struck off when both sides have the
same. Whatever stands here after a crash, or because the second side was away, is made up for from the first
side, so only ids are kept, never contents. Several processes on one machine may share the file.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vecferry.errors import RetryableError
from vecferry.records import RecordId, decode_id, encode_id

_SCHEMA = """
CREATE TABLE IF NOT EXISTS pending (id TEXT PRIMARY KEY, seq INTEGER NOT NULL, missed INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT OR IGNORE INTO state VALUES ('seq', 0), ('role', 'old'), ('gate', 0.0);
"""


class Journal:
    """Ids under way or missed, which side leads, and a gate that holds new writes back.

    Args:
        path: the file; made if it is not there. ``":memory:"`` keeps it in this process.
    """

    def __init__(self, path: Path | str) -> None:
        if str(path) != ":memory:":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.path = str(path)
        self._db = sqlite3.connect(self.path, timeout=30.0, isolation_level=None, check_same_thread=False)
        self._lock = threading.RLock()
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # -- writes ---------------------------------------------------------------------------------

    def begin(self, ids: Sequence[RecordId], *, patience: float = 30.0) -> tuple[int, str]:
        """Note ids, durably; returns the number of this write and the side that leads.

        Waits while the gate is shut.

        Raises:
            RetryableError: if it stays shut for ``patience`` seconds.
        """
        end = time.monotonic() + patience
        while True:
            with self._transaction():
                if float(self._get("gate")) <= time.time():
                    return self._note(ids), str(self._get("role"))
            if time.monotonic() > end:
                raise RetryableError("a cut-over holds writes back; try again")
            time.sleep(0.005)

    def renew(self, ids: Sequence[RecordId]) -> tuple[int, str]:
        """As `begin`, through a shut gate: for whoever shut it, and to make up for what was missed."""
        with self._transaction():
            return self._note(ids), str(self._get("role"))

    def done(self, ids: Sequence[RecordId], seq: int) -> list[RecordId]:
        """Strike ids off; returns those that another write touched meanwhile, still to be settled."""
        disturbed = []
        with self._transaction():
            for id_ in ids:
                query = "DELETE FROM pending WHERE id = ? AND seq = ?"
                if not self._db.execute(query, (encode_id(id_), seq)).rowcount:
                    disturbed.append(id_)
        return disturbed

    def missed(self, ids: Sequence[RecordId], seq: int) -> None:
        """These did not reach the second side; they stay noted."""
        with self._transaction():
            rows = [(seq, encode_id(id_)) for id_ in ids]
            query = "INSERT INTO pending VALUES (?2, ?1, 1) ON CONFLICT (id) DO UPDATE SET missed = 1"
            self._db.executemany(query, rows)

    def pending(
        self, limit: int = 1000, *, upto: int | None = None, missed_only: bool = False
    ) -> list[RecordId]:
        """Ids not settled yet, oldest first; only writes numbered ``upto`` at most."""
        query = "SELECT id FROM pending WHERE missed >= ? AND seq <= ? ORDER BY seq LIMIT ?"
        values = (int(missed_only), 2**62 if upto is None else upto, limit)
        with self._lock:
            return [decode_id(text) for (text,) in self._db.execute(query, values)]

    @property
    def seq(self) -> int:
        """The number of the last write noted."""
        with self._lock:
            return int(self._get("seq"))

    def __len__(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM pending").fetchone()[0])

    # -- roles ----------------------------------------------------------------------------------

    @property
    def role(self) -> str:
        """``"old"`` or ``"new"``: the side whose word counts."""
        with self._lock:
            return str(self._get("role"))

    def shut(self, seconds: float) -> None:
        """Hold new writes back, for ``seconds`` at most: if this process dies the gate opens by itself."""
        with self._transaction():
            self._set("gate", time.time() + seconds)

    def reopen(self) -> None:
        """Let writes go on."""
        with self._transaction():
            self._set("gate", 0.0)

    def lead(self, role: str) -> bool:
        """Let ``role`` lead if nothing is pending; false, and nothing changed, if something is."""
        with self._transaction():
            if self._db.execute("SELECT 1 FROM pending LIMIT 1").fetchone():
                return False
            self._set("role", role)
            return True

    # -- helpers --------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """One write transaction, durable when it ends."""
        try:
            with self._lock, self._db:
                self._db.execute("BEGIN IMMEDIATE")
                yield
        except sqlite3.OperationalError as error:
            raise RetryableError(f"the journal {self.path} cannot be written: {error}") from error

    def _note(self, ids: Sequence[RecordId]) -> int:
        seq = int(self._get("seq")) + 1
        self._set("seq", seq)
        rows = [(encode_id(id_), seq) for id_ in ids]
        self._db.executemany(
            "INSERT INTO pending VALUES (?, ?, 0) ON CONFLICT (id) DO UPDATE SET seq = excluded.seq", rows
        )
        return seq

    def _get(self, key: str) -> float | str:
        value: float | str = self._db.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()[0]
        return value

    def _set(self, key: str, value: float | str) -> None:
        self._db.execute("UPDATE state SET value = ? WHERE key = ?", (value, key))
