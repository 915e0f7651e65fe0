"""The doctor's examination of a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kif_lightning.benchmarks.doctor.labels import label_findings
from kif_lightning.benchmarks.doctor.report import Finding, Severity, SplitSummary, TaskReport
from kif_lightning.benchmarks.doctor.scan import (
    MOST_LABELS,
    Scan,
    TokenCounter,
    scan,
)
from kif_lightning.benchmarks.doctor.within import SplitChecks
from kif_lightning.interfaces import SourceTask

SAME_PROMPT, OTHER_PROMPT = 0.9, 0.1


def examine(task: SourceTask, *, count_tokens: TokenCounter | None = None) -> TaskReport:
    """What the task holds, and what is wrong with it; each split is read once.

    Args:
        task: as its source has it.
        count_tokens: of the backbone that will learn it; None: no text is called too long.
    """
    scans = {
        name: scan(
            split.rows,
            closed_answers=task.closed_answers,
            name=f"{task.name}/{name}",
            counter=count_tokens,
        )
        for name, split in task.splits.items()
    }
    findings = list(_splits(task, scans))
    for name, found in scans.items():
        examined = SplitChecks(task=task, name=name, scan=found)
        findings += [*examined.texts(), *examined.states(), *examined.repeats()]
        if count_tokens is not None:
            findings += examined.lengths(count_tokens)
    if task.closed_answers:
        findings += label_findings(task, scans)
    findings += _between(task, scans)
    return TaskReport(
        name=task.name,
        kind=task.kind,
        metric=task.metric,
        closed_answers=task.closed_answers,
        splits={name: _summary(found) for name, found in scans.items()},
        findings=tuple(findings),
    )


def _summary(found: Scan) -> SplitSummary:
    counted = found.labels if found.num_outputs <= MOST_LABELS else None
    return SplitSummary(
        rows=len(found.rows),
        bytes=found.bytes,
        distinct_inputs=found.num_inputs,
        distinct_outputs=found.num_outputs,
        classes=None if counted is None else dict(sorted(counted.items())),
    )


def _splits(task: SourceTask, scans: Mapping[str, Scan]) -> Iterator[Finding]:
    """Rows that cannot be read, splits that are not there."""
    for name, why in (
        ("train", ": nothing can be learnt"),
        (
            "test",
            ", given or held out of train (which takes enough different inputs): nothing can be "
            "scored",
        ),
    ):
        if name not in task.splits:
            yield Finding(
                task=task.name,
                split=name,
                check="missing_split",
                severity="error",
                count=0,
                of=0,
                message=f"There is no {name} split{why}.",
            )
    for name, split in task.splits.items():
        num_rows, count = len(scans[name].rows), split.num_problems
        if count:
            yield Finding(
                task=task.name,
                split=name,
                check="unreadable_row",
                severity="error",
                count=count,
                of=num_rows + count,
                message=f"{count} of {num_rows + count} rows of {name} cannot be read.",
                examples=split.problems[:3],
            )
        if not num_rows:
            yield Finding(
                task=task.name,
                split=name,
                check="empty_split",
                severity="warning" if name == "dev" else "error",
                count=0,
                of=0,
                message=f"{name} holds no row{' that can be read' if count else ''}.",
            )


def _between(task: SourceTask, scans: Mapping[str, Scan]) -> Iterator[Finding]:
    """What is wrong with two splits together."""
    present = {name: found for name, found in scans.items() if len(found.rows)}
    overlaps: tuple[tuple[str, str, str, Severity, str], ...] = (
        ("train_test_overlap", "test", "train", "error", "the score counts rows learnt by heart"),
        (
            "train_dev_overlap",
            "dev",
            "train",
            "warning",
            "selection by dev then favours overfitting",
        ),
        ("dev_test_overlap", "dev", "test", "warning", "tuning on dev is tuning on test"),
    )
    for check, name, other, severity, why in overlaps:
        if name in present and other in present:
            split = SplitChecks(task=task, name=name, scan=scans[name])
            yield from split.found(
                check,
                severity,
                split.scan.inputs_in(scans[other]),
                f"have an input that stands in {other} too: {why}",
                split.with_same(scans[other]),
            )
    if "train" not in present or not scans["train"].prompts:
        return
    prompt, count = scans["train"].prompts.most_common(1)[0]
    if count < SAME_PROMPT * len(scans["train"].rows):
        return
    for name in ("dev", "test"):
        if name in present:
            same, num_rows = present[name].prompts[prompt], len(present[name].rows)
            if same < OTHER_PROMPT * num_rows:
                yield Finding(
                    task=task.name,
                    split=name,
                    check="prompt_differs",
                    severity="warning",
                    count=num_rows - same,
                    of=num_rows,
                    message=f"{count} of {len(scans['train'].rows)} inputs of train begin alike, "
                    f"but only {same} of {num_rows} of {name} do: are they of the same data set?",
                    examples=(
                        f"train: {prompt!r}",
                        f"{name}: {present[name].rows[0].input[:40]!r}",
                    ),
                )
