"""What URL options of stores have in common: they come as text, and a wrong one names the right ones."""

from __future__ import annotations

from collections.abc import Sequence

from vecferry.errors import ConfigurationError

_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def one_of(scheme: str, option: str, value: str | None, names: Sequence[str]) -> str | None:
    """The value, if it is ``None`` or one of ``names``.

    Raises:
        ConfigurationError: naming them.
    """
    if value is not None and value not in names:
        raise ConfigurationError(
            f"{scheme}: {option} is one of {', '.join(names)}, not {value!r}; choose one of these"
        )
    return value


def flag(scheme: str, option: str, value: bool | str) -> bool:
    """A yes or no.

    Raises:
        ConfigurationError: for anything else.
    """
    if isinstance(value, bool):
        return value
    if value.lower() in (*_YES, *_NO):
        return value.lower() in _YES
    raise ConfigurationError(f"{scheme}: {option} is 1 or 0, not {value!r}")


def number(scheme: str, option: str, value: float | str, *, least: float = 0) -> float:
    """A number of at least ``least``; whole if it is written so.

    Raises:
        ConfigurationError: for anything else.
    """
    try:
        found = float(value)
    except ValueError:
        found = float("nan")
    if not found >= least:
        raise ConfigurationError(f"{scheme}: {option} is a number from {least:g} on, not {value!r}")
    return int(found) if found.is_integer() else found
