"""Embed 500 real texts through a server that limits its rate, within a budget, and never pay for one twice.

    OPENAI_API_KEY=… python examples/embed_within_a_budget.py                       # OpenAI itself
    OPENAI_API_KEY=k OPENAI_BASE_URL=http://localhost:8080/v1 python examples/…     # anything compatible

The first run stops, resumable, before the call that would cost too much; the second has more to spend and
goes on; the third finds everything in the cache and calls nobody.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import vecferry as vf
from vecferry.errors import BudgetExceeded

GLOSSES = f"faiss:{Path(__file__).parent / 'data' / 'wordnet_langchain'}"
MODEL = "openai:text-embedding-3-small"


def embed(target: Path, budget: vf.Budget) -> vf.Report:
    """One run of the job; the same call goes on where an earlier one stopped."""
    return vf.migrate(
        GLOSSES,
        f"jsonl:{target}",
        where={"pos": "noun"},
        embed=MODEL,
        budget=budget,
        batch_size=100,
        state_dir=target.with_suffix(".job"),
    )


def story(folder: Path, small: float = 0.00005, enough: float = 1.0) -> list[str]:
    """The three runs; returns what is worth telling of each."""
    told = []
    plan = vf.plan(GLOSSES, f"jsonl:{folder / 'glosses.jsonl'}", where={"pos": "noun"}, embed=MODEL)
    told.append(f"the plan says: {plan.estimate['tokens']} tokens, {plan.estimate['cost']}")
    try:
        embed(folder / "glosses.jsonl", vf.Budget(usd_per_job=small))
        told.append("the small budget was enough")
    except BudgetExceeded as stop:
        told.append(f"stopped: {stop}")
    report = embed(folder / "glosses.jsonl", vf.Budget(usd_per_job=enough)).check()
    told.append(f"went on and finished: {report.summaries['embedding']}")
    again = embed(folder / "again.jsonl", vf.Budget(usd_per_job=enough)).check()
    told.append(f"a second time: {again.summaries['embedding']}")
    return told


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    print("\n".join(story(where)))
