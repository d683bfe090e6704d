"""Large JSON files, item by item: what a framework wrote as one object is read in bounded memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vecferry.errors import CorruptDataError
from vecferry.model import parse_json

_CHUNK = 1 << 20
_SPACE = " \t\r\n"
_EXACT = 18  # characters of a number that a float may not hold


class JsonWalk:
    """A cursor over one JSON document that holds only the value it stands on.

    Args:
        path: the file; messages name it.
        exact: whether numbers of more digits than a float has become decimals; false for vectors.
    """

    def __init__(self, path: Path, *, exact: bool = True) -> None:
        self._path = path
        self._decoder = json.JSONDecoder(parse_float=_number) if exact else json.JSONDecoder()
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")("surrogatepass")
        self._text = ""
        self._at = 0
        self._ended = False

    def sections(self) -> Iterator[tuple[str, str | None, Any]]:
        """``(section, key, value)`` of every item of every object in the outer object, in order.

        A section that is no object comes as one item with the key ``None``.

        Raises:
            CorruptDataError: where the file is not JSON of that shape.
        """
        with self._path.open("rb") as file:
            try:
                for section in self._keys(file):
                    if self._peek(file) != "{":
                        yield section, None, self._value(file)
                        continue
                    for key in self._keys(file):
                        yield section, key, self._value(file)
            except (ValueError, RecursionError) as error:
                raise self._damaged(error) from error

    def items(self) -> Iterator[tuple[str | None, Any]]:
        """``(key, value)`` of an outer object, or ``(None, value)`` of an outer array, in order.

        Raises:
            CorruptDataError: where the file is neither.
        """
        with self._path.open("rb") as file:
            try:
                if self._peek(file) == "[":
                    for _ in self._entries(file, "[", "]"):
                        yield None, self._value(file)
                else:
                    for key in self._keys(file):
                        yield key, self._value(file)
            except (ValueError, RecursionError) as error:
                raise self._damaged(error) from error

    def members(self) -> Iterator[tuple[str, str | None, Any]]:
        """As `sections`, the items of arrays one by one as well, with the key ``None``."""
        with self._path.open("rb") as file:
            try:
                for section in self._keys(file):
                    opening = self._peek(file)
                    if opening == "[":
                        for _ in self._entries(file, "[", "]"):
                            yield section, None, self._value(file)
                    elif opening == "{":
                        for key in self._keys(file):
                            yield section, key, self._value(file)
                    else:
                        yield section, None, self._value(file)
            except (ValueError, RecursionError) as error:
                raise self._damaged(error) from error

    def outline(self, most: int) -> dict[str, tuple[str, int]] | None:
        """Of an outer object with at most ``most`` keys what each holds: ``[``, ``{`` or another first
        character, and how many items; ``None`` for anything else."""
        found: dict[str, tuple[str, int]] = {}
        with self._path.open("rb") as file:
            try:
                if self._peek(file) != "{":
                    return None
                for section in self._keys(file):
                    if len(found) == most:
                        return None
                    opening, n = self._peek(file), 0
                    if opening == "[":
                        for _ in self._entries(file, "[", "]"):
                            self._value(file)
                            n += 1
                    elif opening == "{":
                        for _ in self._keys(file):
                            self._value(file)
                            n += 1
                    else:
                        self._value(file)
                    found[section] = opening, n
            except (ValueError, RecursionError) as error:
                raise self._damaged(error) from error
        return found

    def _damaged(self, error: Exception) -> CorruptDataError:
        return CorruptDataError(f"{self._path} is not the JSON it should be ({error}); restore it")

    def _keys(self, file: BinaryIO) -> Iterator[str]:
        """The keys of the object that begins here; the caller consumes the value of each."""
        for _ in self._entries(file, "{", "}"):
            key = self._value(file)
            if not isinstance(key, str):
                raise ValueError(f"a key is a string, not {key!r:.40}")
            self._expect(file, ":")
            yield key

    def _entries(self, file: BinaryIO, opening: str, closing: str) -> Iterator[None]:
        self._expect(file, opening)
        if self._peek(file) == closing:
            self._at += 1
            return
        while True:
            yield
            if self._peek(file) == closing:
                self._at += 1
                return
            self._expect(file, ",")

    def _expect(self, file: BinaryIO, character: str) -> None:
        if self._peek(file) != character:
            found = self._text[self._at : self._at + 10] or "the end"
            raise ValueError(f"{character!r} expected, {found!r} found")
        self._at += 1

    def _peek(self, file: BinaryIO) -> str:
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(file):
                return ""

    def _value(self, file: BinaryIO) -> Any:
        self._peek(file)
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if not self._more(file):
                    raise
                continue
            if end < len(self._text) or not self._more(file):  # a number may go on behind the buffer
                self._at = end
                return value

    def _more(self, file: BinaryIO) -> bool:
        """Read on, twice as far each time a value does not fit; false at the end of the file."""
        if self._ended:
            return False
        rest = self._text[self._at :]
        data = file.read(max(_CHUNK, len(rest)))
        self._ended = not data
        self._text = rest + self._utf8.decode(data, final=self._ended)
        self._at = 0
        return bool(data) or len(self._text) > len(rest)


def _number(text: str) -> Any:
    return float(text) if len(text) < _EXACT else parse_json(text)


__all__ = ["JsonWalk"]
