"""A second vector column, filled beside running writers; tables through the application's own models."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from pgvector.sqlalchemy import Vector
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from known import some
from vecferry.contrib.fill_postgres import fill_column
from vecferry.contrib.sqlalchemy_models import PgVectorCollection
from vecferry.errors import (
    ConfigurationError,
    RejectedRecord,
    RetryableError,
    SchemaMismatchError,
    SpaceMismatchError,
)
from vecferry.model import EmbeddingSpace

DIM = 6


class Hashing:
    """Deterministic vectors of texts; fails when told to."""

    def __init__(self, model: str = "hashing", refuse: str = "", faults: int = 0) -> None:
        self.space = EmbeddingSpace(model=model, dim=DIM, normalized=False)
        self.refuse, self.faults, self.seen = refuse, faults, 0

    def embed(self, texts: Sequence[str]) -> Any:
        if self.faults:
            self.faults -= 1
            raise RetryableError("busy", retry_after=0)
        bad = [i for i, text in enumerate(texts) if self.refuse and self.refuse in text]
        if bad:
            raise RejectedRecord("refused", ids=bad)
        self.seen += len(texts)
        return np.array([vector_of(text) for text in texts], np.float32)

    async def aembed(self, texts: Sequence[str]) -> Any:
        return self.embed(texts)


def vector_of(text: str) -> list[float]:
    return [float((hash_of(text) >> (8 * i)) % 251) for i in range(DIM)]


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode().ljust(DIM, b"\1")[-DIM:], "big")


class Base(DeclarativeBase):
    pass


class AnalysisReport(Base):
    __tablename__ = "analysis_reports"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]
    output: Mapped[str | None] = mapped_column("llm_output")
    embedding_1536: Mapped[Any] = mapped_column(Vector(3), nullable=True)


@pytest.fixture
def reports(db: Any) -> Any:
    engine = sa.create_engine(db.server.sqlalchemy_url(db.database))
    Base.metadata.create_all(engine)
    db.sql(
        "insert into analysis_reports select i, i % 3, 'report ' || i, "
        "array[i, 1, 0]::vector from generate_series(1, 500) i"
    )
    db.sql("insert into analysis_reports values (501, 0, null, '[1,1,1]')")
    db.engine = engine
    yield db
    engine.dispose()


def test_a_model_is_enough(reports: Any) -> None:
    with PgVectorCollection.from_model(
        AnalysisReport, vector="embedding_1536", text="output", engine=reports.engine
    ) as collection:
        record = collection.fetch([7])[0]
        assert (record.text, record.metadata, some(record.vector).tolist()) == (
            "report 7",
            {"user_id": 1},
            [7, 1, 0],
        )
        mine: Any = AnalysisReport.user_id == 1
        hits = collection.search(record, 3, where=mine)
        assert hits[0].id == 7 and {hit.metadata["user_id"] for hit in hits} == {1}
        assert [h.id for h in collection.search(record, 3, where={"user_id": 1})] == [h.id for h in hits]
        chosen: Any = sa.and_(
            AnalysisReport.user_id == 2, AnalysisReport.output.in_(["report 2", "report 5"])
        )
        assert sorted(r.id for r in collection.records(where=chosen)) == [2, 5]
        as_text: Any = "user_id = 2 and id < 9"
        assert sorted(r.id for r in collection.records(where=as_text)) == [2, 5, 8]
    only = PgVectorCollection.from_model(
        AnalysisReport, url=reports.server.url("x", reports.database), where=AnalysisReport.id <= 3
    )
    assert only.count() == 3 and [r.id for r in only.records()] == [1, 2, 3]
    only.close()
    assert reports.engine.connect().closed is False, "the application's engine stays open"
    with pytest.raises(ConfigurationError, match="no column 'nope'"):
        PgVectorCollection.from_model(AnalysisReport, vector="nope", engine=reports.engine)


def test_a_second_column_is_filled_while_others_write(reports: Any) -> None:
    collection = PgVectorCollection.from_model(AnalysisReport, text="output", engine=reports.engine)
    stop = threading.Event()
    errors: list[Exception] = []

    def write() -> None:
        with reports.server.connect(reports.database) as connection:
            connection.execute("set lock_timeout = '2s'")
            number = 0
            while not stop.is_set():
                number += 1
                try:
                    connection.execute(
                        "update analysis_reports set llm_output = %s, embedding_1024 = null where id = %s",
                        [f"changed {number}", number % 500 + 1],
                    )
                except Exception as error:  # noqa: BLE001
                    if "embedding_1024" not in str(error):
                        errors.append(error)
                time.sleep(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    done = collection.fill("embedding_1024", Hashing(faults=1), batch_size=40)
    stop.set()
    writer.join()
    rest = collection.fill("embedding_1024", Hashing(), batch_size=40)
    assert not errors
    assert done.rows >= 400 and rest.waiting == 0
    rows = reports.sql(
        "select llm_output, embedding_1024::text from analysis_reports where llm_output is not null"
    )
    assert len(rows) == 500
    for text, vector in rows:
        assert [float(x) for x in vector[1:-1].split(",")] == vector_of(text), text
    assert reports.sql("select count(*) from analysis_reports where embedding_1024 is null") == [(1,)]
    fields = {f.name: f.space.model if f.space else None for f in collection.describe().fields}
    assert fields == {"embedding_1536": None, "embedding_1024": "hashing"}
    collection.close()


def test_filling_goes_on_where_it_stopped_and_skips_what_is_refused(reports: Any) -> None:
    collection = PgVectorCollection.from_model(AnalysisReport, text="output", engine=reports.engine)
    calls = iter(range(100))
    first = collection.fill("extra", Hashing(), batch_size=50, should_stop=lambda: next(calls) > 3)
    assert first.stopped and 0 < first.rows < 500
    second = Hashing(refuse="report 44")
    done = collection.fill("extra", second, batch_size=50)
    refused = {("44",), *((str(n),) for n in range(440, 450))} - {
        (str(n),) for (n,) in reports.sql("select id from analysis_reports where extra is not null")
    }
    assert set(done.rejected) == refused and refused
    assert first.rows + done.rows + len(refused) == 500
    with pytest.raises(SpaceMismatchError, match="another column"):
        collection.fill("extra", Hashing("other-model"))
    with pytest.raises(SpaceMismatchError, match="same_space"):
        reports.sql("alter table analysis_reports add column filled vector(6)")
        reports.sql("update analysis_reports set filled = '[1,2,3,4,5,6]' where id < 9")
        collection.fill("filled", Hashing())
    assert collection.fill("filled", Hashing(), same_space=True).rows == 492
    with pytest.raises(SchemaMismatchError, match=r"vector\(6\)"):
        collection.fill("embedding_1536", Hashing())
    collection.close()


def test_rows_held_by_a_writer_wait_and_nobody_is_locked_out(reports: Any) -> None:
    store = PgVectorCollection.from_model(AnalysisReport, text="output", engine=reports.engine).store
    fill_column(store, "later", Hashing(), where={"user_id": 99})  # makes the column
    with reports.server.connect(reports.database) as holder:
        holder.autocommit = False
        holder.execute("select * from analysis_reports where id between 10 and 19 for update")
        threading.Timer(0.3, holder.commit).start()
        done = fill_column(store, "later", Hashing())
    assert done.rows == 500 and done.waiting == 0
    store.close()


def test_a_made_table_takes_a_second_column(db: Any) -> None:
    collection = db.connect("made")
    collection.write([{"id": i, "text": f"t{i}", "vector": [i, 1.0]} for i in range(20)])
    done = fill_column(collection, "second", Hashing())
    assert done.rows == 20
    assert {f.name: f.dim for f in db.connect("made").describe().fields} == {"": 2, "second": DIM}
    record = db.connect("made").fetch([3])[0]
    assert record.vectors["second"].tolist() == vector_of("t3")
    assert db.connect("made").search(vector_of("t3"), 1, field="second")[0].id == 3
