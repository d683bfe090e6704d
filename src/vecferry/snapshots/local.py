"""Objects in a folder of this machine, with the promises of S3: whole objects, conditional writes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from vecferry.core.durable import replace_durably, write_durably
from vecferry.core.locks import locked
from vecferry.errors import CorruptDataError, FatalStoreError, NotFoundError
from vecferry.snapshots.objects import Advance, Conflict, ObjectInfo, safe_path

_BLOCK = 1 << 20
_DRAFT = ".draft-"
_LOCK = ".lock"


class LocalObjects:
    """Objects below ``root``. Writers on one machine, or on a file system with working locks, may meet."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"file:{root}"

    def read(self, key: str) -> tuple[bytes, str]:
        try:
            data = safe_path(self.root, key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(f"{self.url} holds no {key}; check the path") from None
        except IsADirectoryError:
            raise CorruptDataError(f"{self.url}/{key} is a folder; choose another place") from None
        return data, sha256(data).hexdigest()

    def write(self, key: str, data: bytes, *, replaces: str | None) -> None:
        path = safe_path(self.root, key)
        with self._guarded(), locked(self.root / _LOCK):
            have = sha256(path.read_bytes()).hexdigest() if path.exists() else None
            if have != replaces:
                raise Conflict(f"{key} was changed meanwhile")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, data)

    def list(self, under: str = "") -> Iterator[ObjectInfo]:
        for path in sorted(self.root.rglob("*")):
            key = path.relative_to(self.root).as_posix()
            if key == _LOCK or not key.startswith(under) or path.is_symlink() or not path.is_file():
                continue
            stat = path.stat()
            modified = datetime.fromtimestamp(stat.st_mtime, UTC)
            yield ObjectInfo(key, stat.st_size, f"{stat.st_size}-{stat.st_mtime_ns}", modified)

    def upload(
        self, files: Sequence[tuple[Path, str]], advance: Advance, *, resumes: bool = False
    ) -> dict[str, str]:
        with self._guarded():
            return {key: self._store(source, safe_path(self.root, key), advance) for source, key in files}

    def _store(self, source: Path, path: Path, advance: Advance) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._draft(path)
        before = source.stat()
        digest = _copy(source, draft, advance)
        after = source.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            draft.unlink()
            raise CorruptDataError(f"{source.name} changed while it was saved; save again")
        replace_durably(draft, path)
        return digest

    def download(self, objects: Sequence[tuple[ObjectInfo, Path]], advance: Advance) -> None:
        for info, path in objects:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _copy(safe_path(self.root, info.key), path, advance)
            except FileNotFoundError:
                raise CorruptDataError(
                    f"{self.url}/{info.key} vanished while it was read; run again"
                ) from None
            except OSError as error:
                raise FatalStoreError(
                    f"cannot write to {path.parent}: {error.strerror}; free some space"
                ) from error

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            path = safe_path(self.root, key)
            path.unlink(missing_ok=True)
            with suppress(OSError):  # stops at the first folder that is not empty
                for folder in path.relative_to(self.root).parents:
                    if folder != Path():
                        (self.root / folder).rmdir()

    def abort_uploads(self, under: str, older_than: datetime) -> None:
        for info in list(self.list(under)):
            if _DRAFT in info.key and info.modified is not None and info.modified < older_than:
                self.delete([info.key])

    def close(self) -> None:
        """Nothing is held."""

    def _draft(self, path: Path) -> Path:
        return path.with_name(f"{_DRAFT}{uuid4().hex[:8]}-{path.name}")

    def _guarded(self) -> _Guard:
        return _Guard(self.root)


class _Guard:
    """Translates what the file system says."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __enter__(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._translated(error) from error

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise self._translated(error) from error

    def _translated(self, error: OSError) -> FatalStoreError:
        return FatalStoreError(
            f"cannot write to {self._root}: {error.strerror}; make room or check the rights"
        )


def _copy(source: Path, target: Path, advance: Advance) -> str:
    digest = sha256()
    try:
        with source.open("rb") as file, target.open("wb") as out:
            while block := file.read(_BLOCK):
                out.write(block)
                digest.update(block)
                advance(len(block))
            out.flush()
            os.fsync(out.fileno())
    except OSError:
        if source.exists():
            target.unlink(missing_ok=True)
        raise
    return digest.hexdigest()
