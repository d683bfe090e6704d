"""The table of errors, one row at a time, for what the gRPC server of the tests cannot say."""

from __future__ import annotations

import sqlite3
from typing import Any

import httpx
import pytest
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from vecferry.errors import (
    FatalStoreError,
    NotFoundError,
    PlanError,
    RejectedRecord,
    RequestTooLargeError,
    RetryableError,
    TargetExistsError,
    TimedOutError,
    UnsupportedError,
)
from vecferry.stores.qdrant.faults import translate


def answer(status: int, text: str = "", **headers: str) -> UnexpectedResponse:
    return UnexpectedResponse(status, "reason", text.encode(), httpx.Headers(headers))


TABLE: list[tuple[Exception, bool, type[Exception]]] = [
    (answer(400, "Wrong input"), True, RejectedRecord),
    (answer(400, "Wrong input"), False, PlanError),
    (answer(422, "Validation error"), True, RejectedRecord),
    (
        answer(400, "JSON payload (47 bytes) is larger than allowed (limit: 32 bytes)."),
        True,
        RequestTooLargeError,
    ),
    (answer(413), True, RequestTooLargeError),
    (answer(401), False, FatalStoreError),
    (answer(403), False, FatalStoreError),
    (answer(404, "Not found: Collection `c` doesn't exist!"), False, NotFoundError),
    (answer(409, "already exists"), False, TargetExistsError),
    (answer(429), True, RetryableError),
    (answer(500), True, RetryableError),
    (answer(503), False, RetryableError),
    (answer(501), False, UnsupportedError),
    (answer(418), False, FatalStoreError),
    (ResponseHandlingException(httpx.ReadTimeout("slow")), False, TimedOutError),
    (answer(504), True, TimedOutError),
    (ResponseHandlingException(httpx.ConnectError("refused")), False, RetryableError),
    (ResponseHandlingException(ValueError("not JSON")), False, FatalStoreError),
    (httpx.RemoteProtocolError("cut off"), True, RetryableError),
    (ValueError("Collection c not found"), False, NotFoundError),
    (ValueError("Collection c already exists"), False, TargetExistsError),
    (ValueError("Vector contains NaN values"), True, RejectedRecord),
    (ValueError("Invalid path"), False, PlanError),
    (RuntimeError("Storage folder x is already accessed by another instance"), False, FatalStoreError),
    (NotImplementedError("Snapshots are not supported"), False, UnsupportedError),
    (sqlite3.OperationalError("database is locked"), True, RetryableError),
    (sqlite3.OperationalError("database or disk is full"), True, FatalStoreError),
    (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), True, RejectedRecord),
    (MemoryError("no more"), True, FatalStoreError),
]


@pytest.mark.parametrize(("error", "writing", "kind"), TABLE, ids=lambda v: str(v)[:40] or type(v).__name__)
def test_every_fault_has_its_error(error: Exception, writing: bool, kind: type[Exception]) -> None:
    translated = translate(error, "qdrant:here#c", writing=writing)
    assert type(translated) is kind
    assert str(translated).startswith("qdrant:here#c")


def test_retry_after_is_read() -> None:
    found = translate(answer(429, "slow down", **{"retry-after": "12"}), "here")
    assert isinstance(found, RetryableError)
    assert found.retry_after == 12


def test_our_own_errors_pass_through() -> None:
    error: Any = NotFoundError("x")
    assert translate(error, "here") is error
