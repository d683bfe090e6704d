"""The promises of the ports, held by both file stores; what lies on disk is read by others' readers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from vecferry.stores.jsonl import JsonlStore
from vecferry.stores.parquet import ParquetStore
from vecferry.testing import StoreContract, VendorView


class TestParquetFile(StoreContract):
    def open(self, folder: Path, name: str) -> Any:
        return ParquetStore(folder / f"{name}.parquet")

    def vendor_view(self, store: Any) -> Mapping[Any, VendorView]:
        return _frame_peeks(pd.read_parquet(store.path))


class TestParquetFolder(StoreContract):
    def open(self, folder: Path, name: str) -> Any:
        return ParquetStore(folder / name)

    def vendor_view(self, store: Any) -> Mapping[Any, VendorView]:
        return _frame_peeks(pd.read_parquet(store.path))


class TestJsonl(StoreContract):
    def open(self, folder: Path, name: str) -> Any:
        return JsonlStore(folder / f"{name}.jsonl")

    def vendor_view(self, store: Any) -> Mapping[Any, VendorView]:
        lines = store.path.read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return {str(row["id"]): VendorView(row["text"], row["vector"]) for row in rows}


class TestGzippedJsonl(StoreContract):
    def open(self, folder: Path, name: str) -> Any:
        return JsonlStore(folder / f"{name}.jsonl.gz")

    def vendor_view(self, store: Any) -> Mapping[Any, VendorView]:
        frame = pd.read_json(store.path, lines=True, precise_float=True)
        return _frame_peeks(frame)


class TestJsonlFolder(StoreContract):
    def open(self, folder: Path, name: str) -> Any:
        return JsonlStore(folder / name)

    def vendor_view(self, store: Any) -> Mapping[Any, VendorView]:
        rows = [json.loads(line) for path in store.path.iterdir() for line in path.open()]
        return {str(row["id"]): VendorView(row["text"], row["vector"]) for row in rows}


def _frame_peeks(frame: pd.DataFrame) -> dict[Any, VendorView]:
    columns = zip(frame["id"], frame["text"], frame["vector"], strict=True)
    return {str(id_): VendorView(text, vector) for id_, text, vector in columns}
