"""The report: what an experiment found, as a page, as Markdown, and as tables for programs.

Pure functions of (experiment, trials, verdict): no clock, the same input gives the same bytes, nothing is read but this
package's own page assets. Where a report is written to is the caller's part.
"""

from hpo_core.report.curves import Curve, curve_numbers, read_curves
from hpo_core.report.html_page import RetrainSummary, html
from hpo_core.report.markdown_page import markdown
from hpo_core.report.rows import TrialRow, duration_text, number_text, trial_rows
from hpo_core.report.tables import best_parameters, trials_csv, trials_json

__all__ = [
    "Curve",
    "RetrainSummary",
    "TrialRow",
    "best_parameters",
    "curve_numbers",
    "duration_text",
    "html",
    "markdown",
    "number_text",
    "read_curves",
    "trial_rows",
    "trials_csv",
    "trials_json",
]
