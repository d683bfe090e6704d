"""Every exception of the Qdrant client, its transports and its local mode → ours. One table a kind.

| what happened | gRPC code | HTTP status | becomes |
|---|---|---|---|
| unreachable, overloaded, internal fault | UNAVAILABLE, ABORTED, CANCELLED, INTERNAL, UNKNOWN | 425, 429, 5xx | `RetryableError` |
| no answer in time | DEADLINE_EXCEEDED | 408, 504, the client's own timeouts | `TimedOutError` |
| the request is too large | a code naming a size or a limit of points | 413, 400 or 429 naming one | `RequestTooLargeError` |
| rate limit | RESOURCE_EXHAUSTED | 429 | `RetryableError` with ``retry_after`` |
| a point or a request is not valid | INVALID_ARGUMENT | 400, 422 | `RejectedRecord` while writing, else `PlanError` |
| no such collection | NOT_FOUND | 404 | `NotFoundError` |
| there already | ALREADY_EXISTS | 409 | `TargetExistsError` |
| key missing or not allowed | UNAUTHENTICATED, PERMISSION_DENIED | 401, 403 | `FatalStoreError` |
| the server is too old | UNIMPLEMENTED | 501 | `UnsupportedError` |
"""  # noqa: E501

from __future__ import annotations

import re
import sqlite3
from typing import Any

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
    VecferryError,
)

_PASSING_CODES = {"UNAVAILABLE", "ABORTED", "CANCELLED", "INTERNAL", "UNKNOWN"}
_PASSING_STATUS = {425, 429, 500, 502, 503}
_LATE_STATUS = {408, 504}
_DENIED = "check QDRANT_API_KEY and the rights of that key"
# Neither gRPC nor Qdrant has a code of its own for a request beyond the size limit.
_SIZE = re.compile(
    r"larger than (max|allowed)|length too large|exceeds the maximum|too many bytes"
    # The limits of strict mode: a request of more points than a minute may bring never passes by waiting.
    r"|larger than rate limiter capacity|for upsert limit",
    re.I,
)


def translate(error: Exception, where: str, *, writing: bool = False) -> VecferryError:
    """Our error for one of the client's. ``where`` names the store; ``writing`` says points were sent."""
    if isinstance(error, VecferryError):
        return error
    kind = type(error).__name__
    if kind == "ResourceExhaustedResponse":
        return RetryableError(f"{where}: rate limited", retry_after=_seconds(_attr(error, "retry_after_s")))
    if kind == "UnexpectedResponse":
        return _from_status(error, where, writing)
    if kind == "ResponseHandlingException":
        return _from_transport(_attr(error, "source"), where)
    code = getattr(error, "code", None)
    if callable(code) and hasattr(code(), "name"):
        return _from_code(error, code().name, where, writing)
    if type(error).__module__.startswith(("httpx", "httpcore")):
        return _from_transport(error, where)
    return _from_local(error, where, writing)


def _from_code(error: Any, code: str, where: str, writing: bool) -> VecferryError:
    detail = _brief(error.details() or code)
    if code in ("RESOURCE_EXHAUSTED", "OUT_OF_RANGE", "INVALID_ARGUMENT") and _SIZE.search(detail):
        return RequestTooLargeError(f"{where}: {detail}")
    if code in ("RESOURCE_EXHAUSTED", "OUT_OF_RANGE"):
        return RetryableError(f"{where}: {detail}", retry_after=_seconds(_trailer(error, "retry-after")))
    if code == "DEADLINE_EXCEEDED":
        return TimedOutError(f"{where}: {code}: {detail}")
    if code in _PASSING_CODES:
        return RetryableError(f"{where}: {code}: {detail}")
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return FatalStoreError(f"{where}: {detail}; {_DENIED}")
    return _answer(
        {"NOT_FOUND": 404, "ALREADY_EXISTS": 409, "INVALID_ARGUMENT": 400, "UNIMPLEMENTED": 501}.get(
            code, 0
        ),
        where,
        detail,
        writing,
    )


def _from_status(error: Any, where: str, writing: bool) -> VecferryError:
    status = int(error.status_code or 0)
    detail = _brief(bytes(error.content or b"").decode("utf-8", "replace") or error.reason_phrase)
    if status == 413 or (status in (400, 429) and _SIZE.search(detail)):
        return RequestTooLargeError(f"{where}: {detail}")
    if status in _LATE_STATUS:
        return TimedOutError(f"{where}: HTTP {status}: {detail}")
    if status in _PASSING_STATUS:
        wait = _seconds((error.headers or {}).get("retry-after"))
        return RetryableError(f"{where}: HTTP {status}: {detail}", retry_after=wait)
    if status in (401, 403):
        return FatalStoreError(f"{where}: HTTP {status}: {detail}; {_DENIED}")
    return _answer(status, where, detail, writing)


def _answer(status: int, where: str, detail: str, writing: bool) -> VecferryError:
    if status == 404:
        return NotFoundError(f"{where}: {detail}; check the collection's name")
    if status == 409:
        return TargetExistsError(f'{where}: {detail}; pass mode="upsert" or mode="replace"')
    if status in (400, 422):
        return RejectedRecord(f"{where}: {detail}") if writing else PlanError(f"{where}: {detail}")
    if status == 501:
        return UnsupportedError(f"{where}: {detail}; a newer Qdrant server may have it")
    return FatalStoreError(f"{where}: {detail}")


def _from_transport(error: Any, where: str) -> VecferryError:
    module = type(error).__module__
    if module.startswith(("httpx", "httpcore")) or isinstance(error, OSError):
        name = type(error).__name__
        late = isinstance(error, TimeoutError) or name in ("ReadTimeout", "WriteTimeout")
        return (TimedOutError if late else RetryableError)(f"{where}: {name}: {_brief(str(error))}")
    return FatalStoreError(
        f"{where}: cannot read the answer: {_brief(str(error))}; is this a Qdrant server?"
    )


def _from_local(error: Exception, where: str, writing: bool) -> VecferryError:
    detail = _brief(str(error))
    if isinstance(error, sqlite3.OperationalError) and "locked" in detail:
        return RetryableError(f"{where}: {detail}")
    if isinstance(error, NotImplementedError):
        return UnsupportedError(f"{where}: {detail}")
    if isinstance(error, RuntimeError) and "already accessed" in detail:
        return FatalStoreError(
            f"{where} is open elsewhere: in another process (an app, a notebook, an earlier run) or by "
            "a QdrantClient of this one; close it there, or use a Qdrant server, which many may share"
        )
    if isinstance(error, UnicodeError):
        return RejectedRecord(f"{where}: text that is not valid Unicode: {detail}")
    if isinstance(error, ValueError | TypeError | AssertionError):
        return _from_local_refusal(detail, where, writing)
    return FatalStoreError(f"{where}: {type(error).__name__}: {detail}")


def _from_local_refusal(detail: str, where: str, writing: bool) -> VecferryError:
    """The local mode says everything with ValueError."""
    if detail.startswith(("Collection", "Alias")) and detail.endswith(("not found", "does not exist")):
        return _answer(404, where, detail, writing)
    if detail.startswith(("Collection", "Alias")) and detail.endswith("already exists"):
        return _answer(409, where, detail, writing)
    return _answer(400, where, detail, writing)


def _attr(error: Exception, name: str) -> Any:
    return getattr(error, name, None)


def _trailer(error: Any, name: str) -> Any:
    return next((v for k, v in error.trailing_metadata() or () if k == name), None)


def _seconds(value: Any) -> float | None:
    try:
        return None if value is None else max(float(value), 0.0)
    except (TypeError, ValueError):
        return None


def _brief(text: str) -> str:
    return " ".join(text.split())[:300]
