"""`Report`: what a migration did, and whether it is proved."""

from __future__ import annotations

import html
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from vecferry.errors import VerificationError
from vecferry.model import Loss


class Report(BaseModel):
    """The outcome of a job, over all its runs.

    Attributes:
        job: the job's id; ``folder`` holds its state, log and quarantine.
        read, written, rejected: records. A record that a stage split counts once as read.
        dropped, added: records removed on purpose and made besides, by stage (``transform``, ``dedupe``).
        bytes: payload acknowledged by the target.
        seconds: wall time of this run; ``stages`` the busy seconds of each step over all runs (``stream``
            is the wall time of all that lies between reading and writing).
        resumed: where the run went on, or ``None`` if it began.
        published: whether the target is visible under its name.
        verification: the proof (see `vecferry.verifying.Verification`), ``None`` if it was switched off.
        faults: what does not add up between the job's books, the source and the target; ``notes`` what else
            is to be known.
        source_stamps: what the source said of itself at the beginning, at a resume and at the verdict.
        losses: as the plan announced them.
        id_map: a CSV file (``type, id, target_id``) of the ids that the target keeps in another form.
        quarantine: the file with the rejected records, if there are any.
        details: what stages report (cache hits, costs, duplicates removed); ``summaries`` in words.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    source: str
    target: str
    job: str = ""
    folder: str | None = None
    read: int = 0
    written: int = 0
    rejected: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)
    added: dict[str, int] = Field(default_factory=dict)
    bytes: int = 0
    seconds: float = 0.0
    stages: dict[str, float] = Field(default_factory=dict)
    resumed: str | None = None
    published: bool = False
    verification: Any = None
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source_stamps: dict[str, Any] = Field(default_factory=dict)
    losses: tuple[Loss, ...] = ()
    id_map: str | None = None
    quarantine: str | None = None
    details: dict[str, Any] = Field(default_factory=dict)
    summaries: dict[str, str] = Field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether everything arrived and is proved to have arrived."""
        return not self._faults()

    def check(self) -> Report:
        """Return the report itself if everything is proved.

        Raises:
            VerificationError: if anything is missing, different, rejected, or was not verified.
        """
        faults = self._faults()
        if faults:
            raise VerificationError(f"{self.source} → {self.target}: {'; '.join(faults)}", report=self)
        return self

    @property
    def unverified(self) -> bool:
        """Whether nothing is wrong but that nobody has looked."""
        return self.verification is None and not self.rejected and not self.faults

    @property
    def verdict(self) -> str:
        """``ok``, ``NOT OK`` or ``NOT VERIFIED``."""
        return "ok" if self.ok else "NOT VERIFIED" if self.unverified else "NOT OK"

    def _faults(self) -> list[str]:
        faults = list(self.faults)
        if self.rejected:
            faults.append(f"{self.rejected:,} records were rejected; see {self.quarantine} and replay them")
        if self.verification is None:
            faults.append("nothing was verified; run vecferry.verify(source, target)")
        elif not self.verification.ok:
            move = "vecferry repair" if self.published else "the same call with resume=False (--no-resume)"
            faults.append(f"the target differs: {self.verification.summary}; mend it by {move}")
        return faults

    @property
    def rates(self) -> dict[str, float]:
        """Records a second that each stage would reach if it ran alone."""
        written = ("write", "index", "proof")
        return {
            name: (self.written if name in written else self.read) / seconds
            for name, seconds in self.stages.items()
            if seconds > 0 and name != "stream"
        }

    def __str__(self) -> str:
        lines = [f"{self.verdict}  {self.source} → {self.target}"]
        lines += [f"  {name:<12} {value}" for name, value in self._rows()]
        lines += [f"  fault        {fault}" for fault in self._faults()]
        if self.verification is not None:
            lines += ["  " + line for line in str(self.verification).splitlines()]
        return "\n".join(lines)

    def _rows(self) -> list[tuple[str, str]]:
        writing = self.stages.get("stream", 0.0)
        rate = f", {self.written / writing:,.0f}/s while writing" if writing and self.written else ""
        rows = [
            ("read", f"{self.read:,}"),
            ("written", f"{self.written:,}, {self.bytes / 1e6:,.1f} MB in {self.seconds:,.1f} s{rate}"),
            ("rejected", f"{self.rejected:,}" + (f" → {self.quarantine}" if self.rejected else "")),
        ]
        rows += [(f"− {stage}", f"{n:,} removed") for stage, n in self.dropped.items()]
        rows += [(f"+ {stage}", f"{n:,} made") for stage, n in self.added.items()]
        rows += [("resumed", self.resumed)] if self.resumed else []
        shown = {name: f"{rate:,.0f}/s" for name, rate in self.rates.items()}
        rows += [("stages", ", ".join(f"{name} {rate}" for name, rate in shown.items()))]
        rows += list(self.summaries.items())
        rows += [("published", "yes" if self.published else "no")]
        rows += [("id map", self.id_map)] if self.id_map else []
        rows += [("note", note) for note in self.notes]
        return rows

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        data = self.model_dump(mode="json", exclude={"verification"})
        proof = self.verification
        data["verification"] = None if proof is None else proof.model_dump(mode="json")
        return {"ok": self.ok, **data}

    def to_markdown(self) -> str:
        """For a ticket or a wiki."""
        rows = [f"| {name} | {value} |" for name, value in self._rows()]
        faults = [f"- {fault}" for fault in self._faults()]
        proof = [] if self.verification is None else ["```", str(self.verification), "```"]
        table = ["| | |", "| --- | --- |", *rows]
        return "\n\n".join(
            "\n".join(part)
            for part in ([f"**{self.verdict}** {self.source} → {self.target}"], table, faults, proof)
            if part
        )

    def to_html(self) -> str:
        """A page of its own."""
        title = html.escape(f"{self.source} → {self.target}")
        return f'<!doctype html><meta charset="utf-8"><title>{title}</title>{self._repr_html_()}\n'

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2, default=str)

    def _repr_html_(self) -> str:
        cell = html.escape
        colour = "#1a7f37" if self.ok else "#cf222e"
        rows = "".join(f"<tr><th>{cell(a)}</th><td>{cell(b)}</td></tr>" for a, b in self._rows())
        proof = "" if self.verification is None else f"<pre>{cell(str(self.verification))}</pre>"
        return (
            f'<p><b style="color:{colour}">{self.verdict}</b> '
            f"{cell(self.source)} → {cell(self.target)}</p><table>{rows}</table>{proof}"
        )
