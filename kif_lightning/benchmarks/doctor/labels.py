"""What can be wrong with the answers of a task whose rows all choose from the same few."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from kif_lightning.benchmarks.doctor.report import Finding, Severity
from kif_lightning.benchmarks.doctor.scan import MOST_LABELS, Scan
from kif_lightning.benchmarks.doctor.texts import CONTROL, LOST, is_damaged
from kif_lightning.interfaces import SourceTask
from kif_lightning.metrics.text import normalise_answer

MOST_IMBALANCE = 10
FEWEST_ROWS_FOR_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Makes findings of label words."""

    task: str

    def __call__(
        self,
        check: str,
        severity: Severity,
        words: Collection[object],
        of: int,
        message: str,
        split: str | None = None,
    ) -> Finding:
        return Finding(
            task=self.task,
            split=split,
            check=check,
            severity=severity,
            count=len(words),
            of=of,
            message=message,
        )


def label_findings(task: SourceTask, scans: Mapping[str, Scan]) -> Iterator[Finding]:
    """Findings about label words and classes.

    Args:
        task: with closed answers.
        scans: of its splits.
    """
    found = _Found(task=task.name)
    labels = {split: scan.labels for split, scan in scans.items() if scan.labels}
    num_rows = int(scans["train"].whole.sum()) if "train" in labels else 0
    num_classes = scans["train"].num_outputs if "train" in labels else 0
    if num_rows >= FEWEST_ROWS_FOR_CLASSES and num_classes > min(num_rows / 2, MOST_LABELS):
        yield found(
            "suspicious_class_count",
            "warning",
            range(num_classes),
            num_rows,
            f"{num_rows} rows of train have {num_classes} different answers, though they should "
            "choose from the same few: is it a generation task?",
            "train",
        )
        return  # what else could be said of so many words follows from it
    words = sorted(set().union(*labels.values()))
    normal = {word: normalise_answer(word) for word in words}
    if task.kind != "multiple_choice":  # letters are its answers
        # Of one character as a whole, or nothing but punctuation and one letter.
        short = [word for word in words if len(normal[word] or word.strip()) < 2]
        if short:
            yield found(
                "short_label",
                "warning",
                short,
                len(words),
                f"{len(short)} of {len(words)} label words are one character long "
                f"({_listed(short)}): were they cut, and could whole words be had?",
            )
    damaged = [w for w in words if is_damaged(w) or LOST in w or CONTROL.search(w)]
    if damaged:
        yield found(
            "damaged_label",
            "warning",
            damaged,
            len(words),
            f"{len(damaged)} of {len(words)} label words hold damaged or control characters "
            f"({_listed(damaged)}); no fix changes label words.",
        )
    same = Counter(normal.values())
    alike = [word for word in words if same[normal[word]] > 1]
    if alike:
        yield found(
            "indistinct_labels",
            "error",
            alike,
            len(words),
            f"Exact match, which looks past case and punctuation, cannot tell {len(alike)} of "
            f"{len(words)} label words apart ({_listed(alike)}).",
        )
    # Sorted, a word stands right before the longer ones that it begins.
    distinct = sorted(set(normal.values()) - {""})
    begins = [(a, b) for a, b in pairwise(distinct) if b.startswith(a)]
    if begins:
        yield found(
            "prefix_label",
            "warning",
            begins,
            len(words),
            f"{len(begins)} of {len(words)} label words begin another one "
            f"({'; '.join(f'{a!r:.40} and {b!r:.40}' for a, b in begins[:3])}): an answer that "
            "ends early counts as the shorter.",
        )
    yield from _classes(labels, normal, found)


def _classes(
    labels: Mapping[str, Counter[str]], normal: Mapping[str, str], found: _Found
) -> Iterator[Finding]:
    train = labels.get("train")
    if train is None:
        return
    if len(train) == 1:
        yield found(
            "single_class",
            "warning",
            train,
            1,
            f"All rows of train have the same answer ({_listed(train)}): nothing can be learnt.",
            "train",
        )
    (most_word, most), (least_word, least) = train.most_common()[0], train.most_common()[-1]
    if most > MOST_IMBALANCE * least:
        yield found(
            "imbalance",
            "warning",
            [most_word, least_word],
            len(train),
            f"The largest class of train has {most} rows ({_listed([most_word])}), the smallest "
            f"{least} ({_listed([least_word])}): more than {MOST_IMBALANCE} times as many.",
            "train",
        )
    learnt = {normal[word] for word in train}
    for split in ("dev", "test"):
        if split not in labels:
            continue
        there = {normal[word] for word in labels[split]}
        unlearnt = [word for word in sorted(labels[split]) if normal[word] not in learnt]
        if unlearnt:
            yield found(
                "class_missing",
                "error" if split == "test" else "warning",
                unlearnt,
                len(labels[split]),
                f"{len(unlearnt)} of {len(labels[split])} classes of {split} never occur in train "
                f"({_listed(unlearnt)}).",
                split,
            )
        unasked = [word for word in sorted(train) if normal[word] not in there]
        if unasked:
            yield found(
                "class_missing",
                "warning" if split == "test" else "note",
                unasked,
                len(train),
                f"{len(unasked)} of {len(train)} classes of train never occur in {split} "
                f"({_listed(unasked)}).",
                split,
            )


def _listed(words: Iterable[str]) -> str:
    named = [f"{word!r:.40}" for word in words]
    return ", ".join(named[:5]) + (", ..." if len(named) > 5 else "")
