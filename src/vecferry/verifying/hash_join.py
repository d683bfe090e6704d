"""The on-disk hash join: what is expected as numpy records in flat files, found again by id in any order.

`Runs` sorts any number of records by their 16-byte key in bounded memory: sorted runs go to one flat file
and are merged by ranges of the key. `HashIndex` holds the merged records as two memory-mapped columns, the
expected vectors of fields that are compared within a tolerance in one flat file each, and a mark for each
record: where in the target it was found.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vecferry.core.durable import fsync_file
from vecferry.model import DenseColumn, MultiColumn, SparseColumn
from vecferry.model.vectors import Array, Column

MOST_BYTES = 8 << 20
"""Records held in memory at once, by a run and by a range of the merge."""

_SHARE = 40
"""Bits of a mark below the number of the share: 10¹² records in each."""

KEY_FIELDS = [("k0", "u8"), ("k1", "u8"), ("row", "i8")]


class Runs:
    """Records to be sorted by ``(k0, k1)``, those of equal key in the order in which they were added.

    Args:
        dtype: a structured type that begins with `KEY_FIELDS`.
        path: of the flat file; it is made when memory does not hold all records.
        spilled: what `spilled` said before, to go on there; else the file begins anew.
    """

    def __init__(self, dtype: Any, path: Path, spilled: Sequence[int] = ()) -> None:
        self.dtype, self._path = np.dtype(dtype), path
        self._most = max(1, MOST_BYTES // self.dtype.itemsize)
        self._held: list[Array] = []
        self._rows = 0
        self._spilled: list[int] = list(spilled)
        if path.exists():
            with path.open("r+b") as file:
                file.truncate(sum(self._spilled) * self.dtype.itemsize)

    def __len__(self) -> int:
        return sum(self._spilled) + self._rows

    def add(self, records: Array) -> None:
        self._held.append(records)
        self._rows += len(records)
        if self._rows >= self._most:
            self._spill()

    def _spill(self) -> None:
        if not self._rows:
            return
        with self._path.open("ab") as file:
            _by_key(np.concatenate(self._held)).tofile(file)
        self._spilled.append(self._rows)
        self._held, self._rows = [], 0

    def spilled(self) -> list[int]:
        """Put all that is held into the file, durably; the lengths of its runs, as JSON."""
        if self._rows:
            self._spill()
            fsync_file(self._path)
        return list(self._spilled)

    def ranges(self) -> Iterator[Array]:
        """All records sorted, in pieces; no key is in two of them."""
        if not self._spilled:
            if self._rows:
                yield _by_key(np.concatenate(self._held))
            return
        self._spill()
        whole = np.memmap(self._path, self.dtype, "r")
        starts = np.cumsum([0, *self._spilled])
        runs = [whole[a:b] for a, b in pairwise(starts.tolist())]
        pieces = -(-len(whole) // self._most)
        # Keys are hashes and lie evenly, so that equal shares of their values are equal shares of them.
        edges = np.array([(i << 64) // pieces for i in range(1, pieces)], dtype="u8")
        cuts = [[0, *np.searchsorted(run["k0"], edges).tolist(), len(run)] for run in runs]
        for piece in range(pieces):
            parts = [run[cut[piece] : cut[piece + 1]] for run, cut in zip(runs, cuts, strict=True)]
            if any(map(len, parts)):
                yield _by_key(np.concatenate(parts))

    def collided(self, limit: int) -> tuple[int, list[int]]:
        """How many records have the key of an earlier one, and the first rows of these."""
        count, rows = 0, np.empty(0, np.int64)
        for piece in self.ranges():
            again = np.flatnonzero(_same_as_next(piece)) + 1
            count += len(again)
            rows = _least(np.concatenate([rows, piece["row"][again]]), limit)
        return count, rows.tolist()


def add_keys(runs: Runs, keys: Array) -> None:
    """Add records that are nothing but keys ``(n, 2)``."""
    if len(keys):
        entries = np.zeros(len(keys), KEY_FIELDS)
        entries["k0"], entries["k1"] = keys[:, 0], keys[:, 1]
        entries["row"] = len(runs) + np.arange(len(keys))
        runs.add(entries)


def _by_key(records: Array) -> Array:
    records = records[np.argsort(records["k0"], kind="stable")]
    k0, k1 = records["k0"], records["k1"]
    if ((k0[1:] == k0[:-1]) & (k1[1:] != k1[:-1])).any():
        records = records[np.lexsort((k1, k0))]
    return records


def _same_as_next(records: Array) -> Array:
    """bool ``(n − 1,)``: whether the next record has the same key."""
    k0, k1 = records["k0"], records["k1"]
    same: Array = (k0[1:] == k0[:-1]) & (k1[1:] == k1[:-1])
    return same


def _least(rows: Array, limit: int) -> Array:
    return np.sort(rows)[:limit]


class HashIndex:
    """Expected records by key: hashes of what must be equal bit for bit, the vectors of the rest.

    It belongs to the thread that made it.

    Args:
        folder: for its files. With ``token`` those of an earlier process are opened again.
        exact: the fields whose vectors are hashed.
        tolerant: the fields whose vectors are kept.
        token: what `token` said.
    """

    def __init__(
        self,
        folder: Path,
        exact: Sequence[str],
        tolerant: Sequence[str],
        *,
        token: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.exact, self.tolerant = folder, list(exact), list(tolerant)
        hashes = [(f"h{i}", "u8", (2,)) for i in range(len(self.exact))]
        places = [(f"{c}{i}", "i8") for i in range(len(self.tolerant)) for c in "ol"]
        self._dtype = np.dtype([*KEY_FIELDS, ("doc", "u8", (2,)), *hashes, *places])
        self._kept: dict[str, _KeptVectors] = {}
        if token is not None:
            self._kept = {n: _KeptVectors.reopen(kind) for n, kind in token["kept"].items()}
            self._open(token["rows"])
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._runs = Runs(self._dtype, folder / "runs")
        self._files: dict[str, BinaryIO] = {}

    def __len__(self) -> int:
        return len(self._k0)

    @property
    def token(self) -> dict[str, Any]:
        """What opens the files again, as JSON."""
        return {"rows": len(self), "kept": {name: kept.state() for name, kept in self._kept.items()}}

    # -- filling ------------------------------------------------------------------------------

    def add(
        self, keys: Array, docs: Array, hashes: Mapping[str, Array], columns: Mapping[str, Column | None]
    ) -> None:
        """Take the next expected records: keys, hashes ``(n, 2)``, and the columns of tolerant fields."""
        entries = np.zeros(len(keys), self._dtype)
        entries["k0"], entries["k1"] = keys[:, 0], keys[:, 1]
        entries["row"] = len(self._runs) + np.arange(len(keys))
        entries["doc"] = docs
        for i, name in enumerate(self.exact):
            entries[f"h{i}"] = hashes[name]
        for i, name in enumerate(self.tolerant):
            entries[f"o{i}"], entries[f"l{i}"] = self._keep(name, columns[name], len(keys))
        self._runs.add(entries)

    def _keep(self, name: str, column: Column | None, rows: int) -> tuple[Array, Array]:
        if column is None:
            return np.zeros(rows, np.int64), np.full(rows, -1)
        kept = self._kept.setdefault(name, _KeptVectors.like(column))
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = self._vectors_of(name).open("wb")
        start = file.tell()
        lengths = kept.write(column, file)
        ends = start + np.cumsum(np.maximum(lengths, 0))
        return ends - np.maximum(lengths, 0), lengths

    def _vectors_of(self, name: str) -> Path:
        return self.folder / f"vectors-{self.tolerant.index(name)}"

    def seal(self, limit: int) -> tuple[int, list[int]]:
        """End of `add`: of equal keys the last record stays. Also `Runs.collided`."""
        for file in self._files.values():
            file.close()
        count, rows, total = 0, np.empty(0, np.int64), 0
        with (self.folder / "keys").open("wb") as keys, (self.folder / "records").open("wb") as records:
            for piece in self._runs.ranges():
                again = _same_as_next(piece)
                count += int(again.sum())
                rows = _least(np.concatenate([rows, piece["row"][np.flatnonzero(again) + 1]]), limit)
                last = piece[np.append(~again, True)]
                np.ascontiguousarray(last["k0"]).tofile(keys)
                last.tofile(records)
                total += len(last)
        for path in (*self.folder.glob("vectors-*"), self.folder / "keys", self.folder / "records"):
            fsync_file(path)
        (self.folder / "runs").unlink(missing_ok=True)
        (self.folder / "marks").unlink(missing_ok=True)
        self._open(total)
        return count, rows.tolist()

    def _open(self, rows: int) -> None:
        marks = self.folder / "marks"
        mode = "r+" if marks.exists() else "w+"
        self._k0 = _mapped(self.folder / "keys", "u8", rows)
        self._records = _mapped(self.folder / "records", self._dtype, rows)
        self._marks = _mapped(marks, "i8", rows, mode)

    # -- finding ------------------------------------------------------------------------------

    def find(self, keys: Array) -> Array:
        """int64 ``(n,)``: the place of each key ``(n, 2)``, −1 where it is unknown."""
        total = len(self)
        if not total:
            return np.full(len(keys), -1)
        order = np.argsort(keys[:, 0])  # neighbours lie in the same pages
        k0, k1 = keys[order, 0], keys[order, 1]
        at = np.searchsorted(self._k0, k0)
        there = self._at(at, k0)
        found = there.copy()
        found[there] = self._records["k1"][at[there]] == k1[there]
        odd = np.flatnonzero(there & ~found)
        while len(odd):  # two keys that agree in their first half
            at[odd] += 1
            odd = odd[self._at(at[odd], k0[odd])]
            hit = self._records["k1"][at[odd]] == k1[odd]
            found[odd[hit]] = True
            odd = odd[~hit]
        places = np.empty(len(keys), np.int64)
        places[order] = np.where(found, at, -1)
        return places

    def _at(self, at: Array, k0: Array) -> Array:
        same: Array = (at < len(self)) & (self._k0[np.minimum(at, len(self) - 1)] == k0)
        return same

    def docs(self, places: Array) -> Array:
        return self._records["doc"][places]

    def hashes(self, name: str, places: Array) -> Array:
        return self._records[f"h{self.exact.index(name)}"][places]

    def rows(self, places: Array) -> Array:
        """Where the records came in the expected stream."""
        return self._records["row"][places]

    def keys(self, places: Array) -> Array:
        return np.stack([self._records["k0"][places], self._records["k1"][places]], axis=1)

    def vectors(self, name: str, places: Array) -> Column | None:
        """The expected vectors of a tolerant field."""
        if name not in self._kept:
            return None
        i = self.tolerant.index(name)
        offsets, lengths = self._records[f"o{i}"][places], self._records[f"l{i}"][places]
        return self._kept[name].read(self._vectors_of(name), offsets, lengths)

    # -- marks --------------------------------------------------------------------------------

    def mark(self, places: Array, share: int, ordinals: Array) -> tuple[Array, bool]:
        """Note where records were found; only the first of each place is.

        Returns:
            Which of them are the first, and whether one was found before in a later share: which of two
            copies comes first is then known by the order of the whole only.
        """
        marks = ((share + 1) << _SHARE) + ordinals
        before = self._marks[places]
        first = np.zeros(len(places), np.bool_)
        first[np.unique(places, return_index=True)[1]] = True
        first &= before == 0
        self._marks[places[first]] = marks[first]
        return first, bool((before >> _SHARE > share + 1).any())

    def forget(self, behind: Sequence[int] = ()) -> None:
        """Take back the marks behind the first ``behind[share]`` records of each share; all without."""
        for low in range(0, len(self), 1 << 20):
            marks = self._marks[low : low + (1 << 20)]
            if not behind:
                marks[:] = 0
                continue
            limits = np.array([0, *behind], np.int64)
            marks[(marks & ((1 << _SHARE) - 1)) >= limits[marks >> _SHARE]] = 0

    def flush(self) -> None:
        """Make the marks durable."""
        if isinstance(self._marks, np.memmap):
            self._marks.flush()

    def unmarked(self, limit: int) -> tuple[int, list[int]]:
        """How many records were found nowhere, and the first rows of these."""
        count, rows = 0, np.empty(0, np.int64)
        for low in range(0, len(self), 1 << 20):
            places = low + np.flatnonzero(self._marks[low : low + (1 << 20)] == 0)
            count += len(places)
            rows = _least(np.concatenate([rows, self.rows(places)]), limit)
        return count, rows.tolist()

    def remove(self) -> None:
        """Delete the files."""
        del self._k0, self._records, self._marks
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Close the files that are being filled."""
        for file in getattr(self, "_files", {}).values():
            file.close()


def _mapped(path: Path, dtype: Any, rows: int, mode: Any = "r") -> Array:
    if not rows:  # an empty file cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode, shape=(rows,))


class _KeptVectors:
    """How the vectors of one field lie in their flat file."""

    def __init__(self, kind: type[Column], dtype: Any, width: int) -> None:
        self._kind, self._dtype, self._width = kind, np.dtype(dtype), width

    @classmethod
    def like(cls, column: Column) -> _KeptVectors:
        width = column.values.shape[1] if column.values.ndim == 2 else 0
        return cls(type(column), column.values.dtype, width)

    def state(self) -> list[Any]:
        return [self._kind.__name__, self._dtype.str, self._width]

    @classmethod
    def reopen(cls, state: Sequence[Any]) -> _KeptVectors:
        kinds: dict[str, type[Column]] = {k.__name__: k for k in (DenseColumn, MultiColumn, SparseColumn)}
        return cls(kinds[state[0]], state[1], state[2])

    def write(self, column: Column, file: BinaryIO) -> Array:
        """Append the vectors; int64 ``(n,)``: the bytes of each, −1 where there is none."""
        if isinstance(column, DenseColumn):
            values = column.values if column.mask is None else column.values[column.mask]
            file.write(values.astype(self._dtype, copy=False).tobytes())
            return np.where(column.present, self._width * self._dtype.itemsize, -1)
        lengths = np.full(len(column), -1)
        for row in np.flatnonzero(column.present).tolist():
            value: Any = column[row]
            if isinstance(column, SparseColumn):
                data = value.indices.tobytes() + value.values.tobytes()
            else:
                data = value.astype(self._dtype, copy=False).tobytes()
            file.write(data)
            lengths[row] = len(data)
        return lengths

    def read(self, path: Path, offsets: Array, lengths: Array) -> Column:
        mask = lengths >= 0
        present = None if mask.all() else mask
        if self._kind is DenseColumn:
            size = self._width * self._dtype.itemsize
            values = np.zeros((len(offsets), self._width), self._dtype)
            if mask.any() and size:
                flat = np.memmap(path, self._dtype, "r").reshape(-1, self._width)
                values[mask] = flat[offsets[mask] // size]
            return DenseColumn(values, present)
        with path.open("rb") as file:
            blobs = [_read(file, at, n) for at, n in zip(offsets.tolist(), lengths.tolist(), strict=True)]
        if self._kind is SparseColumn:
            halves = [len(blob) // 2 for blob in blobs]
            indices = b"".join(blob[:half] for blob, half in zip(blobs, halves, strict=True))
            numbers = b"".join(blob[half:] for blob, half in zip(blobs, halves, strict=True))
            at = _offsets([half // 4 for half in halves])
            return SparseColumn(
                at, np.frombuffer(indices, np.uint32), np.frombuffer(numbers, np.float32), present
            )
        flat = np.frombuffer(b"".join(blobs), self._dtype).reshape(-1, self._width or 1)
        line = self._dtype.itemsize * (self._width or 1)
        return MultiColumn(flat, _offsets([len(blob) // line for blob in blobs]), present)


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    if size <= 0:
        return b""
    file.seek(at)
    return file.read(size)


def _offsets(counts: Sequence[int]) -> Array:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
