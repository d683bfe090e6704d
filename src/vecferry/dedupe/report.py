"""What a dedupe did, in numbers and examples, and the audit file that lets it be undone."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vecferry.core.durable import replacing
from vecferry.dedupe.log import Removal
from vecferry.dedupe.rules import Dedupe
from vecferry.model import decode_id, dump_json

_EXAMPLES = 3
_CHARACTERS_A_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Example:
    """A removed record beside the one it was removed for; texts are cut."""

    removed: Any
    kept: Any
    removed_text: str | None = None
    kept_text: str | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class RuleReport:
    """One rule: how many records it removed, in how many clusters, some of them, and for an approximate
    ``similar`` the recall measured on a sample (``None`` while everything was compared)."""

    rule: str
    removed: int
    clusters: int
    examples: tuple[Example, ...] = ()
    recall: float | None = None


@dataclass(frozen=True, slots=True)
class DedupeReport:
    """What a dedupe removed and why.

    Attributes:
        removed: records in all.
        bytes_saved: of vectors, texts and metadata that were not written.
        characters_saved: of texts that were neither embedded nor written.
        unreadable_times: records whose timestamp is missing or malformed, counted by rule.
    """

    removed: int
    rules: tuple[RuleReport, ...]
    bytes_saved: int = 0
    characters_saved: int = 0
    notes: Mapping[str, int] = field(default_factory=dict)

    @property
    def unreadable_times(self) -> int:
        return self.notes.get("unreadable_times", 0)

    @property
    def tokens_saved(self) -> int:
        """A guess: four characters a token, as OpenAI advises for English."""
        return self.characters_saved // _CHARACTERS_A_TOKEN

    def cost_saved(self, price_per_million_tokens: float) -> float:
        """Embedding cost that was not spent, in the currency of the price."""
        return self.tokens_saved * price_per_million_tokens / 1e6

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        rules = [asdict(rule) for rule in self.rules]
        for rule in rules:
            for example in rule["examples"]:
                example["removed"], example["kept"] = str(example["removed"]), str(example["kept"])
        return {
            "removed": self.removed,
            "rules": rules,
            "bytes_saved": self.bytes_saved,
            "characters_saved": self.characters_saved,
            "tokens_saved": self.tokens_saved,
            "unreadable_times": self.unreadable_times,
        }

    def __str__(self) -> str:
        lines = [
            f"{self.removed:,} duplicates removed; {self.bytes_saved:,} bytes and about "
            f"{self.tokens_saved:,} tokens saved"
        ]
        for rule in self.rules:
            recall = "" if rule.recall is None else f", measured recall {rule.recall:.3f}"
            lines.append(f"  {rule.rule}: {rule.removed:,} in {rule.clusters:,} clusters{recall}")
            for example in rule.examples:
                alike = "" if example.score is None else f" ({example.score:.3f})"
                lines.append(f"    {example.removed!r} → {example.kept!r}{alike}")
                if example.removed_text or example.kept_text:
                    lines.append(f"      − {example.removed_text or ''}")
                    lines.append(f"      + {example.kept_text or ''}")
        if self.unreadable_times:
            lines.append(f"  {self.unreadable_times:,} records have no readable timestamp")
        return "\n".join(lines)


def summary(
    stage: str,
    rules: Sequence[Dedupe],
    connection: sqlite3.Connection,
    removals: Iterable[Removal],
    recalls: Sequence[float | None],
    notes: Mapping[str, int],
) -> DedupeReport:
    """Count what the log of a stage holds."""
    counts = [0] * len(rules)
    clusters: list[set[str]] = [set() for _ in rules]
    examples: list[list[Example]] = [[] for _ in rules]
    for removal in removals:
        counts[removal.rule] += 1
        known = clusters[removal.rule]
        if removal.kept not in known and len(known) < _EXAMPLES:
            examples[removal.rule].append(_example(removal))
        known.add(removal.kept)
    size, characters = connection.execute(
        "SELECT COALESCE(SUM(bytes), 0), COALESCE(SUM(characters), 0) FROM dedupe_parcel WHERE stage = ?",
        (stage,),
    ).fetchone()
    parts = tuple(
        RuleReport(rule.label, counts[n], len(clusters[n]), tuple(examples[n]), recalls[n])
        for n, rule in enumerate(rules)
    )
    return DedupeReport(sum(counts), parts, size, characters, notes)


def audit_file(path: Path, rules: Sequence[Dedupe], removals: Iterable[Removal]) -> int:
    """Write the audit; see `DedupeStage.write_audit`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = 0
    with replacing(path) as file:
        for removal in removals:
            file.write(_line(rules[removal.rule], removal))
            lines += 1
    return lines


def _line(rule: Dedupe, removal: Removal) -> bytes:
    values: dict[str, Any] = {
        "removed": removal.removed,
        "kept": removal.kept,
        "rule": rule.label,
        "keep": rule.settings()["keep"],
    }
    if removal.score is not None:
        values["score"] = round(removal.score, 6)
    return dump_json(values) + b"\n"


def _example(removal: Removal) -> Example:
    return Example(
        decode_id(removal.removed),
        decode_id(removal.kept),
        removal.removed_text,
        removal.kept_text,
        removal.score,
    )
