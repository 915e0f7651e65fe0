"""Text scores: normalisations by hand, ROUGE-L against the rouge_score package."""

from __future__ import annotations

import pytest
from rouge_score.rouge_scorer import RougeScorer

from kif_lightning.errors import UserError
from kif_lightning.metrics import ExactMatch, JointGoalAccuracy, RougeL, TextScore
from kif_lightning.metrics.text import dialogue_state, normalise_answer

PAIRS = [
    ("the cat sat on the mat", "the cat sat on the mat"),
    ("The cats were running, quickly!", "a cat runs quick"),
    ("on the mat the cat sat", "the cat sat on the mat"),
    ("completely different", "no common word"),
    ("", "an empty prediction"),
    ("an empty reference", ""),
    ("one two three four five six", "one three two four six five seven"),
    ("naïve café 42", "naive cafe 42"),
    ("first line\nsecond line", "second line\nfirst line"),
    ("a a a b", "a b a b"),
]


@pytest.mark.parametrize(
    ("text", "sapt", "raw"),
    [
        ("Positive", "positive", "positive"),
        ("  World   News \n", "world news", "  world   news \n"),
        ("it's Sci/Tech.", "its scitech", "it's sci/tech."),
        ("very\t\nnegative - ", "very negative", "very\t\nnegative - "),
        ("ÄRGER", "ärger", "ärger"),
        ("...", "", "..."),
        ("", "", ""),
    ],
)
def test_normalisations(text: str, sapt: str, raw: str) -> None:
    assert normalise_answer(text) == sapt
    assert normalise_answer(text, "sapt") == sapt
    assert normalise_answer(text, "raw") == raw


@pytest.mark.parametrize(("normalisation", "rows"), [("sapt", [100, 100, 0]), ("raw", [100, 0, 0])])
def test_exact_match_counts_in_percent(normalisation: str, rows: list[float]) -> None:
    metric = ExactMatch(normalisation)  # type: ignore[arg-type]
    metric.update(["Good", "good."], ["good", "good"])
    metric.update(["bad"], ["good"])
    assert metric.row_scores() == rows
    assert metric.compute().item() == pytest.approx(sum(rows) / 3, rel=1e-14)


def test_exact_match_knows_its_normalisations() -> None:
    with pytest.raises(UserError, match="must be 'sapt' or 'raw', got 'squad'"):
        ExactMatch("squad")  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [1, 3, len(PAIRS)])
def test_rouge_l_equals_the_rouge_score_package(batch: int) -> None:
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    expected = [100 * scorer.score(target, pred)["rougeL"].fmeasure for pred, target in PAIRS]
    metric = RougeL()
    for start in range(0, len(PAIRS), batch):
        preds, targets = zip(*PAIRS[start : start + batch], strict=True)
        metric.update(preds, targets)
    assert metric.row_scores() == pytest.approx(expected, rel=1e-6)
    assert metric.compute().item() == pytest.approx(sum(expected) / len(expected), rel=1e-6)


HOTEL = "hotel-area=north; hotel-stars=4"


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        ("hotel-area=north; hotel-stars=4", True),
        ("hotel-stars=4; hotel-area=north", True),  # a set: the order is free
        ("Hotel-Area = North ;hotel-stars=  4;", True),
        ("hotel-area=north; hotel-area=north; hotel-stars=4", True),
        ("hotel-area=north", False),  # a slot is missing
        ("hotel-area=north; hotel-stars=4; hotel-wifi=yes", False),  # one too many
        ("hotel-area=north; hotel-stars=5", False),
        ("hotel-area=4; hotel-stars=north", False),
        ("hotel-area=north; hotel-stars=4; hotel-stars=5", False),  # two values
        ("hotel-area=north; hotel-stars=4; please", False),  # no state at all
        ("hotel-area=north; hotel-stars=4; =5", False),
        ("north 4", False),
        ("none", False),
        ("", False),
    ],
)
def test_a_turn_is_right_when_its_whole_state_is(prediction: str, right: bool) -> None:
    metric = JointGoalAccuracy()
    metric.update([prediction], [HOTEL])
    assert metric.row_scores() == [100.0 if right else 0.0]


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        ("none", True),
        ("None.", True),
        ("", True),
        ("  \n", True),
        ("nothing", False),
        ("a=b", False),
    ],
)
@pytest.mark.parametrize("reference", ["none", ""])
def test_the_state_without_a_slot(prediction: str, right: bool, reference: str) -> None:
    metric = JointGoalAccuracy()
    metric.update([prediction], [reference])
    assert metric.row_scores() == [100.0 if right else 0.0]


def test_joint_goal_accuracy_counts_turns_in_percent() -> None:
    metric = JointGoalAccuracy("raw")
    metric.update(["a=B", "a = b!"], ["A=b", "a=b"])  # raw keeps punctuation
    metric.update(["none"], ["none"])
    assert metric.row_scores() == [100.0, 0.0, 100.0]
    assert metric.compute().item() == pytest.approx(200 / 3, rel=1e-14)
    with pytest.raises(UserError, match="must be 'sapt' or 'raw', got 'squad'"):
        JointGoalAccuracy("squad")  # type: ignore[arg-type]


def test_the_first_equals_sign_ends_the_slot() -> None:
    assert dialogue_state("Query=a = b", "raw") == {("query", "a = b")}
    assert dialogue_state("wifi=none") == {("wifi", "none")}


@pytest.mark.parametrize("reference", ["north", "a=1; a=2", "a=1; =2", "a=1; b"])
def test_a_reference_that_is_no_state_is_told(reference: str) -> None:
    with pytest.raises(UserError, match=f"joint_goal_accuracy expects .* got '{reference}'"):
        JointGoalAccuracy().update(["a=1"], [reference])


@pytest.mark.parametrize(
    "metric",
    [ExactMatch(), RougeL(), JointGoalAccuracy()],
    ids=["exact_match", "rouge_l", "joint_goal_accuracy"],
)
def test_a_score_without_a_partner_is_an_error(metric: TextScore) -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        metric.update(["a=1", "b=1"], ["a=1"])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        metric.update(["a=1"], ["a=1", "b=1"])


@pytest.mark.parametrize("build", [ExactMatch, RougeL, JointGoalAccuracy])
def test_reset_forgets_the_rows(build: type[ExactMatch | RougeL | JointGoalAccuracy]) -> None:
    metric = build()
    metric.update(["good=1", "good=1"], ["bad=0", "bad=0"])
    metric.reset()
    metric.update(["good=1"], ["good=1"])
    assert metric.row_scores() == pytest.approx([100.0], rel=1e-6)
    assert metric.compute().item() == pytest.approx(100.0, rel=1e-6)
