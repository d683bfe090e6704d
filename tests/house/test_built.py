"""The check of wheel and sdist sees what is missing and what is stray."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

from house.built import SDIST, WHEEL, problems


def pack(dist: Path, wheel: set[str], sdist: set[str]) -> None:
    dist.mkdir(exist_ok=True)
    with zipfile.ZipFile(dist / "vecferry-1-py3-none-any.whl", "w") as archive:
        for name in wheel:
            archive.writestr(name, "")
    with tarfile.open(dist / "vecferry-1.tar.gz", "w:gz") as archive:
        for name in sdist:
            archive.addfile(tarfile.TarInfo(f"vecferry-1/{name}"), io.BytesIO())


def test_a_good_pair_has_no_problem(tmp_path: Path) -> None:
    pack(tmp_path / "dist", {*WHEEL, "vecferry-1.dist-info/METADATA"}, SDIST)
    assert problems(tmp_path / "dist") == []


def test_what_is_missing_or_stray_is_named(tmp_path: Path) -> None:
    pack(
        tmp_path / "dist",
        {*WHEEL - {"vecferry/py.typed"}, "tests/x.py"},
        {*SDIST, "tests/a/README.md", ".env"},
    )
    assert problems(tmp_path / "dist") == [
        "wheel lacks vecferry/py.typed",
        "wheel has a stray tests",
        "sdist has a stray tests/a/README.md",
        ".env must not be packed",
    ]
    assert problems(tmp_path) == [f"{tmp_path}: one wheel and one sdist are due, not 0 and 0"]
