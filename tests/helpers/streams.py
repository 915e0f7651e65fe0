"""Toy tasks, and whole toy runs as the command line makes them."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from rich.console import Console

from kif_lightning import launch
from kif_lightning.backbones.seq2seq import Seq2SeqBackbone
from kif_lightning.interfaces import Task
from kif_lightning.paths import conf_dir
from kif_lightning.reporting.console import RunConsole
from tests.helpers.tiny import toy_rows


def tiny_config(model: Path, data: Path, run_dir: Path, *overrides: str) -> DictConfig:
    """A run of the toy tasks; ``model`` is a folder that tiny_t5 or tiny_llama gave."""
    backbone = "t5_base" if "t5" in model.name else "smollm2_135m"
    settings = [
        f"backbone={backbone}",
        f"backbone.path={model}",
        f"benchmark.data_dir={data}",
        "benchmark.order=[colour,shape]",
        "trainer.accelerator=cpu",
        f"run_dir={run_dir}",
        "report=false",  # seconds; its own tests ask for it
    ]
    return composed(*settings, *overrides)


def composed(*overrides: str) -> DictConfig:
    """As Hydra composes the command line's words; options of groups, which are slow, once.

    Hydra itself takes the options first and then sets the values, one after the other.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    options = [each for each in parsed if Path(conf_dir(), each.key_or_group).is_dir()]
    config = copy.deepcopy(_of_options(*(str(each.input_line) for each in options)))
    ConfigLoaderImpl._apply_overrides_to_config([e for e in parsed if e not in options], config)
    return config


@cache
def _of_options(*options: str) -> DictConfig:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return compose("config", overrides=list(options))


def run_stream(config: DictConfig) -> tuple[Any, str]:
    """The results and what was said."""
    said = io.StringIO()
    console = RunConsole(Console(file=said, width=200, highlight=False, soft_wrap=True))
    return launch.run(config, console), said.getvalue()


@dataclass
class ToyBenchmark:
    """Tasks made in the test."""

    tasks: tuple[Task, ...]
    name: str = "toy"
    order_name: str = "own"
    stand_in: bool = False
    provenance: Mapping[str, Any] = field(default_factory=lambda: {"source": "test"})


def toy_task(
    name: str = "colour", *, train: int = 19, test: int = 6, kind: Any = "classification"
) -> Task:
    """A task whose two labels are of different token numbers: the loss mean matters."""
    labels = ("good", "round bad")
    return Task(
        name=name,
        kind=kind,
        metric="exact_match",
        train=tuple(toy_rows(name, "train", train, labels)),
        test=tuple(toy_rows(name, "test", test, labels)),
        labels=labels if kind == "classification" else (),
        sha256={},
    )


def unequal_task(**sizes: int) -> Task:
    """The toy task with train rows of very different lengths."""
    task = toy_task(**sizes)
    rows = tuple(
        replace(row, input=row.input + " and so on" * (i * 5 % 23))
        for i, row in enumerate(task.train)
    )
    return replace(task, train=rows)


def tiny_backbone(folder: Path) -> Seq2SeqBackbone:
    """The tiny T5 as a backbone."""
    return Seq2SeqBackbone(name="tiny", hub_name="tiny/t5", path=str(folder))
