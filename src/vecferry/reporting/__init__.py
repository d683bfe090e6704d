"""What people see: the report, progress, metrics."""

from vecferry.reporting.bars import ProgressBar
from vecferry.reporting.repair import RepairReport
from vecferry.reporting.report import Report

__all__ = ["ProgressBar", "RepairReport", "Report"]
