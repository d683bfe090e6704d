"""The table of errors, one row at a time, for what the gRPC server of the tests cannot say."""

from __future__ import annotations

import sqlite3
import ssl
from http.client import BadStatusLine, IncompleteRead, RemoteDisconnected
from typing import Any

import pytest

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
from vecferry.stores.qdrant.faults import Answer, DeniedError, translate


def answer(status: int, text: str = "", **headers: str) -> Answer:
    return Answer(status, "reason", headers, text.encode())


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
    (answer(401), False, DeniedError),
    (answer(403), False, DeniedError),
    (answer(404, "Not found: Collection `c` doesn't exist!"), False, NotFoundError),
    (answer(409, "already exists"), False, TargetExistsError),
    (answer(429), True, RetryableError),
    (answer(500), True, RetryableError),
    (answer(503), False, RetryableError),
    (answer(501), False, UnsupportedError),
    (answer(418), False, FatalStoreError),
    (TimeoutError("slow"), False, TimedOutError),
    (answer(504), True, TimedOutError),
    (ConnectionRefusedError("refused"), False, RetryableError),
    (answer(200, "not JSON"), False, FatalStoreError),
    (RemoteDisconnected("cut off"), True, RetryableError),
    (IncompleteRead(b"cut off"), True, RetryableError),
    (BadStatusLine("\x15\x03\x03"), False, FatalStoreError),
    (answer(404, "<!doctype html><title>Shop</title>"), False, FatalStoreError),
    (answer(200, "<html>Welcome to nginx</html>"), False, FatalStoreError),
    (answer(502, "<html>Bad Gateway</html>"), True, RetryableError),
    (ssl.SSLError("[SSL: WRONG_VERSION_NUMBER] wrong version number"), False, FatalStoreError),
    (ssl.SSLCertVerificationError("self-signed certificate"), False, FatalStoreError),
    (answer(500, "Service internal error: No space left on device: WAL buffer"), True, FatalStoreError),
    (answer(500, "Qdrant was killed. Most likely it's out of memory."), False, FatalStoreError),
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
    (PermissionError(13, "Permission denied"), True, FatalStoreError),
    (OSError(28, "No space left on device"), True, FatalStoreError),
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


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (answer(404, "<!doctype html><title>Shop</title>"), "something else than Qdrant"),
        (ssl.SSLError("[SSL: WRONG_VERSION_NUMBER] wrong version number"), "https=0"),
        (BadStatusLine("\x15\x03\x03"), "https=1"),
        (ssl.SSLCertVerificationError("self-signed certificate"), "ca_file="),
        (answer(500, "Most likely it's out of memory."), "recovery mode"),
    ],
)
def test_a_wrong_door_is_named_with_the_way_out(error: Exception, said: str) -> None:
    assert said in str(translate(error, "qdrant:here#c"))


def test_what_qdrant_says_is_shown_without_its_json() -> None:
    text = '{"status":{"error":"Not found: Collection `c` doesn\'t exist!"},"time":0.0}'
    assert str(translate(answer(404, text), "here")).startswith(
        "here: Not found: Collection `c` doesn't exist!;"
    )
