"""The report of a run: one HTML file that needs nothing but itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kif_lightning.errors import UserError
from kif_lightning.reporting import figures, run_tables
from kif_lightning.reporting.changed_answers import (
    FALL,
    MOST_SAMPLES,
    MOST_TASKS,
    changed_answers,
)
from kif_lightning.reporting.console import probe_stand_ins, stand_in_parts
from kif_lightning.reporting.figures.style import styled, svg
from kif_lightning.reporting.page import PageTable, picture, render, told
from kif_lightning.reporting.run_record import RunRecord, read_run
from kif_lightning.storage import write_text

REPORT = "report.html"
VECTORS = "kif report RUN --figures FOLDER --formats svg"
MOST_PROMPT, MOST_ANSWER, BEGINNING = 20_000, 2_000, 300
"""Characters of a prompt and of an answer that are kept, and of a prompt that are seen at once."""


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a finished run's folder, whole or not at all; returns its path.

    Raises:
        UserError: there is no such run, a file of it is damaged, or the folder cannot be written.
    """
    return save_report(read_run(folder))


def save_report(record: RunRecord) -> Path:
    """The same of a run that is read already.

    Raises:
        UserError: the folder cannot be written.
    """
    path = record.folder / REPORT
    text = report_html(record)
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(
            f"The report cannot be written to {path} ({error.strerror or error}): copy the run to "
            "a folder that can be."
        ) from error
    return path


def report_html(record: RunRecord) -> str:
    """The whole page."""
    results, stamp = record.results, record.results["protocol"]
    shown, absent = _figures(record)
    probe = results.get("probe")
    return render(
        "run.html.j2",
        title=f"{stamp.get('method')} on {stamp.get('benchmark', 'unknown data')}",
        record=record,
        stand_in_parts=stand_in_parts(record.stand_ins),
        stamp=stamp,
        findings=results.get("data_findings"),
        identity=run_tables.identity(record),
        parts=run_tables.method_parts(record),
        cards=run_tables.metric_cards(record),
        absent_metrics=run_tables.absent_metrics(record),
        figures=shown,
        absent_figures=absent,
        task_table=run_tables.task_table(record),
        matrix=run_tables.matrix_table(record),
        answers=_answers(record),
        fusion=run_tables.fusion_table(record),
        probe_stand_ins=probe_stand_ins(record.stand_ins, probe["stand_in"]) if probe else [],
        probe=run_tables.probe_table(record),
        phases=run_tables.phase_table(record),
        cost=run_tables.cost_facts(record),
        versions=_versions(stamp),
        stamp_json=json.dumps(stamp, indent=2, ensure_ascii=False),
    )


def _figures(record: RunRecord) -> tuple[list[dict[str, Any]], list[str]]:
    """Those the run has something for, and the titles of the others."""
    shown, absent = [], []
    with styled():
        for figure in figures.RUN_FIGURES:
            try:
                image = figure.draw(record)
                if image is None:
                    absent.append(figure.title)
                    continue
                image.suptitle("")  # the page has it as a heading
                shown.append(picture(image, svg(image), figure, VECTORS))
            except Exception as error:  # all else of the report is worth having
                why = figures.tell_failure(figure.name, record.folder, error)
                shown.append(told(figure, why))
    return shown, absent


def _answers(record: RunRecord) -> dict[str, Any] | None:
    """Counts of answers that broke, and samples; None where no answers can be held side by side."""
    changes = changed_answers(record)
    if not changes:
        return None
    names, phases = record.tasks, record.phases
    samples = [
        {
            "task": names[change.task],
            "broke": change.broke,
            "compared": change.compared,
            "rows": [
                {
                    "answer": answer,
                    "beginning": _cut(answer.prompt or "", BEGINNING),
                    "prompt": _cut(answer.prompt or "", MOST_PROMPT),
                    "reference": _cut(answer.reference, MOST_ANSWER),
                    "just_learnt": _cut(answer.just_learnt, MOST_ANSWER),
                    "at_end": _cut(answer.at_end, MOST_ANSWER),
                    "broke_after": None
                    if answer.first_broke_after is None
                    else f"{answer.first_broke_after + 1} {phases[answer.first_broke_after]}",
                }
                for answer in change.samples
            ],
        }
        for change in changes
        if change.samples
    ]
    graded = sorted({t["metric"] for t in record.results["tasks"] if "rouge" in t["metric"]})
    return {
        "table": PageTable(
            caption=f"Answers to the same {record.rows} rows, when the task was just learnt and at "
            "the end",
            header=("task", "rows", "right, then wrong", "wrong, then right", "as before"),
            rows=[
                [f"{one.task + 1} {names[one.task]}"]
                + [str(n) for n in (one.compared, one.broke, one.mended, one.kept)]
                for one in changes
            ],
        ),
        "samples": samples,
        "without_samples": sum(one.broke > 0 and not one.samples for one in changes),
        "most_tasks": MOST_TASKS,
        "most_samples": MOST_SAMPLES,
        "fall": f"{FALL:g}",
        "graded": graded,
    }


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[:most]} ... ({len(text) - most:,} more characters)"


def _versions(stamp: dict[str, Any]) -> list[tuple[str, str]]:
    own = [(key, stamp[key]) for key in ("kif_lightning", "commit", "python") if stamp.get(key)]
    return [*own, *(stamp.get("packages") or {}).items()]
