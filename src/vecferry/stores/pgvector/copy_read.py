"""``COPY (SELECT …) TO STDOUT (FORMAT binary)``, row by row, at libpq's own speed."""

from __future__ import annotations

import select
import selectors
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
from psycopg import pq, sql
from psycopg.errors import error_from_result

_TRAILER = 2  # bytes: the field count −1 that ends the stream


def copy_rows(
    connection: psycopg.Connection[Any], statement: sql.Composable, values: dict[str, Any], size: int
) -> Iterator[tuple[bytearray, list[int]]]:
    """The rows of a select in COPY's binary format, ``size`` at a time.

    Yields the rows' bytes, each row from its field count on, one after the other, and where each row ends.
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
        first = _first_message(pgconn, selector)
        if not first:  # the server gave up before the first row, and says why
            _finish(pgconn, selector)
            return
        buffer = _without_header(first)
        ends = [len(buffer)] if len(buffer) > _TRAILER else []
        get, wait, consume = pgconn.get_copy_data, _waiter(pgconn, selector), pgconn.consume_input
        while True:  # one turn a row: nothing else may stand in it
            length, data = get(1)
            if length > _TRAILER:
                if len(ends) == size:
                    yield buffer, ends
                    buffer, ends = bytearray(), []
                buffer += data
                ends.append(len(buffer))
            elif length == 0:
                wait()
                consume()
            elif length < 0:
                break
        if ends:
            yield buffer, ends
        _finish(pgconn, selector)


def _waiter(pgconn: Any, selector: selectors.BaseSelector) -> Callable[[], Any]:
    """Wait for data. Some rows come with each wait, so the thinnest way is taken where there is one."""
    if not hasattr(select, "poll"):
        return selector.select
    poller = select.poll()
    poller.register(pgconn.socket, select.POLLIN)
    return poller.poll


def _first_message(pgconn: Any, selector: selectors.BaseSelector) -> bytes:
    while True:
        length, data = pgconn.get_copy_data(1)
        if length > 0:
            return bytes(data)
        if length < 0:
            return b""
        selector.select()
        pgconn.consume_input()


def _without_header(message: bytes) -> bytearray:
    """The first message begins with a signature (11 bytes), flags (4) and an extension with its length."""
    return bytearray(message[19 + int.from_bytes(message[15:19], "big") :])


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
