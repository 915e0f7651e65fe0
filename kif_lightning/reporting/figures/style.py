"""How all figures look: colour-blind safe, readable in grey, ready for print."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.backends.backend_pdf import FigureCanvasPdf  # noqa: F401  registered, not guessed
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from kif_lightning.storage import replacing

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
"""Okabe and Ito's palette: told apart with any colour vision."""
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = "osD^vPX*"
"""Lines differ in dash and marker too: in grey, colours alone would not tell them apart."""
SCORE_MAP = "cividis"
"""From dark to light evenly, in colour, in grey and for the colour-blind."""
SHARE_MAP = "cividis_r"
"""The other way round where white is none: the more, the darker."""
ANNOTATED = 20
"""Tasks of which each number is printed; more would not be legible."""
MOST_NAMES = 40
"""More tasks than that are numbered, not named."""
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
    "text.parse_math": False,  # a $ in a task's name is a dollar
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",  # text stays text: small, searchable
    "svg.hashsalt": "kif-lightning",  # the same figure gives the same file
    "pdf.fonttype": 42,  # fonts that journals accept
}


_UNSHOWN = re.compile("[^\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Control characters and halves of surrogate pairs: no font has them, no SVG may."""


@contextmanager
def styled() -> Iterator[None]:
    """Draw and save within this: the settings, without touching anybody else's."""
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # The box that stands for it says so; in an SVG the reader's own fonts have it.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
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


def say_stand_ins(figure: Figure, stand_ins: Sequence[str], of: str = "") -> None:
    """What only stands for something real is told on the figure itself, after what it is ``of``."""
    told = [of] if of else []
    if stand_ins:
        told.append(f"on {' and '.join(stand_ins)}")
    if told:
        figure.supxlabel(clean(" ".join(told)), fontsize=7, x=1.0, ha="right")


def clean(text: str) -> str:
    """Anybody's text without what cannot be shown."""
    return _UNSHOWN.sub("\ufffd", text)


def short(name: str, most: int = 22) -> str:
    """A name as figures show it: clean, and a long one without its middle."""
    name, half = clean(name), (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def width_for(count: int) -> float:
    """Inches that an axis of so many named places needs."""
    return min(9.0, max(6.0, 2.0 + 0.36 * count))


def bar_style(colour: str, hatch: str, count: int) -> dict[str, Any]:
    """Of one of ``count`` bars beside each other; the edges of very many would hide them."""
    width = 0.5 if count <= MOST_NAMES else 0.0
    return {"color": colour, "hatch": hatch, "edgecolor": "black", "linewidth": width}


def room_for(count: int) -> tuple[float, float]:
    """Limits of an axis with bars at 0, 1, ...: few are not to become fat."""
    middle, half = (count - 1) / 2, max(count, 4) / 2 + 0.1
    return middle - half, middle + half


def legend_above(axes: Axes, *, columns: int = 1) -> None:
    """A legend between the title and the axes, where it hides no data."""
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    axes.legend(**place, ncols=columns, fontsize=8)


def colour_bar(figure: Figure, image: AxesImage, axes: Axes | Sequence[Axes], label: str) -> None:
    """Beside the axes, with plain numbers also where colours are logarithmic."""
    bar = figure.colorbar(image, ax=axes, label=label, pad=0.02, format="{x:g}")
    bar.minorticks_off()


def name_ticks(
    axis: XAxis | YAxis,
    names: Sequence[str],
    *,
    numbers: Sequence[int] | None = None,
    size: float = 8,
    angle: float = 45,
) -> None:
    """Name the places 0, 1, ...; of very many, number the first and every tenth task.

    ``numbers``: of the tasks at these places; None: counted from 1.
    """
    if len(names) <= MOST_NAMES:
        axis.set_ticks(range(len(names)), [short(name) for name in names], fontsize=size)
    else:
        every = 10 if len(names) <= 200 else 100
        counted = enumerate(numbers or range(1, len(names) + 1))
        shown = {place: str(n) for place, n in counted if place == 0 or n % every == 0}
        axis.set_ticks(list(shown), list(shown.values()), fontsize=size)
    if isinstance(axis, XAxis) and len(names) <= MOST_NAMES:
        for label in axis.get_ticklabels():
            vertical = "center" if angle == 90 else "top"
            label.set(rotation=angle, ha="right", va=vertical, rotation_mode="anchor")


def heat_map(
    axes: Axes, values: NDArray[np.float64], norm: Normalize, colours: str = SCORE_MAP
) -> AxesImage:
    """Cells of that colour; those without a number (NaN) are hatched, unlike any score.

    Embedded as one small picture, a pixel a cell: thousands of cells cost no more than ten.
    """
    axes.patch.set(facecolor="white", edgecolor="#c8c8c8", hatch="////")
    shown = np.ma.masked_invalid(values)
    return axes.imshow(shown, cmap=colours, norm=norm, interpolation="none", aspect="auto")


def print_scores(axes: Axes, values: NDArray[np.float64]) -> None:
    """Each cell's percent on a heat map of few columns; of many none."""
    if values.shape[1] > ANNOTATED:
        return
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            text = f"{value:.1f}".removesuffix(".0")
            colour = colour_on(value)
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)


def colour_on(value: float) -> str:
    """What can be read on the colour of that score."""
    return "white" if value < 48 else "black"


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
