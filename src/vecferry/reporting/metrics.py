"""Its place until 0.2: see `vecferry.contrib.prometheus`."""

from vecferry.core.moved import moved

__getattr__ = moved(__name__, "vecferry.contrib.prometheus")
