"""Makes ``words.json``: the lexicon of the pretraining sentences, from WordNet.

    python lexicon.py FOLDER      (FOLDER: WordNet's dict folder, with cntlist.rev)

Common single words by WordNet's own topic files, without any content word of the bundled stream.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from kif_lightning.benchmarks.mini.lexicon import FUNCTION_WORDS, held_out_words

TOPICS = {
    "creature": "1:05", "thing": "1:06", "food": "1:13", "place": "1:15", "person": "1:18",
    "growing thing": "1:20", "substance": "1:27", "feeling": "1:12", "quality": "3:00",
}  # fmt: skip
LIMIT = 160
PLENTY = {"noun": 5000, "adj": 2500, "verb": 400}  # so many of each, whatever their topic


def forms(word: str) -> set[str]:
    """A word and its plain inflections."""
    return {word, word + "s", word + "es", word + "ed", word + "d", word + "ing", word + "er"}


def main(folder: Path) -> None:
    held_out = held_out_words()
    counts: dict[str, Counter[str]] = {topic: Counter() for topic in TOPICS}
    total: Counter[str] = Counter()
    for line in (folder / "cntlist.rev").read_text().splitlines():
        key, _, count = line.split()
        word, sense = key.split("%")
        total[word] += int(count)
        for topic, prefix in TOPICS.items():
            if sense.startswith(prefix):
                counts[topic][word] += int(count)
    lexicon = {}
    for topic, found in counts.items():
        words = [
            word
            for word, count in found.most_common()
            if word.isalpha()
            and 2 < len(word) < 12
            and not forms(word) & held_out
            and word.rstrip("s") not in held_out
            and word not in FUNCTION_WORDS
            and count >= 2
            and count >= total[word] / 3  # mostly used in this sense
        ]
        lexicon[topic] = sorted(words[:LIMIT])
    plenty = {part: common(folder, part, total, held_out) for part in PLENTY}
    for name, content in (("words", lexicon), ("plenty", plenty)):
        Path(__file__).with_name(f"{name}.json").write_text(json.dumps(content, indent=0) + "\n")


def common(folder: Path, part: str, total: Counter[str], held_out: frozenset[str]) -> list[str]:
    """The commonest plain words of a part of speech; verbs: with a regular past tense."""
    lines = (folder / f"index.{part}").read_text().splitlines()
    words = [line.split()[0] for line in lines if not line.startswith(" ")]
    irregular = {line.split()[1] for line in (folder / f"{part}.exc").read_text().splitlines()}
    kept = [
        word
        for word in words
        if word.isalpha()
        and 2 < len(word) < 12
        and not forms(word) & held_out
        and word.rstrip("s") not in held_out
        and word not in FUNCTION_WORDS
        and not (part == "verb" and (word in irregular or past(word) in held_out | {""}))
    ]
    kept.sort(key=lambda word: (-total[word], word))
    return [f"{w} {past(w)}" if part == "verb" else w for w in kept[: PLENTY[part]]]


def past(verb: str) -> str:
    """Past tense where the spelling is plain, else nothing."""
    if verb.endswith("e"):
        return f"{verb}d"
    hard = "bcdfghklmnprst"
    return f"{verb}ed" if verb[-1] in hard and verb[-2] in hard else ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
