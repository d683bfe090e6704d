"""Progress bars for terminals, scripts and notebooks, drawn by rich."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from vecferry.ports import Progress as Step


class ProgressBar:
    """A listener for ``on_progress``: one bar for each step of a job, with rate and remaining time.

    It begins to draw with the first step; `close` (or the ``with`` block) draws the last line.

    >>> report = plan.run(on_progress=ProgressBar())  # doctest: +SKIP

    Args:
        console: where to draw; by default the notebook or the terminal.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, step: Step) -> None:
        """Draw a `vecferry.ports.Progress`."""
        progress = self._progress
        if step.stage not in self._tasks:
            progress.start()
            self._finish_others()
            self._tasks[step.stage] = progress.add_task(step.stage, total=step.total, rate="")
        rate = f"{step.written / step.seconds:,.0f}/s" if step.seconds and step.stage == "stream" else ""
        task = self._tasks[step.stage]
        progress.update(task, completed=step.done, total=step.total or None, rate=rate)
        if step.stage == "publish":
            self.close()

    def _finish_others(self) -> None:
        for task in self._tasks.values():
            self._progress.stop_task(task)

    def close(self) -> None:
        """Draw the last state and give the terminal back."""
        self._progress.stop()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


__all__ = ["ProgressBar"]
