"""Shadow tables, the swap of names, and the way back.

A shadow of ``docs`` is ``docs__vf_TAG`` in the same schema. Publishing renames the live table to its own
``docs__vf_TAG`` and the shadow to ``docs``, in one transaction: readers see the old table or the new one.
Tag, order and time of publication are in each table's metadata. What else goes over to the new table is
in `shape`.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql

from vecferry.errors import NotFoundError, RetryableError, TargetExistsError, UnsupportedError
from vecferry.ports import Version, WriteMode
from vecferry.stores.pgvector import shape
from vecferry.stores.pgvector.introspection import (
    TableMetadata,
    find_table,
    parse_metadata,
    read_metadata,
    write_metadata,
)
from vecferry.stores.pgvector.server import Server, TableName
from vecferry.stores.pgvector.writing import lock_name

_MARK = "__vf_"
_ORIGINAL = "original"
_COUNTED = 100_000  # rows up to which a version is counted, not estimated
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


def note_shadow(connection: psycopg.Connection[Any], shadow: TableName, mode: WriteMode, tag: str) -> None:
    """Record whose a shadow is: the tag of its job, in which mode and when it was begun."""
    metadata = read_metadata(connection, shadow)
    if metadata is not None:
        changes = {
            "mode": mode.value,
            "tag": tag,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_metadata(connection, shadow, metadata.model_copy(update=changes))


def is_begun(server: Server, table: TableName) -> bool:
    """Whether a table of this name is being made by a job that has not published it."""
    with server.raw() as connection:
        found = _all(connection, qualified(connection, table))
        connection.commit()
    return any(m.mode == "create" and not m.serial and name != table.name for m, name in found)


def publish(server: Server, table: TableName, tag: str) -> Version:
    """See `vecferry.ports.Publishable.publish`."""
    with server.raw() as connection:
        table = _begin(connection, table)
        shadow = shadow_name(table, tag)
        live = read_metadata(connection, table)
        metadata = read_metadata(connection, shadow)
        if metadata is None and not (live and live.tag == tag):
            raise NotFoundError(f"{table} has no shadow {tag!r} to publish; build it first")
        if metadata is not None:
            # The live table may have been there before and get serial 1 in the swap.
            serial = 1 + max([1, *(m.serial for m, _ in _all(connection, table))])
            created = datetime.now(UTC).isoformat(timespec="seconds")
            if metadata.mode == "create" and find_table(connection, table) is not None:
                raise TargetExistsError(
                    f"{table} was made by another job meanwhile; what this one wrote is kept as {shadow}: "
                    'run again with mode="upsert" or mode="replace"'
                )
            _swap(connection, table, shadow)
            metadata = read_metadata(connection, table) or metadata
            changes = {"tag": tag, "serial": serial, "created": created, "mode": ""}
            write_metadata(connection, table, metadata.model_copy(update=changes))
        connection.commit()
    return next(version for version in versions(server, table) if version.live)


def discard(server: Server, table: TableName, tag: str) -> None:
    """Drop a shadow that was never published."""
    with server.raw() as connection:
        shadow = shadow_name(_begin(connection, table), tag)
        metadata = read_metadata(connection, shadow)
        if metadata is None or not metadata.serial:
            if _is_written(connection, shadow):
                raise RetryableError(
                    f"{shadow} is being written by another session; try again when it ends"
                )
            drop(connection, shadow)
        connection.commit()


def versions(server: Server, table: TableName) -> list[Version]:
    """Published tables, newest first, and behind them those that were built and never live."""
    with server.raw() as connection:
        table = qualified(connection, table)
        found = _tables(connection, table)
        found.sort(key=lambda item: (-item[0].serial, item[1] != table.name, item[1]))
        return [
            Version(
                metadata.tag or _ORIGINAL,
                name == table.name,
                metadata.created,
                _count(connection, table.sibling(name), rows),
                published=bool(metadata.serial) or name == table.name,
            )
            for metadata, name, rows in found
        ]


def rollback(server: Server, table: TableName) -> Version:
    """Bring the version before the live one back."""
    with server.raw() as connection:
        table = _begin(connection, table)
        live = read_metadata(connection, table) or TableMetadata()
        before = [
            (m, n) for m, n in _all(connection, table) if n != table.name and 0 < m.serial < live.serial
        ]
        if not before:
            raise NotFoundError(f"{table} keeps no earlier version to roll back to")
        _, name = max(before, key=lambda item: item[0].serial)
        _swap(connection, table, table.sibling(name))
        connection.commit()
    return next(version for version in versions(server, table) if version.live)


def roll_to(server: Server, table: TableName, tag: str) -> Version:
    """Make a version that was live the live one again, an earlier or a later one."""
    with server.raw() as connection:
        table = _begin(connection, table)
        kept = {m.tag or _ORIGINAL: n for m, n in _all(connection, table) if m.serial or n == table.name}
        if tag not in kept:
            raise NotFoundError(f"{table} keeps no version {tag!r}; there are {', '.join(sorted(kept))}")
        if kept[tag] != table.name:
            _swap(connection, table, table.sibling(kept[tag]))
        connection.commit()
    return next(version for version in versions(server, table) if version.live)


def prune(server: Server, table: TableName, keep: int) -> list[str]:
    """Drop all but the live version and ``keep`` before it; one that was rolled back goes first."""
    with server.raw() as connection:
        table = _begin(connection, table)
        live = (read_metadata(connection, table) or TableMetadata()).serial
        others = [(m, n) for m, n in _all(connection, table) if n != table.name and m.serial]
        others.sort(key=lambda item: (item[0].serial < live, item[0].serial))
        gone = sorted(others[: max(len(others) - keep, 0)], key=lambda item: item[0].serial)
        for _, name in gone:
            drop(connection, table.sibling(name))
        connection.commit()
    return [metadata.tag for metadata, _ in gone]


# -- helpers --------------------------------------------------------------------------------------


def _begin(connection: psycopg.Connection[Any], table: TableName) -> TableName:
    connection.autocommit = False
    connection.execute(_LOCK_TIMEOUT)
    return qualified(connection, table)


def _all(connection: psycopg.Connection[Any], table: TableName) -> list[tuple[TableMetadata, str]]:
    """The live table and every table of its versions, with their memos."""
    return [(metadata, name) for metadata, name, _ in _tables(connection, table)]


def _tables(connection: psycopg.Connection[Any], table: TableName) -> list[tuple[TableMetadata, str, int]]:
    """As `_all`, with the server's estimate of the rows, −1 where it has none."""
    prefix = _stem(table) + _MARK
    rows = connection.execute(_TABLES, [table.schema, table.name, prefix]).fetchall()
    return [(parse_metadata(comment) or TableMetadata(), name, count) for name, comment, count in rows]


def _swap(connection: psycopg.Connection[Any], table: TableName, shadow: TableName) -> None:
    """Rename live → kept and shadow → live, in the running transaction."""
    if find_table(connection, table) is not None:
        _check_free(connection, table)
        live = read_metadata(connection, table) or TableMetadata()
        tag = live.tag or _ORIGINAL
        if not live.tag:
            serial = live.serial or 1
            write_metadata(connection, table, live.model_copy(update={"tag": tag, "serial": serial}))
        kept = shadow_name(table, tag)
        shape.hand_over(connection, table, shadow, kept)
        views = shape.views_on(connection, table)
        # The kept name may be the shadow's own (a tag published anew): go through a third name.
        _rename(connection, table, "vecferry_swap_" + kept.name[-40:])
        _rename(connection, shadow, table.name)
        _rename(connection, table.sibling("vecferry_swap_" + kept.name[-40:]), kept.name)
        for view in views:
            connection.execute(view)
    else:
        shape.take_names(connection, table, shadow)
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


def _is_written(connection: psycopg.Connection[Any], shadow: TableName) -> bool:
    """Whether a writer is connected; no other begins as long as this transaction lasts."""
    query = "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))"
    row = connection.execute(query, [lock_name(shadow)]).fetchone()
    return not (row and row[0])


def _count(connection: psycopg.Connection[Any], table: TableName, estimate: int) -> int:
    """Exact where that is cheap."""
    if estimate > _COUNTED:
        return estimate
    row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(table.quoted)).fetchone()
    return int(row[0]) if row else 0
