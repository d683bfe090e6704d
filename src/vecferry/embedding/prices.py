"""What providers charge: a dated table that a user can override, never a number in the code.

The table is ``prices.json`` beside this file. A file of the same form at ``VECFERRY_PRICES``, or
``prices.json`` in `vecferry.core.home.home`, is laid over it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from vecferry.core.home import home
from vecferry.errors import ConfigurationError

_LOCAL = {"sentence-transformers", "ollama", "callable", "llamaindex", ""}
_OWN_NAMES = (".local", ".internal", ".lan", ".localhost")


@dataclass(frozen=True, slots=True)
class PriceTable:
    """US dollars for a million input tokens, by ``"provider:model"``.

    Attributes:
        as_of: the date of the newest entry, as the file says.
        prices: see above.
    """

    as_of: str
    prices: dict[str, float]

    @classmethod
    def load(cls, path: str | Path | None = None) -> PriceTable:
        """The shipped table with the user's own entries laid over it.

        Raises:
            ConfigurationError: if a file is malformed.
        """
        table = _read(Path(__file__).with_name("prices.json"))
        override = path or os.environ.get("VECFERRY_PRICES") or home() / "prices.json"
        if not Path(override).expanduser().is_file():
            if path or os.environ.get("VECFERRY_PRICES"):
                raise ConfigurationError(f"the price table {override} is not there")
            return table
        own = _read(Path(override).expanduser())
        return cls(max(table.as_of, own.as_of), table.prices | own.prices)

    def of(self, embedder: Any) -> float | None:
        """The price of an embedder's tokens; 0 for what runs on your own machines, ``None`` if unknown."""
        provider = getattr(embedder, "provider", "")
        host = urlsplit(getattr(embedder, "url", "")).hostname or ""
        for name in (name_of(embedder), f"{host}:{model_of(embedder)}"):
            if name in self.prices:
                return self.prices[name]
        return 0.0 if provider in _LOCAL or _is_own(host) else None


def model_of(embedder: Any) -> str:
    """The model an embedder is billed for."""
    return str(getattr(embedder, "model", None) or embedder.space.model)


def name_of(embedder: Any) -> str:
    """The name in the table: ``provider:model``, or ``host:model`` for others with OpenAI's interface."""
    provider, url = getattr(embedder, "provider", ""), getattr(embedder, "url", "")
    if provider == "openai" and not url.startswith("https://api.openai.com"):
        return f"{urlsplit(url).hostname}:{model_of(embedder)}"
    return f"{provider or type(embedder).__name__}:{model_of(embedder)}"


def _is_own(host: str) -> bool:
    """Whether a host is this machine or lies in a private network."""
    try:
        return ip_address(host).is_private or ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(_OWN_NAMES) or (bool(host) and "." not in host)


def _read(path: Path) -> PriceTable:
    try:
        value = orjson.loads(path.read_bytes())
        prices = {str(name): float(price) for name, price in value["prices"].items()}
        return PriceTable(str(value["as_of"]), prices)
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(
            f'{path} is no price table; write {{"as_of": "2026-01-31", "prices": {{"openai:MODEL": 0.02}}}}'
        ) from error
