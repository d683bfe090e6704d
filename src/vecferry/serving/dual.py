"""`DualWriter`: every write goes to both collections while the move runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from vecferry.connecting import connect
from vecferry.errors import ConfigurationError, RetryableError, UnsupportedError, VecferryError
from vecferry.model import RecordBatch, RecordId, VectorRecord, encode_id
from vecferry.ports import Deletable, Fetchable, Rewindable, Sink, WriteMode
from vecferry.serving.counters import Counters, Listener
from vecferry.serving.journal import Journal

_log = logging.getLogger("vecferry.serving")
_CHUNK = 500
_TURNS = 20
OLD, NEW = "old", "new"


class DualWriter:
    """Writes and deletes on two collections, of which one leads.

    The leading side (``old`` until `cut_over`) decides: a write it refuses is refused. If the other side
    fails, the write still counts; the journal keeps its ids, and `replay` copies what they are now from the
    leading side. A process killed in the middle leaves its ids in the journal, so nothing is forgotten;
    two writers of one id, also in two processes, end with what the leading side holds.

    Args:
        old, new: collections, stores or URLs that can fetch by id, write and delete. Both must exist.
        journal: path of the journal file (`vecferry.core.home.home` has a good place), or a `Journal`.
        adapt: by side (``"old"``, ``"new"``): a function that turns a batch into what that side holds,
            such as one that embeds the texts in the side's own space.
        retry_missed: whether each write first tries to make up for what was missed before.

    Raises:
        UnsupportedError: if a side lacks one of these abilities.
        ConfigurationError: if ``adapt`` names another side, or the journal cannot be used.
    """

    def __init__(
        self,
        old: Any,
        new: Any,
        journal: Journal | Path | str,
        *,
        adapt: Mapping[str, Callable[[RecordBatch], RecordBatch]] | None = None,
        listeners: Sequence[Listener] = (),
        retry_missed: bool = False,
    ) -> None:
        if unknown := {*(adapt or {})} - {OLD, NEW}:
            raise ConfigurationError(f"adapt= has {sorted(unknown)}; the sides are 'old' and 'new'")
        self.stores = {OLD: _store(old), NEW: _store(new)}
        self.journal = journal if isinstance(journal, Journal) else Journal(journal)
        self.figures = Counters(*listeners)
        self._adapt = dict(adapt or {})
        self._retry_missed = retry_missed
        self._locks = {OLD: threading.RLock(), NEW: threading.RLock()}
        # A database is made ready once. A store that stages its writes is opened and finished for each.
        self._staged = {side: isinstance(store, Rewindable) for side, store in self.stores.items()}
        for store in self.stores.values():
            _prepare(store)
            store.finish()

    def __enter__(self) -> DualWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the journal. The collections belong to the caller."""
        self.journal.close()

    @property
    def leading(self) -> str:
        """``"old"`` or ``"new"``."""
        return self.journal.role

    @property
    def pending(self) -> int:
        """Ids that the two sides may differ in."""
        return len(self.journal)

    # -- writing --------------------------------------------------------------------------------

    def write(self, records: Iterable[VectorRecord | Mapping[str, Any]] | RecordBatch) -> int:
        """Upsert on both sides; returns how many records the leading side has acknowledged.

        Raises:
            VecferryError: what the leading side raised. Its outcome is then settled by `replay`.
        """
        if self._retry_missed and self.journal.left(1):
            with suppress(Exception):  # still away: no reason to refuse this write
                self.replay()
        written = 0
        for batch in _batches(records):
            self._both(batch.id_list, batch)
            written += len(batch)
        return written

    def delete(self, ids: Sequence[RecordId]) -> int:
        """Delete on both sides; returns how many the leading side had."""
        return self._both(list(ids), None)

    def _both(self, ids: list[RecordId], batch: RecordBatch | None) -> int:
        seq, lead = self.journal.begin(ids)
        try:
            count = self._apply(lead, ids, batch)
        except BaseException:
            # Whether some of it arrived is not known: the ids stay, and a replay settles them.
            self.figures.count("writes", side=lead, result="failed")
            self.journal.missed(ids, seq)
            raise
        other = NEW if lead == OLD else OLD
        try:
            self._apply(other, ids, batch)
        except BaseException as error:  # noqa: BLE001 - what is no Exception is raised again
            self.figures.count("writes", side=other, result="missed")
            self.journal.missed(ids, seq)
            _passed_over(other, error)
            return count
        disturbed = self.journal.done(ids, seq)
        if disturbed:  # two writes touched these at once: the leading side's word counts
            try:
                self.mirror(disturbed, seq)
            except Exception as error:  # noqa: BLE001 - the journal keeps them, and the write counts
                _passed_over(other, error)
        return count

    def _apply(self, side: str, ids: Sequence[RecordId], batch: RecordBatch | None) -> int:
        store = self.stores[side]
        if batch is not None and side in self._adapt:
            batch = self._adapt[side](batch)
        with self._locks[side]:
            if batch is None:
                count = int(store.delete(ids))
            elif self._staged[side]:
                _prepare(store)
                count = store.write(batch).written
                store.finish()
            else:
                count = store.write(batch).written
        self.figures.count("writes", side=side, result="ok")
        return count

    # -- making up ------------------------------------------------------------------------------

    def mirror(self, ids: Sequence[RecordId], seq: int | None = None) -> None:
        """Make the other side hold exactly what the leading side holds under these ids.

        Safe while others write: whoever is disturbed copies again.

        Args:
            seq: the journal's number of the caller's own write of these ids, which this settles.

        Raises:
            VecferryError: if a side fails; the ids then stay in the journal.
        """
        left = list(ids)
        for _ in range(_TURNS):
            seq, lead = self.journal.renew(left, seq)
            try:
                self._copy(lead, left)
            except BaseException:
                self.journal.missed(left, seq)
                raise
            left = self.journal.done(left, seq)
            if not left:
                return
        if seq is not None:  # others write these ids all the time
            self.journal.missed(left, seq)

    def _copy(self, lead: str, ids: Sequence[RecordId]) -> None:
        other = NEW if lead == OLD else OLD
        with self._locks[lead]:
            found = self.stores[lead].fetch(ids)
        have = {encode_id(id_) for id_ in found.id_list}
        gone = [id_ for id_ in ids if encode_id(id_) not in have]
        if len(found):
            self._apply(other, found.id_list, found)
        if gone:
            self._apply(other, gone, None)

    def replay(self) -> int:
        """Settle what was missed and what dead processes left; returns how many ids that were.

        Raises:
            VecferryError: if a side fails; what is left stays in the journal.
        """
        settled, upto = 0, self.journal.seq  # what comes later belongs to writers that are alive
        while ids := self.journal.left(_CHUNK, upto=upto):
            self.mirror(ids)
            settled += len(ids)
            self.figures.count("replayed", len(ids))
        return settled

    # -- switching ------------------------------------------------------------------------------

    def cut_over(self, *, timeout: float = 30.0) -> None:
        """Let ``new`` lead. Writes wait for a moment; none is lost, and ``old`` goes on receiving them.

        Raises:
            RetryableError: if the two sides could not be made equal in ``timeout`` seconds. Nothing has
                changed then.
        """
        self._hand_over(NEW, timeout)

    def roll_back(self, *, timeout: float = 30.0) -> None:
        """Let ``old`` lead again, with every write made since the cut-over. Raises as `cut_over`."""
        self._hand_over(OLD, timeout)

    def _hand_over(self, role: str, timeout: float) -> None:
        if self.leading == role:
            return
        end = time.monotonic() + timeout
        self.replay()  # most of the work while writes still flow
        with self._gate(timeout):
            while not self.journal.lead(role):
                if time.monotonic() > end:
                    raise RetryableError(
                        f"{self.pending:,} records are not settled; see that both sides answer, then again"
                    )
                self.replay()
                time.sleep(0.005)  # writes under way strike their notes off themselves

    @contextmanager
    def _gate(self, timeout: float) -> Iterator[None]:
        self.journal.shut(timeout + 5.0)
        try:
            yield
        finally:
            self.journal.reopen()


def _passed_over(side: str, error: BaseException) -> None:
    """The leading side has the write, so it counts; only what is to end the process is raised."""
    if not isinstance(error, Exception):
        raise error
    if not isinstance(error, VecferryError):
        _log.warning("the %s side missed a write: %s: %s", side, type(error).__name__, error)


def _store(what: Any) -> Any:
    store = connect(what).store
    for ability, verb in ((Sink, "be written"), (Fetchable, "fetch by id"), (Deletable, "delete")):
        if not isinstance(store, ability):
            name = getattr(store, "url", type(store).__name__)
            raise UnsupportedError(
                f"{name} cannot {verb}, so it cannot be one of two sides written in step"
            )
    return store


def _prepare(store: Any) -> None:
    store.prepare(store.describe().model_copy(update={"losses": ()}), WriteMode.UPSERT)


def _batches(records: Iterable[VectorRecord | Mapping[str, Any]] | RecordBatch) -> Iterator[RecordBatch]:
    if isinstance(records, RecordBatch):
        yield from records.split(_CHUNK)
        return
    iterator = iter(records)
    while chunk := list(islice(iterator, _CHUNK)):
        yield RecordBatch.from_records(chunk)
