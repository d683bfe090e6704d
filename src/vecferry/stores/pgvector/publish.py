"""Shadow tables, the swap of names, and the way back.

A shadow of ``docs`` is ``docs__vf_TAG`` in the same schema. Publishing renames the live table to its own
``docs__vf_TAG`` and the shadow to ``docs``, in one transaction: readers see the old table or the new one.
Tag, order and time of publication are in each table's memo. Rights granted on the live table go to the new.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql

from vecferry.errors import NotFoundError, UnsupportedError
from vecferry.ports import Version
from vecferry.stores.pgvector.address import Server, TableName
from vecferry.stores.pgvector.memo import Memo, parse_memo, read_memo, write_memo
from vecferry.stores.pgvector.reflect import find_table

_MARK = "__vf_"
_ORIGINAL = "original"
_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '10s'"  # rather fail than let every reader queue up behind us
_TABLES = """
    SELECT c.relname, obj_description(c.oid, 'pg_class'), c.reltuples::bigint
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %s AND c.relkind IN ('r', 'p') AND (c.relname = %s OR starts_with(c.relname, %s))
"""
_DEPENDENTS = """
    SELECT conrelid::regclass::text FROM pg_constraint
    WHERE contype = 'f' AND confrelid = to_regclass(%s) AND conrelid <> confrelid LIMIT 1
"""
_SECURED = "SELECT 1 FROM pg_class WHERE oid = to_regclass(%s) AND relrowsecurity"
_GRANTS = """
    SELECT a.privilege_type, a.is_grantable, a.grantee, CASE WHEN a.grantee = 0 THEN NULL ELSE r.rolname END
    FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee
    WHERE c.oid = to_regclass(%s) AND a.grantee <> c.relowner
"""


def is_shadow(table: TableName) -> bool:
    return _MARK in table.name


def shadow_name(table: TableName, tag: str) -> TableName:
    """The same for the same tag; long names are cut and told apart by a digest."""
    clean = re.sub(r"[^A-Za-z0-9_]", "_", tag)
    suffix = _MARK + clean
    if clean != tag or len((table.name + suffix).encode()) > 63:
        suffix = _MARK + hashlib.sha256(tag.encode()).hexdigest()[:12]
    return table.sibling(_stem(table) + suffix)


def _stem(table: TableName) -> str:
    return table.name.encode()[: 63 - len(_MARK) - 12].decode(errors="ignore")


def qualified(connection: psycopg.Connection[Any], table: TableName) -> TableName:
    """With the schema in which the table is, or would be made."""
    if table.schema:
        return table
    found = find_table(connection, table)
    if found:
        return found
    row = connection.execute("SELECT current_schema()").fetchone()
    return TableName(table.name, row[0] if row else None)


def drop(connection: psycopg.Connection[Any], table: TableName) -> None:
    connection.execute(_LOCK_TIMEOUT)
    connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(table.quoted))


def publish(server: Server, table: TableName, tag: str) -> Version:
    """See `vecferry.ports.Publishable.publish`."""
    with server.raw() as connection:
        table = _begin(connection, table)
        shadow = shadow_name(table, tag)
        live = read_memo(connection, table)
        memo = read_memo(connection, shadow)
        if memo is None and not (live and live.tag == tag):
            raise NotFoundError(f"{table} has no shadow {tag!r} to publish; build it first")
        if memo is not None:
            # The live table may have been there before and get serial 1 in the swap.
            serial = 1 + max([1, *(m.serial for m, _ in _all(connection, table))])
            created = datetime.now(UTC).isoformat(timespec="seconds")
            _swap(connection, table, shadow)
            write_memo(
                connection,
                table,
                memo.model_copy(update={"tag": tag, "serial": serial, "created": created}),
            )
        connection.commit()
    return next(version for version in versions(server, table) if version.live)


def discard(server: Server, table: TableName, tag: str) -> None:
    """Drop a shadow that was never published."""
    with server.raw() as connection:
        shadow = shadow_name(_begin(connection, table), tag)
        memo = read_memo(connection, shadow)
        if memo is None or not memo.serial:
            drop(connection, shadow)
        connection.commit()


def versions(server: Server, table: TableName) -> list[Version]:
    """Published tables, newest first, with the server's estimate of their rows."""
    with server.raw() as connection:
        table = qualified(connection, table)
        found = [
            (memo, name) for memo, name in _all(connection, table) if memo.serial or name == table.name
        ]
        found.sort(key=lambda item: -item[0].serial)
        return [
            Version(
                memo.tag or _ORIGINAL,
                name == table.name,
                memo.created,
                _count(connection, table.sibling(name)),
            )
            for memo, name in found
        ]


def rollback(server: Server, table: TableName) -> Version:
    """Bring the version before the live one back."""
    with server.raw() as connection:
        table = _begin(connection, table)
        live = read_memo(connection, table) or Memo()
        before = [
            (m, n) for m, n in _all(connection, table) if n != table.name and 0 < m.serial < live.serial
        ]
        if not before:
            raise NotFoundError(f"{table} keeps no earlier version to roll back to")
        _, name = max(before, key=lambda item: item[0].serial)
        _swap(connection, table, table.sibling(name))
        connection.commit()
    return next(version for version in versions(server, table) if version.live)


def prune(server: Server, table: TableName, keep: int) -> list[str]:
    """Drop all but the live version and ``keep`` before it; one that was rolled back goes first."""
    with server.raw() as connection:
        table = _begin(connection, table)
        live = (read_memo(connection, table) or Memo()).serial
        others = [(m, n) for m, n in _all(connection, table) if n != table.name and m.serial]
        others.sort(key=lambda item: (item[0].serial < live, item[0].serial))
        gone = sorted(others[: max(len(others) - keep, 0)], key=lambda item: item[0].serial)
        for _, name in gone:
            drop(connection, table.sibling(name))
        connection.commit()
    return [memo.tag for memo, _ in gone]


# -- helpers --------------------------------------------------------------------------------------


def _begin(connection: psycopg.Connection[Any], table: TableName) -> TableName:
    connection.autocommit = False
    connection.execute(_LOCK_TIMEOUT)
    return qualified(connection, table)


def _all(connection: psycopg.Connection[Any], table: TableName) -> list[tuple[Memo, str]]:
    """The live table and every table of its versions, with their memos."""
    prefix = _stem(table) + _MARK
    rows = connection.execute(_TABLES, [table.schema, table.name, prefix]).fetchall()
    return [(parse_memo(comment) or Memo(), name) for name, comment, _ in rows]


def _swap(connection: psycopg.Connection[Any], table: TableName, shadow: TableName) -> None:
    """Rename live → kept and shadow → live, in the running transaction."""
    if find_table(connection, table) is not None:
        _check_free(connection, table)
        live = read_memo(connection, table) or Memo()
        tag = live.tag or _ORIGINAL
        if not live.tag:
            serial = live.serial or 1
            write_memo(connection, table, live.model_copy(update={"tag": tag, "serial": serial}))
        _copy_grants(connection, table, shadow)
        # The kept name may be the shadow's own (a tag published anew): go through a third name.
        kept = shadow_name(table, tag)
        _rename(connection, table, "vecferry_swap_" + kept.name[-40:])
        _rename(connection, shadow, table.name)
        _rename(connection, table.sibling("vecferry_swap_" + kept.name[-40:]), kept.name)
    else:
        _rename(connection, shadow, table.name)


def _check_free(connection: psycopg.Connection[Any], table: TableName) -> None:
    row = connection.execute(_DEPENDENTS, [table.quoted.as_string(connection)]).fetchone()
    if row:
        raise UnsupportedError(
            f"{row[0]} has a foreign key to {table}, which would stay with the old table; use mode='upsert'"
        )
    if connection.execute(_SECURED, [table.quoted.as_string(connection)]).fetchone():
        raise UnsupportedError(
            f"{table} has row level security, which the new table would not have; use mode='upsert'"
        )


def _rename(connection: psycopg.Connection[Any], table: TableName, name: str) -> None:
    statement = sql.SQL("ALTER TABLE {} RENAME TO {}")
    connection.execute(statement.format(table.quoted, sql.Identifier(name)))


def _copy_grants(connection: psycopg.Connection[Any], old: TableName, new: TableName) -> None:
    for privilege, grantable, _, role in connection.execute(
        _GRANTS, [old.quoted.as_string(connection)]
    ).fetchall():
        connection.execute(
            sql.SQL("GRANT {} ON {} TO {}{}").format(
                sql.SQL(privilege),
                new.quoted,
                sql.Identifier(role) if role else sql.SQL("PUBLIC"),
                sql.SQL(" WITH GRANT OPTION" if grantable else ""),
            )
        )


def _count(connection: psycopg.Connection[Any], table: TableName) -> int:
    row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(table.quoted)).fetchone()
    return int(row[0]) if row else 0
