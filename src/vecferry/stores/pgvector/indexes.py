"""Vector indexes, built after the load."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from vecferry.model import CollectionSchema, DType, Kind, Metric, VectorField
from vecferry.ports import OnProgress, Progress
from vecferry.stores.pgvector.introspection import PgIndex
from vecferry.stores.pgvector.options import Options
from vecferry.stores.pgvector.server import Server, TableName, translated
from vecferry.stores.pgvector.table import Table, vector_columns

OPERATOR_CLASSES = {
    Metric.COSINE: "cosine_ops",
    Metric.L2: "l2_ops",
    Metric.IP: "ip_ops",
    Metric.L1: "l1_ops",
    Metric.HAMMING: "hamming_ops",
    Metric.JACCARD: "jaccard_ops",
}
MAX_DIM = {"vector": 2_000, "halfvec": 4_000, "bit": 64_000, "sparsevec": None}
_MIB = 2**20
_PROGRESS = (
    "SELECT blocks_done, blocks_total, tuples_done, phase FROM pg_stat_progress_create_index WHERE pid = %s"
)


class Builds:
    """Index builds that go on in the background of this process, by the table they are on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, tuple[threading.Thread, list[BaseException]]] = {}
        self._done: set[str] = set()

    def done(self, key: str) -> bool:
        """Whether this process has built them, and nothing was written since."""
        return key in self._done

    def start(self, key: str, job: Callable[[], None]) -> None:
        """Run ``job`` beside the caller; the process does not end before it."""
        failed: list[BaseException] = []

        def run() -> None:
            try:
                job()
            except BaseException as error:  # noqa: BLE001 - told by `wait`
                failed.append(error)

        thread = threading.Thread(target=run, name=f"index on {key}")
        with self._lock:
            self._running[key] = thread, failed
            self._done.discard(key)
        thread.start()

    def wait(self, key: str, seconds: float | None = None) -> bool:
        """Wait for the build on a table; false if it goes on after ``seconds``. Raises what it raised."""
        with self._lock:
            thread, failed = self._running.get(key, (None, []))
        if thread is None:
            return True
        thread.join(seconds)
        if thread.is_alive():
            return False
        with self._lock:
            self._running.pop(key, None)
        if failed:
            raise failed[0]
        self._done.add(key)
        return True


BUILDS = Builds()


def build(
    server: Server,
    table: Table,
    schema: CollectionSchema,
    options: Options,
    *,
    shadow: bool = False,
    analyze: bool = True,
) -> None:
    """Build the missing indexes of a table and gather statistics. Idempotent.

    A table made by this adapter gets an HNSW index on each vector field unless told otherwise; a table
    that was there before gets one only if the options ask for it, without locking writers out.

    Args:
        schema: with the count of records, on which memory and the settings of an IVFFlat index depend.
        shadow: whether nobody uses the table yet.
    """
    assert table.name is not None
    if table.fixed:  # LangChain's shared table: its column has no dimension, so nothing can be indexed
        return
    made = table.made
    if made or options.index:
        for field in schema.fields:
            plan = plan_index(table, field, options, schema.count)
            if plan is not None:
                _build_one(server, table.name, plan, options, concurrently=not made and not shadow)
    if made and schema.payload_indexes and table.json:
        _build_json(server, table)
    if analyze:
        with server.raw() as connection:
            connection.execute(sql.SQL("ANALYZE {}").format(table.name.quoted))
            connection.commit()


class IndexPlan:
    """One index to build: its expression, operator class and storage parameters."""

    def __init__(
        self, column: str, method: str, target: str, operators: str, options: dict[str, int], size: int
    ) -> None:
        self.column, self.method, self.target, self.operators = column, method, target, operators
        self.options, self.size = options, size

    def statement(self, table: TableName, *, concurrently: bool) -> sql.Composed:
        options = sql.SQL(", ").join(
            sql.SQL("{} = {}").format(sql.SQL(name), sql.Literal(value))
            for name, value in self.options.items()
        )
        return sql.SQL("CREATE INDEX {} ON {} USING {} ({} {}) WITH ({})").format(
            sql.SQL("CONCURRENTLY" if concurrently else ""),
            table.quoted,
            sql.SQL(self.method),
            target_sql(self.column, self.target),
            sql.SQL(self.operators),
            options,
        )


def target_sql(column: str, target: str) -> sql.Composable:
    """The indexed expression: the column, or its cast to ``target`` where that is not empty."""
    name = sql.Identifier(column)
    return sql.SQL("(({})::{})").format(name, sql.SQL(target)) if target else name


def plan_index(table: Table, field: VectorField, options: Options, count: int | None) -> IndexPlan | None:
    """The index a field should get; ``None`` if it has one, wants none, or cannot have one.

    More than 2,000 float32 dimensions are indexed through their ``halfvec`` form (up to 4,000): the column
    itself keeps float32.
    """
    column = table.columns[table.vectors[field.name]]
    method = options.index or ("ivfflat" if "ivf_lists" in field.index else "hnsw")
    if method == "none" or _usable(table, column.name) is not None or column.held_as:
        return None
    if field.kind is Kind.MULTI:
        return None
    dim = field.dim
    base, target = column.type, ""
    if field.kind is Kind.DENSE:
        if dim is None:
            return None
        if column.dim is None or dim > (MAX_DIM[base] or dim):
            base = "halfvec" if base == "vector" and dim > (MAX_DIM["vector"] or 0) else base
            target = f"{base}({dim})"
        if dim > (MAX_DIM[base] or dim):
            return None
    if (method == "ivfflat" and field.kind is Kind.SPARSE) or (
        field.metric is Metric.L1 and method == "ivfflat"
    ):
        method = "hnsw"
    operators = f"{base}_{OPERATOR_CLASSES[field.metric]}"
    return IndexPlan(
        column.name,
        method,
        target,
        operators,
        _options(method, field, options, count),
        _size(field, count),
    )


def _usable(table: Table, column: str) -> PgIndex | None:
    return next((i for i in table.indexes if i.valid and column in vector_columns(i, table.relation)), None)


def _options(method: str, field: VectorField, options: Options, count: int | None) -> dict[str, int]:
    if method == "ivfflat":
        # The advice of pgvector's README: rows / 1000 up to a million, then the square root.
        rows = count or 0
        advised = rows // 1000 if rows <= 1_000_000 else int(rows**0.5)
        return {"lists": options.lists or field.index.get("ivf_lists") or max(10, advised)}
    m = options.m or field.index.get("hnsw_m") or 16
    construction = options.ef_construction or field.index.get("hnsw_ef_construct") or 64
    return {"m": min(max(m, 2), 100), "ef_construction": min(max(construction, 2 * m, 4), 1000)}


def _size(field: VectorField, count: int | None) -> int:
    """Bytes the graph takes in memory, roughly: vectors, two neighbour lists of m, and overhead."""
    width = {DType.FLOAT16: 2.0, DType.BIT: 0.125}.get(field.dtype, 4.0) * (field.dim or 100)
    return int((count or 0) * (width + 16 * field.index.get("hnsw_m", 16) * 2 + 200) * 1.2)


def _build_one(
    server: Server, table: TableName, plan: IndexPlan, options: Options, *, concurrently: bool
) -> None:
    with server.raw() as connection:
        _drop_invalid(connection, table, plan)
    for workers in (_workers(), 0):
        try:
            # Of its own, so that no setting of the build stays on a connection of the application.
            with translated(server.url), server.connect() as connection:
                _create(server, connection, table, plan, options, workers, concurrently=concurrently)
            return
        except Exception as error:
            # A container's small /dev/shm has no room for parallel workers: build with one.
            if workers == 0 or not isinstance(error.__cause__, psycopg.errors.DiskFull):
                raise


def _create(
    server: Server,
    connection: psycopg.Connection[Any],
    table: TableName,
    plan: IndexPlan,
    options: Options,
    workers: int,
    *,
    concurrently: bool,
) -> None:
    connection.autocommit = concurrently  # CONCURRENTLY runs outside a transaction
    scope = sql.SQL("SESSION" if concurrently else "LOCAL")
    for name, value in {
        "maintenance_work_mem": options.maintenance_work_mem or f"{_memory(server, plan.size) // _MIB}MB",
        "max_parallel_maintenance_workers": str(workers),
        "statement_timeout": "0",
    }.items():
        connection.execute(sql.SQL("SET {} {} = {}").format(scope, sql.SQL(name), sql.Literal(value)))
    with _watched(server, connection, options.on_progress, plan.column):
        connection.execute(plan.statement(table, concurrently=concurrently))
    connection.commit()


def _drop_invalid(connection: psycopg.Connection[Any], table: TableName, plan: IndexPlan) -> None:
    """What a CREATE INDEX CONCURRENTLY left behind that was cut short."""
    rows = connection.execute(
        "SELECT i.relname FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid "
        "JOIN pg_am a ON a.oid = i.relam WHERE x.indrelid = "
        "to_regclass(%s) AND NOT x.indisvalid AND a.amname = %s",
        [table.quoted.as_string(connection), plan.method],
    ).fetchall()
    for (name,) in rows:
        connection.execute(sql.SQL("DROP INDEX {}").format(table.sibling(name).quoted))
    connection.commit()


def _build_json(server: Server, table: Table) -> None:
    """One GIN index serves equality filters on every key of the metadata."""
    column = table.json
    if column is None or any(i.method == "gin" and i.columns == (column,) for i in table.indexes):
        return
    assert table.name is not None
    with server.raw() as connection:
        connection.execute(
            sql.SQL("CREATE INDEX ON {} USING gin ({} jsonb_path_ops)").format(
                table.name.quoted, sql.Identifier(column)
            )
        )
        connection.commit()


def _workers() -> int:
    """Beside the leading process; the server's own limits (max_worker_processes) hold as well."""
    return max(1, min(7, (os.cpu_count() or 2) - 1))


def _memory(server: Server, needed: int) -> int:
    """What the graph needs, at most a quarter of this machine's memory for a local server, else 1 GiB."""
    limit = 1024 * _MIB
    if server.local and hasattr(os, "sysconf"):
        limit = max(256 * _MIB, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4)
    return max(64 * _MIB, min(needed, limit, 8192 * _MIB))


@contextmanager
def _watched(
    server: Server, connection: psycopg.Connection[Any], on_progress: OnProgress, column: str
) -> Iterator[None]:
    """Tell of the build's progress twice a second, from a second connection."""
    done = threading.Event()
    pid = connection.info.backend_pid

    def watch() -> None:
        with server.connect() as other:
            other.autocommit = True
            while not done.wait(0.5):
                row = other.execute(_PROGRESS, [pid]).fetchone()
                if row:
                    on_progress(
                        Progress("finish", row[0], row[1] or None, message=f"index on {column}: {row[3]}")
                    )

    from vecferry.ports import ignore_progress

    thread = threading.Thread(target=watch, daemon=True)
    if on_progress is not ignore_progress:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread.is_alive():
            thread.join(5)
