"""What a pair of collections must still agree on: a small SQLite file that survives a crash.

Before a write touches either side, its ids are noted here; a note is struck off when both sides have the
same. Whatever stands here after a crash, or because the second side was away, is made up for from the first
side, so only ids are kept, never contents. Several processes on one machine may share the file.

Every write has notes of its own, and only their owner strikes them off while it is alive. A write that
begins marks the notes that others have of its ids: whoever finds its note marked cannot know who came last,
and copies from the leading side before it strikes the note off. So a writer that dies at any instant, also
between two others, leaves a note behind.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vecferry.core.locks import Liveness
from vecferry.core.state import StateFile
from vecferry.errors import RetryableError
from vecferry.model import RecordId, decode_id, encode_id

_SCHEMA = """
CREATE TABLE IF NOT EXISTS notes (
    id TEXT, seq INTEGER, owner TEXT NOT NULL, missed INTEGER DEFAULT 0, disturbed INTEGER DEFAULT 0,
    PRIMARY KEY (id, seq)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT OR IGNORE INTO state VALUES ('seq', 0), ('role', 'old'), ('gate', 0.0);
"""
_LEFT = "(missed OR owner IN (SELECT owner FROM gone))"


class Journal:
    """Ids under way or missed, which side leads, and a gate that holds new writes back.

    Args:
        path: the file; made if it is not there. ``":memory:"`` keeps it in this process.

    Raises:
        ConfigurationError: if there can be no such file, or it is another kind of file.
    """

    def __init__(self, path: Path | str) -> None:
        self._file = StateFile(path, _SCHEMA, what="the journal", failed=RetryableError)
        self._file.execute("CREATE TEMP TABLE gone (owner TEXT PRIMARY KEY)")
        shared = str(path) != ":memory:"
        self.path = str(self._file.path)
        self._alive = Liveness(Path(f"{self.path}.writers") if shared else None)

    def close(self) -> None:
        self._file.close()
        self._alive.close()

    # -- writes ---------------------------------------------------------------------------------

    def begin(self, ids: Sequence[RecordId], *, patience: float = 30.0) -> tuple[int, str]:
        """Note ids, durably; returns the number of this write and the side that leads.

        Waits while the gate is shut.

        Raises:
            RetryableError: if it stays shut for ``patience`` seconds.
        """
        end = time.monotonic() + patience
        while True:
            with self._file.transaction():
                if float(self._get("gate")) <= time.time():
                    return self._note(ids), str(self._get("role"))
            if time.monotonic() > end:
                raise RetryableError("a cut-over holds writes back; try again")
            time.sleep(0.005)

    def renew(self, ids: Sequence[RecordId], seq: int | None = None) -> tuple[int, str]:
        """As `begin`, through a shut gate: for whoever copies ids from the leading side.

        What was missed or left by the dead is taken over, and the caller's own notes numbered ``seq``.
        """
        self._look_for_dead()
        with self._file.transaction():
            query = f"DELETE FROM notes WHERE id = ? AND (seq = ? OR {_LEFT})"  # noqa: S608 - no input
            self._file.executemany(query, [(key, seq) for key in _keys(ids)])
            return self._note(ids), str(self._get("role"))

    def done(self, ids: Sequence[RecordId], seq: int) -> list[RecordId]:
        """Strike ids off; returns those that another write touched meanwhile, still to be settled."""
        query = "DELETE FROM notes WHERE id = ? AND seq = ? AND NOT disturbed"
        with self._file.transaction():
            keys = _keys(ids).items()
            return [id_ for key, id_ in keys if not self._file.execute(query, (key, seq)).rowcount]

    def missed(self, ids: Sequence[RecordId], seq: int) -> None:
        """The write has ended without reaching both sides: whoever copies may take its notes over."""
        with self._file.transaction():
            query = "UPDATE notes SET missed = 1 WHERE id = ? AND seq = ?"
            self._file.executemany(query, [(key, seq) for key in _keys(ids)])

    def left(self, limit: int = 1000, *, upto: int | None = None) -> list[RecordId]:
        """Ids that were missed or that the dead have left, oldest first; only numbers up to ``upto``."""
        self._look_for_dead()
        query = f"SELECT id FROM notes WHERE {_LEFT} AND seq <= ? GROUP BY id ORDER BY min(seq) LIMIT ?"  # noqa: S608
        rows = self._file.rows(query, (2**62 if upto is None else upto, limit))
        return [decode_id(str(text)) for (text,) in rows]

    @property
    def seq(self) -> int:
        """The number of the last write noted."""
        return int(self._get("seq"))

    def __len__(self) -> int:
        return int(self._file.value("SELECT count(DISTINCT id) FROM notes") or 0)

    # -- roles ----------------------------------------------------------------------------------

    @property
    def role(self) -> str:
        """``"old"`` or ``"new"``: the side whose word counts."""
        return str(self._get("role"))

    def shut(self, seconds: float) -> None:
        """Hold new writes back, for ``seconds`` at most: if this process dies the gate opens by itself."""
        with self._file.transaction():
            self._set("gate", time.time() + seconds)

    def reopen(self) -> None:
        """Let writes go on."""
        with self._file.transaction():
            self._set("gate", 0.0)

    def lead(self, role: str) -> bool:
        """Let ``role`` lead if nothing is pending; false, and nothing changed, if something is."""
        with self._file.transaction():
            if self._file.execute("SELECT 1 FROM notes LIMIT 1").fetchone():
                return False
            self._set("role", role)
            return True

    # -- helpers --------------------------------------------------------------------------------

    def _note(self, ids: Sequence[RecordId]) -> int:
        seq = int(self._get("seq")) + 1
        self._set("seq", seq)
        keys = _keys(ids)
        self._file.executemany("UPDATE notes SET disturbed = 1 WHERE id = ?", [(key,) for key in keys])
        rows = [(key, seq, self._alive.name) for key in keys]
        self._file.executemany("INSERT INTO notes (id, seq, owner) VALUES (?, ?, ?)", rows)
        return seq

    def _look_for_dead(self) -> None:
        """Owners of notes that died: nobody comes back to strike these off."""
        owners = self._file.rows("SELECT DISTINCT owner FROM notes WHERE NOT missed")
        dead = [owner for owner in owners if not self._alive.alive(str(owner[0]))]
        if dead:
            self._file.executemany("INSERT OR IGNORE INTO gone VALUES (?)", dead)

    def _get(self, key: str) -> float | str:
        value: Any = self._file.value("SELECT value FROM state WHERE key = ?", (key,))
        return value  # type: ignore[no-any-return]

    def _set(self, key: str, value: float | str) -> None:
        self._file.execute("UPDATE state SET value = ? WHERE key = ?", (value, key))


def _keys(ids: Sequence[RecordId]) -> dict[str, RecordId]:
    """By their encoded form, each once."""
    return {encode_id(id_): id_ for id_ in ids}
