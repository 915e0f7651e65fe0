"""The data doctor: what is wrong with the rows of tasks, and a corrected copy of them."""

from kif_lightning.benchmarks.doctor.checks import examine
from kif_lightning.benchmarks.doctor.mending import fix, write_fixed
from kif_lightning.benchmarks.doctor.report import Finding, SplitSummary, TaskReport, report_json
from kif_lightning.benchmarks.doctor.scan import TokenCounter

__all__ = [
    "Finding",
    "SplitSummary",
    "TaskReport",
    "TokenCounter",
    "examine",
    "fix",
    "report_json",
    "write_fixed",
]
