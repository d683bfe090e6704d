"""A service that answers from a LlamaCloud index moves to a FAISS folder of its own.

    export LLAMA_CLOUD_API_KEY=llx-…
    python examples/llamacloud_to_faiss.py llamacloud://Default/handbook ./kb "How long are backups kept?"

The documents are copied to ``./kb-backup.jsonl`` first, cut as the index cut them, embedded by a local
model and written to ``./kb``; the move is verified. From then on the service searches ``./kb`` and asks
LlamaCloud only when that fails. ``VECFERRY_PRIMARY=cloud`` turns it round at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vecferry as vf
from vecferry.embedding import resolve
from vecferry.serving import Hits

MODEL = "sentence-transformers:all-MiniLM-L6-v2"


def move(index: str, folder: str, model: Any = MODEL) -> vf.Report:
    """Copy the index to ``folder``; raises if anything is missing or different."""
    with vf.connect(index) as cloud:
        chunking = cloud.store.chunking
    backup = f"jsonl:{folder}-backup.jsonl"
    if not Path(f"{folder}-backup.jsonl").exists():
        vf.migrate(index, backup).check()
    report = vf.migrate(backup, f"faiss:{folder}", embed=model, **chunking)
    return report.check()


class Answers:
    """The service: the best passages for a question, from home if possible."""

    def __init__(self, index: str, folder: str, model: Any = MODEL, **options: Any) -> None:
        local = resolve(model)
        local.embed(["ready"])  # load the model now, not during the first question
        self.kb = vf.FallbackCollection(
            f"faiss:{folder}",
            index,
            names=("local", "cloud"),
            embedders={"local": local, "cloud": None},  # the cloud embeds by itself
            timeout=10.0,
            min_hits=1,
            **options,
        )

    def passages(self, question: str, k: int = 3) -> Hits:
        """The passages an answer is made from; each says where it came from."""
        return self.kb.search(question, k)

    def prompt(self, question: str) -> str:
        """What a language model is asked."""
        context = "\n".join(f"- {hit.text}" for hit in self.passages(question))
        return f"Answer from these passages only:\n{context}\n\nQuestion: {question}"


def main(arguments: Sequence[str]) -> None:
    index, folder, *questions = arguments
    print(move(index, folder))
    service = Answers(index, folder)
    for question in questions:
        print(f"\n{service.prompt(question)}")
    print(f"\n{service.kb.figures.to_dict()}")


if __name__ == "__main__":
    main(sys.argv[1:])
