"""Freely licensed general English from distribution packages, as one text a line.

python general.py FOLDER general.txt      (FOLDER: where the packages were unpacked)
"""

from __future__ import annotations

import gzip
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from kif_lightning.benchmarks.mini.lexicon import FUNCTION_WORDS, entries
from kif_lightning.benchmarks.mini.tasks import TASKS

LONGEST = 420  # characters of a text


def wordnet(root: Path) -> Iterator[str]:
    """Each synset's words and gloss, then its example sentences."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (root / f"usr/share/wordnet/data.{part}").read_text().splitlines():
            if line.startswith("  ") or " | " not in line:
                continue
            record, gloss = line.split(" | ", 1)
            fields = record.split()
            words = [fields[4 + 2 * i] for i in range(int(fields[3], 16))]
            names = ", ".join(word.replace("_", " ").split("(")[0] for word in words)
            yield f"{names}: {gloss.strip().replace(chr(34), '')}"


def dictionary(root: Path, name: str) -> Iterator[str]:
    """Paragraphs of a dictd dictionary (its compression is gzip's)."""
    with gzip.open(root / f"usr/share/dictd/{name}.dict.dz", "rt", errors="replace") as file:
        yield from re.split(r"\n\s*\n", file.read())


def python_documentation(root: Path) -> Iterator[str]:
    """Paragraphs of prose; code, tables and markup lines are left out."""
    for path in sorted(root.glob("usr/share/doc/python3.11-doc/html/_sources/**/*.rst.txt")):
        for paragraph in re.split(r"\n\s*\n", path.read_text(errors="replace")):
            if paragraph.startswith((" ", "\t", "..", ">>>", "+", "=", "*", "-", "|")):
                continue
            text = re.sub(r":[\w:.+-]+:`[!~.]?([^`<]*)[^`]*`", r"\1", paragraph)
            yield re.sub(r"[`*_]{1,2}", "", text)


def is_prose(text: str) -> bool:
    """Mostly letters, long enough to say something."""
    letters = sum(character.isalpha() or character == " " for character in text)
    return len(text.split()) >= 4 and letters > 0.85 * len(text)


def leaks(text: str) -> bool:
    """Whether a text has any form of a task's prompt, or a lexicon entry of several words."""
    plain = f" {' '.join(re.findall(r'[a-z]+', text.lower()))} "
    return any(f" {phrase} " in plain for phrase in PHRASES)


def _phrases() -> set[str]:
    """Instructions and lexicon entries of several words (frames: what stands between gaps)."""
    texts = [*(task.instruction for task in TASKS), *entries(), "choose one"]
    found = set()
    for text in texts:
        pieces = re.split(r"{\w+}", text.lower())
        for piece in pieces:
            words = re.findall(r"[a-z]+", piece)
            if len(words) > (1 if len(pieces) == 1 else 2) and not FUNCTION_WORDS.issuperset(words):
                found.add(" ".join(words))
    return found


PHRASES = _phrases()


def main(root: Path, target: Path) -> None:
    sources = {
        "wordnet": wordnet(root),
        "devil": dictionary(root, "devil"),
        "jargon": dictionary(root, "jargon"),
        "python documentation": python_documentation(root),
    }
    with target.open("w", encoding="utf-8") as file:
        for name, texts in sources.items():
            kept = [
                piece
                for text in texts
                for piece in pieces(" ".join(text.split()))
                if is_prose(piece) and not leaks(piece)
            ]
            file.writelines(f"{text}\n" for text in kept)
            print(f"{name}: {len(kept):,} texts, {sum(len(t.split()) for t in kept):,} words")


def pieces(text: str) -> Iterator[str]:
    """A long paragraph cut between sentences."""
    piece = ""
    for sentence in re.split(r"(?<=[.;!?]) ", text):
        if piece and len(piece) + len(sentence) > LONGEST:
            yield piece
            piece = ""
        piece = f"{piece} {sentence}".strip()
    yield piece[: 2 * LONGEST]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
