"""Crashes on purpose: before the n-th call that changes the disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vecferry.core import durable
from vecferry.stores.kit import staging


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a folder: these tests ask for thousands of fsyncs."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="vecferry-test-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


class Crash(BaseException):
    """What `kill -9` is to a process: nothing below may catch it."""


@pytest.fixture
def crash_before(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Any]:
    """``with crash_before(n) as survived``: the n-th change of the disk does not happen any more."""

    @contextmanager
    def arm(n: int) -> Iterator[list[bool]]:
        left = [n]

        def guard(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise Crash(function.__name__)
                return function(*args, **kwargs)

            return call

        survived: list[bool] = []
        with monkeypatch.context() as patch:
            for name in ("rename", "replace", "unlink", "mkdir", "link", "fsync", "truncate"):
                patch.setattr(os, name, guard(getattr(os, name)))
            patch.setattr(shutil, "rmtree", guard(shutil.rmtree))
            guarded = guard(durable.exchange)
            for room in (durable, staging):
                patch.setattr(room, "exchange", guarded)
            try:
                yield survived
                survived.append(True)
            except Crash:
                pass

    return arm
