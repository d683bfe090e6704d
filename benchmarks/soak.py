"""A whole move under live traffic, checked against the traffic's own log.

    python benchmarks/soak.py --seconds 600 OLD_URL NEW_URL

Writes and searches run at a steady rate all the time, while the collection is copied, caught up with, cut
over, rolled back and cut over again. At the end both sides must hold exactly what was acknowledged, no
search may have failed, and every search must have found what was acknowledged before it began.

Neither collection may exist yet. Without URLs they are two tables of an embedded Postgres.
"""

from __future__ import annotations

import argparse
import atexit
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

import vecferry as vf
from vecferry.model import CollectionSchema, EmbeddingSpace, VectorField, VectorRecord
from vecferry.ports import WriteMode
from vecferry.serving import DualWriter, FallbackCollection, sync

DIM = 32
SPACE = EmbeddingSpace(model="soak", dim=DIM)
SCHEMA = CollectionSchema(fields=(VectorField(dim=DIM, space=SPACE),))


def vector_of(text: str) -> np.ndarray[Any, Any]:
    """A fixed direction for each text."""
    seed = crc32(text.encode())
    vector = np.random.default_rng(seed).normal(size=DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


@dataclass
class Log:
    """What the traffic did, kept by the traffic: the truth that the stores are held to."""

    state: dict[str, str] = field(default_factory=dict)
    """id → text, of every acknowledged write that was not deleted since."""
    busy: set[str] = field(default_factory=set)
    version: int = 0
    writes: int = 0
    deletes: int = 0
    searches: int = 0
    origins: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    slowest_write: float = 0.0
    slowest_search: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def problem(self, text: str) -> None:
        with self.lock:
            self.problems.append(text)


class Traffic:
    """Writers and searchers at a steady rate."""

    def __init__(self, log: Log, write_to: Any, kb: FallbackCollection, rate: float) -> None:
        self.log, self.kb = log, kb
        self._write_to, self._writing = write_to, threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._steadily, args=(self._write_one, rate, 1)),
            threading.Thread(target=self._steadily, args=(self._search_one, rate, 2)),
            threading.Thread(target=self._steadily, args=(self._search_one, rate, 3)),
        ]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def write_through(self, writer: Any) -> None:
        """Exchange what is written to; when it returns, no write that began the old way is under way."""
        with self._writing:
            self._write_to = writer

    def _steadily(self, act: Callable[[random.Random], None], rate: float, seed: int) -> None:
        dice, due = random.Random(seed), time.monotonic()
        while not self._stop.is_set():
            try:
                act(dice)
            except Exception as error:  # noqa: BLE001 - the point of a soak
                self.log.problem(f"{act.__name__}: {type(error).__name__}: {error}")
            due = max(due + 1 / rate, time.monotonic() - 1.0)
            time.sleep(max(0.0, due - time.monotonic()))

    def _write_one(self, dice: random.Random) -> None:
        log = self.log
        with log.lock:
            known = list(log.state)
            log.version += 1
            fresh = not known or dice.random() < 0.3
            id_ = f"live-{log.version}" if fresh else dice.choice(known)
            text = f"{id_} version {log.version}"
            gone = not fresh and dice.random() < 0.2
            log.busy.add(id_)
        record = VectorRecord(id=id_, text=text, vector=vector_of(text), metadata={"v": 1})
        start = time.monotonic()
        with self._writing:
            self._write_to.delete([id_]) if gone else self._write_to.write([record])
        with log.lock:
            log.slowest_write = max(log.slowest_write, time.monotonic() - start)
            log.busy.discard(id_)
            log.deletes += gone
            log.writes += not gone
            log.state.pop(id_, None) if gone else log.state.__setitem__(id_, text)

    def _search_one(self, dice: random.Random) -> None:
        log = self.log
        with log.lock:
            known = [i for i in log.state if i not in log.busy]
            if not known:
                return
            id_ = dice.choice(known)
            text = log.state[id_]
        start = time.monotonic()
        hits = self.kb.search(vector_of(text), k=3)
        seconds = time.monotonic() - start
        with log.lock:
            log.searches += 1
            log.slowest_search = max(log.slowest_search, seconds)
            log.origins[hits.origin] = log.origins.get(hits.origin, 0) + 1
            touched = id_ in log.busy or log.state.get(id_) != text
        if hits.fell_back:
            log.problem(f"search fell back: {hits.attempts}")
        if not touched and (not hits or hits[0].id != id_ or hits[0].text != text):
            log.problem(
                f"search by {hits.origin} did not find {text!r} first, but {[h.text for h in hits]}"
            )


def soak(
    old: Callable[[], Any],
    new: Callable[[], Any],
    *,
    seconds: float,
    rate: float = 50.0,
    start_with: int = 2000,
    say: Callable[[str], None] = lambda _: None,
) -> Log:
    """Run the whole move; see the module's text. ``old`` and ``new`` open the collections anew each time.

    Every thread of work opens its own, as the processes of a real service would.
    """
    log = Log()
    with tempfile.TemporaryDirectory() as folder:
        first = vf.connect(old())
        first.store.prepare(SCHEMA, WriteMode.CREATE)
        _fill(first, log, start_with)
        kb = FallbackCollection(vf.connect(old()), new, names=("old", "new"))
        writer: DualWriter | None = None
        with Traffic(log, first, kb, rate) as traffic:
            began = time.monotonic()

            def until(share: float) -> None:
                time.sleep(max(0.0, began + seconds * share - time.monotonic()))

            until(0.1)
            say("bulk copy")
            vf.migrate(old(), new(), verify=False, state_dir=Path(folder) / "job")
            until(0.25)
            say("write both sides, catch up")
            writer = DualWriter(old(), new(), Path(folder) / "journal")
            traffic.write_through(writer)
            report = sync(old(), new(), state=Path(folder) / "sync", writer=writer)
            say(f"caught up: {report}")
            for share, role in ((0.4, "new"), (0.6, "old"), (0.8, "new")):
                until(share)
                say(f"let {role} lead")
                (writer.cut_over if role == "new" else writer.roll_back)()
                kb.primary = role
            until(1.0)
        writer.replay()
        for name, opened in (("old", old()), ("new", new())):
            _check(log, name, vf.connect(opened))
        kb.close()
        writer.close()
    return log


def _fill(target: vf.Collection, log: Log, n: int) -> None:
    texts = {f"seed-{i}": f"seed-{i} version 0" for i in range(n)}
    records = [VectorRecord(id=i, text=t, vector=vector_of(t), metadata={"v": 0}) for i, t in texts.items()]
    target.write(records, schema=SCHEMA)
    log.state.update(texts)


def _check(log: Log, name: str, collection: vf.Collection) -> None:
    held = {record.id: record for record in collection.records()}
    lost = [i for i in log.state if i not in held]
    extra = [i for i in held if i not in log.state]
    stale = [i for i, text in log.state.items() if i in held and held[i].text != text]
    wrong = [
        i
        for i, text in log.state.items()
        if i in held and i not in stale and not np.allclose(held[i].vector, vector_of(text), atol=1e-5)
    ]
    for what, ids in (
        ("lost", lost),
        ("came back", extra),
        ("is stale", stale),
        ("has another vector", wrong),
    ):
        if ids:
            log.problem(f"{name}: {len(ids)} {what}, such as {ids[:3]}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", nargs="?")
    parser.add_argument("new", nargs="?")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument(
        "--rate", type=float, default=50.0, help="writes, and searches of each reader, a second"
    )
    parser.add_argument("--records", type=int, default=5_000)
    chosen = parser.parse_args(arguments)
    if chosen.new:
        return run(chosen)
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # after the server, which stops at exit too
    chosen.old, chosen.new = (f"pgvector:{folder}/pg#{name}_kb" for name in ("old", "new"))
    return run(chosen)


def run(chosen: argparse.Namespace) -> int:
    """Print what happens; 1 if there was a problem."""
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - start:7.1f} s  {text}", flush=True)

    log = soak(
        lambda: vf.connect(chosen.old).store,
        lambda: vf.connect(chosen.new).store,
        seconds=chosen.seconds,
        rate=chosen.rate,
        start_with=chosen.records,
        say=say,
    )
    say(f"{log.writes:,} writes, {log.deletes:,} deletes, {log.searches:,} searches {log.origins}")
    say(f"slowest write {log.slowest_write:.3f} s, slowest search {log.slowest_search:.3f} s")
    for problem in log.problems[:20]:
        say(f"PROBLEM {problem}")
    say("ok" if not log.problems else f"{len(log.problems)} problems")
    return 1 if log.problems else 0


if __name__ == "__main__":
    sys.exit(main())
