"""Which room may import which. ``python tests/house/rooms.py`` writes the table in docs/design.md.

The rooms stand in one order, each above those it may import; nothing imports upwards. Written down is only
what a room really needs of those below it.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "vecferry"
DESIGN = ROOT / "docs" / "design.md"
BEGIN, END = "<!-- rooms: generated -->\n", "<!-- rooms: end -->\n"

MOVED = {"home", "migration", "planning", "publishing", "records", "registry", "retry"}
"""Modules that only say where their names are now."""

GROUND = {"errors", "core", "model", "ports"}
STAGES = {"embedding", "dedupe"}
API = GROUND | STAGES | {"connecting", "verifying", "reporting", "pipeline"}
MAY_IMPORT: dict[str, set[str]] = {
    "core": {"errors"},
    "errors": {"core"},
    "model": {"errors", "core"},
    "ports": {"errors", "core", "model"},
    "connecting": GROUND,
    "layouts": GROUND,
    "stores": GROUND | {"layouts"},
    "verifying": GROUND,
    "reporting": GROUND | {"verifying"},
    "embedding": GROUND | {"connecting"},
    "dedupe": GROUND | {"connecting"},
    "pipeline": GROUND | STAGES | {"connecting", "verifying", "reporting"},
    "api": API,
    "snapshots": API | {"api"},
    "serving": API | {"api", "layouts"},
    "testing": GROUND,
    "contrib": API | {"api", "layouts", "stores", "serving"},
    "cli": API | {"api", "snapshots", "serving", "contrib"},
    "__init__": API | {"api", "snapshots", "serving", "contrib"},
    "__main__": {"cli"},
    **{old: {"core"} for old in sorted(MOVED)},
}
"""Room → rooms it may import, bottom to top. ``errors`` and ``core`` are one floor."""


def modules() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """The modules that a file names: in import statements, and in strings given to ``import_module``."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += (
                [node.module] if node.module != "vecferry" else [f"vecferry.{a.name}" for a in node.names]
            )
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__", "find_spec"):
            names += [str(a.value) for a in node.args if isinstance(a, ast.Constant)]
    return names


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def rooms_used(path: Path) -> set[str]:
    """The rooms of ours that a file imports, its own left out. Dunder names of the package are none."""
    parts = [name.split(".") for name in imports(path)]
    used = {p[1] for p in parts if p[0] == "vecferry" and len(p) > 1 and not p[1].startswith("__")}
    return used - {room_of(path)}


def table() -> str:
    """Room, what its docstring says it is, and what it may import, as Markdown."""
    lines = ["| room | holds | may import |", "|---|---|---|"]
    for room, allowed in MAY_IMPORT.items():
        if room.startswith("__") or room in MOVED:
            continue
        file = SRC / f"{room}.py"
        text = (file if file.exists() else SRC / room / "__init__.py").read_text(encoding="utf-8")
        says = (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
        order = [name for name in MAY_IMPORT if name in allowed]
        lines.append(f"| `{room}` | {says} | {', '.join(order)} |")
    return "\n".join(lines) + "\n"


def design_with_table() -> str:
    """docs/design.md as it should be."""
    text = DESIGN.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    DESIGN.write_text(design_with_table(), encoding="utf-8")
