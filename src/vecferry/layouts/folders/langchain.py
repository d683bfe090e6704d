"""LangChain's FAISS folder: ``index.faiss`` and a pickle of ``(docstore, {row: docstore id})``.

Read: the pickles of langchain 0.0.x, langchain-community 0.2 and 0.4, without LangChain and without
unpickling (see `vecferry.layouts.folders.pickles`). Written: the form of langchain-community 0.4 with
langchain-core 1.x, opcode by opcode, so that the memory stays that of one record.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from vecferry.errors import CorruptDataError
from vecferry.layouts.folders.entries import (
    Entry,
    IdList,
    Numbering,
    Renamed,
    Sidecar,
    Spool,
    check_count,
    pair,
)
from vecferry.layouts.folders.inert import Documents
from vecferry.layouts.folders.pickle_write import pickle_piece
from vecferry.layouts.folders.pickles import check_size, read_pickle
from vecferry.model import ENVELOPE, Loss, RecordId, decode_id, encode_id
from vecferry.model.ids import check_id

_BATCH = 1000  # items a SETITEMS opcode takes, as Python's pickler does


def read_langchain(path: Path, numbering: Numbering) -> Sidecar:
    """The sidecar ``index.pkl`` of an index so numbered.

    Raises:
        CorruptDataError: if documents and vectors do not belong to each other.
        UnsafePickleError: if the pickle asks for anything but records.
    """
    with Spool() as spool:
        docs = _Docs(spool, str(path))
        documents, names = _parts(read_pickle(path, keep_document=docs.keep), path)
        _check(documents, names, len(spool), path)
        named = [(number, name) for number, name in names.items() if name in documents]
        if not numbering.live:
            missing = next((name for name in names.values() if name not in documents), None)
            if missing is not None:
                raise CorruptDataError(
                    f"{path} lists {len(names)} rows and holds {len(documents)} documents; {missing!r} is "
                    "missing: restore the folder from a backup, or read the others with ?live=1"
                )
            check_count(len(names), numbering.count, str(path))
        keys = np.fromiter((number for number, _ in named), dtype=np.int64, count=len(named))
        ids, lines, at = IdList(), np.empty(len(documents), dtype=np.int64), {}
        for row, (name, line) in enumerate(documents.items()):
            ids.append(docs.originals.get(line, check_id(name)))
            lines[row], at[name] = line, row
        rows = np.fromiter((at[name] for _, name in named), dtype=np.int64, count=len(named))
        entries = Renamed(spool.seal(), ids, lines)
        sidecar = pair(entries, keys, rows, numbering, str(path))
        return replace(sidecar, losses=(*sidecar.losses, *docs.losses(documents, names)))


class _Docs:
    """The documents of a pickle on their way into the spool, and what else is to be said of them."""

    def __init__(self, spool: Spool, name: str) -> None:
        self._spool, self._name = spool, name
        self.originals: dict[int, RecordId] = {}
        self._own_ids: dict[int, Any] = {}

    def keep(self, document: dict[str, Any]) -> int:
        """The row of the document, which stands for it in what is left of the pickle."""
        metadata = document["metadata"]
        check_size(metadata, self._name)
        text, row = document["page_content"], len(self._spool)
        envelope = metadata.get(ENVELOPE)
        if isinstance(envelope, dict):
            metadata = {key: value for key, value in metadata.items() if key != ENVELOPE}
            text = None if envelope.get("no_text") and not text else text
            if isinstance(envelope.get("aside"), dict):
                metadata |= envelope["aside"]
            if isinstance(envelope.get("id"), str):
                self.originals[row] = decode_id(envelope["id"])
        if document["id"] is not None:
            self._own_ids[row] = document["id"]
        return self._spool.add(Entry("", text, metadata))

    def losses(self, documents: dict[Any, int], names: dict[int, Any]) -> tuple[Loss, ...]:
        """Documents that no vector names, and ids that stand twice and differ."""
        orphans = sorted({str(name) for name in documents} - {str(name) for name in names.values()})
        differ = [
            f"{name!r} and {self._own_ids[row]!r}"
            for name, row in documents.items()
            if row in self._own_ids and self._own_ids[row] != name
        ]
        return (
            *Loss.not_carried(f"documents of {self._name} without a vector", orphans),
            *(
                Loss(
                    kind="id",
                    detail=f"documents of {self._name} stand under another id than their own; the key of "
                    "the docstore is taken",
                    count=len(differ),
                    example=differ[0],
                    where="source",
                )
                for _ in differ[:1]
            ),
        )


def _parts(value: Any, path: Path) -> tuple[dict[Any, int], dict[int, Any]]:
    if isinstance(value, tuple) and len(value) == 2:
        documents, names = value
        if isinstance(documents, Documents) and isinstance(names, dict):
            return documents.by_id, names
    raise CorruptDataError(
        f"{path} is not LangChain's (docstore, index_to_docstore_id); name another layout with ?layout="
    )


def _check(documents: dict[Any, int], names: dict[int, Any], kept: int, path: Path) -> None:
    strange = any(type(row) is not int or not 0 <= row < kept for row in documents.values())
    strange = strange or not all(type(row) is int for row in names) or not all(map(_is_id, documents))
    if strange:
        raise CorruptDataError(
            f"{path} lists {len(names)} rows and holds {len(documents)} documents, not all of them whole; "
            "restore the folder from a backup or save it again with LangChain"
        )


def _is_id(value: Any) -> bool:
    """An app may have given its documents numbers, though LangChain asks for texts."""
    return isinstance(value, str | int | UUID) and not isinstance(value, bool)


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
