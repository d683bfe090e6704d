"""Its name until 0.2: see `vecferry.model`."""

from vecferry.core.moved import moved

__getattr__ = moved(__name__, "vecferry.model")
