"""The comparison as a page, tables and figures, all made from its contents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kif_lightning.errors import UserError
from kif_lightning.reporting.comparison.contents import Contents
from kif_lightning.reporting.comparison.figures import FIGURES, drawn
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
from kif_lightning.reporting.figures.style import FORMATS, save, styled, svg
from kif_lightning.reporting.page import PageTable, render
from kif_lightning.reporting.page import picture as on_page
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
        shown = []
        with styled():
            for figure in FIGURES:
                picture = drawn(figure, found)
                if picture is None:
                    # That of an earlier comparison would be taken for one of this.
                    for ending in FORMATS:
                        (folder / "figures" / f"{figure.name}.{ending}").unlink(missing_ok=True)
                    continue
                text = svg(picture)
                picture.set_layout_engine("none")  # laid out by now: the files take it over
                shown.append(on_page(picture, text, figure, f"figures/{figure.name}.svg"))
                write_text(folder / "figures" / f"{figure.name}.svg", text)
                for ending in OTHER_FORMATS:
                    save(picture, folder / "figures" / f"{figure.name}.{ending}")
        write_json(folder / NUMBERS, found)
        for name, table in TABLES.items():
            write_text(folder / name, table(found))
        write_text(folder / PAGE, _page(found, shown))
    except OSError as error:
        raise UserError(
            f"The comparison cannot be written to {folder} ({error.strerror or error}): name a "
            "folder that can be, --out FOLDER."
        ) from error
    return folder / PAGE


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
        **{name: _on_page(make(found)) for name, make in tables.items()},
    )


def _on_page(table: Table | None) -> PageTable | None:
    if table is None:
        return None
    return PageTable(
        caption=table.title,
        header=table.header,
        rows=table.rows,
        texts=table.words,
        note=table.note,
    )
