"""``COPY (SELECT …) TO STDOUT (FORMAT binary)``, row by row, at libpq's own speed."""

from __future__ import annotations

import selectors
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import pq, sql
from psycopg.errors import error_from_result

_TRAILER = b"\xff\xff"


def copy_rows(
    connection: psycopg.Connection[Any], statement: sql.Composable, values: dict[str, Any]
) -> Iterator[memoryview]:
    """The rows of a select in COPY's binary format, each from its field count on.

    The caller ends the transaction. When the iterator is left early the connection is still busy and
    must be thrown away.

    Raises:
        psycopg.Error: as the server reports it, also in the middle of the stream.
    """
    copy = sql.SQL("COPY ({}) TO STDOUT (FORMAT binary)").format(statement)
    bound = psycopg.ClientCursor(connection).mogrify(copy, values)
    pgconn = connection.pgconn
    pgconn.send_query(bound.encode())
    with selectors.DefaultSelector() as selector:
        selector.register(pgconn.socket, selectors.EVENT_READ)
        _await_copy(pgconn, selector)
        header = True
        for row in _messages(pgconn, selector):
            if header:
                header = False
                # Signature (11 bytes), flags (4), then the length of the header's extension.
                row = row[19 + int.from_bytes(row[15:19], "big") :]  # noqa: PLW2901
            if len(row) > 2 or bytes(row) != _TRAILER:
                yield row
        _finish(pgconn, selector)


def _messages(pgconn: Any, selector: selectors.BaseSelector) -> Iterator[memoryview]:
    get = pgconn.get_copy_data
    while True:
        size, data = get(1)
        if size > 0:
            yield data
        elif size == 0:
            selector.select()
            pgconn.consume_input()
        else:
            return


def _await_copy(pgconn: Any, selector: selectors.BaseSelector) -> None:
    """Until the server begins to copy, or says why not."""
    while pgconn.flush():
        selector.modify(pgconn.socket, selectors.EVENT_READ | selectors.EVENT_WRITE)
        selector.select()
        pgconn.consume_input()
    selector.modify(pgconn.socket, selectors.EVENT_READ)
    result = _next_result(pgconn, selector)
    if result is None or result.status != pq.ExecStatus.COPY_OUT:
        _finish(pgconn, selector, result)


def _finish(pgconn: Any, selector: selectors.BaseSelector, result: Any = None) -> None:
    """Take the results up to the end of the command; the first failure is raised."""
    failed = None
    while (result := result or _next_result(pgconn, selector)) is not None:
        if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK) and failed is None:
            failed = result
        result = None
    if failed is not None:
        raise error_from_result(failed, "utf-8")


def _next_result(pgconn: Any, selector: selectors.BaseSelector) -> Any:
    while pgconn.is_busy():
        selector.select()
        pgconn.consume_input()
    return pgconn.get_result()
