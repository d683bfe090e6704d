"""The vectors of an index file, block by block, whatever kind of index it is.

| index | vectors | exact |
|---|---|---|
| Flat, and IDMap(2) around it, also binary | the file itself (`vecferry.stores.faiss.flat`) | yes |
| HNSW, NSG | their storage | as the storage |
| IVF | its inverted lists, with the ids they hold | as the codec |
| IVF with PQ FastScan | its lists, unpacked and decoded here | no |
| SQ, PQ, LSH, additive quantizers, FastScan | ``reconstruct_n`` | no |
| PCA and other transforms before an index | the inner vectors, transformed back | no |
| RFlat (refine) | the Flat index it refines with | yes |

FAISS aborts the process in ``IndexIDMap.reconstruct_n``, returns uninitialised memory for an IVF with ids
of its own, and reads wild memory in an IVF FastScan that comes from a file; none of it is called here.
Large files are mapped (``IO_FLAG_MMAP_IFC``), so that their memory can be given back at any time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np

from vecferry.errors import CorruptDataError, UnsupportedError
from vecferry.model import Metric
from vecferry.stores.faiss.flat import FAISS_METRICS, FlatFile, parse_flat
from vecferry.stores.faiss.vectors import (
    Bits,
    Codes,
    Lists,
    Numbered,
    PackedLists,
    Transformed,
    Vectors,
    import_faiss,
)

_SMALL = 64 * 1024 * 1024
"""Bytes up to which a file is loaded as a whole; beyond it is mapped."""

_MEMORY = 256 * 1024 * 1024
_SECONDS = 20
_BYTES_A_SECOND = 20_000_000
"""What reading an index in another process may take, beside eight times its size in memory."""

_ASIDE = (
    "import sys; sys.path[:] = sys.argv[2:]; from pathlib import Path\n"
    "from vecferry.stores.faiss.readers import read_aside; read_aside(Path(sys.argv[1]))"
)


class IndexFile:
    """An index file, open for reading.

    Attributes:
        kind: such as ``"Flat"`` or ``"IVF"``, for people.
        dim: components a vector.
        bits: whether it is a binary index.
        metric: as the index says.
        loss: what the index lost of the vectors, or ``None``.
        settings: index settings under their common names.
        in_order: whether positions follow the order in which vectors were added.
        index: the FAISS object, where FAISS had to read the file.
    """

    def __init__(self, path: Path, *, metric: Metric | None = None) -> None:
        self.path = path
        self.loss: str | None = None
        self.settings: dict[str, Any] = {}
        self.in_order = True
        self.index: Any = None
        layout = parse_flat(path)
        if layout is not None:
            self.kind, self.dim, self.bits = "Flat", layout.dim, layout.bits
            self.metric = metric or metric_of(layout.metric, path, bits=layout.bits)
            self.vectors: Vectors = FlatFile(path, layout)
            return
        self.index, self.bits = load_index(path)
        self.dim = int(self.index.d)
        self.metric = metric or metric_of(int(self.index.metric_type), path, bits=self.bits)
        probe = _Probe(path)
        self.vectors = probe.open(self.index)
        self.kind, self.loss, self.settings = " ▸ ".join(probe.kinds), probe.loss, probe.settings
        self.in_order = probe.in_order
        check_readable(self.vectors, path)

    def __len__(self) -> int:
        return len(self.vectors)

    def close(self) -> None:
        self.vectors.close()
        self.index = None


def metric_of(number: int, path: Path, *, bits: bool) -> Metric:
    """FAISS's metric as ours.

    Raises:
        UnsupportedError: for one that has no counterpart.
    """
    if bits:
        return Metric.HAMMING
    if number not in FAISS_METRICS:
        raise UnsupportedError(
            f"{path} uses FAISS's metric number {number}; read it with ?metric=l2, ip or cosine instead"
        )
    return FAISS_METRICS[number]


def load_index(path: Path) -> tuple[Any, bool]:
    """The index, mapped where FAISS can, and whether it is binary.

    FAISS trusts what a file says of itself: a damaged one may end the process or ask for any amount of
    memory. So it is read in another process first, under bounds that follow from its size.

    Raises:
        CorruptDataError: if the file is not an index or is truncated.
    """
    if path.stat().st_size == 0:
        raise CorruptDataError(f"{path} is empty; restore it from a backup")
    _try_aside(path)
    try:
        return _load(str(path))
    except RuntimeError as error:
        raise _no_index(path, str(error)) from error


def _load(path: str) -> tuple[Any, bool]:
    faiss = import_faiss()
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        binary = data[:2] == b"IB"
        # The lists of an IVF may lie in a file of their own, named at the end of this one.
        elsewhere = data.rfind(b"ilod", max(size - 8192, 0)) >= 0
    read = faiss.read_index_binary if binary else faiss.read_index
    flags = faiss.IO_FLAG_READ_ONLY
    if elsewhere:
        with quiet_stdout():
            try:
                return read(path, flags | faiss.IO_FLAG_ONDISK_SAME_DIR), binary
            except RuntimeError:
                return read(path, flags), binary
    if size > _SMALL and not binary:
        flags = faiss.IO_FLAG_MMAP_IFC
    return read(path, flags), binary


def _no_index(path: Path, reason: str) -> CorruptDataError:
    shown = reason.rsplit(": ", 1)[-1][:200]
    return CorruptDataError(f"{path} is not a FAISS index or is truncated ({shown}); restore it")


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


_TRIED: dict[tuple[int, ...], None] = {}


def _try_aside(path: Path) -> None:
    """Read the file in another process, unless that was done before.

    Raises:
        CorruptDataError: if it did not survive that.
    """
    stamp = _stamp(path)
    if stamp in _TRIED:
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    seconds = _SECONDS + stamp[2] / _BYTES_A_SECOND
    try:
        done = subprocess.run(  # noqa: S603 (our own interpreter, our own code)
            [sys.executable, "-c", _ASIDE, str(path.absolute()), *sys.path],
            capture_output=True,
            check=False,
            timeout=8 * seconds,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise _no_index(path, f"reading it takes longer than {8 * seconds:.0f} s") from error
    except OSError:  # an interpreter inside another program
        return
    if done.returncode:
        told = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise _no_index(path, told[-1] if told and done.returncode > 0 else "reading it ends the process")
    while len(_TRIED) >= 256:
        del _TRIED[next(iter(_TRIED))]
    _TRIED[stamp] = None


def read_aside(path: Path) -> None:
    """What the other process does: bound itself, open the index, read some of its vectors."""
    import_faiss()
    size = path.stat().st_size
    try:
        import resource
    except ImportError:  # Windows
        pass
    else:
        statm = Path("/proc/self/statm")
        used = int(statm.read_text().split()[5]) * resource.getpagesize() if statm.exists() else 1 << 32
        most = used + _MEMORY + 8 * size
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        spent = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
        resource.setrlimit(resource.RLIMIT_CPU, (spent + int(_SECONDS + size / _BYTES_A_SECOND),) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    index, _ = _load(str(path))
    try:
        vectors = _Probe(path).open(index)
        check_readable(vectors, path)
        count = len(vectors)
        for start in {0, count // 2, max(count - 64, 0)}:
            vectors.read(start, min(start + 64, count))
    except UnsupportedError:
        return  # which the reader itself says


@contextmanager
def quiet_stdout() -> Iterator[None]:
    """FAISS prints where it looks for lists in a file of their own."""
    sys.stdout.flush()
    kept, sink = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(sink)


def check_readable(vectors: Vectors, path: Path) -> None:
    """Read one vector, where FAISS raises; a block read of such an index may abort the process."""
    if len(vectors) == 0:
        return
    try:
        vectors.read(0, 1)
    except RuntimeError as error:
        raise UnsupportedError(
            f"{path}: FAISS cannot give back the vectors of this index; migrate from the original vectors"
        ) from error


class _Probe:
    """Finds, layer by layer, where an index keeps its vectors, and what they lost."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._faiss = import_faiss()
        self.kinds: list[str] = []
        self.loss: str | None = None
        self.in_order = True
        self.settings: dict[str, Any] = {}

    def open(self, index: Any) -> Vectors:
        faiss = self._faiss
        binary = isinstance(index, faiss.IndexBinary)
        index = faiss.downcast_IndexBinary(index) if binary else faiss.downcast_index(index)
        self.kinds.append(type(index).__name__.removeprefix("Index"))
        if isinstance(index, faiss.IndexIDMap | faiss.IndexBinaryIDMap):
            return Numbered(self.open(index.index), index)
        if binary:
            return self._open_binary(index)
        if isinstance(index, faiss.IndexPreTransform):
            return self._open_transformed(index)
        if isinstance(index, faiss.IndexRefine):
            self.kinds[-1] = "Refine"
            return self._open_refined(index)
        if isinstance(index, faiss.IndexHNSW | faiss.IndexNSG | faiss.IndexNNDescent):
            if isinstance(index, faiss.IndexHNSW):
                self._note_hnsw(index)
            return self.open(index.storage)
        if isinstance(index, faiss.IndexIVF):
            self.settings["ivf_lists"] = int(index.nlist)
            self._note_codec(index, exact=type(index) is faiss.IndexIVFFlat)
            return self._open_lists(index)
        codec = faiss.IndexFlatCodes | faiss.IndexFastScan
        if isinstance(index, codec):
            self._note_codec(index, exact=isinstance(index, faiss.IndexFlat))
            return Codes(index)
        raise self._unreadable(index)

    def _open_refined(self, index: Any) -> Vectors:
        losses = self.loss
        inner = self.open(index.refine_index)
        self.kinds[-1:] = [f"R{self.kinds[-1]}"]
        self.loss = self.loss if not isinstance(inner, Codes) or not inner.exact else losses
        base = self._faiss.downcast_index(index.base_index)
        own = _Probe(self._path)
        try:
            ids = own.open(base).ids()
        except UnsupportedError:
            ids = None
        self.settings |= own.settings
        if ids is None or np.array_equal(np.sort(ids), np.arange(len(inner))):
            return inner  # the refine index numbers its rows 0, 1, …, in the order they were added
        raise UnsupportedError(f"{self._path}: a refined index with numbers of its own cannot be read")

    def _open_transformed(self, index: Any) -> Vectors:
        chain = [self._faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]
        inner = self.open(index.index)
        names = ", ".join(type(step).__name__.removesuffix("Matrix") for step in chain)
        self.loss = f"vectors went through {names}: " + (self.loss or "they are transformed back inexactly")
        return Transformed(inner, chain, index)

    def _open_binary(self, index: Any) -> Vectors:
        faiss = self._faiss
        if isinstance(index, faiss.IndexBinaryFlat):
            return Bits(index)
        if isinstance(index, faiss.IndexBinaryHNSW):
            self._note_hnsw(index)
            return self.open(index.storage)
        if isinstance(index, faiss.IndexBinaryIVF):
            self.settings["ivf_lists"] = int(index.nlist)
            return self._open_lists(index)
        raise self._unreadable(index)

    def _open_lists(self, index: Any) -> Vectors:
        faiss = self._faiss
        self.in_order = False
        if isinstance(index, faiss.IndexIVFPQFastScan):
            return PackedLists(index, self._path)
        if isinstance(index, faiss.IndexIVFFastScan):
            raise self._unreadable(index)
        return Lists(index, self._path)

    def _unreadable(self, index: Any) -> UnsupportedError:
        return UnsupportedError(
            f"{self._path}: {type(index).__name__} keeps no vectors that can be read; "
            "migrate from the original vectors"
        )

    def _note_hnsw(self, index: Any) -> None:
        graph = index.hnsw
        self.settings["hnsw_m"] = int(graph.nb_neighbors(1))
        self.settings["hnsw_ef_construct"] = int(graph.efConstruction)
        self.settings["hnsw_ef_search"] = int(graph.efSearch)

    def _note_codec(self, index: Any, *, exact: bool) -> None:
        if not exact:
            name = type(index).__name__.removeprefix("Index")
            self.loss = f"the index ({name}) stores vectors inexactly, {int(index.code_size)} bytes each"
