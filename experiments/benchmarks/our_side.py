"""Our side of the comparisons: configs and runners as the command line makes them; model shapes."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.console import Console
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from kif_lightning.backbones import bundled_folder
from kif_lightning.launch import new_runner
from kif_lightning.paths import conf_dir
from kif_lightning.reporting.console import RunConsole
from kif_lightning.runner import StreamRunner

T5_SHAPES: dict[str, dict[str, Any]] = {
    "t5_small": {"d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "t5_base": {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "t5_large": {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
}
LLAMA_SHAPES: dict[str, dict[str, Any]] = {
    "smollm2": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    },
    "llama_7b": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32,
    },
}  # fmt: skip
"""Those of public models."""


def silence() -> None:
    """Both sides speak of themselves at every fit."""
    for name in ("lightning.pytorch", "lightning.fabric", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def composed(*overrides: str) -> DictConfig:
    """The config that the command line makes of them, on the CPU."""
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return compose("config", overrides=["trainer.accelerator=cpu", *overrides])


def settings(folder: Path, *overrides: str) -> DictConfig:
    """The config of a run in ``folder``, which is not written."""
    return composed(f"run_dir={folder}", "lora.alpha=16", *overrides)


def built_runner(config: DictConfig) -> StreamRunner:
    """With its model loaded, silent; nothing is trained yet."""
    runner = new_runner(config, RunConsole(Console(quiet=True)))
    runner.build()
    return runner


def random_model(shape: str, **changes: Any) -> Any:
    """A model of a public one's shape, or with changes to it, and random weights."""
    special = {"pad_token_id": 0, "eos_token_id": 1}
    if shape in LLAMA_SHAPES:
        options = {**LLAMA_SHAPES[shape], **special, "bos_token_id": 1, **changes}
        return LlamaForCausalLM(LlamaConfig(**options))
    options = {"vocab_size": 32128, "d_kv": 64, "decoder_start_token_id": 0, **special}
    return T5ForConditionalGeneration(T5Config(**{**options, **T5_SHAPES[shape], **changes}))


def save_random_t5(folder: Path, shape: str, **changes: Any) -> Path:
    """Such a T5, with the bundled model's tokenizer."""
    random_model(shape, **changes).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bundled_folder("t5_nano")).save_pretrained(folder)
    return folder
