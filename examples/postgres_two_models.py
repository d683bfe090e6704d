"""An application's table gets a second embedding, beside its running writers, and is searched by user.

    python examples/postgres_two_models.py [FOLDER]

Runs on the embedded Postgres, so it needs no server. The embedder is a toy; put your own in its place.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from pgvector.sqlalchemy import Vector
from sqlalchemy import BigInteger, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from vecferry.contrib.sqlalchemy_models import PgVectorCollection
from vecferry.model import EmbeddingSpace
from vecferry.stores.pgvector import embedded


class Base(DeclarativeBase):
    pass


class AnalysisReport(Base):
    __tablename__ = "analysis_reports"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    user_id: Mapped[int]
    llm_output: Mapped[str]
    embedding_1536: Mapped[Any] = mapped_column(Vector(1536), nullable=True)


class LetterCounts:
    """Counts letters: enough to find texts that look alike."""

    space = EmbeddingSpace(model="letter-counts", dim=26)

    def embed(self, texts: Sequence[str]) -> Any:
        counts = np.array([[t.lower().count(chr(97 + i)) for i in range(26)] for t in texts], np.float32)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)

    async def aembed(self, texts: Sequence[str]) -> Any:
        return self.embed(texts)


def main(folder: str) -> list[str]:
    address = embedded.server_uri(folder).replace("postgresql://", "postgresql+psycopg://")
    engine = create_engine(address)
    outputs = ["revenue grew in spring", "costs fell in autumn", "revenue fell in spring", "staff grew"]
    with Session(engine) as session:
        session.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))
        Base.metadata.drop_all(session.connection())
        Base.metadata.create_all(session.connection())
        session.add_all(AnalysisReport(id=i, user_id=i % 2, llm_output=o) for i, o in enumerate(outputs))
        session.commit()

    model = LetterCounts()
    with PgVectorCollection.from_model(AnalysisReport, text="llm_output", engine=engine) as reports:
        done = reports.fill("embedding_26", model)
        print(f"{done.rows} rows filled; the table holds", [f.name for f in reports.describe().fields])
        query = model.embed(["how did revenue do in spring?"])[0]
        hits = reports.search(query, 2, field="embedding_26", where=AnalysisReport.user_id == 0)
        for hit in hits:
            print(f"{hit.score:.3f}  {hit.text}")
    engine.dispose()
    return [hit.text for hit in hits]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory(prefix="vecferry-") as place:
            main(place)
            embedded.stop(place)
