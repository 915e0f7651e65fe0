"""Fuses boundaries of a run again by many rules and scores each by teacher forcing.

python experiments/identification/boundaries.py RUN --to FILE.json

RUN is a finished run with keep_boundaries=true. Nothing is trained. What the file holds already is
not scored again: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rules import Weights, new_at_top, of_units, unit_rules, weight_choices
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from kif_lightning import launch
from kif_lightning.boundaries import KeptBoundary, fusion_of, kept_boundaries
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Batch
from kif_lightning.reporting import stamp
from kif_lightning.reporting.console import RunConsole
from kif_lightning.storage import read_json, write_json
from kif_lightning.whatif import Asked, run_config
from kif_lightning.whatif.refusion import Refusion
from kif_lightning.whatif.ways import Way, ways

PROTOCOL = (
    "benchmark", "order_name", "order", "rows", "backbone", "weights", "method", "lora", "optim",
    "seed", "epochs", "effective_batch", "precision", "commit",
)  # fmt: skip
"""What is kept of the run's own stamp."""
BATCH_ROWS = 25


class Boundaries:
    """A finished run's kept boundaries and its test rows.

    Args:
        run: its folder.
        rows: test rows a task, drawn once; of a task with fewer, all.
        weight_scores: folder of the single weights' importance; None: no rules of single weights.

    Raises:
        UserError: no finished run with kept boundaries, a method that cannot be fused again, or
            other data than the run's.
    """

    def __init__(self, run: Path, *, rows: int, weight_scores: Path | None) -> None:
        self.run = run
        self.rows = rows
        self.weight_scores = weight_scores
        self.results = read_json(run / "results.json")
        self.runner = launch.new_runner(run_config(run), RunConsole(quiet=True))
        self.callback, self.fusion = fusion_of(self.runner.parts.boundary)
        self.runner.folder.require_same_data({t.name: dict(t.sha256) for t in self.runner.tasks})
        self.runner.build()
        self.runner.module.eval().to(self.runner.device)
        self.names = [task.name for task in self.runner.tasks]
        self.batches = cache(self._batches)

    def _batches(self, index: int) -> list[Batch]:
        """Of one task's test rows, long prompts apart from short ones."""
        test, backbone = list(self.runner.tasks[index].test), self.runner.parts.backbone
        drawn = random.Random(0).sample(test, min(self.rows, len(test)))
        examples = sorted(backbone.encode_rows(drawn), key=lambda e: len(e.prompt_ids))
        cuts = range(0, len(examples), BATCH_ROWS)
        return [backbone.training_batch(examples[cut : cut + BATCH_ROWS]) for cut in cuts]

    def fusions(self, kept: KeptBoundary) -> Iterator[tuple[str, float, dict[str, Tensor]]]:
        """Each rule's name, mean share of the old weights, and weights."""
        refusion = Refusion(
            run=self.run,
            callback=self.callback,
            fusion=self.fusion,
            kept=kept,
            tasks=self.names,
            device=torch.device("cpu"),
        )
        refusion.check(ways(self.fusion, Asked())[0])
        before, after = refusion.weights
        units = self.fusion.partition(after)
        change = {name: (after[name] - before[name]).abs() for name in after}
        for name, rule in unit_rules(of_units(units, change), kept.number).items():
            share = refusion.share(Way(name=name, rule=rule, beta=self.fusion.beta))
            yield name, float(share.mean()), refusion.fused(share)
        if self.weight_scores is None:
            return
        scores = scores_of(self.weight_scores / f"{kept.number:02d}.pt")
        recorded = torch.tensor(refusion.records[-1]["score"], dtype=torch.float64)
        if scores.keys() != after.keys() or not torch.allclose(
            of_units(units, scores), recorded, rtol=1e-6, atol=0
        ):
            raise UserError(
                f"Expected --weight-scores of the same run, but those of task {kept.number} do not "
                "give the units' scores that the run wrote: name the folder that it left."
            )
        for name, (part, by) in weight_choices(scores, change, kept.number).items():
            yield name, 1 - part, new_at_top(part, by, before, after)

    def scored(self, weights: Weights, number: int) -> dict[str, float]:
        """Losses and exact match of the weights on the tasks learnt by then, old ones' means."""
        self.runner.parts.adapter.load_state_dict(self.runner.module.model, weights)
        *old, new = (self._score(index) for index in range(number))
        losses, matches = zip(*old, strict=True)
        return {
            "old_loss": sum(losses) / len(old),
            "new_loss": new[0],
            "old_exact_match": sum(matches) / len(old),
            "new_exact_match": new[1],
        }

    @torch.inference_mode()
    def _score(self, index: int) -> tuple[float, float]:
        """Nats an answer, and percent of the answers of which each token is the likeliest."""
        loss = right = count = 0.0
        model, device = self.runner.module.model, self.runner.device
        for batch in self.batches(index):
            moved = {name: tensor.to(device) for name, tensor in batch.items()}
            logits, labels = self.runner.parts.backbone.answer_logits(model, moved)
            loss += float(cross_entropy(logits.float().transpose(1, 2), labels, reduction="sum"))
            right += float(((logits.argmax(dim=-1) == labels) | (labels < 0)).all(dim=1).sum())
            count += len(labels)
        return loss / count, 100 * right / count


def scores_of(path: Path) -> dict[str, Tensor]:
    """Each weight's importance, as recording.py writes it.

    Raises:
        UserError: there is no such file.
    """
    if not path.is_file():
        raise UserError(
            f"Expected the single weights' importance in {path}, which is not there: give "
            "--weight-scores the folder weight_scores of a run with method=mean_recording."
        )
    scores: dict[str, Tensor] = torch.load(path)["s"]
    return scores


def opened(path: Path, header: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The boundaries that a results file holds, by number.

    Raises:
        UserError: they are of another run, or of other rows.
    """
    if not path.is_file():
        return {}
    found = read_json(path)
    if any(found.get(key) != header[key] for key in ("protocol", "rows")):
        raise UserError(
            f"Expected {path} to be of the same run and --rows, but it is of others: give another "
            "--to, or remove it."
        )
    return {boundary["number"]: boundary for boundary in found["boundaries"]}


def chosen(run: Path, at: str | None) -> list[KeptBoundary]:
    """The boundaries of those numbers, parted by commas; without any, all that are kept.

    Raises:
        UserError: one is not kept, or none at all.
    """
    kept = {str(boundary.number): boundary for boundary in kept_boundaries(run)}
    asked = at.split(",") if at else list(kept)
    if not asked or not kept.keys() >= set(asked):
        raise UserError(
            f"Expected kept boundaries at {at or 'any task'}, but {run} has "
            f"{', '.join(kept) or 'none'}: choose --at of these, or run with keep_boundaries=true."
        )
    return [kept[number] for number in asked]


def measure(run: Path, to: Path, *, rows: int, at: str | None, weight_scores: Path | None) -> None:
    """Score every rule at the boundaries asked for; the file is written after each boundary."""
    if rows < 1:
        raise UserError(f"Expected --rows of at least 1, got {rows}.")
    asked = chosen(run, at)
    boundaries = Boundaries(run, rows=rows, weight_scores=weight_scores)
    header = {
        "protocol": {key: boundaries.results["protocol"].get(key) for key in PROTOCOL},
        "stand_ins": boundaries.results["stand_ins"],
        "rows": rows,
        "machine": stamp.device(boundaries.runner.device.type),
        "measured_by": stamp.software(),
    }
    done = opened(to, header)
    for kept in tqdm(asked, desc="boundaries"):
        entry = done.setdefault(
            kept.number, {"number": kept.number, "task": kept.task, "fusions": {}}
        )
        left = [f for f in boundaries.fusions(kept) if f[0] not in entry["fusions"]]
        for name, share, weights in tqdm(left, desc=kept.task, leave=False):
            scores = boundaries.scored(weights, kept.number)
            entry["fusions"][name] = {"mean_share": share, **scores}
        listed = [done[number] for number in sorted(done)]
        write_json(to, {**header, "boundaries": listed})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--to", type=Path, required=True, help="the results file")
    parser.add_argument("--rows", type=int, default=50, help="test rows a task")
    parser.add_argument("--at", help="numbers of tasks, as 3,6,9; without: all kept boundaries")
    parser.add_argument("--weight-scores", type=Path, help="folder of a recording run")
    given = parser.parse_args()
    launch.quiet()
    try:
        measure(
            given.run, given.to, rows=given.rows, at=given.at, weight_scores=given.weight_scores
        )
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
