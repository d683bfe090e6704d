"""The house rules that a test can hold: import arrows, light import, public names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vecferry
from house.rooms import (
    DESIGN,
    MAY_IMPORT,
    SRC,
    design_with_table,
    imports,
    modules,
    room_of,
    rooms_used,
)

PENDING: dict[str, set[str]] = {}
"""Modules that still point upwards; this table only ever gets shorter."""

CORE_WORDS = {
    "faiss", "qdrant_client", "psycopg", "sqlalchemy", "pgvector", "boto3", "botocore", "pyarrow", "openai",
    "sentence_transformers", "torch", "llama_index", "langchain", "langchain_core", "redis", "httpx",
}  # fmt: skip
VENDOR_ROOMS = {"stores", "layouts", "embedding", "snapshots", "dedupe", "serving"}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SRC)))
def test_arrows_point_one_way(path: Path) -> None:
    room = room_of(path)
    allowed = MAY_IMPORT[room] | PENDING.get(path.relative_to(SRC).as_posix(), set())
    used = rooms_used(path)
    assert used <= allowed, f"{room} must not import {sorted(used - allowed)}"


def test_nothing_imports_upwards() -> None:
    """The table itself is in order: every room may import rooms above it in the table only."""
    order = list(MAY_IMPORT)
    for room, allowed in MAY_IMPORT.items():
        higher = {name for name in allowed if order.index(name) > order.index(room)}
        assert higher <= {"errors"}, f"{room} stands below {sorted(higher)}"


def test_strings_given_to_import_module_are_followed(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("from importlib import import_module\nimport_module('vecferry.cli').main()\n")
    assert "vecferry.cli" in imports(module)


def test_the_design_page_shows_this_table() -> None:
    page = DESIGN.read_text(encoding="utf-8")
    assert page == design_with_table(), "run: python tests/house/rooms.py"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SRC)))
def test_vendor_kits_stay_in_their_rooms(path: Path) -> None:
    if room_of(path) in VENDOR_ROOMS | {"model", "core", "contrib"}:
        return  # model: pyarrow, core: httpx, inside functions only (see the light import below)
    assert not {name.split(".")[0] for name in imports(path)} & CORE_WORDS


def stores() -> dict[str, Path]:
    """Each public adapter: a module or a folder of ``stores``."""
    return {
        path.stem: path
        for path in (SRC / "stores").iterdir()
        if not path.name.startswith(("_", ".")) and path.name != "kit"
    }


@pytest.mark.parametrize("name", sorted(stores()))
def test_stores_never_import_each_other(name: str) -> None:
    path = stores()[name]
    files = path.rglob("*.py") if path.is_dir() else [path]
    for file in files:
        for used in imports(file):
            parts = used.split(".")
            if parts[:2] == ["vecferry", "stores"] and len(parts) > 2:
                assert parts[2] == name or parts[2] == "kit", f"{file} imports {used}"


def test_the_cli_uses_public_rooms_only() -> None:
    for path in (SRC / "cli").rglob("*.py"):
        for used in imports(path):
            parts = used.split(".")
            if parts[0] == "vecferry" and len(parts) > 1 and parts[1] != "cli":
                assert parts[1] not in {"stores", "layouts", "pipeline"}, f"{path.name} imports {used}"


def test_importing_vecferry_loads_nothing_heavy() -> None:
    code = "import sys, vecferry; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {[str(SRC.parent)]!r}; {code}"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    outside = {name.split(".")[0] for name in loaded} - set(sys.stdlib_module_names) - {"vecferry"}
    assert not {name for name in outside if not name.startswith("_")}


def test_connecting_loads_only_the_kit_it_needs() -> None:
    code = "import sys, vecferry as vf; vf.connect('memory:'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(loaded.stdout.split()) & CORE_WORDS


def test_the_public_names_are_these() -> None:
    promised = {
        "migrate", "plan", "verify", "connect", "VectorRecord", "RecordBatch", "Collection",
        "CollectionSchema", "EmbeddingSpace", "Report", "Plan", "VecferryError",
    }  # fmt: skip
    assert promised <= set(vecferry.__all__)
    for name in vecferry.__all__:
        assert getattr(vecferry, name) is not None


def test_every_error_derives_from_the_root() -> None:
    from vecferry import errors

    for name, value in vars(errors).items():
        if isinstance(value, type) and value.__module__ == errors.__name__:
            assert issubclass(value, vecferry.VecferryError), name
            assert name in (errors.__doc__ or ""), f"{name} is missing from the tree on top"


def test_the_typed_arguments_are_those_that_are_checked() -> None:
    from inspect import signature

    from vecferry.pipeline.settings import CallSettings, RunSettings

    taken = {name: p.default for name, p in signature(vecferry.plan).parameters.items()}
    assert set(taken) == {"source", "target", *CallSettings.model_fields}
    assert set(signature(vecferry.migrate).parameters) == {"source", "target", *RunSettings.model_fields}
    for name, field in CallSettings.model_fields.items():
        assert taken[name] == field.default and field.description, name
