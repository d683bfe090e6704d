"""Whole commands on real records against a floor written by hand that does the same.

    python benchmarks/bench_real.py [--rows N] [--rounds N] [RECORDS.jsonl[.gz] VECTORS.npy]

The floor parses the source, writes with the vendor's own library, reads back and hashes both sides. A
command is a process of its own: start-up, plan, stream and proof included, as a user runs it. Each pair is
run in turns; what counts is the median of the ratios of user and system time, and the wall time beside it.
Without arguments the 2,000 WordNet records of ``examples/data`` are taken, laid out ten times under new
ids with ``--rows 20000``.
"""

from __future__ import annotations

import argparse
import gzip
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

EXAMPLE = Path(__file__).parents[1] / "examples" / "data" / "wordnet_langchain"
GOAL = 0.5


@dataclass(frozen=True)
class Spent:
    """What one process took."""

    cpu: float
    wall: float
    peak: float


def measured(command: list[str], home: Path) -> Spent:
    """Run a command to its end, and ask the system what it took."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**os.environ, "VECFERRY_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    said, complaint = process.communicate()
    wall = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with {process.returncode}\n{said.decode()}{complaint.decode()}"
        )
    *_, last = said.decode().splitlines() or [""]
    if last.startswith('{"cpu"'):
        found: dict[str, float] = orjson.loads(last)
        return Spent(found["cpu"], wall, found["peak"])
    raise SystemExit(f"no figures: {said.decode()}")


# -- the floor --------------------------------------------------------------------------------

Rows = tuple[list[str], list[str], list[bytes], np.ndarray[Any, Any]]


def digest(rows: Rows) -> int:
    """The sum of a hash of every record."""
    total = 0
    for id_, text, metadata, vector in zip(*rows[:3], rows[3].astype("<f4", copy=False), strict=True):
        body = orjson.dumps([id_, text, orjson.Fragment(metadata)]) + vector.tobytes()
        total += int.from_bytes(blake2b(body, digest_size=16).digest(), "little")
    return total % (1 << 128)


def _parsed(lines: list[bytes]) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in lines if line.strip()]


def read_faiss(folder: Path) -> Rows:
    import faiss

    index = faiss.read_index(str(folder / "index.faiss"))
    records = _parsed((folder / "records.jsonl").read_bytes().split(b"\n"))
    vectors = index.reconstruct_n(0, index.ntotal)
    return _columns(records, vectors)


def _columns(records: list[dict[str, Any]], vectors: np.ndarray[Any, Any]) -> Rows:
    ids, texts = [r["id"] for r in records], [r["text"] for r in records]
    return ids, texts, [orjson.dumps(r["metadata"]) for r in records], vectors


def write_parquet(rows: Rows, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows[3].ravel()), rows[3].shape[1])
    metadata = pa.array([m.decode() for m in rows[2]])
    pq.write_table(
        pa.table({"id": rows[0], "text": rows[1], "metadata": metadata, "vector": vectors}), path
    )


def read_parquet(path: Path) -> Rows:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    flat = table["vector"].combine_chunks().flatten().to_numpy()
    metadata = [m.encode() for m in table["metadata"].to_pylist()]
    return table["id"].to_pylist(), table["text"].to_pylist(), metadata, flat.reshape(len(table), -1)


def write_jsonl(rows: Rows, path: Path) -> None:
    with path.open("wb") as file:
        for id_, text, metadata, vector in zip(*rows, strict=True):
            line = {"id": id_, "text": text, "metadata": orjson.Fragment(metadata), "vector": vector}
            file.write(orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")


def read_jsonl(path: Path) -> Rows:
    records = _parsed(path.read_bytes().split(b"\n"))
    return _columns(records, np.array([r["vector"] for r in records], np.float32))


READERS: dict[str, Callable[[Path], Rows]] = {
    "faiss": read_faiss,
    "parquet": read_parquet,
    "jsonl": read_jsonl,
}
WRITERS: dict[str, Callable[[Rows, Path], None]] = {"parquet": write_parquet, "jsonl": write_jsonl}


def floor(source: str, place: Path, target: str, to: Path) -> None:
    """Read, write, read back, hash both sides."""
    rows = READERS[source](place)
    WRITERS[target](rows, to)
    if digest(rows) != digest(READERS[target](to)):
        raise SystemExit("the floor itself lost something")


# -- what is compared -------------------------------------------------------------------------


def figures() -> str:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return orjson.dumps({"cpu": used.ru_utime + used.ru_stime, "peak": _peak_mb()}).decode()


def _peak_mb() -> float:
    """Of this process alone: ``ru_maxrss`` also counts what its parent had when it was forked."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


OURS = """
import atexit, sys
sys.path.insert(0, {here!r})
import bench_real
atexit.register(lambda: print("\\n" + bench_real.figures(), flush=True))
from vecferry.cli import main
sys.argv = ["vecferry", "migrate", {source!r}, {target!r}, "--quiet"]
main()
"""


def command(source: str, place: Path, target: str, to: Path) -> list[str]:
    code = OURS.format(here=str(Path(__file__).parent), source=f"{source}:{place}", target=f"{target}:{to}")
    return [sys.executable, "-c", code]


def hand(source: str, place: Path, target: str, to: Path) -> list[str]:
    return [sys.executable, __file__, "--floor", source, str(place), target, str(to)]


def records(jsonl: Path | None, rows: int) -> Iterator[bytes]:
    """Lines with ``id``, ``text`` and ``metadata``."""
    if jsonl is not None:
        with gzip.open(jsonl, "rb") if jsonl.suffix == ".gz" else jsonl.open("rb") as file:
            yield from islice(file, rows)
        return
    import vecferry as vf

    with vf.connect(f"faiss:{EXAMPLE}") as example:
        found = list(example.records())
    for n in range(rows):
        r = found[n % len(found)]
        yield (
            orjson.dumps({"id": f"{r.id}-{n // len(found)}", "text": r.text, "metadata": r.metadata})
            + b"\n"
        )


def vectors(npy: Path | None, rows: int) -> np.ndarray[Any, Any]:
    import faiss

    if npy is not None:
        return np.ascontiguousarray(np.load(npy, mmap_mode="r")[:rows], np.float32)
    index = faiss.read_index(str(EXAMPLE / "index.faiss"))
    return np.ascontiguousarray(np.resize(index.reconstruct_n(0, index.ntotal), (rows, index.d)))


def lay_out(folder: Path, jsonl: Path | None, npy: Path | None, rows: int) -> dict[str, Path]:
    """The same records as each kind of source."""
    import faiss

    places = {"faiss": folder / "faiss", "parquet": folder / "in.parquet", "jsonl": folder / "in.jsonl"}
    places["faiss"].mkdir()
    matrix = vectors(npy, rows)
    index = faiss.IndexFlatIP(matrix.shape[1])
    index.add(matrix)
    faiss.write_index(index, str(places["faiss"] / "index.faiss"))
    (places["faiss"] / "records.jsonl").write_bytes(b"".join(records(jsonl, len(matrix))))
    for kind, write in WRITERS.items():
        write(read_faiss(places["faiss"]), places[kind])
    return places


def run_pair(source: str, place: Path, target: str, folder: Path, rounds: int) -> float:
    mine: list[Spent] = []
    theirs: list[Spent] = []
    for round_ in range(rounds):
        turns: list[tuple[list[Spent], Callable[..., list[str]]]] = [(theirs, hand), (mine, command)]
        for spent, how in turns if round_ % 2 else reversed(turns):
            to = folder / f"out.{target}"
            shutil.rmtree(folder / "home", ignore_errors=True)
            to.unlink(missing_ok=True)
            shutil.rmtree(folder / f".out.{target}.vecferry", ignore_errors=True)
            spent.append(measured(how(source, place, target, to), folder / "home"))
    ratios = sorted(a.cpu / b.cpu for a, b in zip(theirs, mine, strict=True))
    ratio = statistics.median(ratios)
    a, b = (min(side, key=lambda s: s.cpu) for side in (theirs, mine))
    print(
        f"{source} → {target}\n"
        f"  by hand   {a.cpu:6.2f} s CPU  {a.wall:6.2f} s  {a.peak:6.0f} MB at most\n"
        f"  vecferry  {b.cpu:6.2f} s CPU  {b.wall:6.2f} s  {b.peak:6.0f} MB at most\n"
        f"  ratio {ratio:.2f} of CPU (rounds {ratios[0]:.2f} to {ratios[-1]:.2f}; goal ≥ {GOAL:.2f})  "
        f"{'ok' if ratio >= GOAL else 'BELOW'}\n",
        flush=True,
    )
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("records", nargs="?", type=Path)
    parser.add_argument("vectors", nargs="?", type=Path)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--floor", nargs=4, metavar=("SOURCE", "PLACE", "TARGET", "TO"))
    options = parser.parse_args()
    if options.floor:
        source, place, target, to = options.floor
        floor(source, Path(place), target, Path(to))
        print(figures())
        return
    with tempfile.TemporaryDirectory(prefix="bench-real-") as made:
        folder = Path(made)
        places = lay_out(folder, options.records, options.vectors, options.rows)
        print(f"{options.rows:,} records, each command a process of its own\n")
        for source, target in (
            ("faiss", "parquet"),
            ("faiss", "jsonl"),
            ("parquet", "jsonl"),
            ("jsonl", "parquet"),
        ):
            run_pair(source, places[source], target, folder, options.rounds)


if __name__ == "__main__":
    main()
