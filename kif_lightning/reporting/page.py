"""HTML pages that stand alone: no script, nothing loaded from anywhere, all texts escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from kif_lightning import __version__

MOST_ROWS = 200
"""Of a table: a longer one is cut, and says so."""
MOST_SVG_BYTES = 400_000
"""Of a figure that is drawn as vectors: a larger one stands as pixels, and says so."""
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


@dataclass(frozen=True, kw_only=True)
class PageTable:
    """Cells as text; the first of each row names it, the first ``texts`` columns are words."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1
    note: str = ""
    diagonal: int | None = None
    """The row from which on a square's diagonal is marked."""

    @property
    def shown(self) -> Sequence[Sequence[str]]:
        """The rows, or the first of many."""
        return self.rows[:MOST_ROWS]

    @property
    def left_out(self) -> int:
        """How many rows are not shown."""
        return len(self.rows) - len(self.shown)


def render(template: str, **values: Any) -> str:
    """A page of :mod:`kif_lightning.reporting.templates`; a name that is not given is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,  # prompts and answers are anybody's text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(version=__version__, **values)
    return writable(text)


def writable(text: str) -> str:
    """JSON may hold halves of surrogate pairs, which no file can: question marks instead."""
    return text.encode("utf-8", "replace").decode("utf-8")


def picture(figure: Figure, text: str, about: Any, vectors: str) -> dict[str, Any]:
    """What a page shows of a figure, for the macro ``picture``.

    Call it within :func:`~kif_lightning.reporting.figures.style.styled`.

    Args:
        figure: the figure.
        text: of its SVG.
        about: has its ``name``, ``title`` and ``caption``.
        vectors: where it can be had as vectors, if it is too large for them here.
    """
    label = f"{about.title}. {about.caption}"
    as_pixels = len(text.encode()) > MOST_SVG_BYTES
    return {
        **told(about),
        "picture": _pixels(figure, label)
        if as_pixels
        else _inline(figure, text, about.name, label),
        "as_pixels": as_pixels,
        "vectors": vectors,
    }


def told(about: Any, failed: str | None = None) -> dict[str, Any]:
    """What a page says of a figure; ``failed``: why it is not there."""
    found = {"name": about.name, "title": about.title, "caption": about.caption}
    return {**found, "picture": None, "as_pixels": False, "failed": failed}


def _inline(figure: Figure, text: str, name: str, label: str) -> Markup:
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(text)  # noqa: S314  matplotlib's own output
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    _own_ids(root, name)
    # As wide as the page at most, never wider than drawn.
    root.set("style", f"width: 100%; max-width: {figure.get_figwidth() * 1.25:.1f}in; height: auto")
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704


def _own_ids(root: ElementTree.Element, name: str) -> None:
    """Ids are the page's: two figures must not share one."""
    for element in root.iter():
        for key, value in element.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key.endswith("href") and value.startswith("#"):
                element.set(key, f"#{name}-{value[1:]}")
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{name}-"))


def _pixels(figure: Figure, label: str) -> Markup:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    data = base64.b64encode(file.getvalue()).decode()
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(label, data)
