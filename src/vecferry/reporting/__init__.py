"""What people see: the report, progress, metrics."""

from vecferry.reporting.bars import ProgressBar
from vecferry.reporting.report import Report

__all__ = ["ProgressBar", "Report"]
