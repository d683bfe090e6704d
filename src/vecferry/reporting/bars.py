"""A progress bar for notebooks and scripts, drawn by tqdm. The command line has its own."""

from __future__ import annotations

from typing import Any

from vecferry.errors import MissingDependencyError


class ProgressBar:
    """A listener for ``on_progress``: one bar for each step of a job.

    >>> report = plan.run(on_progress=ProgressBar())  # doctest: +SKIP

    Raises:
        MissingDependencyError: if tqdm is not installed (``vecferry[notebook]``).
    """

    def __init__(self) -> None:
        try:
            from tqdm.auto import tqdm
        except ImportError:
            raise MissingDependencyError("a progress bar", "notebook") from None
        self._make = tqdm
        self._stage = ""
        self._bar: Any = None

    def __call__(self, step: Any) -> None:
        """Draw a `vecferry.ports.Progress`."""
        if step.stage != self._stage:
            self.close()
            self._stage = step.stage
            self._bar = self._make(desc=step.stage, total=step.total, unit=" records", unit_scale=True)
        self._bar.update(step.done - self._bar.n)

    def close(self) -> None:
        """Finish the last bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
