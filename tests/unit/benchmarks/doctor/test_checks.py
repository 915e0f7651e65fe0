"""A planted defect is found, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kif_lightning.benchmarks.doctor import (
    Finding,
    checks,
    examine,
    labels,
    report_json,
    texts,
    within,
)
from kif_lightning.benchmarks.rows import write_arrow
from kif_lightning.benchmarks.table import RowTable
from kif_lightning.interfaces import Row, SourceTask, Split
from tests.helpers.defects import LABELS, Draft, row, spoilt

Spoil = Callable[[Draft], None]


def change(split: str, place: int, **texts: str) -> Spoil:
    return lambda draft: draft.change(split, place, **texts)


def add(split: str, *rows: Row) -> Spoil:
    return lambda draft: draft.splits[split].extend(rows)


def relabel(words: dict[str, str], *splits: str) -> Spoil:
    return lambda draft: draft.relabel(words, *splits)


def without(split: str) -> Spoil:
    return lambda draft: draft.splits.pop(split) and None


def emptied(split: str) -> Spoil:
    return lambda draft: draft.splits[split].clear()


def unreadable(split: str, *problems: str) -> Spoil:
    return lambda draft: draft.problems.update({split: problems})


def one_class(draft: Draft) -> None:
    draft.relabel({"square": "round"})


def many_answers(draft: Draft) -> None:
    for place in range(30):
        draft.change("train", place, output=f"shape number {place}")


def imbalanced(draft: Draft) -> None:
    extra = [row(f"more{i}", f"What shape has thing more {i}?") for i in range(200)]
    draft.splits["train"].extend(extra)


def halved(draft: Draft) -> None:
    for split, rows in draft.splits.items():
        for place in range(0, len(rows), 4):
            draft.change(split, place, output="Round.")


def other_prompt(draft: Draft) -> None:
    start = "Tell the shape of what is described in this paragraph:"
    for place, old in enumerate(draft.splits["train"]):
        draft.change("train", place, input=f"{start} {old.input}")
    for place, old in enumerate(draft.splits["dev"]):
        draft.change("dev", place, input=f"{start} {old.input}")


def states(draft: Draft) -> None:
    draft.relabel({"round": "shape=round; size=small", "square": "none"})


STATES = {"kind": "dialogue_state", "closed_answers": False}
OPEN = {"kind": "generation", "closed_answers": False}
TRAIN_0 = "What shape has thing train 0?"
TEST_0 = "What shape has thing test 0?"
DEV_0 = "What shape has thing dev 0?"

# check, split, severity, count, of, what must stand in the message, spoils, settings
PLANTED = [
    ("missing_split", "test", "error", 0, 0, "no test split", [without("test")], {}),
    ("missing_split", "train", "error", 0, 0, "no train split", [without("train")], {}),
    ("empty_split", "train", "error", 0, 0, "holds no row", [emptied("train")], {}),
    ("empty_split", "dev", "warning", 0, 0, "holds no row", [emptied("dev")], {}),
    ("unreadable_row", "test", "error", 2, 22, "2 of 22", [unreadable("test", "one", "two")], {}),
    ("blank_input", "train", "error", 1, 40, "1 of 40", [change("train", 3, input=" \n")], {}),
    ("blank_input", "dev", "warning", 1, 10, "1 of 10", [change("dev", 3, input="")], {}),
    ("blank_output", "test", "error", 1, 20, "1 of 20", [change("test", 3, output="")], {}),
    ("blank_output", "train", "error", 1, 40, "blank", [change("train", 3, output=" ")], OPEN),
    (
        "short_label",
        None,
        "warning",
        2,
        2,
        "'r', 's'",
        [relabel({"round": "r", "square": "s"})],
        {},
    ),
    ("short_label", None, "warning", 1, 2, "'r.'", [relabel({"round": "r."})], {}),
    ("prefix_label", None, "warning", 1, 2, "round", [relabel({"square": "Rounded"})], {}),
    (
        *("damaged_label", None, "warning", 1, 2, "squÃ©"),
        *([relabel({"square": "squÃ©"})], {}),
    ),
    (
        *("indistinct_labels", None, "error", 2, 3, "'Round.', 'round'"),
        *([halved], {}),
    ),
    (
        *("class_missing", "test", "warning", 1, 2, "square"),
        *([relabel({"square": "round"}, "test")], {}),
    ),
    (
        *("class_missing", "test", "error", 1, 3, "oval"),
        *([change("test", 0, output="oval")], {}),
    ),
    (
        *("class_missing", "dev", "note", 1, 2, "square"),
        *([relabel({"square": "round"}, "dev")], {}),
    ),
    (
        *("class_missing", "dev", "warning", 1, 3, "oval"),
        *([change("dev", 0, output="oval")], {}),
    ),
    ("single_class", "train", "warning", 1, 1, "round", [one_class], {}),
    ("imbalance", "train", "warning", 2, 2, "220", [imbalanced], {}),
    ("suspicious_class_count", "train", "warning", 32, 40, "32", [many_answers], {}),
    (
        *("malformed_state", "test", "error", 1, 20, "slot=value"),
        *([states, change("test", 0, output="Paris")], STATES),
    ),
    (
        *("conflicting_rows", "train", "warning", 2, 41, "at most one"),
        *([add("train", row("other", TRAIN_0, "square"))], {}),
    ),
    (
        *("conflicting_rows", "train", "note", 2, 41, "another output"),
        *([add("train", row("other", TRAIN_0, "square"))], OPEN),
    ),
    ("duplicate_rows", "train", "warning", 1, 41, "1 of 41", [add("train", row("b", TRAIN_0))], {}),
    (
        *("duplicate_rows", "train", "note", 1, 241, "1 of 241"),
        *(
            [imbalanced, relabel({"round": "square"}), add("train", row("b", TRAIN_0, "square"))],
            OPEN,
        ),
    ),
    ("train_test_overlap", "test", "error", 1, 20, "train", [change("test", 0, input=TRAIN_0)], {}),
    ("train_dev_overlap", "dev", "warning", 1, 10, "train", [change("dev", 0, input=TRAIN_0)], {}),
    ("dev_test_overlap", "dev", "warning", 1, 10, "tuning", [change("dev", 0, input=TEST_0)], {}),
    ("reused_id", "train", "warning", 1, 40, "1 of 40", [change("train", 7, id="train0")], {}),
    ("mojibake", "train", "warning", 1, 40, "1 of 40", [change("train", 7, input="cafÃ©?")], {}),
    ("mojibake", "train", "warning", 1, 40, "1 of 40", [change("train", 7, output="cafÃ©")], OPEN),
    ("mojibake", "test", "warning", 1, 20, "1 of 20", [change("test", 7, input="so\x85 on?")], {}),
    (
        *("mojibake", "train", "note", 1, 240, "1 of 240"),
        *([imbalanced, change("train", 7, input="dâ€™accord")], OPEN),
    ),
    (
        "lost_character",
        "train",
        "warning",
        1,
        40,
        "U+FFFD",
        [change("train", 7, input="a\ufffd")],
        {},
    ),
    (
        "control_character",
        "train",
        "note",
        1,
        40,
        "1 of 40",
        [change("train", 7, input="a\x08")],
        {},
    ),
    ("prompt_differs", "test", "warning", 20, 20, "40 of 40", [other_prompt], {}),
]


@pytest.mark.parametrize(
    ("check", "split", "severity", "count", "of", "part", "spoils", "settings"),
    PLANTED,
    ids=[f"{p[0]}-{p[1]}-{p[2]}" for p in PLANTED],
)
def test_a_planted_defect_is_all_that_is_found(
    check: str,
    split: str | None,
    severity: str,
    count: int,
    of: int,
    part: str,
    spoils: list[Spoil],
    settings: dict,
) -> None:
    found = examine(spoilt(*spoils, **settings)).findings
    assert [f.check for f in found] == [check]
    finding = found[0]
    assert (finding.task, finding.split, finding.severity) == ("shapes", split, severity)
    assert (finding.count, finding.of) == (count, of)
    assert part in finding.message
    assert re.fullmatch(r"[A-Z0-9a-z].*[.?]", finding.message)
    assert len(finding.examples) <= 3


def test_every_check_is_planted() -> None:
    named = re.compile(r'^ *(?:check=|\(|\*\()?"([a-z]+(?:_[a-z]+)+|mojibake|imbalance)",', re.M)
    sources = [Path(m.__file__ or "").read_text() for m in (checks, labels, within)]
    known = set(named.findall("\n".join(sources))) | {"long_input", "long_output"}
    # These two are planted below.
    assert known - {p[0] for p in PLANTED} == {"long_input", "long_output"}


@pytest.mark.parametrize("settings", [{}, OPEN], ids=["closed", "open"])
def test_nothing_is_said_against_clean_rows(settings: dict) -> None:
    texts = (
        "Ist das Ägäische Meer größer? “Ja” – für 5 €… “So viel”, sagt É.",  # noqa: RUF001
        "À la carte; où est-ce? Ça va à Évry, à côté.",
        "日本語のテキスト。",
        "В Москве и в Ёлках.",  # noqa: RUF001
        "naïve café 100 °C ± 5\xa0%",
        "two\r\nlines\tand a tab",
    )
    spoils = [change("train", place, input=text) for place, text in enumerate(texts)]
    assert examine(spoilt(*spoils, **settings)).findings == ()


def test_letters_are_the_answers_of_multiple_choice() -> None:
    task = spoilt(relabel({"round": "A", "square": "B"}), kind="multiple_choice")
    assert examine(task).findings == ()


def test_examples_lead_to_the_rows() -> None:
    task = spoilt(
        change("dev", 4, input=TEST_0),
        add("train", row("again", TRAIN_0)),
        change("train", 5, input=f"{'x' * 300} cafÃ© {'y' * 300}"),
        change("train", 6, input="\x07 bell"),
    )
    examples = {f.check: f.examples for f in examine(task).findings}
    assert examples["dev_test_overlap"] == ("dev4, as test0",)
    assert examples["duplicate_rows"] == ("again, as train0",)
    (damage,) = examples["mojibake"]
    assert damage.startswith("train5: ...")
    assert "cafÃ©" in damage
    assert len(damage) < 100
    assert examples["control_character"] == (r"train6: '\x07 bell'",), "not to the terminal as is"


def test_at_most_three_examples() -> None:
    task = spoilt(*(change("train", place, output="") for place in range(5)))
    (finding,) = examine(task).findings
    assert finding.count == 5
    assert finding.examples == ("train0", "train1", "train2")


def test_all_unreadable_rows_are_counted_though_few_are_told() -> None:
    def spoil(draft: Draft) -> None:
        draft.problems["train"] = ("line 1", "line 2", "line 3", "line 4")
        draft.num_problems["train"] = 5000

    (finding,) = examine(spoilt(spoil)).findings
    assert (finding.count, finding.of) == (5000, 5040)
    assert finding.message.startswith("5000 of 5040 rows of train cannot be read")
    assert finding.examples == ("line 1", "line 2", "line 3")


def test_a_split_without_any_readable_row() -> None:
    told = examine(spoilt(emptied("train"), unreadable("train", "line 1"))).findings
    assert [f.check for f in told] == ["unreadable_row", "empty_split"]
    assert told[1].message == "train holds no row that can be read."


def test_a_missing_test_split_may_be_for_want_of_inputs() -> None:
    (finding,) = examine(spoilt(without("test"))).findings
    assert "no test split, given or held out of train" in finding.message
    assert "enough different inputs" in finding.message


def damaged(number: int, sound: int) -> SourceTask:
    """Rows that all may be damaged, and some are."""
    draft = Draft()
    fill = "A pond, then, as far as we know. " * 30
    draft.splits["train"] = [
        row(f"r{i}", f"{i}: {'cafÃ©' if i % (number + sound) < number else 'CAFÉ…'} {fill}")
        for i in range(2000)
    ]
    draft.relabel({"round": "square"}, "dev", "test")
    return draft.task()


def test_of_many_suspect_rows_a_seeded_sample_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    real = texts.is_damaged
    monkeypatch.setattr(texts, "is_damaged", lambda text: looked.append(len(text)) or real(text))
    found = examine(damaged(1, 3)).findings
    (finding,) = [f for f in found if f.check == "mojibake"]
    assert 380 < finding.count < 620, "a quarter of 2000, six standard errors wide"
    assert finding.message.startswith(f"About {finding.count} of 2000 rows of train hold")
    assert "estimated from 500 rows" in finding.message
    assert "cafÃ©" in finding.examples[0]
    assert sum(looked) <= 500 * 4 * 500, "of 2 million characters"
    assert examine(damaged(1, 3)).findings == found


def test_of_few_suspect_rows_each_is_looked_at() -> None:
    def spoil(draft: Draft) -> None:
        draft.splits["train"] = [row(f"r{i}", f"cafÃ© {i}?") for i in range(500)]

    found = examine(spoilt(spoil)).findings
    (finding,) = [f for f in found if f.check == "mojibake"]
    assert (finding.count, finding.of) == (500, 500)
    assert "stimated" not in finding.message


def test_damage_is_found_late_in_a_long_text() -> None:
    text = f"{'word ' * 2000} CAFÉ… {'word ' * 2000} cafÃ© {'word ' * 2000}"
    (finding,) = examine(spoilt(change("train", 3, input=text))).findings
    assert (finding.check, finding.count) == ("mojibake", 1)


def test_splits_are_summed_up() -> None:
    report = examine(spoilt(change("train", 0, output=""), change("train", 2, input=TRAIN_0)))
    train = report.splits["train"]
    assert (train.rows, train.distinct_inputs, train.distinct_outputs) == (40, 39, 2)
    assert train.classes == {"round": 19, "square": 20}
    texts = spoilt().splits["test"].rows
    assert report.splits["test"].bytes == sum(len(r.input) + len(r.output) for r in texts)
    assert examine(spoilt(**OPEN)).splits["train"].classes is None


def test_many_answers_are_counted_though_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kif_lightning.benchmarks.doctor.scan.MOST_LABELS", 5)
    report = examine(spoilt(many_answers))
    assert [f.check for f in report.findings] == ["suspicious_class_count"]
    assert report.findings[0].count == 32


def test_rows_in_arrow_are_read_as_others(tmp_path: Path) -> None:
    task = spoilt(change("dev", 4, input=TEST_0), change("train", 5, input="cafÃ©"))
    splits = {}
    for name, split in task.splits.items():
        write_arrow(tmp_path / f"{name}.arrow", iter(split.rows))
        splits[name] = Split(rows=RowTable.mapped(tmp_path / f"{name}.arrow"), sha256="")
    stored = SourceTask(
        name="shapes",
        kind="classification",
        metric="exact_match",
        splits=splits,
        closed_answers=True,
    )
    assert examine(stored) == examine(task)
    assert len(examine(task).findings) == 2


class Words:
    """A backbone that takes so many words."""

    max_source_tokens = 40
    max_target_tokens = 20

    def __init__(self) -> None:
        self.asked: list[str] = []

    def count(self, row: Row) -> tuple[int, int]:
        self.asked.append(row.id)
        return len(row.input.split()), len(row.output.split())


def long_rows(task: SourceTask) -> tuple[list[Finding], Words]:
    counter = Words()
    return list(examine(task, count_tokens=counter).findings), counter


def test_what_fits_is_no_finding_and_is_not_counted_if_it_is_short() -> None:
    found, counter = long_rows(spoilt(change("train", 0, input="word " * 40)))
    assert found == []
    assert counter.asked == ["train0"]


def test_long_inputs_are_a_note_if_few_and_a_warning_if_many() -> None:
    def lengthened(number: int) -> SourceTask:
        return spoilt(
            *(change("train", i, input=f"{i} {'word ' * (40 + i)}") for i in range(number))
        )

    (few,), _ = long_rows(lengthened(1))
    assert (few.check, few.split, few.severity, few.count) == ("long_input", "train", "note", 1)
    assert few.examples == ("train0: 41 tokens",)
    (many,), _ = long_rows(lengthened(2))
    assert (many.severity, many.count, many.of) == ("warning", 2, 40)
    assert "2 of 40 rows of train have an input of more than 40 tokens" in many.message
    assert "estimated" not in many.message


def test_long_outputs_are_a_warning() -> None:
    task = spoilt(change("test", 3, output="word " * 21), **OPEN)
    (finding,), _ = long_rows(task)
    assert (finding.check, finding.severity, finding.count) == ("long_output", "warning", 1)
    assert finding.examples == ("test3: 21 tokens",)


def test_of_many_long_rows_a_seeded_sample_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kif_lightning.benchmarks.doctor.scan.SAMPLE_ROWS", 200)
    draft = Draft()
    draft.splits["train"] = [
        row(f"r{i}", f"{i} {'word ' * (50 if i % 4 == 0 else 20)}", LABELS[i % 2])
        for i in range(2000)
    ]
    found, counter = long_rows(draft.task())
    finding = next(f for f in found if f.check == "long_input" and f.split == "train")
    sampled = [name for name in counter.asked if name.startswith("r")]
    assert len(set(sampled)) == len(sampled) == 200
    assert 350 < finding.count < 650, "a quarter of 2000, five standard errors wide"
    assert finding.message.startswith("About ")
    assert "estimated from 200 rows" in finding.message
    assert long_rows(draft.task())[1].asked == counter.asked
    late = sum(int(name[1:]) >= 1000 for name in sampled)
    assert 65 < late < 135, "from the whole split"


def test_the_report_is_plain_json_with_errors_first() -> None:
    bad = examine(spoilt(change("dev", 0, input=TEST_0), change("test", 3, output="")))
    report = report_json([bad, examine(spoilt())])
    assert json.loads(json.dumps(report)) == report
    assert report["schema_version"] == 1
    assert [task["name"] for task in report["tasks"]] == ["shapes", "shapes"]
    assert [f["severity"] for f in report["findings"]] == ["error", "warning"]
    assert report["counts"] == {"error": 1, "warning": 1, "note": 0}
    assert report["tasks"][0]["splits"]["dev"]["classes"] == {"round": 5, "square": 5}


def test_no_report_of_nothing() -> None:
    assert report_json([]) == {
        "schema_version": 1,
        "tasks": [],
        "findings": [],
        "counts": {"error": 0, "warning": 0, "note": 0},
    }
