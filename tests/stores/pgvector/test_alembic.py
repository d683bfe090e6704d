"""The migration file runs under Alembic itself, up and down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config

from vecferry.contrib.alembic import VectorChange
from vecferry.errors import ConfigurationError

ENV = """
from alembic import context
from sqlalchemy import create_engine
engine = create_engine(context.config.get_main_option("sqlalchemy.url"))
with engine.connect() as connection:
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
"""


def index_of(db: Any, column: str) -> list[str]:
    rows = db.sql(
        "select indexdef from pg_indexes where tablename = 'reports' and indexdef like %s", f"%{column}%"
    )
    return [row[0] for row in rows]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            VectorChange("reports", "e", 1024),
            "hnsw (e vector_cosine_ops) WITH (m='16', ef_construction='64')",
        ),
        (VectorChange("reports", "e", 3072, metric="l2"), "hnsw (((e)::halfvec(3072)) halfvec_l2_ops)"),
        (
            VectorChange(
                "reports", "e", 8, type="halfvec", schema="public", index="ivfflat", options={"lists": 5}
            ),
            "ivfflat (e halfvec_cosine_ops) WITH (lists='5')",
        ),
    ],
)
def test_the_script_runs_both_ways(db: Any, tmp_path: Path, change: VectorChange, expected: str) -> None:
    db.sql("create table reports (id int primary key)")
    (tmp_path / "versions").mkdir()
    (tmp_path / "env.py").write_text(ENV)
    (tmp_path / "versions" / "one.py").write_text(change.script("one", down_revision=None))
    config = Config()
    config.set_main_option("script_location", str(tmp_path))
    config.set_main_option("sqlalchemy.url", db.server.sqlalchemy_url(db.database))
    command.upgrade(config, "head")
    assert expected in index_of(db, "(e" if "(((" not in expected else "halfvec")[0]
    command.downgrade(config, "base")
    assert db.sql("select column_name from information_schema.columns where table_name = 'reports'") == [
        ("id",)
    ]


def test_what_cannot_be_indexed_is_named() -> None:
    with pytest.raises(ConfigurationError, match="4000"):
        VectorChange("t", "c", 5000).script("a", down_revision=None)
    assert "create_index" not in VectorChange("t", "c", 5000, index=None).script("a", down_revision="b")
    for wrong in ({"type": "bit"}, {"index": "btree"}):
        with pytest.raises(ConfigurationError):
            VectorChange("t", "c", 5, **wrong).script("a", down_revision=None)  # type: ignore[arg-type]
