"""Stores and embedders are found by name, from here and from other packages."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import vecferry as vf
from vecferry.core import registry
from vecferry.errors import (
    ConfigurationError,
    FatalStoreError,
    MissingDependencyError,
    UnknownSchemeError,
)
from vecferry.stores.memory import MemoryStore


def test_every_registered_name_leads_to_a_class() -> None:
    for group, known in (("vecferry.stores", registry.STORES), ("vecferry.embedders", registry.EMBEDDERS)):
        for name in known:
            assert isinstance(registry.find(group, name), type), name


def test_a_typing_error_is_answered_with_the_closest_name() -> None:
    with pytest.raises(UnknownSchemeError, match="did you mean 'qdrant'"):
        vf.connect("quadrant:./x#y")
    with pytest.raises(UnknownSchemeError, match=r"there are .*faiss.*memory"):
        vf.connect("zzz:./x")


def test_an_outside_package_adds_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("outside_package")
    module.Store = type("Store", (MemoryStore,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "outside_package", module)
    point = EntryPoint("outside", "outside_package:Store", "vecferry.stores")
    monkeypatch.setattr(registry, "_outside", lambda group: {"outside": point})
    assert type(vf.connect("outside:name").store).__name__ == "Store"


def test_a_missing_kit_names_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vecferry\[qdrant\]'"):
        vf.connect(f"qdrant:{tmp_path}/q#c").count()


def test_options_of_the_url_reach_the_store(tmp_path: object) -> None:
    with pytest.raises(ConfigurationError, match="colour"):
        vf.connect(f"parquet:{tmp_path}/x?colour=red")


def test_a_collection_is_returned_as_it_is() -> None:
    collection = vf.connect("memory:")
    assert vf.connect(collection) is collection


def test_an_adapter_object_is_wrapped() -> None:
    store = MemoryStore()
    assert vf.connect(store).store is store


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text("{}")

    def forbid(path: Path, *args: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", forbid)
    for call in (vf.inspect, lambda url: vf.plan(url, "memory:"), lambda url: vf.verify(url, "memory:")):
        with pytest.raises(FatalStoreError, match=r"a\.jsonl: Permission denied; change"):
            call(f"jsonl:{tmp_path / 'a.jsonl'}")
