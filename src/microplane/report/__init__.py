"""The report of a run: one HTML file that opens offline."""

from microplane.report.page import write_report

__all__ = ["write_report"]
