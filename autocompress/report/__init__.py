"""From a run's folder to one self-contained page that says what was found, and how each number is known."""

from pathlib import Path

from autocompress.report.page import page
from autocompress.report.records import read_records

__all__ = ["REPORT_FILE", "write_report"]

REPORT_FILE = "report.html"


def write_report(run: Path) -> Path:
    """RUN/report.html, from the run's files alone. Raises RunError if they are missing or damaged."""
    path = run / REPORT_FILE
    path.write_text(page(read_records(run)), encoding="utf-8")
    return path
