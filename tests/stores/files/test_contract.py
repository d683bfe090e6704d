"""The promises of the ports, held by both file stores; what lies on disk is read by others' readers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from vecferry.stores.jsonl import JsonlStore
from vecferry.stores.parquet import ParquetStore
from vecferry.testing import Peek, StoreContract


class TestParquetFile(StoreContract):
    def open(self, folder: Path, name: str) -> Any:
        return ParquetStore(folder / f"{name}.parquet")

    def peek(self, store: Any) -> Mapping[Any, Peek]:
        return _frame_peeks(pd.read_parquet(store.path))


class TestParquetFolder(StoreContract):
    def open(self, folder: Path, name: str) -> Any:
        return ParquetStore(folder / name)

    def peek(self, store: Any) -> Mapping[Any, Peek]:
        return _frame_peeks(pd.read_parquet(store.path))


class TestJsonl(StoreContract):
    def open(self, folder: Path, name: str) -> Any:
        return JsonlStore(folder / f"{name}.jsonl")

    def peek(self, store: Any) -> Mapping[Any, Peek]:
        lines = store.path.read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return {str(row["id"]): Peek(row["text"], row["vector"]) for row in rows}


class TestGzippedJsonl(StoreContract):
    def open(self, folder: Path, name: str) -> Any:
        return JsonlStore(folder / f"{name}.jsonl.gz")

    def peek(self, store: Any) -> Mapping[Any, Peek]:
        frame = pd.read_json(store.path, lines=True, precise_float=True)
        return _frame_peeks(frame)


class TestJsonlFolder(StoreContract):
    def open(self, folder: Path, name: str) -> Any:
        return JsonlStore(folder / name)

    def peek(self, store: Any) -> Mapping[Any, Peek]:
        rows = [json.loads(line) for path in store.path.iterdir() for line in path.open()]
        return {str(row["id"]): Peek(row["text"], row["vector"]) for row in rows}


def _frame_peeks(frame: pd.DataFrame) -> dict[Any, Peek]:
    columns = zip(frame["id"], frame["text"], frame["vector"], strict=True)
    return {str(id_): Peek(text, vector) for id_, text, vector in columns}
