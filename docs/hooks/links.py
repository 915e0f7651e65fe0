"""Links from a page to files of the repository that are no part of the site."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from pymdownx.slugs import slugify

_LINK = re.compile(
    r"(?<!!)\[(?P<words>[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*)\]"
    r"\((?P<to>\.\./[^)\s]+)(?P<title>\s+(?:\"[^\"]*\"|'[^']*'))?\)"
)
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+\s+(.*?)\s*#*$", re.MULTILINE)
_slug = slugify(case="lower")


def leaving(
    markdown: str, page: Path, docs: Path, root: Path, url: str | None
) -> tuple[str, list[str]]:
    """Turn links out of ``docs`` into links to the repository or, without its URL, into words.

    Pictures stay as they are: of one that is not in ``docs`` mkdocs itself complains.

    Args:
        markdown: of the page.
        page: its file.
        docs: the folder of all pages.
        root: of the repository.
        url: what a path in the repository is appended to.

    Returns:
        The text, and one sentence for each link to a file or heading that does not exist.
    """
    wrong: list[str] = []

    def replaced(match: re.Match[str]) -> str:
        to, _, heading = match["to"].partition("#")
        target = (page.parent / to).resolve()
        if target.is_relative_to(docs):
            return match[0]
        if not target.is_relative_to(root) or not target.exists():
            wrong.append(f"{page.name} links to {match['to']}, which does not exist.")
        elif heading and heading not in headings(target):
            wrong.append(f"{page.name} links to {match['to']}: there is no such heading.")
        place = target.relative_to(root).as_posix() if target.is_relative_to(root) else to
        words = match["words"]
        if url is not None:
            address = f"{url}{place}{f'#{heading}' if heading else ''}"
            return f"[{words}]({address}{match['title'] or ''})"
        named = words.strip("`") == place
        return f"`{place}`" if named else f"{words} (`{place}`)"

    return outside_fences(markdown, lambda text: _LINK.sub(replaced, text)), wrong


def headings(file: Path) -> set[str]:
    """Anchors of a Markdown file as repository hosts make them."""
    if not file.is_file():
        return set()
    text = _FENCE.sub("", file.read_text(encoding="utf-8"))
    return {_slug(re.sub(r"[`*]", "", words), "-") for words in _HEADING.findall(text)}


def outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    """Change the text of a page, but none of its code blocks."""
    parts: list[str] = []
    end = 0
    for fence in _FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(markdown[end:])])
