"""The comparison as a page, tables and figures, all made from its contents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kif_lightning.errors import UserError
from kif_lightning.reporting.comparison.contents import SCHEMA_VERSION, Contents
from kif_lightning.reporting.comparison.figures import FIGURES, drawn
from kif_lightning.reporting.comparison.tables import (
    SHORT,
    backbones_table,
    banner,
    differences_table,
    latex,
    markdown_page,
    order_table,
    paired_table,
    published_table,
    summary_csv,
    summary_table,
    titled,
)
from kif_lightning.reporting.figures.style import FORMATS, save, styled, svg
from kif_lightning.storage import read_json, write_json, write_text

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
                # Text within it is escaped by matplotlib.
                shown.append({"figure": figure, "svg": Markup(text)})  # noqa: S704
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


def rebuild(numbers: Path, folder: Path) -> Path:
    """Make everything anew from ``comparison.json``; the runs need not be there.

    Raises:
        UserError: it is missing, damaged or of another version.
    """
    found = read_json(numbers)
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"Expected a {NUMBERS} of version {SCHEMA_VERSION}, got version {version!r} in "
            f"{numbers}: compare the runs again."
        )
    return write_comparison(found, folder)


def _page(found: Contents, shown: list[dict[str, Any]]) -> str:
    environment = Environment(
        loader=PackageLoader("kif_lightning.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    runs = [
        {"label": group["label"], "backbone": group["backbone"], "order": group["order"], **run}
        for group in found["groups"]
        for run in group["runs"]
    ]
    return environment.get_template("comparison.html.j2").render(
        found=found,
        title=titled("Comparison of runs", found),
        banner=banner(found),
        figures=shown,
        summary=summary_table(found),
        differing=differences_table(found),
        backbones=backbones_table(found),
        paired=paired_table(found),
        orders=order_table(found),
        published=published_table(found),
        runs=runs,
        short=SHORT,
        protocol=json.dumps(found["protocol"], indent=1),
    )
