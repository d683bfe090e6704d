"""The template for outside adapters: its own tests run, and vecferry finds it by its entry point."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "examples" / "adapter_template"


def test_the_contract_holds_for_the_template(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(ROOT / "src"), str(TEMPLATE / "src")])
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--basetemp={tmp_path / 't'}",
            "tests",
        ],
        cwd=TEMPLATE,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert " passed" in ran.stdout


def test_a_migration_through_its_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata
    import sqlite3
    import tomllib

    import vecferry as vf
    from vecferry.core import registry

    monkeypatch.syspath_prepend(TEMPLATE / "src")
    declared = tomllib.loads((TEMPLATE / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]
    group = "vecferry.stores"
    points = {n: importlib.metadata.EntryPoint(n, v, group) for n, v in declared[group].items()}
    monkeypatch.setattr(registry, "_outside", lambda asked: points if asked == group else {})
    url = f"sqlite:{tmp_path}/kb.sqlite#wn"
    report = vf.migrate(f"faiss:{ROOT}/examples/data/wordnet_langchain", url)
    assert report.ok and report.written == 2000
    with sqlite3.connect(tmp_path / "kb.sqlite") as connection:
        assert connection.execute("select count(distinct id) from wn").fetchone() == (2000,)
