"""What must not be shown: one place that knows what a secret looks like, and takes it out.

Adapters never put a secret into a message. This is the second line: vendors' messages, tracebacks, logs.

| function | for |
|---|---|
| `is_secret` | the name of an option, a header or a key: must its value be hidden? |
| `hide` | a value that is a secret of this process |
| `conceal` | a text, without hidden values and those of secret environment variables |
| `redact` | a text as `conceal` leaves it, and without whatever looks like a login or a token |
| `clean` | a foreign message on one line, as `redact` leaves it |
| `without_secrets` | a JSON value, without the values of secret keys |
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import quote

_NAME = re.compile(
    r"pass(?!file|age|ed|ing)|secret|token(?!s|iz)|credential|signature|auth(?!ors?$)|^key$"
    r"|(api|access|account|private|shared)[_-]?key",
    re.IGNORECASE,
)
_VARIABLE = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_PATTERNS = (
    (re.compile(r"(://[^:/@\s]*):[^@/\s]+@"), r"\1:***@"),
    (
        re.compile(
            r"(?i)\b([\w-]*(?:api[_-]?key|token|passw(?:or)?d|secret)[\"']?\s*[=:]\s*)[\"']?[^\s'\",;&]+"
        ),
        r"\1***",
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), r"\1 ***"),
    # Keys whose makers gave them a beginning of their own: OpenAI, Hugging Face, LlamaCloud.
    (re.compile(r"\b(sk-|hf_|llx-)[A-Za-z0-9_-]{4,}"), r"\1***"),
)
_SHORTEST = 6  # shorter values would blank ordinary words

_hidden: set[str] = set()


def is_secret(name: str) -> bool:
    """Whether the name of an option, a header or a key says that its value must not be shown or stored."""
    return bool(_NAME.search(name))


def hide(value: object) -> None:
    """Let ``value`` be taken out of every text that `redact` sees from now on."""
    text = str(value)
    if len(text) >= _SHORTEST:
        _hidden.update({text, quote(text, safe="")})


def conceal(text: str) -> str:
    """``text`` without hidden values and without those of secret environment variables."""
    environment = {
        value for name, value in os.environ.items() if len(value) >= _SHORTEST and _VARIABLE.search(name)
    }
    for value in sorted(environment | _hidden, key=len, reverse=True):
        text = text.replace(value, "***")
    return text


def redact(text: str) -> str:
    """``text`` as `conceal` leaves it, and without whatever looks like a login in a URL, or a token."""
    text = conceal(text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def clean(message: object, limit: int = 200) -> str:
    """A foreign message on one line, without anything that may be a secret."""
    return redact(" ".join(str(message).split()))[:limit]


def without_secrets(value: object) -> object:
    """A copy of a JSON value without secret keys, and without ``null``."""
    if isinstance(value, Mapping):
        return {
            key: without_secrets(item)
            for key, item in value.items()
            if item is not None and not is_secret(str(key))
        }
    return [without_secrets(item) for item in value] if isinstance(value, list) else value
