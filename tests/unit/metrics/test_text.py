"""Text scores: normalisations by hand, ROUGE-L against the rouge_score package."""

from __future__ import annotations

import pytest
from rouge_score.rouge_scorer import RougeScorer

from kif_lightning.errors import UserError
from kif_lightning.metrics import ExactMatch, RougeL, TextScore
from kif_lightning.metrics.text import normalise_answer

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


@pytest.mark.parametrize("metric", [ExactMatch(), RougeL()], ids=["exact_match", "rouge_l"])
def test_a_score_without_a_partner_is_an_error(metric: TextScore) -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        metric.update(["a", "b"], ["a"])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        metric.update(["a"], ["a", "b"])


@pytest.mark.parametrize("build", [ExactMatch, RougeL])
def test_reset_forgets_the_rows(build: type[ExactMatch | RougeL]) -> None:
    metric = build()
    metric.update(["good", "good"], ["bad", "bad"])
    metric.reset()
    metric.update(["good"], ["good"])
    assert metric.row_scores() == pytest.approx([100.0], rel=1e-6)
    assert metric.compute().item() == pytest.approx(100.0, rel=1e-6)
