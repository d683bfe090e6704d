"""What wheel and sdist must hold, and must not: ``python tests/house/built.py dist``."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

WHEEL = {"vecferry/py.typed", "vecferry/__init__.py", "vecferry/embedding/prices.json"}
SDIST = {
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "docs/design.md",
    "tests/conftest.py",
    "examples/demo.py",
}
TOP = {"vecferry"}


def problems(dist: Path) -> list[str]:
    """Every complaint; none for a good pair of files."""
    wheels, sdists = sorted(dist.glob("*.whl")), sorted(dist.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sdists) != 1:
        return [f"{dist}: one wheel and one sdist are due, not {len(wheels)} and {len(sdists)}"]
    with zipfile.ZipFile(wheels[0]) as wheel:
        inside = set(wheel.namelist())
    with tarfile.open(sdists[0]) as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
    found = [f"wheel lacks {name}" for name in sorted(WHEEL - inside)]
    found += [f"sdist lacks {name}" for name in sorted(SDIST - packed)]
    top = {name.partition("/")[0] for name in inside}
    found += [
        f"wheel has a stray {name}" for name in sorted(top) if name not in TOP and ".dist-info" not in name
    ]
    stray = [n for n in packed if n.endswith("README.md") and n.count("/") and not n.startswith("docs/")]
    found += [f"sdist has a stray {name}" for name in sorted(stray)]
    junk = [n for n in packed | inside if "__pycache__" in n or n.endswith((".pyc", ".sqlite", ".env"))]
    return found + [f"{name} must not be packed" for name in sorted(junk)]


if __name__ == "__main__":
    complaints = problems(Path(sys.argv[1]))
    print(*complaints, sep="\n", end="\n" if complaints else "wheel and sdist are as they should be\n")
    sys.exit(bool(complaints))
