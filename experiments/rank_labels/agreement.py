"""How often ranking the labels gives the answer that generation gives: a finished run, both ways.

python experiments/rank_labels/agreement.py --run RUN [--output results/NAME.json]

Loads the backbone and the weights that the run ended with, answers the test rows of every task with
closed answers by generation and by ranking, and prints a Markdown table. Start it where the run was
started, if its data_dir is a relative path.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf

from kif_lightning import launch
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Decode, Task
from kif_lightning.reporting.console import RunConsole, markdown_table
from kif_lightning.reporting.stamp import device
from kif_lightning.runner import StreamRunner

WAYS: tuple[Decode, ...] = get_args(Decode)
NOT_STORED: dict[str, Any] = {
    "resume": "latest",
    "checkpoint": {"every_steps": None, "every_minutes": None},
    "logger": None,
}
"""What a run folder's config.yaml leaves out."""
HEADER = (
    *("task", "labels", "rows", "agree %", "generated %", "ranked %"),
    *("no label", "another label", "right: generated / ranked / neither"),
)


def finished(run: Path) -> StreamRunner:
    """The runner of a finished run, with the weights it ended with."""
    stored = OmegaConf.load(run / "config.yaml")
    config = OmegaConf.merge(NOT_STORED, stored, {"run_dir": str(run)})
    assert isinstance(config, DictConfig)
    runner = launch.new_runner(config, RunConsole())
    resumed = runner.folder.load()
    if resumed is None or resumed.parts is None or not resumed.state.finished:
        raise UserError(
            f"--run expects the folder of a finished run, got {run}: run it to its end."
        )
    runner.build()
    runner.parts.adapter.load_state_dict(runner.module.model, resumed.parts["adapter"])
    return runner


def answers(runner: StreamRunner, index: int, way: Decode) -> list[str]:
    """Of a task's test rows."""
    runner.data.decode = way
    runner.module.begin_evaluation(
        1, lambda _: runner.parts.adapter.use_task(runner.module.model, index)
    )
    trainer = runner.new_trainer([], training=False)
    loaders = runner.data.evaluation_dataloaders([index])
    trainer.test(runner.module, dataloaders=loaders, verbose=False)
    found = runner.module.answers[0]
    return [found[row] for row in range(len(found))]


def row_scores(runner: StreamRunner, task: Task, texts: list[str], wanted: list[str]) -> list[bool]:
    """Whether the task's metric takes each text for the one that is wanted."""
    score: Any = runner.parts.new_score(task.metric)
    score.update(texts, wanted)
    return [value > 0 for value in score.row_scores()]


def compared(runner: StreamRunner, index: int) -> dict[str, Any]:
    """One task: agreement, both scores, kinds of disagreement."""
    task = runner.tasks[index]
    generated, ranked = [answers(runner, index, way) for way in WAYS]
    wanted = [row.output for row in task.test]
    right = [row_scores(runner, task, texts, wanted) for texts in (generated, ranked)]
    agree = row_scores(runner, task, generated, ranked)
    apart = [row for row, same in enumerate(agree) if not same]
    labels = [
        any(row_scores(runner, task, [generated[row]] * len(task.labels), list(task.labels)))
        for row in apart
    ]
    no_label = [generated[row] for row, known in zip(apart, labels, strict=True) if not known]
    return {
        "task": task.name,
        "labels": len(task.labels),
        "rows": len(wanted),
        "agree_percent": 100 * sum(agree) / len(agree),
        "generated_percent": 100 * sum(right[0]) / len(wanted),
        "ranked_percent": 100 * sum(right[1]) / len(wanted),
        "apart": {
            "generated_no_label": len(no_label),
            "generated_another_label": sum(labels),
            "right_generated": sum(right[0][row] for row in apart),
            "right_ranked": sum(right[1][row] for row in apart),
            "right_neither": sum(not right[0][row] and not right[1][row] for row in apart),
        },
        "no_label_examples": list(dict.fromkeys(no_label))[:5],
    }


def table_row(found: dict[str, Any]) -> list[str]:
    """In the columns of :data:`HEADER`."""
    apart = found["apart"]
    rights = [apart[f"right_{who}"] for who in ("generated", "ranked", "neither")]
    return [
        found["task"],
        *(str(found[key]) for key in ("labels", "rows")),
        *(f"{found[f'{key}_percent']:.1f}" for key in ("agree", "generated", "ranked")),
        *(str(apart[f"generated_{kind}"]) for kind in ("no_label", "another_label")),
        " / ".join(map(str, rights)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # speaks at each Trainer
    warnings.filterwarnings("ignore")
    runner = finished(given.run)
    closed = [index for index, task in enumerate(runner.tasks) if task.labels]
    found = [compared(runner, index) for index in closed]
    print(markdown_table(HEADER, [table_row(each) for each in found]))
    if given.output:
        record = {
            "run": given.run.name,
            "benchmark": runner.parts.benchmark.name,
            "backbone": runner.parts.backbone.name,
            "stand_ins": runner.parts.stand_ins,
            "device": device(runner.device.type),
            "tasks": found,
        }
        given.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
