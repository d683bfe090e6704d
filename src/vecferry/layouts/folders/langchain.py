"""LangChain's FAISS folder: ``index.faiss`` and a pickle of ``(docstore, {row: docstore id})``.

Read: the pickles of langchain 0.0.x, langchain-community 0.2 and 0.4, without LangChain and without
unpickling (see `vecferry.layouts.folders.pickles`). Written: the form of langchain-community 0.4 with
langchain-core 1.x, opcode by opcode, so that the memory stays that of one record.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from vecferry.errors import CorruptDataError
from vecferry.layouts.folders.inert import Documents
from vecferry.layouts.folders.lines import Entries, Entry, Spool, TextColumn
from vecferry.layouts.folders.measure import check_size
from vecferry.layouts.folders.pickle_write import pickle_piece
from vecferry.layouts.folders.pickles import read_pickle
from vecferry.layouts.folders.sidecar import Numbering, Sidecar, rows_of
from vecferry.model import ENVELOPE, RecordId, decode_id, encode_id
from vecferry.model.ids import check_id
from vecferry.model.vectors import Array

_BATCH = 1000  # items a SETITEMS opcode takes, as Python's pickler does


def read_langchain(path: Path, numbering: Numbering) -> Sidecar:
    """The sidecar ``index.pkl`` of an index so numbered.

    Raises:
        CorruptDataError: if documents and vectors do not belong to each other.
        UnsafePickleError: if the pickle asks for anything but records.
    """
    with Spool() as spool:

        def keep(document: dict[str, Any]) -> int:
            metadata = document["metadata"]
            return spool.add(_entry("", document["page_content"], metadata, str(path)))

        documents, names = _parts(read_pickle(path, keep_document=keep), path)
        _check(documents, names, len(spool), path)
        keys = np.fromiter(names, dtype=np.int64, count=len(names))
        order = rows_of(keys, numbering, str(path))
        lines = np.fromiter(documents.values(), dtype=np.int64, count=len(documents))
        for row, name in enumerate(documents):
            documents[name] = row
        rows = np.fromiter((documents[name] for name in names.values()), dtype=np.int64, count=len(names))
        texts_only = all(isinstance(name, str) for name in documents)
        names_by_row = TextColumn(documents) if texts_only else [check_id(name) for name in documents]
        entries = _Named(spool.seal(), lines, names_by_row)
        return Sidecar(entries, rows if order is None else rows[order])


def _parts(value: Any, path: Path) -> tuple[dict[str, int], dict[int, str]]:
    if isinstance(value, tuple) and len(value) == 2:
        documents, names = value
        if isinstance(documents, Documents) and isinstance(names, dict):
            return documents.by_id, names
    raise CorruptDataError(
        f"{path} is not LangChain's (docstore, index_to_docstore_id); name another layout with ?layout="
    )


def _check(documents: dict[str, int], names: dict[int, str], kept: int, path: Path) -> None:
    missing = [name for name in names.values() if name not in documents]
    strange = any(type(row) is not int or not 0 <= row < kept for row in documents.values())
    strange = strange or not all(type(row) is int for row in names) or not all(map(_is_id, documents))
    if missing or strange or len(names) != len(documents):
        raise CorruptDataError(
            f"{path} lists {len(names)} rows and holds {len(documents)} documents"
            + (f"; {missing[0]!r} is missing" if missing else "")
            + "; restore the folder from a backup or save it again with LangChain"
        )


def _is_id(value: Any) -> bool:
    """An app may have given its documents numbers, though LangChain asks for texts."""
    return isinstance(value, str | int | UUID) and not isinstance(value, bool)


def _entry(name: str, text: str | None, metadata: dict[str, Any], where: str) -> Entry:
    check_size(metadata, where)
    envelope = metadata.pop(ENVELOPE, None)
    if isinstance(envelope, dict):
        if envelope.get("no_text") and not text:
            text = None
        if isinstance(envelope.get("aside"), dict):
            metadata |= envelope["aside"]
        metadata[_ORIGINAL] = envelope.get("id")
    return Entry(name, text, metadata)


_ORIGINAL = "\x00id"


class _Named:
    """Spooled documents with the docstore's ids, or the original ones where an envelope kept them."""

    def __init__(self, entries: Entries, lines: Array, names: TextColumn | list[RecordId]) -> None:
        self._entries = entries
        self._lines = lines
        self._names = names

    def __len__(self) -> int:
        return len(self._lines)

    def read(self, rows: Array) -> list[Entry]:
        found = []
        for row, entry in zip(rows.tolist(), self._entries.read(self._lines[rows]), strict=True):
            original = entry.metadata.pop(_ORIGINAL, None)
            id_: Any = decode_id(original) if original else self._names[row]
            found.append(Entry(id_, entry.text, entry.metadata))
        return found

    def close(self) -> None:
        self._entries.close()


# -- writing ----------------------------------------------------------------------------------


def write_langchain(
    path: Path, entries: Callable[[], Iterable[Entry]], name_of: Callable[[Any], str]
) -> None:
    """Write ``index.pkl``.

    Args:
        entries: gives the records in the order of the index, each time it is called.
        name_of: the docstore id of a record's id.
    """
    with path.open("wb") as file:
        write = file.write
        write(b"\x80\x04" + _name("langchain_community.docstore.in_memory", "InMemoryDocstore"))
        write(b")\x81}" + _string("_dict") + b"}")
        document = _name("langchain_core.documents.base", "Document") + b"q\x00"
        for batch in _batches(entries()):
            write(b"(")
            for _, entry in batch:
                write(_string(name_of(entry.id)) + document + b")\x81")
                write(_state(entry, name_of(entry.id)) + b"b")
                document = b"h\x00"
            write(b"u")
        write(b"sb}")
        for batch in _batches(entries()):
            write(b"(")
            write(b"".join(_number(row) + _string(name_of(entry.id)) for row, entry in batch))
            write(b"u")
        write(b"\x86.")


def _batches(entries: Iterable[Entry]) -> Iterator[list[tuple[int, Entry]]]:
    batch: list[tuple[int, Entry]] = []
    for row, entry in enumerate(entries):
        batch.append((row, entry))
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _state(entry: Entry, name: str) -> bytes:
    """A document's state as pydantic 2 pickles it."""
    metadata = dict(entry.metadata)
    envelope: dict[str, Any] = {}
    if name != entry.id:
        envelope["id"] = encode_id(entry.id)
    if entry.text is None:
        envelope["no_text"] = True
    if ENVELOPE in metadata:
        envelope["aside"] = {ENVELOPE: metadata.pop(ENVELOPE)}
    if envelope:
        metadata[ENVELOPE] = envelope
    fields = b"(" + _string("id") + _string(name) + _string("metadata") + pickle_piece(metadata)
    fields += _string("page_content") + _string(entry.text or "")
    fields += _string("type") + _string("Document") + b"u"
    return b"}(" + _string("__dict__") + b"}" + fields + _TAIL + b"u"


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    if len(data) < 256:
        return b"\x8c" + bytes([len(data)]) + data
    return b"X" + struct.pack("<I", len(data)) + data


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value) if value < 2**31 else b"\x8a\x08" + struct.pack("<q", value)


def _name(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


_TAIL = (
    _string("__pydantic_extra__")
    + b"N"
    + _string("__pydantic_fields_set__")
    + b"\x8f("
    + b"".join(_string(name) for name in ("page_content", "metadata", "id"))
    + b"\x90"
    + _string("__pydantic_private__")
    + b"N"
)
