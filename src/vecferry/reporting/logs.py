"""Logs: standard ``logging`` under ``vecferry``, one file a job, and never a secret in them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from logging.handlers import RotatingFileHandler
from pathlib import Path

from vecferry.core.redaction import redact
from vecferry.errors import JobStopped

_JOB: ContextVar[str] = ContextVar("vecferry_job", default="")


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
    """Keep the log of one job in its folder: ``job.log``, JSON lines, four files of 1 MB at most.

    Several jobs may run in one process: each log takes what its own threads say, and what threads say
    that belong to none (a pool of an embedder).
    """
    token = _JOB.set(str(folder))
    handler = RotatingFileHandler(folder / "job.log", maxBytes=1_000_000, backupCount=3, encoding="utf-8")
    handler.setFormatter(_Formatter(folder.name, as_json=True))
    handler.setLevel(logging.INFO)
    handler.addFilter(lambda record: _JOB.get() in ("", str(folder)))
    logger = logging.getLogger("vecferry")
    before = logger.level
    logger.addHandler(handler)
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    try:
        yield
    except JobStopped as stopped:
        logger.info("%s", stopped)
        raise
    except Exception:
        logger.exception("the run ended with an error")
        raise
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()
        _JOB.reset(token)
