"""What people see: the report, progress, metrics."""

from vecferry.reporting.report import Report

__all__ = ["Report"]
