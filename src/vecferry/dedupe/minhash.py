"""Near-duplicate texts: the Jaccard similarity of their shingles, found by MinHash and then computed.

A shingle is three tokens in a row, or five where the tokens are single characters. A token is a word with
everything that tells it from another one: signs (``C++``, ``-5``, ``3.5``, ``.NET``) and combining marks.
Scripts that put no spaces between words (Han, Kana, Thai, Khmer …) give a token for each character with its
marks. Letter case does not count, nor do commas, full stops, brackets and quotation marks.

Candidates come from datasketch's locality-sensitive hashing of signatures with 128 values (A. Broder, "On
the resemblance and containment of documents", 1997). Each is then judged by its true similarity, and two
texts that differ in nothing but signs, marks or digits are never duplicates: mostly these are what matters.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from vecferry.dedupe.matchers import APART, NEW, Features, Verdicts, by_group
from vecferry.dedupe.spill import Blobs, Rows
from vecferry.errors import MissingDependencyError
from vecferry.model.vectors import Array

PERMUTATIONS = 128
_WORDS, _CHARACTERS = 3, 5
_RATHER_FALSE_THAN_MISSED = (0.1, 0.9)
_HIGHEST = 0.99  # beyond, datasketch finds no bands; what is proposed too much is judged anyway
_SLACK = 0.18  # four standard deviations of an estimate from 128 values
_PUNCTUATION_THAT_COUNTS = "#%&@*\\\\?!§¶†‡\u200c\u200d"
_NO_SPACES = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f\u2e80-\u2fdf\u3005-\u3007"
    "\u3040-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf\ua980-\ua9df\uf900-\ufaff\uff66-\uff9d"
    "\U00020000-\U0003ffff"
)


# -- tokens -------------------------------------------------------------------------------------


def tokens_of(text: str) -> list[str]:
    """The tokens of a text, in order."""
    return _pattern().findall(unicodedata.normalize("NFC", text).lower())


@lru_cache(maxsize=1)
def _pattern() -> re.Pattern[str]:
    marks, signs = _ranges("M"), _ranges("S") + _PUNCTUATION_THAT_COUNTS
    letter = rf"(?:(?![{_NO_SPACES}])[\w{marks}{signs}])+"
    # Within a word some punctuation belongs to it; before it, where nothing else stands, too.
    return re.compile(
        rf"[{_NO_SPACES}][{marks}\u200c\u200d]*|(?:(?<!\S)[.\-–](?=\w))?{letter}(?:[.,:/'’\-–·]{letter})*"
    )


def _ranges(category: str) -> str:
    """The characters of a category (its first letter) as the inside of a character class."""
    places = [*range(0x20000), *range(0xE0100, 0xE01F0)]
    found = [place for place in places if unicodedata.category(chr(place))[0] == category]
    edges = [i for i, place in enumerate(found) if not i or place != found[i - 1] + 1]
    spans = zip(edges, [*edges[1:], len(found)], strict=True)
    return "".join(f"\\U{found[a]:08x}-\\U{found[b - 1]:08x}" for a, b in spans)


def _shingles(tokens: Sequence[str]) -> set[str]:
    alone = sum(len(token) <= 2 and bool(_alone().match(token)) for token in tokens)
    size = _CHARACTERS if 2 * alone > len(tokens) else _WORDS
    return {" ".join(tokens[i : i + size]) for i in range(max(1, len(tokens) - size + 1))}


@lru_cache(maxsize=1)
def _alone() -> re.Pattern[str]:
    return re.compile(f"[{_NO_SPACES}]")


def _bare(token: str) -> str:
    """The letters of a token, without marks, signs and digits."""
    return "".join(c for c in unicodedata.normalize("NFD", token) if unicodedata.category(c)[0] == "L")


def _differ_in_signs_only(one: Sequence[str], other: Sequence[str]) -> bool:
    a, b = Counter(one), Counter(other)
    left, right = (a - b).elements(), (b - a).elements()
    bare = [sorted(filter(None, map(_bare, side))) for side in (left, right)]
    return a != b and bare[0] == bare[1]


# -- features -----------------------------------------------------------------------------------


def signatures(texts: Sequence[str | None]) -> tuple[Array, Array, list[bytes]]:
    """Signatures uint32 ``(n, 128)``, which texts have tokens at all, and the tokens, joined by spaces."""
    tokens = [tokens_of(text) if text else [] for text in texts]
    has = np.array([bool(found) for found in tokens], dtype=np.bool_)
    values = np.zeros((len(texts), PERMUTATIONS), dtype=np.uint32)
    for row, found in enumerate(tokens):
        if found:
            made = _sketch()
            made.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in _shingles(found)])
            values[row] = made.hashvalues
    return values, has, [" ".join(found).encode("utf-8", "surrogatepass") for found in tokens]


def _sketch(signature: Array | None = None) -> Any:
    """datasketch's ``MinHash``, empty or of a signature."""
    made = _empty_sketch().copy()
    if signature is not None:
        made.hashvalues = signature.astype(made.hashvalues.dtype)
    return made


@lru_cache(maxsize=1)
def _empty_sketch() -> Any:
    return _datasketch().MinHash(num_perm=PERMUTATIONS, seed=1)


def _datasketch() -> Any:
    try:
        import datasketch
    except ImportError:
        raise MissingDependencyError('Dedupe(by="minhash")', "dedupe") from None
    return datasketch


# -- the matcher --------------------------------------------------------------------------------


class MinHashMatcher:
    """Similarity at least ``threshold`` to something kept before, and a difference in more than signs.

    The hash tables hold about 1 kB a kept text in memory; signatures and texts lie in temporary files.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._kept = Rows(np.uint32, PERMUTATIONS)
        self._tokens = Blobs()
        self._tables: dict[int, Any] = {}

    def match(self, features: Features) -> Verdicts:
        assert features.tokens is not None
        entries = np.full(len(features), APART, dtype=np.int64)
        scores = np.zeros(len(features), dtype=np.float32)
        new: list[int] = []
        for name, rows in by_group(features):
            table = self._table(name)
            for row in rows.tolist():
                signature, tokens = features.values[row], features.tokens[row]
                entries[row], scores[row] = self._nearest(table, signature, tokens)
                if entries[row] == NEW:
                    self._remember(table, signature, tokens)
                    new.append(row)
        return Verdicts(entries, np.array(new, dtype=np.int64), scores)

    def load(self, features: Features, notes: dict[str, Any]) -> None:
        for row in range(len(features)):
            name = 0 if features.group is None else int(features.group[row])
            tokens = b"" if features.tokens is None else features.tokens[row]
            self._remember(self._table(name), features.values[row], tokens)

    def _nearest(self, table: Any, signature: Array, raw: bytes) -> tuple[int, float]:
        """The kept text that is most similar, the earliest of equals."""
        best, best_score = NEW, 0.0
        tokens = _split(raw)
        shingles = _shingles(tokens)
        for candidate in self._candidates(table, signature):
            other = _split(self._tokens[candidate])
            others = _shingles(other)
            common = len(shingles & others)
            score = common / (len(shingles) + len(others) - common)
            if score >= self.threshold and score > best_score and not _differ_in_signs_only(tokens, other):
                best, best_score = candidate, score
        return best, best_score

    def _candidates(self, table: Any, signature: Array) -> Iterator[int]:
        found = np.array(sorted(table.query(_sketch(signature))), dtype=np.int64)
        if len(found):
            alike = (self._kept.take(found) == signature).mean(axis=1)
            yield from found[alike >= self.threshold - _SLACK].tolist()

    def _remember(self, table: Any, signature: Array, tokens: bytes) -> None:
        self._tokens.append(tokens)
        table.insert(self._kept.append(signature[None, :]), _sketch(signature), check_duplication=False)

    def _table(self, name: int) -> Any:
        if name not in self._tables:
            self._tables[name] = _datasketch().MinHashLSH(
                threshold=min(self.threshold, _HIGHEST), num_perm=PERMUTATIONS,
                weights=_RATHER_FALSE_THAN_MISSED,
            )  # fmt: skip
        return self._tables[name]


def _split(raw: bytes) -> list[str]:
    return raw.decode("utf-8", "surrogatepass").split(" ")
