"""Our side of the comparisons: a runner as the command line makes it, on the CPU, and silent."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.console import Console
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from kif_lightning.backbones import bundled_folder
from kif_lightning.launch import new_runner
from kif_lightning.paths import conf_dir
from kif_lightning.reporting.console import RunConsole
from kif_lightning.runner import StreamRunner

T5_SHAPES = {
    "t5_small": {"d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "t5_base": {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
}


def silence() -> None:
    """Both sides speak of themselves at every fit."""
    for name in ("lightning.pytorch", "lightning.fabric", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def settings(folder: Path, *overrides: str) -> DictConfig:
    """The config of a run in ``folder``, which is not written."""
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        own = ["trainer.accelerator=cpu", f"run_dir={folder}", "lora.alpha=16", *overrides]
        return compose("config", overrides=own)


def knows(group: str, key: str) -> bool:
    """Whether this version of the package has a setting."""
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return key in compose("config")[group]


def built_runner(config: DictConfig) -> StreamRunner:
    """With its model loaded; nothing is trained yet."""
    runner = new_runner(config, RunConsole(Console(quiet=True)))
    runner.build()
    return runner


def save_random_t5(folder: Path, shape: str) -> Path:
    """A T5 of a public model's shape with random weights and the bundled model's tokenizer."""
    options: dict[str, Any] = {**T5_SHAPES[shape], "decoder_start_token_id": 0}
    config = T5Config(vocab_size=32128, **options)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bundled_folder("t5_nano")).save_pretrained(folder)
    return folder
