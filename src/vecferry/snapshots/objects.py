"""What a snapshot store needs of the place it lies in: a few verbs on named objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Protocol

from vecferry.errors import CorruptDataError, NotFoundError, VecferryError

Advance = Callable[[int], None]
"""Told the bytes that were just moved."""


class Conflict(VecferryError):
    """Somebody else changed the object first. Never leaves this room."""


class NoBucketError(NotFoundError):
    """Not even the bucket is there."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object: its key below the prefix, its size in bytes, its ETag, when it was written (UTC)."""

    key: str
    size: int
    etag: str = ""
    modified: datetime | None = None


class Objects(Protocol):
    """Named objects below one prefix. Keys are relative to it and use ``/``."""

    url: str

    def read(self, key: str) -> tuple[bytes, str]:
        """A small object and its ETag.

        Raises:
            NotFoundError: if it is not there.
        """
        ...

    def write(self, key: str, data: bytes, *, replaces: str | None) -> None:
        """Write a small object if it still has the ETag ``replaces``, or is not there (``None``).

        Raises:
            Conflict: if somebody else was first.
            UnsupportedError: if the place does not keep that promise.
        """
        ...

    def list(self, under: str = "") -> Iterator[ObjectInfo]:
        """Every object below ``under``."""
        ...

    def upload(
        self, files: Sequence[tuple[Path, str]], advance: Advance, *, resumes: bool = False
    ) -> dict[str, str]:
        """Store files under their keys; returns the SHA-256 by key, of the bytes that were sent.

        With ``resumes``, what an interrupted call has stored already is not sent again.
        """
        ...

    def download(self, objects: Sequence[tuple[ObjectInfo, Path]], advance: Advance) -> None:
        """Fetch objects into files; a file that an interrupted call began is gone on with.

        Raises:
            CorruptDataError: if an object changed or vanished since it was listed.
        """
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Delete; unknown keys are no error."""
        ...

    def abort_uploads(self, under: str, older_than: datetime) -> None:
        """Drop what interrupted uploads left behind."""
        ...

    def close(self) -> None:
        """Release connections."""
        ...


def safe_path(root: Path, key: str) -> Path:
    """The file below ``root`` that a key names.

    Raises:
        CorruptDataError: if the key tries to leave the folder.
    """
    parts = key.split("/")
    bad = not key or key.startswith("/") or "\\" in key or "\0" in key or (len(key) > 1 and key[1] == ":")
    if bad or any(part in ("", ".", "..") for part in parts):
        raise CorruptDataError(f"the object key {key!r} would leave its folder; nothing was written")
    return root / PurePosixPath(*parts)
