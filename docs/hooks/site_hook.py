"""What mkdocs calls: generated pages, method cards, the notebook, links out of the site."""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path

import cards
import configuration
import nbformat
from links import leaving
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

log = logging.getLogger("mkdocs.hooks.site_hook")
NOTEBOOKS = {"tutorial.md": "examples/tutorial.ipynb"}
"""Page -> the notebook it shows, outputs as they are saved in it."""
FILLED = {
    "<!-- methods -->": cards.method_list,
    "<!-- ablations -->": cards.ablation_list,
    "<!-- groups -->": configuration.group_list,
}
"""What a mark in a page is replaced by."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the configuration reference, and notebooks as pages."""
    for page, content in configuration.pages().items():
        files.append(File.generated(config, page, content=content))
    for page, notebook in NOTEBOOKS.items():
        for place, made in notebook_page(configuration.ROOT / notebook, page).items():
            files.append(File.generated(config, place, content=made))
    return files


def notebook_page(path: Path, page: str) -> dict[str, str | bytes]:
    """The notebook as Markdown, and its pictures, by place in the site."""
    notebook = nbformat.read(path, as_version=4)
    folder = f"{page.removesuffix('.md')}_files"
    resources = {"output_files_dir": folder, "unique_key": path.stem}
    body, made = MarkdownExporter().from_notebook_node(notebook, resources=resources)
    # Its links are from its own folder; the page stands in docs/.
    docs = configuration.ROOT / "docs"
    body = re.sub(
        rf"\]\((?!\w+:|#|{folder}/)([^)#\s]+)",
        lambda link: f"]({posixpath.relpath(path.parent / link[1], docs)}",
        body,
    )
    pictures = {posixpath.normpath(name): data for name, data in made["outputs"].items()}
    return {page: body, **pictures}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what is generated, and see to the links that leave the site."""
    place = page.file.src_uri
    folder, _, name = place.rpartition("/")
    if folder == "methods":
        path = cards.method_files().get(name.removesuffix(".md"))
        if path is not None:
            markdown = cards.card(markdown, path)
    for mark, make in FILLED.items():
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    docs = Path(config.docs_dir)
    markdown, wrong = leaving(
        markdown, docs / place, docs, configuration.ROOT, config.extra.get("repository_files")
    )
    for sentence in wrong:
        log.warning(sentence)
    return markdown
