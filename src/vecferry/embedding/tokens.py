"""Counting tokens offline. Never downloads: where no tokenizer is at hand, bytes are the upper bound.

A byte-level BPE makes no more tokens than the text has UTF-8 bytes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import cache
from hashlib import sha1
from importlib.util import find_spec
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from vecferry.embedding.space import KNOWN

_TABLES = "https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"
_loading = threading.Lock()


def count_tokens(texts: Sequence[str], model: str) -> list[int]:
    """Tokens of each text for ``model``: exact with a tokenizer, else the number of UTF-8 bytes."""
    encoding = encoding_of(model)
    if encoding is None:
        return [byte_bound(text) for text in texts]
    return [len(tokens) for tokens in encoding.encode_ordinary_batch(list(texts), num_threads=1)]


def counts_exactly(model: str) -> bool:
    """Whether `count_tokens` is exact for ``model`` on this machine."""
    return encoding_of(model) is not None


def byte_bound(text: str) -> int:
    """An upper bound of the tokens of ``text``: its UTF-8 bytes."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def cut(text: str, limit: int, model: str) -> str:
    """The longest beginning of ``text`` that has at most ``limit`` tokens (or bytes, see above)."""
    if byte_bound(text) <= limit:
        return text
    encoding = encoding_of(model)
    if encoding is None:
        return text.encode("utf-8", "surrogatepass")[:limit].decode("utf-8", "ignore")
    # The bytes of the first tokens may end inside a character, which is dropped.
    tokens = encoding.encode_ordinary(text)
    head = encoding.decode_bytes(tokens[:limit]).decode("utf-8", "ignore")
    return text if len(tokens) <= limit else head


def encoding_of(model: str) -> Any | None:
    """The tiktoken encoding of ``model``, if it uses one whose table lies on this machine."""
    info = KNOWN.get(model)
    return _load(info.tokenizer) if info and info.tokenizer else None


@cache
def _load(name: str) -> Any | None:
    folder = _folder_with(_TABLES.format(name=name))
    if folder is None or find_spec("tiktoken") is None:
        return None
    import tiktoken

    with _loading:
        before = os.environ.get("TIKTOKEN_CACHE_DIR")
        os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
        try:
            return tiktoken.get_encoding(name)
        finally:
            os.environ.pop("TIKTOKEN_CACHE_DIR")
            if before is not None:
                os.environ["TIKTOKEN_CACHE_DIR"] = before


def _folder_with(url: str) -> Path | None:
    """The folder that holds tiktoken's table ``url`` (named by the SHA-1 of its address)."""
    names = ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")
    folders = [Path(os.environ[name]) for name in names if os.environ.get(name)]
    folders.append(Path(gettempdir(), "data-gym-cache"))
    # llama-index-core ships the tables; finding its folder does not import it.
    spec = find_spec("llama_index")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    folders += [Path(root, "core/_static/tiktoken_cache") for root in roots]
    file = sha1(url.encode(), usedforsecurity=False).hexdigest()
    return next((folder for folder in folders if (folder / file).is_file()), None)
