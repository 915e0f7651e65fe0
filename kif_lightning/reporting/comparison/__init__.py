"""Finished runs side by side: read, held against each other's protocol, and told.

:func:`read_runs` gives the runs by method, :func:`contents` all numbers of their comparison as
plain JSON values, from which tables, figures and the report are made.
"""

from kif_lightning.reporting.comparison.contents import contents
from kif_lightning.reporting.comparison.protocols import MUST_MATCH
from kif_lightning.reporting.comparison.reading import Group, Run, read_runs, unfinished
from kif_lightning.reporting.comparison.report import write_comparison
from kif_lightning.reporting.comparison.tables import (
    HEADER,
    markdown,
    show_comparison,
    summary,
    summary_rows,
)

__all__ = [
    "HEADER",
    "MUST_MATCH",
    "Group",
    "Run",
    "contents",
    "markdown",
    "read_runs",
    "show_comparison",
    "summary",
    "summary_rows",
    "unfinished",
    "write_comparison",
]
