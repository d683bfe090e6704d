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
        dropped: records removed on purpose, by stage (``transform``, ``dedupe``).
        bytes: payload acknowledged by the target.
        seconds: wall time of this run; ``stages`` the busy seconds of each stage over all runs.
        resumed: where the run went on, or ``None`` if it began.
        published: whether the target is visible under its name.
        verification: the proof (see `vecferry.verifying.Verification`), ``None`` if it was switched off.
        losses: as the plan announced them.
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
    bytes: int = 0
    seconds: float = 0.0
    stages: dict[str, float] = Field(default_factory=dict)
    resumed: str | None = None
    published: bool = False
    verification: Any = None
    losses: tuple[Loss, ...] = ()
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

    def _faults(self) -> list[str]:
        faults = []
        if self.rejected:
            faults.append(f"{self.rejected:,} records were rejected; see {self.quarantine} and replay them")
        if self.verification is None:
            faults.append("nothing was verified; run vecferry.verify(source, target)")
        elif not self.verification.ok:
            move = "vecferry repair" if self.published else "the same call with resume=False"
            faults.append(f"the target differs: {self.verification.summary}; mend it by {move}")
        return faults

    @property
    def rates(self) -> dict[str, float]:
        """Records a second that each stage would reach if it ran alone."""
        done = {"write": self.written}
        return {
            name: done.get(name, self.read) / seconds
            for name, seconds in self.stages.items()
            if seconds > 0
        }

    def __str__(self) -> str:
        lines = [f"{'ok' if self.ok else 'NOT OK'}  {self.source} → {self.target}"]
        lines += [f"  {name:<12} {value}" for name, value in self._rows()]
        if self.verification is not None:
            lines += ["  " + line for line in str(self.verification).splitlines()]
        return "\n".join(lines)

    def _rows(self) -> list[tuple[str, str]]:
        rate = f" ({self.written / self.seconds:,.0f}/s)" if self.seconds and self.written else ""
        rows = [
            ("read", f"{self.read:,}"),
            ("written", f"{self.written:,}, {self.bytes / 1e6:,.1f} MB in {self.seconds:,.1f} s{rate}"),
            ("rejected", f"{self.rejected:,}" + (f" → {self.quarantine}" if self.rejected else "")),
        ]
        rows += [(f"− {stage}", f"{n:,} removed") for stage, n in self.dropped.items()]
        rows += [("resumed", self.resumed)] if self.resumed else []
        shown = {name: f"{rate:,.0f}/s" for name, rate in self.rates.items()}
        rows += [("stages", ", ".join(f"{name} {rate}" for name, rate in shown.items()))]
        rows += list(self.summaries.items())
        rows += [("published", "yes" if self.published else "no")]
        return rows

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        data = self.model_dump(mode="json", exclude={"verification"})
        proof = self.verification
        data["verification"] = None if proof is None else proof.model_dump(mode="json")
        return {"ok": self.ok, **data}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2, default=str)

    def _repr_html_(self) -> str:
        cell = html.escape
        colour = "#1a7f37" if self.ok else "#cf222e"
        rows = "".join(f"<tr><th>{cell(a)}</th><td>{cell(b)}</td></tr>" for a, b in self._rows())
        proof = "" if self.verification is None else f"<pre>{cell(str(self.verification))}</pre>"
        return (
            f'<p><b style="color:{colour}">{"ok" if self.ok else "NOT OK"}</b> '
            f"{cell(self.source)} → {cell(self.target)}</p><table>{rows}</table>{proof}"
        )
