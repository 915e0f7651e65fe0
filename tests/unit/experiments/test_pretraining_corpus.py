"""What ``t5_nano`` was pretrained on holds nothing of the bundled stream's rows."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest

from kif_lightning.benchmarks.mini.lexicon import (
    FUNCTION_WORDS,
    SYLLABLES,
    entries,
    held_out_words,
)
from kif_lightning.benchmarks.mini.tasks import TASKS

FOLDER = Path(__file__).parents[3] / "experiments" / "pretrain_t5_nano"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)


def generated(seed: int, number: int = 12_000) -> list[str]:
    from sentences import sentences, widen

    widen()
    return list(sentences(seed, number, framed=True))


FRAME_WORDS = set(
    "although answer ate but candidate cause confused effect known makes name one paragraph "
    "passage question sentence text though title we whose word yet".split()
)
"""What the grammars' frames say themselves: none of it tells an answer."""


def test_the_held_out_words_are_those_of_the_rows() -> None:
    random = Random(3)
    held_out = held_out_words()
    for task in TASKS:
        for i in range(100):
            body = task.draw(random, task.labels[i % len(task.labels)]).lower()
            left = set(re.findall(r"[a-z]+", body)) - held_out - FUNCTION_WORDS - FRAME_WORDS
            invented = {w for w in left if w[:3] in SYLLABLES and w[3:6] in SYLLABLES}
            assert left == invented, task.name


def test_generated_sentences_use_no_content_word_of_the_rows() -> None:
    held_out = held_out_words()
    for seed in (1, 2):
        found = {word for text in generated(seed) for word in re.findall(r"[a-z]+", text.lower())}
        assert len(found) > 5000
        assert not found & held_out


def test_generated_sentences_hold_no_prompt_and_no_phrase_of_the_rows() -> None:
    from general import leaks

    assert [text for text in generated(3) if leaks(text.replace("|", ""))] == []


def test_the_filter_of_general_english_finds_every_prompt_and_phrase() -> None:
    from general import leaks

    random = Random(1)
    for task in TASKS:
        for label in task.labels:
            assert leaks(f"He read: {task.prompt(random, label)} {label}")
            assert leaks(f"... {task.instruction.upper()} ...")
    phrases = [
        entry
        for entry in entries()
        if " " in entry and "{" not in entry and not FUNCTION_WORDS.issuperset(entry.split())
    ]
    assert len(phrases) > 100
    for phrase in phrases:
        assert leaks(f"Once upon a time, {phrase}; so they say."), phrase
    assert not leaks("The bank of a lake is where the land meets the water, more or less.")
