"""The notebook runs from top to bottom, and its last expressions draw themselves as HTML."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Execute a cell and return the value of its last expression, as a notebook does."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        return exec(compile(tree, "<cell>", "exec"), names)
    tree.body.pop()
    exec(compile(tree, "<cell>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    notebook = json.loads((EXAMPLES / "first_crossing.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    values = [run_cell("".join(c["source"]), names) for c in notebook["cells"] if c["cell_type"] == "code"]
    plan, report, hits = values
    assert "2,000 records" in plan._repr_html_()
    assert "2,000" in report._repr_html_() and report.ok
    assert hits[0][1].startswith("storm")
