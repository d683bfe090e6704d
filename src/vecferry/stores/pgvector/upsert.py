"""The statements of an upsert: a staging table of this connection, and what merges it into the target."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from psycopg import sql

from vecferry.stores.pgvector.address import TableName
from vecferry.stores.pgvector.columns import RowMap
from vecferry.stores.pgvector.reflect import Relation

STAGE = sql.Identifier("pg_temp", "vecferry_stage")


class Upsert:
    """Statements for one table.

    Args:
        as_text: columns that are staged as text and cast on the way (types without a binary form here).
        replaces: delete the rows of known ids and insert, where no unique index is on the id.
    """

    def __init__(
        self,
        table: TableName,
        relation: Relation,
        rows: RowMap,
        as_text: Collection[str],
        *,
        replaces: bool,
    ) -> None:
        self.table, self.relation, self.map = table, relation, rows
        self.as_text, self.replaces = as_text, replaces

    def make_stage(self, columns: Sequence[str]) -> list[sql.Composed]:
        """An empty temporary table with the given columns, emptied at every commit."""
        names = [
            sql.SQL("NULL::text AS {}" if name in self.as_text else "{}").format(sql.Identifier(name))
            for name in columns
        ]
        make = sql.SQL("CREATE TEMP TABLE {} ON COMMIT DELETE ROWS AS SELECT {} FROM {} WITH NO DATA")
        table = sql.Identifier("vecferry_stage")
        return [
            sql.SQL("DROP TABLE IF EXISTS {}").format(STAGE),
            make.format(table, sql.SQL(", ").join(names), self.table.quoted),
        ]

    def merge(self, columns: Sequence[str], absent: Sequence[str]) -> sql.Composed:
        """Staged rows into the table; ``absent`` columns of known rows become NULL."""
        values = [self._value(name) for name in columns]
        insert = sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}").format(
            self.table.quoted,
            sql.SQL(", ").join(map(sql.Identifier, columns)),
            sql.SQL(", ").join(values),
            STAGE,
        )
        if self.replaces:
            return insert
        target = sql.SQL(", ").join(map(sql.Identifier, self.map.id))
        return insert + sql.SQL(" ON CONFLICT ({}) DO {}").format(target, self._action(columns, absent))

    def delete_known(self) -> sql.Composed:
        """The rows whose ids are staged."""
        same = _same(self.map.id, sql.SQL("known"), sql.SQL("new"))
        return sql.SQL("DELETE FROM {} AS known USING {} AS new WHERE {}").format(
            self.table.quoted, STAGE, same
        )

    def ids_of_others(self) -> sql.Composed:
        """Staged ids that stand in another collection of the same table."""
        known, new = sql.SQL("known"), sql.SQL("new")
        return sql.SQL("SELECT known.{} FROM {} AS known JOIN {} AS new ON {} WHERE NOT ({})").format(
            sql.Identifier(self.map.id[0]),
            self.table.quoted,
            STAGE,
            _same(self.map.id, known, new),
            _same(tuple(self.map.fixed), known, new),
        )

    def _value(self, name: str) -> sql.Composable:
        column = sql.Identifier(name)
        if name not in self.as_text:
            return column
        return sql.SQL("CAST({} AS {})").format(column, sql.SQL(self.relation.columns[name].sql_type))

    def _action(self, columns: Sequence[str], absent: Sequence[str]) -> sql.Composable:
        updates = [
            sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name))
            for name in columns
            if name not in self.map.id
        ]
        updates += [sql.SQL("{} = NULL").format(sql.Identifier(name)) for name in absent]
        if not updates:
            return sql.SQL("NOTHING")
        action = sql.SQL("UPDATE SET {}").format(sql.SQL(", ").join(updates))
        if self.map.fixed:  # never a row of another collection in the same table
            same = _same(tuple(self.map.fixed), self.table.quoted, sql.SQL("EXCLUDED"))
            action += sql.SQL(" WHERE {}").format(same)
        return action


def _same(names: Sequence[str], one: sql.Composable, other: sql.Composable) -> sql.Composed:
    equal = [sql.SQL("{0}.{2} = {1}.{2}").format(one, other, sql.Identifier(name)) for name in names]
    return sql.SQL(" AND ").join(equal)
