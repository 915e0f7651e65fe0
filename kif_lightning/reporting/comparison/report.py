"""The comparison as a page, tables and figures, all made from its contents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kif_lightning.errors import UserError
from kif_lightning.reporting.comparison.contents import Contents
from kif_lightning.reporting.comparison.figures import FIGURES, ComparisonFigure, drawn
from kif_lightning.reporting.comparison.tables import (
    SHORT,
    Table,
    backbones_table,
    banner,
    differences_table,
    latex,
    markdown_page,
    order_table,
    paired_table,
    published_table,
    runs_table,
    summary_csv,
    summary_table,
    titled,
)
from kif_lightning.reporting.console import on_held_out, stand_in_parts
from kif_lightning.reporting.figures import tell_failure
from kif_lightning.reporting.figures.style import FORMATS, save, styled, svg
from kif_lightning.reporting.page import PageTable, picture, render, told, writable
from kif_lightning.storage import write_json, write_text

PAGE, NUMBERS = "comparison.html", "comparison.json"
OTHER_FORMATS = tuple(ending for ending in FORMATS if ending != "svg")
"""Beside the SVG, which is on the page too."""
TABLES = {"summary.csv": summary_csv, "table.md": markdown_page, "table.tex": latex}


def write_comparison(found: Contents, folder: Path) -> Path:
    """Write the page, the tables, the numbers and every figure as PNG, SVG and PDF.

    Args:
        found: as :func:`~kif_lightning.reporting.comparison.contents` gives it.
        folder: made if it is not there; files of the same names are written over.

    Returns:
        The page.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        write_json(folder / NUMBERS, found)
        for name, table in TABLES.items():
            write_text(folder / name, writable(table(found)))
        with styled():
            shown = [_figure(figure, found, folder / "figures") for figure in FIGURES]
        write_text(folder / PAGE, _page(found, [figure for figure in shown if figure]))
    except OSError as error:
        raise UserError(
            f"The comparison cannot be written to {folder} ({error.strerror or error}): name a "
            "folder that can be, --out FOLDER."
        ) from error
    return folder / PAGE


def _figure(figure: ComparisonFigure, found: Contents, folder: Path) -> dict[str, Any] | None:
    """Write its files; gives what the page shows of it, None where there is nothing to draw."""
    # That of an earlier comparison would be taken for one of this.
    for ending in FORMATS:
        (folder / f"{figure.name}.{ending}").unlink(missing_ok=True)
    try:
        image = drawn(figure, found)
        if image is None:
            return None
        text = svg(image)
        image.set_layout_engine("none")  # laid out by now: the files take it over
        shown = picture(image, text, figure, f"figures/{figure.name}.svg")
        write_text(folder / f"{figure.name}.svg", text)
        for ending in OTHER_FORMATS:
            save(image, folder / f"{figure.name}.{ending}")
    except OSError:
        raise
    except Exception as error:  # all else of the comparison is worth having
        return told(figure, tell_failure(figure.name, "the comparison", error))
    return shown


def _page(found: Contents, shown: list[dict[str, Any]]) -> str:
    tables = {
        "summary": summary_table,
        "differing": differences_table,
        "backbones": backbones_table,
        "paired": paired_table,
        "orders": order_table,
        "published": published_table,
        "runs": runs_table,
    }
    orders = [("order", f"{name}: {', '.join(tasks)}") for name, tasks in found["orders"].items()]
    return render(
        "comparison.html.j2",
        found=found,
        title=titled("Comparison of runs", found),
        banner=banner(found),
        stand_in_parts=stand_in_parts(found["stand_ins"]),
        held_out=_held_out(found),
        about=[
            ("benchmark", ", ".join(found["benchmarks"])),
            ("backbone", ", ".join(found["backbones"])),
            *orders,
        ],
        formulas=[
            (f"{SHORT.get(name, name)} ({name})", formula)
            for name, formula in found["formulas"].items()
        ],
        figures=shown,
        protocol=json.dumps(found["protocol"], indent=1),
        **{name: _page_table(make(found)) for name, make in tables.items()},
    )


def _held_out(found: Contents) -> str:
    """How many runs were scored on other rows than test, in words; empty where none was."""
    runs = [run for group in found["groups"] for run in group["runs"]]
    held_out = {on_held_out(run["stand_ins"]) for run in runs}
    return "" if held_out == {False} else "Scored" if held_out == {True} else "Some were scored"


def _page_table(table: Table | None) -> PageTable | None:
    if table is None:
        return None
    return PageTable(
        caption=table.title,
        header=table.header,
        rows=table.rows,
        texts=table.words,
        note=table.note,
    )
