from functools import partial

import pytest

from servers.s3 import s3, s3_process
from vecferry.core.retry import RetryPolicy

__all__ = ["s3", "s3_process"]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    """The waits between retries are not what is tested here."""
    monkeypatch.setattr("vecferry.snapshots.s3.RetryPolicy", partial(RetryPolicy, base=0.01))
