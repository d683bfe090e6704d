"""Its place until 0.2: see `vecferry.core.retry`."""

from vecferry.core.moved import moved

__getattr__ = moved(__name__, "vecferry.core.retry")
