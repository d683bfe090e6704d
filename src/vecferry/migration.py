"""Its place until 0.2: see `vecferry.api.migration`."""

from vecferry.core.moved import moved

__getattr__ = moved(__name__, "vecferry.api.migration")
