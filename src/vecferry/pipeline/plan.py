"""`Plan`: what a migration will do, as a sentence and a few tables. Nothing is written yet."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vecferry.model import CollectionSchema, Loss, VectorField
from vecferry.ports import OnProgress, ShouldStop, ignore_progress, never_stop

if TYPE_CHECKING:
    from vecferry.reporting import Report

Runner = Callable[["Plan", OnProgress, ShouldStop], "Report"]


@dataclass(frozen=True)
class Plan:
    """Look before you leap: print it, then `run` it.

    Attributes:
        source, target: the URLs, without secrets.
        mode: ``create``, ``upsert`` or ``replace``.
        source_schema, target_schema: as found, and as it will be prepared.
        names: source vector field → target vector field.
        count: records to read, if known.
        losses: what changes on the way, each with a count and an example.
        notes: what else is worth knowing before the start.
        estimate: tokens, costs, bytes, as far as they apply.
        resuming: where an unfinished job of the same pair stands, or ``None``.
    """

    source: str
    target: str
    mode: str
    source_schema: CollectionSchema
    target_schema: CollectionSchema
    names: dict[str, str]
    count: int | None
    losses: tuple[Loss, ...] = ()
    notes: tuple[str, ...] = ()
    estimate: dict[str, Any] = field(default_factory=dict)
    resuming: str | None = None
    _runner: Runner | None = field(default=None, repr=False, compare=False)

    def run(
        self, on_progress: OnProgress = ignore_progress, *, should_stop: ShouldStop = never_stop
    ) -> Report:
        """Carry it out; see `vecferry.migrate`."""
        if self._runner is None:
            raise RuntimeError("this plan was not made by vecferry.plan() and cannot run")
        return self._runner(self, on_progress, should_stop)

    @property
    def sentence(self) -> str:
        """``faiss:./kb → qdrant:…: 2,000 records, 384 d, cosine; str ids get another form (kept)``."""
        count = "records" if self.count is None else f"{self.count:,} records"
        parts = [", ".join([count, *(_shape(field) for field in self.target_schema.fields)])]
        parts += [str(loss) for loss in self.losses if loss.kind in ("id", "magnitude", "vector")]
        return f"{self.source} → {self.target} ({self.mode}): {'; '.join(parts)}"

    def __str__(self) -> str:
        lines = [self.sentence]
        if self.resuming:
            lines += ["", f"goes on: {self.resuming}"]
        lines += ["", *_table(self._field_rows())]
        lines += ["", "changes on the way:" if self.losses else "nothing is lost on the way"]
        lines += [f"  - {loss.kind}: {loss}" for loss in self.losses]
        lines += [f"  {key}: {value}" for key, value in self.estimate.items()]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = self._field_rows()
        cell = html.escape
        head = "".join(f"<th>{cell(name)}</th>" for name in rows[0])
        body = "".join(
            "<tr>" + "".join(f"<td>{cell(value)}</td>" for value in row) + "</tr>" for row in rows[1:]
        )
        losses = "".join(f"<li><b>{cell(x.kind)}</b>: {cell(str(x))}</li>" for x in self.losses)
        notes = "".join(f"<li>{cell(note)}</li>" for note in (*self.notes, *self._estimates()))
        return (
            f"<p><b>{cell(self.sentence)}</b></p><table><tr>{head}</tr>{body}</table>"
            f"<p>{'changes on the way' if losses else 'nothing is lost on the way'}</p>"
            f"<ul>{losses}{notes}</ul>"
        )

    def _estimates(self) -> list[str]:
        return [f"{key}: {value}" for key, value in self.estimate.items()]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "sentence": self.sentence,
            "source": self.source,
            "target": self.target,
            "mode": self.mode,
            "count": self.count,
            "names": self.names,
            "source_schema": self.source_schema.model_dump(mode="json"),
            "target_schema": self.target_schema.model_dump(mode="json"),
            "losses": [loss.model_dump(mode="json") for loss in self.losses],
            "notes": list(self.notes),
            "estimate": self.estimate,
            "resuming": self.resuming,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2)

    def _field_rows(self) -> list[tuple[str, str, str, str]]:
        rows = [("field", "from", "to", "space")]
        for old, new in self.names.items():
            before, after = self._find(self.source_schema, old), self._find(self.target_schema, new)
            if before is None or after is None:
                continue
            shown = repr(old) if old == new else f"{old!r} → {new!r}"
            rows.append((shown, _shape(before), _shape(after), str(after.space or "unknown")))
        fresh = [f for f in self.target_schema.fields if f.name not in self.names.values()]
        rows += [(repr(f.name), "(embedded)", _shape(f), str(f.space or "unknown")) for f in fresh]
        return rows

    @staticmethod
    def _find(schema: CollectionSchema, name: str) -> VectorField | None:
        return next((field for field in schema.fields if field.name == name), None)


def _shape(field: VectorField) -> str:
    words = [f"{field.dim:,} d" if field.dim else "any dimension", str(field.metric)]
    words += [str(field.dtype)] if field.dtype != "float32" else []
    words += [str(field.kind)] if field.kind != "dense" else []
    return " ".join(words)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
