"""Every fault of a server, of its two transports and of the client's local mode → ours. One table a kind.

| what happened | gRPC code | HTTP status | becomes |
|---|---|---|---|
| unreachable, overloaded, internal fault | UNAVAILABLE, ABORTED, CANCELLED, INTERNAL, UNKNOWN | 425, 429, 5xx | `RetryableError` |
| no answer in time | DEADLINE_EXCEEDED | 408, 504, time-outs of the socket | `TimedOutError` |
| the request is too large | a code naming a size or a limit of points | 413, 400 or 429 naming one | `RequestTooLargeError` |
| rate limit | RESOURCE_EXHAUSTED | 429 | `RetryableError` with ``retry_after`` |
| a point or a request is not valid | INVALID_ARGUMENT | 400, 422 | `RejectedRecord` while writing, else `PlanError` |
| no such collection | NOT_FOUND | 404 | `NotFoundError` |
| there already | ALREADY_EXISTS | 409 | `TargetExistsError` |
| key missing or not allowed | UNAUTHENTICATED, PERMISSION_DENIED | 401, 403 | `DeniedError` |
| recovery mode, a full disk | INTERNAL saying so | 500 saying so | `FatalStoreError` |
| the server is too old | UNIMPLEMENTED | 501 | `UnsupportedError` |
| the port speaks something else | | an answer that is not Qdrant's JSON, a failed TLS handshake | `FatalStoreError` |
"""  # noqa: E501

from __future__ import annotations

import errno
import re
import sqlite3
import ssl
from collections.abc import Mapping
from http.client import BadStatusLine, HTTPException, IncompleteRead, RemoteDisconnected
from typing import Any

import orjson

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
_OF_FILES = {
    getattr(errno, name) for name in ("EACCES", "EPERM", "EROFS", "ENOENT", "ENOTDIR", "EISDIR", "ENOSPC")
}
_RECOVERY = re.compile(r"recovery mode|low on memory|out of memory", re.I)
_FULL_DISK = re.compile(r"no space left on device|exceeds available disk space", re.I)


class Answer(Exception):
    """An HTTP answer; raised where it is not what was hoped for."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str], content: bytes) -> None:
        super().__init__(f"HTTP {status}")
        self.status, self.reason, self.content = status, reason, content
        self.headers = {name.lower(): value for name, value in headers.items()}

    @property
    def detail(self) -> str:
        """What Qdrant says, without the JSON around it."""
        text = self.content.decode("utf-8", "replace")
        try:
            return str(orjson.loads(self.content)["status"]["error"])
        except (ValueError, KeyError, TypeError):
            return text or self.reason

    @property
    def foreign(self) -> bool:
        """Whether something else than Qdrant has answered (a page for a browser)."""
        kind = self.headers.get("content-type", "").lower()
        return "html" in kind or self.content.lstrip()[:1] == b"<"


class TooMuch(Exception):
    """An answer was longer than it may be; ``args`` holds how long it was when it was given up."""


class DeniedError(FatalStoreError):
    """The key does not allow it."""


def translate(error: Exception, where: str, *, writing: bool = False) -> VecferryError:
    """Our error for one of theirs. ``where`` names the store; ``writing`` says points were sent."""
    if isinstance(error, VecferryError):
        return error
    if isinstance(error, Answer):
        return _from_status(error, where, writing)
    code = getattr(error, "code", None)
    if callable(code) and hasattr(code(), "name"):
        return _from_code(error, code().name, where, writing)
    if isinstance(error, ssl.SSLError):
        return _from_tls(error, where)
    of_a_file = isinstance(error, OSError) and error.errno in _OF_FILES
    if isinstance(error, OSError | HTTPException) and not of_a_file:
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
        return _lasting(detail, where) or RetryableError(f"{where}: {code}: {detail}")
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return DeniedError(f"{where}: {detail}; {_DENIED}")
    status = {"NOT_FOUND": 404, "ALREADY_EXISTS": 409, "INVALID_ARGUMENT": 400, "UNIMPLEMENTED": 501}
    return _final(status.get(code, 0), where, detail, writing)


def _from_status(error: Answer, where: str, writing: bool) -> VecferryError:
    status, detail = error.status, _brief(error.detail)
    if status in _PASSING_STATUS | _LATE_STATUS and error.foreign:
        detail = error.reason  # the page of a proxy in front of the server
    if status == 413 or (status in (400, 429) and _SIZE.search(detail)):
        return RequestTooLargeError(f"{where}: {detail}")
    if status in _LATE_STATUS:
        return TimedOutError(f"{where}: HTTP {status}: {detail}")
    if status in _PASSING_STATUS:
        wait = _seconds(error.headers.get("retry-after"))
        return _lasting(detail, where) or RetryableError(
            f"{where}: HTTP {status}: {detail}", retry_after=wait
        )
    if error.foreign or status < 300:
        return FatalStoreError(
            f"{where}: something else than Qdrant answers here (HTTP {status}, {detail[:60]!r}); "
            "check the host and the port"
        )
    if status in (401, 403):
        return DeniedError(f"{where}: HTTP {status}: {detail}; {_DENIED}")
    return _final(status, where, detail, writing)


def _lasting(detail: str, where: str) -> VecferryError | None:
    """What waiting does not mend, though the server calls it an internal fault."""
    if _FULL_DISK.search(detail):
        return FatalStoreError(f"{where}: the server's disk is full ({detail}); make room and go on")
    if _RECOVERY.search(detail):
        return FatalStoreError(
            f"{where}: the server runs in recovery mode, in which it neither reads nor writes points "
            f"({detail}); start it as usual (without QDRANT__STORAGE__RECOVERY_MODE) and go on"
        )
    return None


def _final(status: int, where: str, detail: str, writing: bool) -> VecferryError:
    if status == 404:
        return NotFoundError(f"{where}: {detail}; check the collection's name")
    if status == 409:
        return TargetExistsError(f'{where}: {detail}; pass mode="upsert" or mode="replace"')
    if status in (400, 422):
        return RejectedRecord(f"{where}: {detail}") if writing else PlanError(f"{where}: {detail}")
    if status == 501:
        return UnsupportedError(f"{where}: {detail}; a newer Qdrant server may have it")
    return FatalStoreError(f"{where}: {detail}")


def _from_tls(error: ssl.SSLError, where: str) -> VecferryError:
    detail = _brief(str(error))
    if isinstance(error, ssl.SSLCertVerificationError):
        return FatalStoreError(
            f"{where}: the server's certificate is not trusted ({detail}); name its CA with ca_file="
        )
    if "WRONG_VERSION_NUMBER" in detail or "HTTP_REQUEST" in detail or "RECORD_LAYER" in detail:
        return FatalStoreError(f"{where}: the port speaks no TLS; pass https=0")
    return FatalStoreError(
        f"{where}: no encrypted connection ({detail}); check https=, ca_file= and cert_file="
    )


def _from_transport(error: Exception, where: str) -> VecferryError:
    name = type(error).__name__
    if isinstance(error, TimeoutError):
        return TimedOutError(f"{where}: {name}: {_brief(str(error))}")
    if isinstance(error, BadStatusLine) and not isinstance(error, RemoteDisconnected):
        return FatalStoreError(
            f"{where}: the port does not speak plain HTTP; pass https=1 if it is encrypted, "
            "else check the port"
        )
    if isinstance(error, OSError | IncompleteRead):
        return RetryableError(f"{where}: {name}: {_brief(str(error))}")
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
        return _final(404, where, detail, writing)
    if detail.startswith(("Collection", "Alias")) and detail.endswith("already exists"):
        return _final(409, where, detail, writing)
    return _final(400, where, detail, writing)


def _trailer(error: Any, name: str) -> Any:
    return next((v for k, v in error.trailing_metadata() or () if k == name), None)


def _seconds(value: Any) -> float | None:
    try:
        return None if value is None else max(float(value), 0.0)
    except (TypeError, ValueError):
        return None


def _brief(text: str) -> str:
    return " ".join(text.split())[:300]
