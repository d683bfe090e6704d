"""Names that moved, kept for one release under where they were."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def moved(module: str, where: str | Mapping[str, str]) -> Callable[[str], Any]:
    """A module's ``__getattr__`` that finds what moved, and says where it is now.

    Args:
        module: ``__name__`` of the module that is asked.
        where: the module that has everything now, or name → ``"module:name"``.
    """

    def find(name: str) -> Any:
        now = f"{where}:{name}" if isinstance(where, str) else where.get(name, "")
        room, _, attribute = now.partition(":")
        if name.startswith("__") or not now:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        try:
            found = getattr(import_module(room), attribute)
        except AttributeError:
            raise AttributeError(f"module {module!r} has no attribute {name!r}") from None
        warnings.warn(f"{module}.{name} is now {room}.{attribute}", DeprecationWarning, stacklevel=2)
        return found

    return find
