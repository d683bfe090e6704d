"""A table like another: what the application gave a table survives its replacement.

`clone` makes the new table ``LIKE`` the old one (columns, types, defaults, checks, identities, comments,
storage), with its keys and foreign keys; `add_indexes` builds the other indexes after the load; `hand_over`
brings grants, owner, sequences, triggers, views and the names of indexes to the table that goes live. What
cannot be carried is refused by name before anything is written.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import psycopg
from psycopg import sql

from vecferry.errors import SchemaMismatchError, UnsupportedError
from vecferry.model import CollectionSchema, Kind
from vecferry.stores.pgvector.introspection import TableMetadata, read_metadata, words_of, write_metadata
from vecferry.stores.pgvector.server import TableName
from vecferry.stores.pgvector.table import Table, metric_of, vector_columns

_OURS = "vecferry_journal_%"
_CANNOT_GO = {
    "partitions": "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = {t}",
    "inheritance": "SELECT inhparent::regclass::text FROM pg_inherits WHERE inhrelid = {t}",
    "rule": "SELECT rulename FROM pg_rewrite WHERE ev_class = {t}",
    "publication": """
        SELECT p.pubname FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
        WHERE r.prrelid = {t}
    """,
    "materialized view": """
        SELECT DISTINCT v.oid::regclass::text FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
        JOIN pg_class v ON v.oid = r.ev_class
        WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = {t} AND v.relkind = 'm'
    """,
    "replica identity": "SELECT relreplident::text FROM pg_class WHERE oid = {t} AND relreplident = 'i'",
}
_CONSTRAINTS = """
    SELECT conname, contype::text, pg_get_constraintdef(oid), conindid::regclass::oid FROM pg_constraint
    WHERE conrelid = to_regclass(%s) AND contype IN ('p', 'u', 'x', 'f') ORDER BY contype <> 'p', conname
"""
_INDEXES = """
    SELECT i.relname, x.indisunique, pg_get_indexdef(x.indexrelid),
           EXISTS (SELECT 1 FROM pg_constraint c
                   WHERE c.conindid = x.indexrelid AND c.contype IN ('p', 'u', 'x'))
    FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
    WHERE x.indrelid = to_regclass(%s) AND x.indisvalid ORDER BY i.relname
"""
_TRIGGERS = """
    SELECT t.tgname, pg_get_triggerdef(t.oid), t.tgenabled::text FROM pg_trigger t
    JOIN pg_proc p ON p.oid = t.tgfoid
    WHERE t.tgrelid = to_regclass(%s) AND NOT t.tgisinternal AND p.proname NOT LIKE %s
"""
_VIEWS = """
    SELECT DISTINCT v.oid::regclass::text, pg_get_viewdef(v.oid), v.reloptions
    FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid JOIN pg_class v ON v.oid = r.ev_class
    WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = to_regclass(%s) AND v.relkind = 'v'
"""
_SEQUENCES = """
    SELECT s.oid::regclass::text, a.attname FROM pg_depend d
    JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
    JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    WHERE d.refobjid = to_regclass(%s) AND d.deptype = 'a' AND d.classid = 'pg_class'::regclass
"""
_STORED = """
    SELECT relpersistence::text, reloptions, relreplident::text FROM pg_class WHERE oid = to_regclass(%s)
"""
_GRANTS = """
    SELECT a.privilege_type, a.is_grantable, r.rolname, NULL AS attname
    FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee
    WHERE c.oid = to_regclass(%(t)s) AND a.grantee <> c.relowner
    UNION ALL
    SELECT a.privilege_type, a.is_grantable, r.rolname, t.attname
    FROM pg_attribute t CROSS JOIN LATERAL aclexplode(t.attacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee
    WHERE t.attrelid = to_regclass(%(t)s) AND NOT t.attisdropped
"""
_OWNERS = "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = to_regclass(%s)"
_DEFINITION = re.compile(r"^CREATE (UNIQUE )?INDEX .+? ON (?:ONLY )?.+? USING ", re.DOTALL)


def has_more(connection: psycopg.Connection[Any], table: Table) -> bool:
    """Whether the application has given a table of ours more than we would give it again."""
    if not table.made or table.metadata is None or table.name is None:
        return True
    noted = table.metadata.columns
    if noted and set(table.columns) - table.ours:
        return True
    if table.layout != "plain" and (table.typed or table.passed_over):
        return True
    name = [_text(connection, table.name)]
    own = {"btree": {*table.id}, "gin": {table.json or ""}, "hnsw": {*table.vectors.values()}}
    own["ivfflat"] = own["hnsw"]
    for index in table.indexes:
        columns = set(index.columns) or set(vector_columns(index, table.relation))
        if table.layout == "plain" and not columns <= own.get(index.method, set()):
            return True
    constraints = connection.execute(_CONSTRAINTS, name).fetchall()
    checks = "SELECT 1 FROM pg_constraint WHERE conrelid = to_regclass(%s) AND contype = 'c'"
    found = [kind for _, kind, *_ in constraints if kind != "p"]
    found += connection.execute(checks, name).fetchall()
    found += connection.execute(_TRIGGERS, [*name, _OURS]).fetchall()
    found += connection.execute(_VIEWS, name).fetchall()
    return bool(found)


def refuse_what_would_go(connection: psycopg.Connection[Any], table: TableName) -> None:
    """Look for what a new table could not have.

    Raises:
        UnsupportedError: naming it.
    """
    literal = _text(connection, table)
    for kind, query in _CANNOT_GO.items():
        statement = sql.SQL(query).format(t=sql.SQL("to_regclass({})").format(sql.Literal(literal)))
        row = connection.execute(statement).fetchone()
        if row:
            raise UnsupportedError(
                f"{table} has a {kind} ({row[0]}), which a new table in its place would not have; "
                "use mode='upsert'"
            )


def clone(
    connection: psycopg.Connection[Any], live: Table, shadow: TableName, schema: CollectionSchema
) -> None:
    """Make ``shadow`` like the live table, for records of ``schema``, in the running transaction.

    Raises:
        UnsupportedError: for what cannot be carried.
        SchemaMismatchError: if the live table has no place for a vector field.
    """
    assert live.name is not None
    _check_fields(live, schema)
    refuse_what_would_go(connection, live.name)
    name = [_text(connection, live.name)]
    row = connection.execute(_STORED, name).fetchone()
    persistence, options, identity = row or ("p", None, "d")
    make = sql.SQL("CREATE {} TABLE {} (LIKE {} INCLUDING ALL EXCLUDING INDEXES)")
    kind = sql.SQL("UNLOGGED" if persistence == "u" else "")
    connection.execute(make.format(kind, shadow.quoted, live.name.quoted))
    alter = sql.SQL("ALTER TABLE {} ").format(shadow.quoted)
    if options:
        connection.execute(alter + sql.SQL("SET ({})").format(sql.SQL(", ".join(options))))
    if identity in "fn":
        kind = sql.SQL("FULL" if identity == "f" else "NOTHING")
        connection.execute(alter + sql.SQL("REPLICA IDENTITY {}").format(kind))
    _fit_vectors(connection, live, alter, schema)
    names: dict[str, str] = {}
    for constraint, type_, definition, _ in connection.execute(_CONSTRAINTS, name).fetchall():
        given = constraint if type_ == "f" else _apart(shadow, constraint, names)
        add = sql.SQL("ADD CONSTRAINT {} {}").format(sql.Identifier(given), sql.SQL(definition))
        connection.execute(alter + add)
    for index, unique, definition, constrained in connection.execute(_INDEXES, name).fetchall():
        if unique and not constrained:
            connection.execute(_index(definition, shadow, _apart(shadow, index, names)))
    words = words_of(connection, live.name)
    if words:
        connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(shadow.quoted, sql.Literal(words)))
    old = live.metadata or TableMetadata()
    recorded = schema.model_copy(update={"losses": (), "count": None, "layout": live.layout})
    if old.made:
        recorded = recorded.model_copy(update={"id_type": old.collection.id_type})
    noted = TableMetadata(
        collection=recorded,
        columns=old.columns,
        coded_ids=old.coded_ids,
        made=old.made,
        like=True,
        indexes=names,
    )
    write_metadata(connection, shadow, noted)


def _check_fields(live: Table, schema: CollectionSchema) -> None:
    for field in schema.fields:
        if field.name not in live.vectors:
            raise SchemaMismatchError(
                f"{live.name} has no vector field {field.name!r}, only {sorted(live.vectors)}; "
                "rename it with fields={old: new}, or write to a new table"
            )
        column = live.columns[live.vectors[field.name]]
        kind, dtype = column.kind_and_dtype
        bits = (dtype == "bit") is not (field.dtype == "bit")
        if kind is not field.kind or column.held_as or bits:
            raise SchemaMismatchError(
                f"{live.name}: column {column.name!r} is {column.sql_type}, "
                f"made for no {field.kind} vectors of {field.dtype}; write to a new table"
            )


def _fit_vectors(
    connection: psycopg.Connection[Any], live: Table, alter: sql.Composed, schema: CollectionSchema
) -> None:
    """A collection that is embedded anew may have another dimension."""
    for field in schema.fields:
        column = live.columns[live.vectors[field.name]]
        if column.dim is None or field.dim in (None, column.dim) or field.kind is Kind.MULTI:
            continue
        type_ = sql.SQL(f"ALTER COLUMN {{}} TYPE {column.type}({int(field.dim or 0)})")
        connection.execute(alter + type_.format(sql.Identifier(column.name)))


def add_indexes(
    connection: psycopg.Connection[Any], live: Table, shadow: Table, schema: CollectionSchema
) -> dict[str, str]:
    """Build the indexes of the live table that the shadow has not yet. Idempotent.

    Returns the vector columns, with the method of their index, whose index does not fit the new vectors:
    another metric or dimension.
    """
    assert live.name is not None and shadow.name is not None
    noted = read_metadata(connection, shadow.name) or TableMetadata()
    names, have = dict(noted.indexes), {index.name for index in shadow.indexes}
    metrics = {live.vectors[f.name]: (f.metric, f.dim) for f in schema.fields if f.name in live.vectors}
    anew: dict[str, str] = {}
    known = {index.name: index for index in live.indexes}
    for index, _, definition, constrained in connection.execute(
        _INDEXES, [_text(connection, live.name)]
    ).fetchall():
        if constrained or index in names.values():
            continue
        columns = vector_columns(known[index], live.relation) if index in known else []
        changed = [
            column
            for column in columns
            if column in metrics
            and (
                metrics[column][0] is not metric_of(known[index])
                or live.columns[column].dim != shadow.columns[column].dim
            )
        ]
        if changed:
            anew |= dict.fromkeys(changed, known[index].method)
            continue
        given = _apart(shadow.name, index, names)
        if given not in have:
            connection.execute(_index(definition, shadow.name, given))
    write_metadata(connection, shadow.name, noted.model_copy(update={"indexes": names}))
    return anew


def hand_over(
    connection: psycopg.Connection[Any], live: TableName, shadow: TableName, kept: TableName
) -> None:
    """What the table that is replaced hands to the one that replaces it, before their names are swapped.

    Triggers and views go on to speak of the name; indexes change their names with the tables.
    """
    name = [_text(connection, live)]
    for privilege, grantable, role, column in connection.execute(_GRANTS, {"t": name[0]}).fetchall():
        of = sql.SQL(" ({})").format(sql.Identifier(column)) if column else sql.SQL("")
        connection.execute(
            sql.SQL("GRANT {}{} ON {} TO {}{}").format(
                sql.SQL(privilege),
                of,
                shadow.quoted,
                sql.Identifier(role) if role else sql.SQL("PUBLIC"),
                sql.SQL(" WITH GRANT OPTION" if grantable else ""),
            )
        )
    _same_owner(connection, live, shadow)
    columns = {
        row[0]
        for row in connection.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s)", [_text(connection, shadow)]
        )
    }
    for sequence, column in connection.execute(_SEQUENCES, name).fetchall():
        if column in columns:
            connection.execute(
                sql.SQL("ALTER SEQUENCE {} OWNED BY {}.{}").format(
                    sql.SQL(sequence), shadow.quoted, sql.Identifier(column)
                )
            )
    noted = read_metadata(connection, shadow) or TableMetadata()
    if noted.like:
        _swap_triggers(connection, live, shadow)
    _swap_index_names(connection, live, shadow, kept, noted)


def take_names(connection: psycopg.Connection[Any], live: TableName, shadow: TableName) -> None:
    """Indexes that are named after a shadow are named after the table it becomes."""
    for index, *_ in connection.execute(_INDEXES, [_text(connection, shadow)]).fetchall():
        if index.startswith(shadow.name):
            name = (live.name + index.removeprefix(shadow.name)).encode()[:63].decode(errors="ignore")
            taken = "SELECT to_regclass(%s) IS NOT NULL"
            row = connection.execute(taken, [_text(connection, live.sibling(name))]).fetchone()
            if not (row and row[0]):
                _rename_index(connection, shadow, index, name)


def views_on(connection: psycopg.Connection[Any], table: TableName) -> list[sql.Composed]:
    """Statements that make the views on a table anew: run after another took its name, they read that."""
    found = []
    for view, definition, options in connection.execute(_VIEWS, [_text(connection, table)]).fetchall():
        given = sql.SQL(" WITH ({})").format(sql.SQL(", ".join(options))) if options else sql.SQL("")
        found.append(
            sql.SQL("CREATE OR REPLACE VIEW {}{} AS {}").format(sql.SQL(view), given, sql.SQL(definition))
        )
    return found


def _same_owner(connection: psycopg.Connection[Any], live: TableName, shadow: TableName) -> None:
    owners = [connection.execute(_OWNERS, [_text(connection, name)]).fetchone() for name in (live, shadow)]
    if owners[0] and owners[0] != owners[1]:
        owner = sql.Identifier(owners[0][0])
        connection.execute(sql.SQL("ALTER TABLE {} OWNER TO {}").format(shadow.quoted, owner))


def _swap_triggers(connection: psycopg.Connection[Any], live: TableName, shadow: TableName) -> None:
    query = "SELECT quote_ident(nspname) || '.' || quote_ident(relname) FROM pg_class c"
    query += " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass(%s)"
    row = connection.execute(query, [_text(connection, live)]).fetchone()
    there = {r[0] for r in connection.execute(_TRIGGERS, [_text(connection, shadow), _OURS]).fetchall()}
    for trigger, definition, enabled in connection.execute(
        _TRIGGERS, [_text(connection, live), _OURS]
    ).fetchall():
        if row is None or trigger in there:
            continue
        new = definition.replace(f" ON {row[0]} ", f" ON {_text(connection, shadow)} ", 1)
        connection.execute(sql.SQL(new))
        state = {"D": "DISABLE", "R": "ENABLE REPLICA", "A": "ENABLE ALWAYS"}.get(enabled)
        if state:
            alter = sql.SQL("ALTER TABLE {} {} TRIGGER {}")
            connection.execute(alter.format(shadow.quoted, sql.SQL(state), sql.Identifier(trigger)))


def _swap_index_names(
    connection: psycopg.Connection[Any],
    live: TableName,
    shadow: TableName,
    kept: TableName,
    noted: TableMetadata,
) -> None:
    """The names of the live table's indexes go to those of the shadow that are made like them."""
    names: dict[str, str] = {}
    for index, *_ in connection.execute(_INDEXES, [_text(connection, live)]).fetchall():
        _rename_index(connection, live, index, _apart(kept, index, names))
    there = {row[0] for row in connection.execute(_INDEXES, [_text(connection, shadow)]).fetchall()}
    for given, original in noted.indexes.items():
        if given in there:
            _rename_index(connection, shadow, given, original)
    old = read_metadata(connection, live) or TableMetadata()
    write_metadata(connection, live, old.model_copy(update={"indexes": names, "like": True}))
    if noted.indexes:
        write_metadata(connection, shadow, noted.model_copy(update={"indexes": {}}))


def _rename_index(connection: psycopg.Connection[Any], table: TableName, old: str, new: str) -> None:
    statement = sql.SQL("ALTER INDEX {} RENAME TO {}")
    connection.execute(statement.format(table.sibling(old).quoted, sql.Identifier(new)))


def _apart(table: TableName, name: str, names: dict[str, str]) -> str:
    """The name of an index as long as its table is not the live one; noted in ``names``."""
    digest = hashlib.sha256(f"{table.name}/{name}".encode()).hexdigest()[:16]
    given = f"vf_{digest}_{name}".encode()[:63].decode(errors="ignore")
    names[given] = name
    return given


def _index(definition: str, table: TableName, name: str) -> sql.Composed:
    """The definition of an index, on another table and under another name."""
    match = _DEFINITION.match(definition)
    if match is None:
        raise UnsupportedError(f"{table}: an index is defined as {definition!r}, which cannot be carried")
    return sql.SQL("CREATE {}INDEX {} ON {} USING {}").format(
        sql.SQL(match[1] or ""), sql.Identifier(name), table.quoted, sql.SQL(definition[match.end() :])
    )


def _text(connection: psycopg.Connection[Any], table: TableName) -> str:
    return table.quoted.as_string(connection)
