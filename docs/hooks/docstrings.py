"""Docstrings are written for readers of code: what only Sphinx knows is made Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Markdown(griffe.Extension):
    """Roles become code, and an announced block of code loses its second colon."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of everything that was read."""
        if obj.docstring is not None:
            obj.docstring.value = in_markdown(obj.docstring.value)


def in_markdown(docstring: str) -> str:
    """``:class:`Name``` to code, and ``::`` at a line's end to ``:``."""
    roles = re.sub(r":(?:class|meth|func|data|mod):`~?([^`]+)`", r"`\1`", docstring)
    return re.sub(r"::$", ":", roles, flags=re.MULTILINE)
