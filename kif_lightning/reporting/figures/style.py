"""How all figures look: colour-blind safe, readable in grey, ready for print."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_pdf import FigureCanvasPdf  # noqa: F401  registered, not guessed
from matplotlib.figure import Figure

from kif_lightning.storage import replacing

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
"""Okabe and Ito's palette: told apart with any colour vision."""
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = "osD^vPX*"
"""Lines differ in dash and marker too: in grey, colours alone would not tell them apart."""
SCORE_MAP = "cividis"
"""From dark to light evenly, in colour, in grey and for the colour-blind."""
CHANGE_MAP = "PuOr"
"""Losses orange, gains violet, none white."""
FORMATS = ("png", "svg", "pdf")

_SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 300,
    "svg.fonttype": "none",  # text stays text: small, searchable
    "svg.hashsalt": "kif",  # the same figure gives the same file
    "pdf.fonttype": 42,  # fonts that journals accept
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw and save within this: the settings, without touching anybody else's."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, whose parts make room for each other."""
    return Figure(figsize=(width, height), layout="constrained")


def line_style(place: int) -> dict[str, Any]:
    """Colour, dash and marker of the place-th of several lines."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": DASHES[place % len(DASHES)],
        "marker": MARKERS[place % len(MARKERS)],
        "markersize": 4,
    }


def say_stand_ins(figure: Figure, stand_ins: Sequence[str]) -> None:
    """What only stands for something real is told on the figure itself."""
    if stand_ins:
        figure.supxlabel(f"on {' and '.join(stand_ins)}", fontsize=7, x=1.0, ha="right")


def svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element for an HTML page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def save(figure: Figure, path: Path) -> None:
    """Write the figure, whole or not at all, in the format that the name's ending says."""
    ending = path.suffix[1:]
    unstamped = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with replacing(path) as file:
        figure.savefig(file, format=ending, metadata=unstamped[ending])
