"""What must not be shown: one place that knows the secrets of this process and takes them out of texts.

Adapters never put a secret into a message. This is the second line: vendors' messages, tracebacks, logs.
"""

from __future__ import annotations

import os
import re
from urllib.parse import quote

_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_PATTERNS = (
    (re.compile(r"(://[^:/@\s]*):[^@/\s]+@"), r"\1:***@"),
    (
        re.compile(
            r"(?i)\b([\w-]*(?:api[_-]?key|token|passw(?:or)?d|secret)[\"']?\s*[=:]\s*)[\"']?[^\s'\",;&]+"
        ),
        r"\1***",
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), r"\1 ***"),
)
_SHORTEST = 6  # shorter values would blank ordinary words

_hidden: set[str] = set()


def hide(value: object) -> None:
    """Let ``value`` be taken out of every text that `redact` sees from now on."""
    text = str(value)
    if len(text) >= _SHORTEST:
        _hidden.update({text, quote(text, safe="")})


def conceal(text: str) -> str:
    """``text`` without hidden values and without those of secret environment variables."""
    environment = {
        value for name, value in os.environ.items() if len(value) >= _SHORTEST and _SECRET_NAME.search(name)
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
