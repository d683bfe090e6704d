"""Its place until 0.2: see `vecferry.contrib.alembic`."""

from vecferry.core.moved import moved

__getattr__ = moved(__name__, "vecferry.contrib.alembic")
