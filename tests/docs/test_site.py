"""The site builds strictly, says what the configuration says, and asks nothing of other hosts."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from functools import cache
from pathlib import Path

import cards
import configuration
import nbformat
import pytest
import torch
from docstrings import in_markdown
from links import leaving
from mkdocs.commands.build import build
from mkdocs.config import load_config
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from omegaconf import DictConfig, OmegaConf
from site_hook import notebook_page

from kif_lightning.kif import AdaptiveRule

ROOT = configuration.ROOT
DOCS = ROOT / "docs"
YAMLS = sorted(configuration.CONF.rglob("*.yaml"))
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
SVG = "{http://www.w3.org/2000/svg}"


@cache
def generated() -> dict[str, str]:
    return configuration.pages()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` does: any warning, a broken link or anchor too, ends it."""
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def test_every_page_is_built(site: Path) -> None:
    expected = {p.relative_to(DOCS).with_suffix(".html") for p in DOCS.rglob("*.md")}
    expected |= {Path(page).with_suffix(".html") for page in generated()}
    assert {page for page in expected if not (site / page).is_file()} == set()
    assert not (site / "hooks").exists()


def test_nothing_is_loaded_from_other_hosts(site: Path) -> None:
    tags = r"<(?:script|img|iframe)[^>]*src|<link[^>]*href"
    loaded = re.compile(rf"(?:{tags})=\"?(?:https?:)?//[^\s>]+")
    found = [m[0] for p in site.rglob("*.html") for m in loaded.finditer(p.read_text("utf-8"))]
    assert found == []


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")
def test_the_search_works_from_the_disk(site: Path, tmp_path: Path) -> None:
    """There the theme's own way, a Worker, is forbidden: assets/iframe-worker.js stands in."""
    asked = f"{(site / 'index.html').as_uri()}?q=orthonormality"
    shown = subprocess.run(
        [
            *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--virtual-time-budget=20000", "--host-resolver-rules=MAP * ~NOTFOUND"),
            *(f"--user-data-dir={tmp_path}", asked),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert 'class="md-search-result__item"' in shown.stdout


def test_the_reference_shows_keys_with_their_words(site: Path) -> None:
    page = (site / "configuration" / "method-slots.html").read_text("utf-8")
    assert "<code>method.rule.tau</code>" in page
    assert "optimizer steps between two looks" in page, "a yaml's comment"
    assert "mu, at least 0" in page, "a docstring's words, where the yaml has none"


def test_every_group_and_option_is_in_the_reference() -> None:
    folders = {p.parent.relative_to(configuration.CONF).as_posix() for p in YAMLS}
    assert folders - set(configuration.GROUPS) == {".", "method", "method/ablation"}
    pages = generated()
    for group in configuration.GROUPS:
        for option in configuration.options_of(group):
            name = configuration.anchor(group, option.path.stem)
            assert f"{{ #{name} }}" in pages[configuration.page_of(group)]


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_no_key_is_missed(path: Path) -> None:
    loaded = OmegaConf.load(path)
    assert isinstance(loaded, DictConfig)
    loaded.pop("defaults", None)

    def leaves(node: object, above: str = "") -> set[str]:
        if not isinstance(node, dict) or not node:
            return {above} if above else set()
        return {k for key, n in node.items() for k in leaves(n, f"{above}.{key}".lstrip("."))}

    whole = leaves(OmegaConf.to_container(loaded, resolve=False))
    keys = {".".join(key.path) for key in configuration.read_option(path).keys}
    # A mapping in braces is one value of the table.
    assert {
        leaf for leaf in whole if not any(f"{leaf}.".startswith(f"{k}.") for k in keys)
    } == set()
    assert keys <= {leaf[:end] for leaf in whole for end in [*cuts(leaf), len(leaf)]}


def cuts(name: str) -> list[int]:
    return [match.start() for match in re.finditer(r"\.", name)]


def test_comments_belong_to_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(
        "# @package _global_\n# What it is.\ndefaults: [a, b: c]\n"
        'one: "#1"     # first\n             # and more\ntwo: {x: 1}\n'
        "three:   # of three\n  four: 4 # fourth\n"
    )
    option = configuration.read_option(path)
    assert option.header == ("@package _global_", "What it is.")
    assert [(".".join(k.path), k.value, k.comment) for k in option.keys] == [
        ("one", '"#1"', "first and more"),
        ("two", "{x: 1}", ""),
        ("three", "", "of three"),
        ("three.four", "4", "fourth"),
    ]


def test_every_method_has_a_card() -> None:
    written = {page.stem for page in (DOCS / "methods").glob("*.md")}
    assert written == {*cards.method_files(), "index", "ablations"}
    text = (DOCS / "methods" / "ablations.md").read_text("utf-8")
    ablations = [path.stem for path in cards.ABLATIONS.glob("*.yaml")]
    assert [name for name in ablations if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", cards.method_files())
def test_a_card_says_what_the_others_say(name: str) -> None:
    text = (DOCS / "methods" / f"{name}.md").read_text("utf-8")
    assert text.startswith(f"# {name}\n")
    for part in ("How we read it", "When to use", "Known limits", "experiments/all_methods"):
        assert part in text, part


def test_a_cards_facts_are_those_of_a_run() -> None:
    facts = cards.facts(cards.read_method("kif_full"))
    assert "`adapter=full`" in facts
    assert "`rule=adaptive`" in facts, "of the yaml it inherits"
    full = OmegaConf.load(configuration.CONF / "optim" / "adamw.yaml").lr_factors.full
    assert f"| Insists on | `lr_factor={full}` |" in facts, "resolved"


def test_links_out_of_the_site(tmp_path: Path) -> None:
    docs, page = tmp_path / "docs", tmp_path / "docs" / "a" / "page.md"
    page.parent.mkdir(parents=True)
    (tmp_path / "README.md").write_text("# Top\n\n## Some `code` here\n")
    text = (
        "[read](../../README.md#some-code-here) [gone](../../gone.md) [no](../../README.md#none) "
        "[in](../b.md) [named](../../README.md 'The top') [lost](../../lost.md \"Gone\")\n\n"
        "```text\n[kept](../../gone.md)\n```\n"
    )
    changed, wrong = leaving(text, page, docs, tmp_path, None)
    assert changed.startswith("read (`README.md`) gone (`gone.md`)")
    assert "[in](../b.md) named (`README.md`) lost (`lost.md`)" in changed
    assert "[kept](../../gone.md)" in changed
    told = zip(("gone.md", "no such heading", "lost.md"), wrong, strict=True)
    assert all(words in sentence for words, sentence in told)
    linked, _ = leaving(text, page, docs, tmp_path, "https://host/")
    assert "[read](https://host/README.md#some-code-here)" in linked
    assert "[named](https://host/README.md 'The top')" in linked


def test_a_notebook_becomes_a_page_with_its_outputs(tmp_path: Path) -> None:
    png = base64.b64encode(b"\x89PNG and so on").decode()
    cell = new_code_cell("6 * 7", execution_count=1)
    cell.outputs = [
        new_output("execute_result", data={"text/plain": "42"}, execution_count=1),
        new_output("display_data", data={"image/png": png}),
    ]
    path = tmp_path / "some.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Title"), cell]), path)
    made = notebook_page(path, "some.md")
    (picture,) = set(made) - {"some.md"}
    assert str(made["some.md"]).startswith("# Title")
    assert "6 * 7" in str(made["some.md"])
    assert "42" in str(made["some.md"])
    assert picture in str(made["some.md"])
    assert bytes(made[picture]).startswith(b"\x89PNG")


def test_docstrings_are_made_markdown() -> None:
    assert in_markdown("See :class:`Rule`, a step::\n\n    x") == "See `Rule`, a step:\n\n    x"


@pytest.mark.parametrize("path", sorted(DOCS.glob("pictures/*.svg")), ids=lambda path: path.stem)
def test_a_picture_is_shown_told_and_whole_in_itself(path: Path) -> None:
    root = ElementTree.fromstring(path.read_text("utf-8"))  # noqa: S314 - our own file
    assert root.findtext(f"{SVG}title")
    assert root.findtext(f"{SVG}desc")
    shown = re.findall(rf"!\[(.+)\]\(pictures/{path.name}\)", (DOCS / "concepts.md").read_text())
    assert len(shown) == 1, "with words for those who do not see it"
    assert not re.search(r"href|url\((?!#)|<script", path.read_text("utf-8"))


def test_the_curves_are_those_of_the_rule() -> None:
    root = ElementTree.parse(DOCS / "pictures" / "adaptive.svg").getroot()  # noqa: S314
    curves = root.findall(f"{SVG}polyline")
    assert len(curves) == 4
    left, right, bottom, top = 80.0, 560.0, 300.0, 40.0
    for curve in curves:
        tau = float(curve.attrib["id"].removeprefix("tau-"))
        points = [tuple(map(float, p.split(","))) for p in curve.attrib["points"].split()]
        x, y = torch.tensor(points, dtype=torch.float64).unbind(1)
        difference = (x - left) / (right - left) * 2 - 1
        expected = AdaptiveRule(tau=tau)(difference.clamp(min=0), (-difference).clamp(min=0))
        torch.testing.assert_close((bottom - y) / (bottom - top), expected, atol=1e-4, rtol=0)
