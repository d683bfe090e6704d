"""The main job on real data: 2,000 WordNet glosses with their MiniLM vectors, once around the harbour.

    LangChain FAISS folder → Postgres (embedded) → Qdrant (local mode) → Parquet → LangChain FAISS folder

Run it with ``make demo``. Everything it makes lies in ``demo-out/``; run it again and it starts afresh.
"""

from __future__ import annotations

import shutil
import sys
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import vecferry as vf

HERE = Path(__file__).parent
OUT = Path("demo-out")
HARBOURS = [
    f"faiss:{HERE / 'data' / 'wordnet_langchain'}",
    f"pgvector:{OUT / 'postgres'}#glosses",
    f"qdrant:{OUT / 'qdrant'}#glosses",
    f"parquet:{OUT / 'glosses.parquet'}",
    f"faiss:{OUT / 'vectorstore'}",
]
MODEL = vf.EmbeddingSpace(model="sentence-transformers/all-MiniLM-L6-v2", dim=384)
QUESTION = "n13978344"  # "storm, tempest: a violent commotion or disturbance"
COLUMNS = (TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
console = Console(highlight=False, soft_wrap=True)


def ferry(source: str, target: str) -> vf.Report:
    """One crossing, with plan, progress and report."""
    space = MODEL if source == HARBOURS[0] else None  # the folder itself does not know its model
    layout = "langchain" if target == HARBOURS[-1] else None
    plan = vf.plan(source, target, space=space, metric="cosine", layout=layout, state_dir=state_of(target))
    console.rule(f"[bold]{plan.source.partition(':')[0]} → {plan.target.partition(':')[0]}")
    console.print(str(plan), markup=False)
    columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bars: dict[str, object] = {}

        def draw(step: object) -> None:
            bar = bars.setdefault(step.stage, progress.add_task(step.stage, total=step.total))  # type: ignore[attr-defined]
            progress.update(bar, completed=step.done, total=step.total)  # type: ignore[attr-defined, arg-type]

        report = plan.run(draw)
    console.print(str(report), markup=False)
    return report.check()


def state_of(target: str) -> Path:
    """The demo keeps its jobs beside what it makes, not in the user's home."""
    return OUT / "jobs" / target.partition(":")[0]


def search(url: str) -> list[str]:
    """The five nearest glosses to one of them, as a user of that store sees them."""
    with vf.connect(url) as collection:
        [start] = collection.fetch([QUESTION])
        hits = collection.search(start, k=5)
    console.print(f"\n[bold]{url}[/bold]: nearest to {start.text!r}")
    for hit in hits:
        console.print(f"  {hit.score + 0.0:7.4f}  {hit.text[:84]}", markup=False)
    return [str(hit.id) for hit in hits]


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    reports = [ferry(a, b) for a, b in pairwise(HARBOURS)]
    console.rule("[bold]the same question in every harbour")
    answers = {tuple(search(url)) for url in HARBOURS}
    console.rule("[bold]what was proved")
    for report in reports:
        console.print(f"ok  {report.written:,} records  {report.source} → {report.target}", markup=False)
    if len(answers) != 1:
        console.print("[bold red]the harbours answer differently[/]")
        sys.exit(1)
    proof = vf.verify(HARBOURS[0], HARBOURS[-1])
    console.print(
        f"{'ok' if proof.ok else 'NOT OK'}  the first and the last folder hold the same", markup=False
    )
    sys.exit(0 if proof.ok else 1)


if __name__ == "__main__":
    main()
