"""The checks within one split."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from kif_lightning.benchmarks.doctor.report import Finding, Severity
from kif_lightning.benchmarks.doctor.scan import MOST_SUSPECTS, Numbers, Scan, TokenCounter, repeats
from kif_lightning.benchmarks.doctor.texts import CONTROL, LOST, SUSPECT, shown
from kif_lightning.interfaces import SourceTask
from kif_lightning.metrics.text import dialogue_state

FEW, SOME = 0.01, 0.05
"""Shares of a split from which on a finding is a warning, not a note."""


@dataclass(frozen=True, kw_only=True)
class SplitChecks:
    """The checks within one split."""

    task: SourceTask
    name: str
    scan: Scan

    def found(
        self,
        check: str,
        severity: Severity | None,
        places: Numbers,
        what: str,
        tell: Callable[[int], str],
        each: float = 1,
    ) -> Iterator[Finding]:
        """A finding if any place fails; severity None: by the share of rows.

        ``what`` follows 'N of M rows of SPLIT'; ``tell`` makes an example of a place; a place
        stands for ``each`` rows.
        """
        if not len(places):
            return
        num_rows, count = len(self.scan.rows), round(each * len(places))
        by_share: Severity = "warning" if count >= FEW * num_rows else "note"
        about = "About " if each > 1 else ""
        yield Finding(
            task=self.task.name,
            split=self.name,
            check=check,
            severity=severity or by_share,
            count=count,
            of=num_rows,
            message=f"{about}{count} of {num_rows} rows of {self.name} {what}.",
            examples=tuple(tell(place) for place in places[:3].tolist()),
        )

    def id(self, place: int) -> str:
        """The row's id alone."""
        return self.scan.rows[place].id

    def output(self, place: int) -> str:
        """The row with its output."""
        row = self.scan.rows[place]
        return shown(row.id, row.output)

    def with_same(self, other: Scan) -> Callable[[int], str]:
        """Tells the row with the first one of the other split that has the same input.

        Within a split: the same output too.
        """
        within = other is self.scan

        def tell(place: int) -> str:
            same = other.whole & (other.inputs == self.scan.inputs[place])
            if within:
                same &= other.outputs == self.scan.outputs[place]
            first = int(np.argmax(same))
            return f"{self.id(place)}, as {other.rows[first].id}"

        return tell

    def around(self, start: Callable[[str], int]) -> Callable[[int], str]:
        """Tells the row with the text around a place that ``start`` finds, -1 if it does not."""

        def tell(place: int) -> str:
            row = self.scan.rows[place]
            text = row.input if start(row.input) >= 0 else row.output
            return shown(row.id, text, max(0, start(text)))

        return tell

    def texts(self) -> Iterator[Finding]:
        """What is wrong with single texts."""
        places = self.scan.places
        blank: Severity = "warning" if self.name == "dev" else "error"
        yield from self.found(
            "blank_input", blank, places["blank_input"], "have a blank input", self.id
        )
        yield from self.found(
            "blank_output", blank, places["blank_output"], "have a blank output", self.id
        )
        each = max(1, self.scan.num_suspects / MOST_SUSPECTS)
        estimated = f" (estimated from {MOST_SUSPECTS} rows)" if each > 1 else ""
        yield from self.found(
            "mojibake",
            None,
            places["mojibake"],
            f"hold text whose encoding is damaged and can be repaired, as in 'cafÃ©'{estimated}",
            self.around(lambda text: _start(SUSPECT.search(text))),
            each,
        )
        yield from self.found(
            "lost_character",
            None,
            places["lost_character"],
            "hold U+FFFD, which stands where a character was lost",
            self.around(lambda text: text.find(LOST)),
        )
        yield from self.found(
            "control_character",
            "note",
            places["control_character"],
            "hold control characters",
            self.around(lambda text: _start(CONTROL.search(text))),
        )

    def states(self) -> Iterator[Finding]:
        """Dialogue states that are none."""
        if self.task.kind != "dialogue_state":
            return
        outputs = enumerate(row.output for row in self.scan.rows)
        broken = [place for place, output in outputs if dialogue_state(output) is None]
        yield from self.found(
            "malformed_state",
            "error",
            np.asarray(broken, dtype=np.int64),
            "have an output that is no dialogue state, 'slot=value; slot=value' or 'none'",
            self.output,
        )

    def repeats(self) -> Iterator[Finding]:
        """Rows that say what others say, or contradict them."""
        found = self.scan
        yield from self.found(
            "duplicate_rows",
            None,
            found.duplicates,
            "repeat an earlier row, input and output",
            self.with_same(found),
        )
        closed = self.task.closed_answers
        yield from self.found(
            "conflicting_rows",
            "warning" if closed else "note",
            found.conflicts,
            "share their input with a row of another output"
            + (": at most one of them can be right" if closed else ""),
            self.output,
        )
        reused = repeats(found.ids, found.ids)[0]
        yield from self.found(
            "reused_id", "warning", reused, "have the id of an earlier row", self.id
        )

    def lengths(self, counter: TokenCounter) -> Iterator[Finding]:
        """Texts that the backbone cuts."""
        long_rows, num_rows = self.scan.long_rows, len(self.scan.rows)
        counts = [counter.count(row) for row in long_rows.sample]
        for side, limit, check in (
            (0, counter.max_source_tokens, "long_input"),
            (1, counter.max_target_tokens, "long_output"),
        ):
            cut = [place for place, count in enumerate(counts) if count[side] > limit]
            if not cut:
                continue
            sampled = len(counts) < long_rows.number
            count = round(len(cut) * long_rows.number / len(counts))
            estimated = f" (estimated from {len(counts)} rows)" if sampled else ""
            text = ("input", "output")[side]
            severe = side == 1 or count >= SOME * num_rows
            yield Finding(
                task=self.task.name,
                split=self.name,
                check=check,
                severity="warning" if severe else "note",
                count=count,
                of=num_rows,
                message=f"{'About ' if sampled else ''}{count} of {num_rows} rows of {self.name} "
                f"have an {text} of more than {limit} tokens, which the backbone cuts{estimated}.",
                examples=tuple(
                    f"{long_rows.sample[place].id}: {counts[place][side]} tokens"
                    for place in cut[:3]
                ),
            )


def _start(match: re.Match[str] | None) -> int:
    return -1 if match is None else match.start()
