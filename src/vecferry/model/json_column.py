"""`JsonColumn`: the metadata of many records as JSON bytes, parsed only where somebody looks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import orjson

from vecferry.model.typed import dump_json, from_json, parse_json, to_json
from vecferry.model.vectors import Array

Types = Mapping[str, str]

_NO_TYPES: Types = {}
_PIECE = 1024
# In the output of orjson, a number that `to_json` may have to write as a string.
_UNUSUAL = re.compile(rb"[\[:,](?:-0\.0|-?(?:\d{16}|[\d.]+e\+))")
# What such a number has in common with some texts, quickly found in many rows at once.
_SIGNS, _DIGITS = (b"e+", b"-0.0"), b"0" * 16
_SHAPE = bytes.maketrans(b"123456789", b"0" * 9)


class JsonColumn(Sequence[dict[str, Any]]):
    """n JSON objects as bytes, each with the types of the values that JSON lacks.

    Row by row it is what `to_json` gives: ``raw(i)`` the body as compact JSON in one line, ``types(i)``
    the table of changed values, mostly empty. As a sequence it is n dicts with every value restored; each
    access parses anew, so that the dicts belong to the caller. Code that only passes metadata on takes
    the bytes instead and never builds a dict.

    Args:
        rows: the bodies, in the form described above; they are not checked. For JSON from elsewhere
            use `parse`, for dicts `of`.
        types: row → ``{pointer: type name}``, for the rows that need one.
    """

    __slots__ = ("_rows", "_types")

    def __init__(self, rows: Sequence[bytes], types: Mapping[int, Types] | None = None) -> None:
        self._rows = rows if isinstance(rows, list) else list(rows)
        self._types = {row: table for row, table in types.items() if table} if types else {}

    # -- making one -----------------------------------------------------------------------------

    @classmethod
    def of(cls, documents: Iterable[Mapping[str, Any]]) -> JsonColumn:
        """Of dicts with any values that metadata may hold; a `JsonColumn` is returned as it is.

        Raises:
            Unkeepable: for a value that cannot be kept, with the row and its place.
        """
        if isinstance(documents, JsonColumn):
            return documents
        rows: list[bytes] = []
        types: dict[int, Types] = {}
        for row, document in enumerate(documents):
            try:
                body, table = to_json(document)
                rows.append(dump_json(body))
            except (TypeError, ValueError, RecursionError) as error:
                raise Unkeepable(row, str(error)) from error
            if table:
                types[row] = table
        return cls(rows, types)

    @classmethod
    def of_parsed(cls, documents: Sequence[Mapping[str, Any]]) -> JsonColumn:
        """Of dicts that a JSON parser returned: without a walk, unless a number is unusual."""
        try:
            rows = [orjson.dumps(document) for document in documents]
        except TypeError:  # half a surrogate pair, an integer beyond 64 bits, a decimal
            return cls.of(documents)
        return cls._usual(rows, documents, b",".join(rows))

    @classmethod
    def _usual(cls, rows: list[bytes], documents: Sequence[Mapping[str, Any]], joined: bytes) -> JsonColumn:
        """Of rows as orjson writes them, with the numbers among them in the form that `to_json` gives."""
        types: dict[int, Types] = {}
        if any(sign in joined for sign in _SIGNS) or _DIGITS in joined.translate(_SHAPE):
            for row in [row for row, raw in enumerate(rows) if _UNUSUAL.search(raw)]:
                body, table = to_json(documents[row])
                if table:
                    rows[row], types[row] = dump_json(body), table
        return cls(rows, types)

    @classmethod
    def parse(cls, texts: Sequence[bytes | str | None]) -> JsonColumn:
        """Of JSON texts from elsewhere; ``None`` and the empty text are the empty object.

        Raises:
            Unkeepable: for a text that is no JSON object, with its row.
        """
        given = [text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text for text in texts]
        rows = [text or b"{}" for text in given]
        try:
            values = [orjson.loads(row) for row in rows]
        except orjson.JSONDecodeError:
            values = [_parsed(row, raw) for row, raw in enumerate(rows)]
            return cls.of(values)
        for row, value in enumerate(values):
            if type(value) is not dict:
                raise Unkeepable(row, f"it is a JSON {type(value).__name__}, not an object")
        joined = b"[" + b",".join(rows) + b"]"
        if orjson.dumps(values) == joined:  # the form that we write ourselves
            return cls._usual(rows, values, joined)
        for row, value in enumerate(values):  # white space, or digits that a float does not hold
            if rows[row] != orjson.dumps(value):
                values[row] = parse_json(rows[row])
        return cls.of_parsed(values)

    # -- bytes ----------------------------------------------------------------------------------

    def rows(self) -> list[bytes]:
        """The bodies; not to be changed."""
        return self._rows

    def raw(self, row: int) -> bytes:
        """The body of one row."""
        return self._rows[row]

    def types(self, row: int) -> Types:
        """What `from_json` needs for one row; mostly empty."""
        return self._types.get(row, _NO_TYPES)

    @property
    def typed(self) -> Mapping[int, Types]:
        """Row → its table, for the rows that have one; not to be changed."""
        return self._types

    @property
    def nbytes(self) -> int:
        return sum(map(len, self._rows))

    def bodies(self) -> list[dict[str, Any]]:
        """The bodies as dicts of pure JSON; with `types` they become the metadata."""
        try:
            bodies: list[dict[str, Any]] = orjson.loads(b"[" + b",".join(self._rows) + b"]")
        except orjson.JSONDecodeError:
            return [parse_json(row) for row in self._rows]
        return bodies

    def with_types(self, kept: Mapping[int, Types]) -> JsonColumn:
        """The same bodies with the tables that a store has kept for them, over those they have now."""
        tables = {row: {**self._types.get(row, {}), **table} for row, table in kept.items()}
        return JsonColumn(self._rows, {**self._types, **tables})

    # -- rows -----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, row: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, row: slice) -> JsonColumn: ...
    def __getitem__(self, row: int | slice) -> dict[str, Any] | JsonColumn:
        if isinstance(row, slice):
            return self.take(range(*row.indices(len(self))))
        raw = self._rows[row]
        try:
            body: dict[str, Any] = orjson.loads(raw)
        except orjson.JSONDecodeError:
            body = parse_json(raw)
        table = self._types.get(row if row >= 0 else row + len(self)) if self._types else None
        return from_json(body, table) if table else body

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), _PIECE):
            piece = self if len(self) <= _PIECE else self[start : start + _PIECE]
            for row, body in enumerate(piece.bodies()):
                table = piece._types.get(row)
                yield from_json(body, table) if table else body

    def take(self, rows: Sequence[int] | Array) -> JsonColumn:
        """The given rows, in the given order."""
        picked: Sequence[int] = rows if isinstance(rows, list | range) else [int(row) for row in rows]
        types = self._types
        kept = {at: types[row] for at, row in enumerate(picked) if row in types} if types else None
        return JsonColumn([self._rows[row] for row in picked], kept)

    @classmethod
    def concat(cls, columns: Sequence[JsonColumn]) -> JsonColumn:
        """One column of all rows."""
        rows: list[bytes] = []
        types: dict[int, Types] = {}
        for column in columns:
            types.update((row + len(rows), table) for row, table in column._types.items())
            rows += column._rows
        return cls(rows, types)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, JsonColumn) and self._rows == other._rows and self._types == other._types:
            return True
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<JsonColumn of {len(self)} rows, {self.nbytes} bytes>"


class Unkeepable(ValueError):
    """The metadata of one row cannot be kept; ``row`` says which."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row


def _parsed(row: int, raw: bytes) -> dict[str, Any]:
    try:
        value = parse_json(raw)
    except (ValueError, RecursionError) as error:
        raise Unkeepable(row, f"it is not JSON: {error}") from error
    if type(value) is not dict:
        raise Unkeepable(row, f"it is a JSON {type(value).__name__}, not an object")
    return value
