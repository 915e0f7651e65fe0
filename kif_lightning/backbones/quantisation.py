"""Frozen base weights packed in 4 or 8 bits by bitsandbytes; adapters beside them stay unpacked.

Linear layers alone are packed, without the output layer and what transformers keeps unpacked (T5's
``wo``). peft's ``prepare_model_for_kbit_training`` is not called: adapters freeze the base weights
themselves, ``backbone.dtype`` says what the unpacked weights are, and checkpointing is a setting of
its own.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available

from kif_lightning.errors import UserError, require_choice

Quantisation = Literal["4bit", "8bit"]


def require_quantisable(quantisation: Quantisation | None, *, gguf: bool) -> None:
    """Raise UserError unless the base weights can be packed that way; None: they are not."""
    require_choice("backbone.quantisation", quantisation, (None, "4bit", "8bit"))
    if quantisation not in ("4bit", "8bit"):
        return
    if gguf:
        raise UserError(
            f"backbone.quantisation={quantisation} packs full weights, but backbone.source=package "
            "has weights quantised in a way of their own: use backbone.source=hub or "
            "backbone.path=FOLDER, or drop backbone.quantisation."
        )
    if not is_bitsandbytes_available():
        raise UserError(
            f"backbone.quantisation={quantisation} needs the package bitsandbytes, which is not "
            "installed or too old: run 'pip install \"kif-lightning[quantised]\"', or drop "
            "backbone.quantisation."
        )


def quantised_loading(quantisation: Quantisation) -> dict[str, Any]:
    """Options of ``from_pretrained``: nf4 with double quantisation, or LLM.int8().

    4-bit layers compute in their input's type, in bfloat16 where that is float16; 8-bit ones in
    int8 and float16.
    """
    # It warns of that float16 in every layer and step.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if quantisation == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    # Packed where it will be used: each process of a run on its own GPU.
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    return {"quantization_config": config, "device_map": {"": device}}


def keep_trainable_(model: nn.Module) -> None:
    """Undo what bitsandbytes does on a CPU: it would repack 4-bit weights when they first answer.

    The repacked ones let no gradient through, and what is trained after an evaluation needs one.
    """
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def quantisation_stamp(quantisation: Quantisation, dtype: str) -> dict[str, str]:
    """What a reader of a result must know; ``dtype`` is that of the unpacked weights."""
    how = {"4bit": "nf4, double quantisation", "8bit": "LLM.int8()"}
    return {
        "base_weights": f"{quantisation} ({how[quantisation]})",
        "unpacked_weights": dtype,
        "bitsandbytes": importlib.metadata.version("bitsandbytes"),
    }
