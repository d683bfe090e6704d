"""Run rules over records in one go, in pieces, or stopped and resumed."""

import sqlite3
from pathlib import Path

from vecferry.dedupe import DedupeStage
from vecferry.model import RecordBatch, VectorRecord
from vecferry.ports import InFlightBatch, Partition


def parcels(records, size=4, partitions=1):
    """The records as parcels, the partitions one after the other."""
    step = max(1, -(-len(records) // partitions))
    for part in range(0, len(records), step):
        share = records[part : part + step]
        for start in range(0, len(share), size):
            batch = RecordBatch.from_records(share[start : start + size])
            yield InFlightBatch(batch, Partition(str(part)), start, len(batch))


def run(stage, source, connection):
    """Apply and commit; the kept records."""
    kept = []
    for parcel in source:
        done = stage.apply(parcel)
        kept += done.batch.records()
        with connection:
            for effect in done.commit_hooks:
                effect(connection)
    return kept


def begin(rules, folder, connection, source, target=None):
    stage = DedupeStage(rules)
    stage.bind_job(folder)
    stage.restore(connection)
    if target is not None:
        stage.bind_target(target)
    if stage.prepass_fields is not None:
        stage.prepass(source)
    return stage


def open_state(folder: Path):
    connection = sqlite3.connect(folder / "job.sqlite")
    connection.execute("PRAGMA synchronous = OFF")  # nobody pulls the plug here
    return connection


def in_one_run(rules, records, folder: Path, size=4, partitions=1, target=None):
    """The kept records, the stage and its state."""
    folder.mkdir(parents=True, exist_ok=True)
    connection = open_state(folder)
    stage = begin(rules, folder, connection, parcels(records, size, partitions), target)
    return run(stage, parcels(records, size, partitions), connection), stage, connection


def stopped_and_resumed(rules, records, folder: Path, stop: int, size=4, target=None):
    """As `in_one_run`, with a new process after ``stop`` parcels, whose last one was not committed."""
    folder.mkdir(parents=True, exist_ok=True)
    connection = open_state(folder)
    every = list(parcels(records, size))
    stage = begin(rules, folder, connection, iter(every), target)
    kept = run(stage, every[:stop], connection)
    for lost in every[stop : stop + 1]:
        stage.apply(lost)  # written perhaps, but never committed
    connection.close()
    connection = open_state(folder)
    stage = begin(rules, folder, connection, iter(every), target)
    return kept + run(stage, every[stop:], connection), stage, connection


def record(id_, text=None, vector=None, **metadata):
    return VectorRecord(id=id_, text=text, vector=vector, metadata=metadata)
