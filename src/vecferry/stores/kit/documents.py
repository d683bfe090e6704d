"""JSON documents of records, as services and notebooks export them, made into lines.

Read are an array of records; an object with one list of records among other things (``{"documents": […]}``,
``{"result": {"points": […]}}``); parallel lists (``{"ids": […], "embeddings": […], "documents": […]}``);
records under their ids (``{"doc-1": {…}}``).
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from vecferry.errors import CorruptDataError
from vecferry.layouts.folders import JsonWalk
from vecferry.model import dump_json
from vecferry.model.foreign import ID_NAMES, METADATA_NAMES, TEXT_NAMES, VECTOR_NAMES

_HEAD = 1 << 16
_MOST_KEYS = 16
_FIRST = 3
_PLURALS = {
    "text": ("documents", "texts", "contents", "chunks", *TEXT_NAMES),
    "id": ("ids", "vector_ids", "doc_ids", *ID_NAMES),
    "vector": ("embeddings", "vectors", *VECTOR_NAMES),
    "metadata": ("metadatas", "payloads", *METADATA_NAMES),
}
_LISTS = ("documents", "records", "points", "chunks", "data", "items", "rows", "nodes", "passages", "docs")


class DocumentLines:
    """A temporary file with a line a record of a document; it goes when nobody knows it any more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        weakref.finalize(self, path.unlink, missing_ok=True)


def document_lines(path: Path) -> DocumentLines | None:
    """The records of a document; ``None`` if the file holds lines already."""
    if _are_lines(path):
        return None
    with tempfile.NamedTemporaryFile(prefix="vecferry-", suffix=".jsonl", delete=False) as file:
        made = DocumentLines(Path(file.name))
        for record in _records(path):
            if not isinstance(record, Mapping):
                raise CorruptDataError(
                    f"{path} holds a {type(record).__name__} where a record is due; write objects"
                )
            file.write(dump_json(record) + b"\n")
    return made


def _are_lines(path: Path) -> bool:
    """Whether a line is a whole value by itself and another follows, or the file is one such line."""
    with path.open("rb") as file:
        head = file.read(_HEAD).lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"["):
        return False
    first, line_feed, rest = head.partition(b"\n")
    first = first.rstrip()
    whole = first.startswith(b"{") and first.endswith(b"}")
    if not whole:  # a line longer than the head, or a document over several lines
        return not (first.endswith((b"{", b"[", b",")) or (line_feed and not first.endswith(b"}")))
    if rest.strip():
        return True
    outline = JsonWalk(path).outline(_MOST_KEYS)
    if outline is not None and (_main(outline) is not None or _is_result(outline)):
        return False
    return not _is_mapping(path)


def _is_mapping(path: Path) -> bool:
    """Whether an object holds records under their ids, rather than being one."""
    first = list(islice(JsonWalk(path).items(), _FIRST))
    parts = {*ID_NAMES, *TEXT_NAMES, *METADATA_NAMES, *VECTOR_NAMES}
    return bool(first) and all(isinstance(row, Mapping) and key not in parts for key, row in first)


def _is_result(outline: Mapping[str, tuple[str, int]]) -> bool:
    return outline.get("result", ("", 0))[0] in ("{", "[")


def _main(outline: Mapping[str, tuple[str, int]]) -> str | None:
    """The list of records."""
    return next((name for name in _LISTS if outline.get(name, ("", 0))[0] == "["), None)


def _records(path: Path) -> Iterator[Any]:
    outline = JsonWalk(path).outline(_MOST_KEYS)
    if outline is None:
        for key, row in JsonWalk(path).items():
            yield _with_id(key, row)
        return
    if _is_result(outline):  # an answer of Qdrant's REST interface
        for section, key, row in JsonWalk(path).members():
            if section == "result":
                yield from (row if key == "points" else () if key is not None else [row])
        return
    columns = _parallel(outline)
    if len(columns) > 1:
        yield from _joined(path, columns)
        return
    main = _main(outline)
    if main is not None:
        yield from (row for section, _, row in JsonWalk(path).members() if section == main)
    elif _is_mapping(path):
        for key, row in JsonWalk(path).items():
            yield _with_id(key, row)
    else:
        yield from (value for _, value in [(None, dict(JsonWalk(path).items()))])


def _with_id(key: str | None, row: Any) -> Any:
    if key is None or not isinstance(row, Mapping) or any(name in row for name in ID_NAMES):
        return row
    return {"id": key, **row}


def _parallel(outline: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    """Part of a record → the list that holds it, where several lists are equally long."""
    lists = {name: n for name, (kind, n) in outline.items() if kind == "["}
    found: dict[str, str] = {}
    for part, names in _PLURALS.items():
        name = next((name for name in names if name in lists), None)
        if name is not None and lists[name] == max(lists.values()):
            found[part] = name
    return found


def _joined(path: Path, columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    def column(name: str) -> Iterable[Any]:
        return (row for section, _, row in JsonWalk(path).members() if section == name)

    for values in zip(*(column(name) for name in columns.values()), strict=True):
        record = dict(zip(columns, values, strict=True))
        if isinstance(record.get("text"), Mapping):
            record = {**record.pop("text"), **record}
        yield {key: value for key, value in record.items() if value is not None}


__all__ = ["document_lines"]
