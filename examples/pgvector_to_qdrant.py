"""From Postgres to Qdrant with a local model: the searches compared, and an answer from a local LLM.

    python examples/pgvector_to_qdrant.py "pgvector://me@localhost/app#articles" qdrant:./qdrant#articles \\
        "How long are backups kept?"

The vectors are copied as they are, the move is verified, and the same questions are asked on both sides.
The answer comes from any server that speaks OpenAI's chat interface; by default Ollama on this machine
(``ollama pull llama3.2``). ``OPENAI_BASE_URL``, ``OPENAI_API_KEY`` and ``CHAT_MODEL`` name another.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Sequence
from typing import Any

import vecferry as vf
from vecferry.embedding import resolve
from vecferry.serving import Comparison, compare

MODEL = "sentence-transformers:all-MiniLM-L6-v2"


def move(source: str, target: str) -> vf.Report:
    """Copy and prove; raises on any difference."""
    return vf.migrate(source, target).check()


def compare_searches(source: str, target: str, questions: Sequence[str], model: Any = MODEL) -> Comparison:
    """The same questions on both sides: results and latencies."""
    embedder = resolve(model)
    with vf.connect(source) as before, vf.connect(target) as after:
        return compare(
            before, after, questions, k=5, names=("before", "after"), embedders=(embedder, embedder)
        )


def answer(target: str, question: str, model: Any = MODEL) -> str:
    """An answer from the five best passages."""
    with vf.connect(target) as collection:
        vector = resolve(model).embed([question])[0]
        passages = [hit.text for hit in collection.search(vector, 5)]
    context = "\n".join(f"- {passage}" for passage in passages)
    return chat(f"Answer from these passages only:\n{context}\n\nQuestion: {question}")


def chat(prompt: str) -> str:
    """One question to an OpenAI-compatible server."""
    base = os.environ.get("OPENAI_BASE_URL", "http://localhost:11434/v1")
    request = urllib.request.Request(
        f"{base}/chat/completions",
        data=json.dumps(
            {
                "model": os.environ.get("CHAT_MODEL", "llama3.2"),
                "messages": [{"role": "user", "content": prompt}],
                "temperature": 0,
            }
        ).encode(),
        headers={
            "Content-Type": "application/json",
            "Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'ollama')}",
        },
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        text: str = json.load(response)["choices"][0]["message"]["content"]
    return text


def main(arguments: Sequence[str]) -> None:
    source, target, *questions = arguments
    print(move(source, target))
    if questions:
        print(compare_searches(source, target, questions))
    for question in questions:
        print(f"\n{question}\n{answer(target, question)}")


if __name__ == "__main__":
    main(sys.argv[1:])
