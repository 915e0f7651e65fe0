"""Writes every table and figure of the studies' READMEs and of the main one, from stored results.

python experiments/report.py            # writes
python experiments/report.py --check    # writes nothing; tells what differs, exit status 1

A study's ``report.py`` has two functions: ``blocks()``, name -> Markdown, which takes its place in
the study's README between ``<!-- NAME -->`` and ``<!-- end NAME -->``, and ``figures()``, name ->
figure, written to the study's ``figures/NAME.png``. The main README shows a study's block between
``<!-- STUDY/NAME -->`` and ``<!-- end STUDY/NAME -->``.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from claims import claims_tables
from matplotlib.figure import Figure
from PIL import Image

from kif_lightning.reporting.figures.style import styled
from kif_lightning.storage import replacing, write_text

EXPERIMENTS = Path(__file__).parent
BENCHMARKS = "benchmarks"
"""A study with tables of its own kind: table.py makes them."""
DOTS_PER_INCH = 150
MOST_BYTES = 150_000
PLACE = re.compile(r"<!-- ([^>]+) -->\n(.*?)<!-- end \1 -->", re.DOTALL)


def load(path: Path) -> ModuleType:
    """A script as a module under a name of its own: several are called report.py."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def benchmark_tables(folder: Path) -> tuple[str, str]:
    """For the benchmarks' own README and for the main one."""
    sys.path.insert(0, str(folder))
    made = load(folder / "table.py")
    sys.path.remove(str(folder))
    results = made.read_results(folder / "results")
    return made.markdown(results), made.markdown(results, targets_only=True)


def with_blocks(text: str, blocks: Mapping[str, str], where: str) -> tuple[str, list[str]]:
    """The text with each block between its two marks, and the names of those that were others.

    Args:
        text: a README.
        blocks: name -> Markdown.
        where: the README in words, for the message.

    Raises:
        SystemExit: a block has no place, or a place no block.
    """
    places = [found[1] for found in PLACE.finditer(text)]
    for name in blocks:
        if places.count(name) != 1:
            raise SystemExit(
                f"{where} must have <!-- {name} --> and then <!-- end {name} -->, once each: put "
                "them there."
            )
    for name in places:
        if name not in blocks:
            raise SystemExit(f"{where} has a place for {name}, which no report makes: remove it.")
    differing = []

    def put(found: re.Match[str]) -> str:
        name, old = found.groups()
        new = f"{blocks[name].strip()}\n"
        if new != old:
            differing.append(name)
        return f"<!-- {name} -->\n{new}<!-- end {name} -->"

    return PLACE.sub(put, text), differing


def png(figure: Figure, name: str) -> bytes:
    """The picture, with nothing in it that changes from one time to the next.

    Raises:
        SystemExit: it is larger than a repository should keep.
    """
    drawn, kept = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DOTS_PER_INCH)
    # 256 colours are enough, and a third of the bytes.
    few_colours = Image.open(drawn).convert("RGB").quantize(dither=Image.Dither.NONE)
    few_colours.save(kept, "png", optimize=True)
    picture = kept.getvalue()
    if len(picture) > MOST_BYTES:
        raise SystemExit(
            f"Expected a figure of at most {MOST_BYTES:,} bytes, got {name} with "
            f"{len(picture):,}: make it smaller."
        )
    return picture


def report(experiments: Path, readme: Path, *, check: bool) -> list[str]:
    """Write all blocks and figures, or only look at them.

    Args:
        experiments: the folder of all studies.
        readme: the main README.
        check: write nothing.

    Returns:
        What differs from what stood there; of figures only those that are missing.
    """
    differing: list[str] = []

    def settle(path: Path, blocks: Mapping[str, str]) -> None:
        where = path.relative_to(readme.parent).as_posix()
        text, others = with_blocks(path.read_text(encoding="utf-8"), blocks, where)
        differing.extend(f"{where}, block {name}" for name in others)
        if others and not check:
            write_text(path, text)

    shown_above = {found[1] for found in PLACE.finditer(readme.read_text(encoding="utf-8"))}
    full_claims, claims = claims_tables(experiments)
    settle(experiments / "README.md", {"claims": full_claims})
    above = {"claims": claims}
    for script in sorted(experiments.glob("*/report.py")):
        folder = script.parent
        if folder.name == BENCHMARKS:
            continue
        study = load(script)
        blocks = study.blocks()
        settle(folder / "README.md", blocks)
        named = {f"{folder.name}/{name}": block for name, block in blocks.items()}
        above |= {name: block for name, block in named.items() if name in shown_above}
        with styled():
            for name, figure in study.figures().items():
                path = folder / "figures" / f"{name}.png"
                if not path.is_file():
                    differing.append(path.relative_to(readme.parent).as_posix())
                if not check:
                    with replacing(path) as file:
                        file.write(png(figure, path.name))
    if (experiments / BENCHMARKS).is_dir():
        full, short = benchmark_tables(experiments / BENCHMARKS)
        settle(experiments / BENCHMARKS / "README.md", {BENCHMARKS: full})
        above[BENCHMARKS] = short
    settle(readme, above)
    return differing


def main() -> None:
    parser = argparse.ArgumentParser(description="Every table and figure, from stored results.")
    parser.add_argument("--check", action="store_true", help="write nothing, tell what differs")
    check = parser.parse_args().check
    differing = report(EXPERIMENTS, EXPERIMENTS.parent / "README.md", check=check)
    told = "is not what the results say: run make report" if check else "written anew"
    for name in differing:
        print(f"{name}: {told}")
    if check and differing:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
