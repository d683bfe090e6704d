"""Logs: standard ``logging`` under ``vecferry``, one file a job, and never a secret in them."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_PATTERNS = (
    (re.compile(r"(://[^:/@\s]*):[^@/\s]+@"), r"\1:***@"),
    (re.compile(r"(?i)\b((?:api[_-]?key|token|password|secret)\s*[=:]\s*)['\"]?[^\s'\",;&]+"), r"\1***"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), r"\1 ***"),
)
_SHORTEST = 6  # shorter values of secret variables would blank ordinary words


def redact(text: str) -> str:
    """``text`` without logins in URLs, bearer tokens, and the values of secret environment variables."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET_NAME.search(name):
            text = text.replace(value, "***")
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


class _Formatter(logging.Formatter):
    """Text or JSON lines, redacted as the last step, tracebacks included."""

    def __init__(self, job: str, *, as_json: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")
        self._job, self._as_json = job, as_json

    def format(self, record: logging.LogRecord) -> str:
        if not self._as_json:
            return redact(
                f"[{self._job}] {super().format(record)}" if self._job else super().format(record)
            )
        fields = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "job": self._job,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return redact(json.dumps(fields, ensure_ascii=False))


def configure_logging(*, level: int = logging.INFO, as_json: bool = False) -> None:
    """Send vecferry's log to stderr, for applications that have no logging of their own."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("", as_json=as_json))
    logger = logging.getLogger("vecferry")
    logger.addHandler(handler)
    logger.setLevel(level)


@contextmanager
def job_log(folder: Path) -> Iterator[None]:
    """Keep the log of one job in its folder: ``job.log``, JSON lines, four files of 1 MB at most."""
    handler = RotatingFileHandler(folder / "job.log", maxBytes=1_000_000, backupCount=3, encoding="utf-8")
    handler.setFormatter(_Formatter(folder.name, as_json=True))
    handler.setLevel(logging.INFO)
    logger = logging.getLogger("vecferry")
    before = logger.level
    logger.addHandler(handler)
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    try:
        yield
    except Exception:
        logger.exception("the run ended with an error")
        raise
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()
