"""`StoreURL`: how a user names a collection.

    scheme:PATH[?option=value&…][#collection]                 faiss:./kb?layout=langchain
    scheme://[user[:password]@]host[:port]/path[?…][#…]       qdrant://localhost:6333/questions

A path is taken as it is, but for ``?``, ``#`` and ``%``, which are written ``%3F``, ``%23`` and ``%25``,
and for ``~/``, which is the home folder: behind a colon a shell leaves that alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from vecferry.core.redaction import hide, is_secret
from vecferry.errors import ConfigurationError

_SCHEME = re.compile(r"^([a-z][a-z0-9+._-]*):(.*)$", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class StoreURL:
    """A parsed URL. ``str(url)`` never shows a password or a token; use the attributes to connect.

    Attributes:
        scheme: lower case, such as ``"faiss"``.
        netloc: whether the URL has the ``//`` form.
        host, port, user, password: from the ``//`` form, else ``None``.
        path: the local path, or what follows the host without its leading slash; unquoted.
        fragment: what follows ``#``: the collection, table or index.
        options: the query, one string a name.
    """

    scheme: str
    path: str = ""
    netloc: bool = False
    host: str | None = None
    port: int | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    fragment: str = ""
    options: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, text: str) -> StoreURL:
        """Parse ``text``.

        Raises:
            ConfigurationError: if it has no scheme or a malformed port.
        """
        match = _SCHEME.match(text)
        if not match:
            raise ConfigurationError(
                f"{_shorten(text)!r} is not a store URL; write SCHEME:PATH, such as faiss:./vectorstore"
            )
        scheme, rest = match[1].lower(), match[2]
        rest, _, fragment = rest.partition("#")
        if "?" in fragment:
            name, _, late = fragment.partition("?")
            place = _shorten(f"{scheme}:{rest}").split("?", 1)[0]
            raise ConfigurationError(
                f"options come before the collection: {place}?{_names_of(late)}#{name} "
                "(a ? in a name is written %3F)"
            )
        rest, _, query = rest.partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        for name, value in options.items():
            if is_secret(name):
                hide(value)
        common = {"scheme": scheme, "fragment": unquote(fragment), "options": options}
        if not rest.startswith("//"):
            return cls(path=_at_home(unquote(rest)), **common)  # type: ignore[arg-type]
        authority, _, path = rest[2:].partition("/")
        login, at, address = authority.rpartition("@")
        user, colon, password = login.partition(":")
        host, port = _split_address(address, text)
        hide(unquote(password))
        return cls(
            netloc=True,
            host=host,
            port=port,
            user=unquote(user) if at else None,
            password=unquote(password) if colon else None,
            path=unquote(path),
            **common,  # type: ignore[arg-type]
        )

    def __str__(self) -> str:
        text = f"{self.scheme}:"
        if self.netloc:
            login = f"{self.user}@" if self.user else ""
            host = f"[{self.host}]" if self.host and ":" in self.host else self.host or ""
            port = f":{self.port}" if self.port else ""
            path = _quoted(self.path)
            text += f"//{login}{host}{port}" + (f"/{path}" if path else "")
        else:
            text += _quoted(self.path)
        shown = {k: v for k, v in self.options.items() if not is_secret(k)}
        text += "?" + "&".join(f"{k}={_quoted(v, '&+')}" for k, v in shown.items()) if shown else ""
        return text + (f"#{_quoted(self.fragment)}" if self.fragment else "")

    @property
    def hides(self) -> bool:
        """Whether ``str(url)`` leaves something out."""
        return bool(self.password) or any(map(is_secret, self.options))


def _at_home(path: str) -> str:
    return str(Path(path).expanduser()) if path.startswith("~/") else path


def _quoted(text: str, more: str = "") -> str:
    """What would be taken for a delimiter, as `parse` reads it."""
    return "".join(f"%{ord(c):02X}" if c in f"%?#{more}" else c for c in text)


def _split_address(address: str, text: str) -> tuple[str, int | None]:
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        return address.strip("[]"), None
    if not port.isdigit():
        raise ConfigurationError(f"the port of {_shorten(text)!r} is not a number")
    return host.strip("[]"), int(port)


def _names_of(query: str) -> str:
    """The options of a query, secret values left out."""
    pairs = parse_qsl(query, keep_blank_values=True)
    return "&".join(f"{name}={'…' if is_secret(name) else value}" for name, value in pairs)


def _shorten(text: str) -> str:
    """For messages: without anything that may be a login."""
    return re.sub(r"//[^/@]*@", "//…@", text)[:80]


__all__ = ["StoreURL", "is_secret"]
