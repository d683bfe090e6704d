"""A vector column and its index as an Alembic migration, for teams whose schema belongs to Alembic.

    from vecferry.contrib.alembic import VectorChange

    change = VectorChange("analysis_reports", "embedding_1024", dim=1024)
    Path("alembic/versions/9f2c_embedding_1024.py").write_text(change.script("9f2c", down_revision="71aa"))

`script` writes a file with plain Alembic operations, which needs vecferry no more.
"""

from __future__ import annotations

from dataclasses import dataclass

from vecferry.errors import ConfigurationError
from vecferry.model import Metric
from vecferry.stores.pgvector.indexes import MAX_DIM, OPERATOR_CLASSES

_TYPES = {"vector": "VECTOR", "halfvec": "HALFVEC"}

_SCRIPT = '''\
"""{message}

Revision ID: {revision}
Revises: {revises}
"""

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import {type}

revision = {revision!r}
down_revision = {down_revision!r}
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    op.add_column({table!r}, sa.Column({column!r}, {type}({dim}), nullable=True){schema})
{create}

def downgrade() -> None:
{drop}    op.drop_column({table!r}, {column!r}{schema})
'''
_CREATE = """\
    # Without a lock on writers; this cannot run inside a transaction.
    with op.get_context().autocommit_block():
        op.create_index(
            {name!r},
            {table!r},
            [{target}],
            postgresql_using={method!r},
            postgresql_with={options!r},{operators}
            postgresql_concurrently=True,
            if_not_exists=True{schema},
        )
"""
_DROP = """\
    with op.get_context().autocommit_block():
        op.drop_index({name!r}, {table!r}, postgresql_concurrently=True, if_exists=True{schema})
"""


@dataclass(frozen=True, slots=True)
class VectorChange:
    """A nullable vector column to add, and an index on it.

    Attributes:
        table, column, schema: as in the database.
        dim: components. Beyond 2,000 the index is on the column's ``halfvec`` form (up to 4,000).
        type: ``vector`` or ``halfvec``.
        metric: which operator class the index gets.
        index: ``hnsw``, ``ivfflat``, or ``None`` for no index (fill the column first, then index it).
        options: storage parameters of the index, such as ``{"m": 16, "ef_construction": 64}``.
    """

    table: str
    column: str
    dim: int
    schema: str | None = None
    type: str = "vector"
    metric: Metric | str = Metric.COSINE
    index: str | None = "hnsw"
    options: tuple[tuple[str, int], ...] | dict[str, int] = ()

    def script(self, revision: str, *, down_revision: str | None, message: str = "") -> str:
        """The text of a migration file.

        Raises:
            ConfigurationError: for a type, metric or dimension that pgvector cannot index.
        """
        if self.type not in _TYPES:
            raise ConfigurationError(f"type={self.type!r} is unknown; choose vector or halfvec")
        schema = f", schema={self.schema!r}" if self.schema else ""
        values = {
            "table": self.table,
            "column": self.column,
            "schema": schema,
            "name": f"ix_{self.table}_{self.column}"[:63],
        }
        create = _CREATE.format(**values, **self._index()) if self.index else ""
        drop = _DROP.format(**values) if self.index else ""
        return _SCRIPT.format(
            **values,
            message=message or f"Add {self.table}.{self.column}",
            revision=revision,
            down_revision=down_revision,
            revises=down_revision or "",
            type=_TYPES[self.type],
            dim=int(self.dim),
            create=create,
            drop=drop,
        )

    def _index(self) -> dict[str, object]:
        limit = MAX_DIM["halfvec"] or 0
        if self.dim > limit:
            raise ConfigurationError(
                f"pgvector indexes up to {limit} dimensions, not {self.dim}; pass index=None"
            )
        if self.index not in ("hnsw", "ivfflat"):
            raise ConfigurationError(f"index={self.index!r} is unknown; choose hnsw, ivfflat or None")
        cast = self.type == "vector" and self.dim > (MAX_DIM["vector"] or 0)
        operators = f"{'halfvec' if cast else self.type}_{OPERATOR_CLASSES[Metric(self.metric)]}"
        default = {"m": 16, "ef_construction": 64} if self.index == "hnsw" else {"lists": 100}
        quoted = '"' + self.column.replace('"', '""') + '"'
        expression = f"({quoted}::halfvec({self.dim})) {operators}"
        return {
            "method": self.index,
            "options": dict(self.options) or default,
            "target": f"sa.text({expression!r})" if cast else repr(self.column),
            "operators": "" if cast else f"\n            postgresql_ops={ {self.column: operators}!r},",
        }
