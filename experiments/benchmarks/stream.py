"""A whole 4-task stream in one process, against the same stream as public research scripts do it.

The other side (public_scripts) is a process per phase and task, written for this comparison:
``train`` (transformers.Trainer and peft, importance in a Python loop over the parameters), ``fuse``
(unit scores by the outer product, rank by rank), ``predict`` (row by row over all tasks seen so
far, KV cache, stops at the end token), ``score``. Both learn the same rows with the same model,
LoRA, batches, epochs, learning rate and decoding caps; row order and dropout masks differ. All that
a user waits for counts: imports, loading, tokenising, saving.

    python experiments/benchmarks/stream.py                      # about 6 minutes on 2 cores
    python experiments/benchmarks/stream.py --settings 240:96:2 1000:100:1   # 7 minutes
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from our_side import composed
from side_by_side import entry, in_turn, machine, ratio, write_result

from kif_lightning.backbones import bundled_folder

ROOT, SCRIPTS = Path(__file__).parents[2], Path(__file__).parent / "public_scripts"
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
PHASES = ("train", "fuse", "predict", "score")
WRITTEN_IN = {
    "optim.schedule_name": "linear",
    "optim.warmup_steps": 0,
    "optim.weight_decay": 0.0,
    "optim.gradient_clip": None,
    "optim.micro_batch_size": None,
    "optim.optimizer._target_": "torch.optim.AdamW",
    "trainer.precision": "32-true",
    "backbone.lora_targets": ["q", "v"],
    "backbone.mask_token": "<extra_id_0>",
    "backbone.truncation": "middle",
    "method.fixes.lr_factor": 1.0,
    "method.fixes.gradient_clip": None,
    "method.importance.tracker.alpha1": 0.85,
    "method.importance.tracker.alpha2": 0.85,
    "method.importance.tracker.order": 2,
}
"""What the scripts do without being told: our config must say the same."""
ALL_ELSE = ": imports, loading, tokenising, saving"


def command(*words: Any) -> str:
    """What it printed.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run(  # noqa: S603
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{words[0]} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def used_by_commands() -> float:
    """Processor seconds of all commands so far: less moved by other work on the machine."""
    times = os.times()
    return times.children_user + times.children_system


def overrides(order: str, train_rows: int, test_rows: int) -> list[str]:
    return [
        "+experiment=long_seq_t5",
        "method=kif",
        f"benchmark.order={order}",
        f"benchmark.train_rows={train_rows}",
        f"benchmark.test_rows={test_rows}",
        "trainer.accelerator=cpu",
    ]


class OurSide:
    """One process for everything."""

    def __init__(self, settings: list[str], folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.parts: list[dict[str, float]] = []
        self.processor_seconds: list[float] = []
        self.performance = 0.0

    def __call__(self) -> float:
        run_dir = self.folder / f"ours_{len(self.parts)}"
        started, used = perf_counter(), used_by_commands()
        command("-m", "kif_lightning", *self.settings, f"run_dir={run_dir}")
        seconds = perf_counter() - started
        self.processor_seconds.append(used_by_commands() - used)
        results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
        spent = dict(results["cost"]["seconds"])
        total = spent.pop("total")
        # Beside the phases: imports, loading, the look at the data, the final adapter.
        self.parts.append({"all else": seconds - total, **spent})
        self.performance = results["metrics"]["average_performance"]
        return seconds


class PublicSide:
    """A process per phase and task, with the settings and the rows of our side."""

    def __init__(self, config: DictConfig, folder: Path) -> None:
        require_written_in(config)
        self.folder = folder
        self.model = bundled_folder(str(config.backbone.name))
        self.parts: list[dict[str, float]] = []
        self.processor_seconds: list[float] = []
        self.performance = 0.0
        adapter = config.method.adapter.config
        self.training = {
            "epochs": config.optim.epochs,
            "batch": config.optim.batch_size,
            "lr": config.optim.lr,
            "r": adapter.r,
            "alpha": adapter.lora_alpha,
            "dropout": adapter.lora_dropout,
            "penalty": config.method.penalty.orthonormality.coefficient,
            "max-source": config.backbone.max_source_tokens,
            "seed": config.seed,
        }
        self.fusion = {
            "beta": config.method.boundary.fusion.beta,
            "tau": config.method.rule.tau,
        }
        self.tasks = [
            save_rows(task, folder / "rows") for task in instantiate(config.benchmark).tasks
        ]

    def __call__(self) -> float:
        folder = self.folder / f"public_{len(self.parts)}"
        self.parts.append({f"{phase}{what}": 0.0 for phase in PHASES for what in ("", ALL_ELSE)})
        started, used = perf_counter(), used_by_commands()
        previous: list[Any] = []
        for number, task in enumerate(self.tasks):
            now = folder / task.name
            model = ("--model", self.model)
            rows = ("--rows", task / "train.jsonl", "--output", now / "trained")
            self._phase("train", *model, *rows, *previous, *_flags(self.training))
            fusion = ("--current", now / "trained", "--output", now / "fused")
            self._phase("fuse", *fusion, *previous, *_flags(self.fusion))
            seen = ("--tasks", *self.tasks[: number + 1], "--output", now / "predictions")
            source = ("--max-source", self.training["max-source"])
            self._phase("predict", *model, "--adapter", now / "fused", *seen, *source)
            scores = ("--predictions", now / "predictions", "--output", now / "scores.json")
            self._phase("score", *scores)
            previous = ["--previous", now / "fused"]
        seconds = perf_counter() - started
        self.processor_seconds.append(used_by_commands() - used)
        last = json.loads((folder / self.tasks[-1].name / "scores.json").read_text("utf-8"))
        self.performance = fmean(last.values())
        return seconds

    def _phase(self, name: str, *words: Any) -> None:
        started = perf_counter()
        told = command(SCRIPTS / f"{name}.py", *words)
        seconds = perf_counter() - started
        work = float(told.rpartition("work seconds:")[2].split()[0])
        self.parts[-1][name] += work
        self.parts[-1][f"{name}{ALL_ELSE}"] += seconds - work


def require_written_in(config: DictConfig) -> None:
    """Raise AssertionError unless the config says what is written in the scripts."""
    found = {key: OmegaConf.select(config, key, throw_on_missing=True) for key in WRITTEN_IN}
    assert found == WRITTEN_IN, {k: v for k, v in found.items() if v != WRITTEN_IN[k]}


def save_rows(task: Any, folder: Path) -> Path:
    """The rows as files that the scripts read."""
    place = folder / task.name
    place.mkdir(parents=True)
    for split in ("train", "test"):
        lines = [
            json.dumps({"input": row.input, "output": row.output}) + "\n"
            for row in getattr(task, split)
        ]
        (place / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return place


def _flags(settings: dict[str, Any]) -> list[Any]:
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def compared(order: str, train_rows: int, test_rows: int, rounds: int) -> dict[str, Any]:
    settings = overrides(order, train_rows, test_rows)
    config = composed(*settings)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ours, public = OurSide(settings, folder), PublicSide(config, folder)
        seconds = in_turn({"ours": ours, "public": public}, rounds, warm_up=False)
    once = ", one round" if rounds == 1 else ""
    return entry(
        "our 4-task stream is x times as fast as a process per phase and task: "
        f"{train_rows} train and {test_rows} test rows a task{once}",
        ratio(seconds["public"], seconds["ours"]),
        at_least=4.0,
        seconds=seconds,
        average_performance={"ours": ours.performance, "public": public.performance},
        processor_seconds={"ours": ours.processor_seconds, "public": public.processor_seconds},
        parts={"ours": ours.parts, "public": public.parts},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--settings",
        nargs="+",
        default=["240:96:2"],
        help="train rows and test rows a task, rounds",
    )
    parser.add_argument("--order", default="standard1")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    started_on = machine()
    # Both sides find the libraries' files in the system's cache.
    command("-c", "import kif_lightning.launch, peft, transformers.trainer")
    sizes = [tuple(map(int, setting.split(":"))) for setting in options.settings]
    entries = [compared(options.order, train, test, rounds) for train, test, rounds in sizes]
    for line in entries:
        print(
            json.dumps(
                {key: line[key] for key in ("average_performance", "processor_seconds", "parts")},
                indent=1,
            )
        )
    write_result("stream", entries, started_on=started_on, output=options.output)


if __name__ == "__main__":
    main()
