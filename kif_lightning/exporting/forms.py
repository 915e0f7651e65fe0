"""In which form a folder holds what was learnt, told by its files."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from peft import PeftConfig
from peft.utils import CONFIG_NAME as PEFT_CONFIG

MODEL_CONFIG = "config.json"


class Form(Enum):
    """What a folder is to the tools of others."""

    ADAPTER = "PEFT adapter"
    ADAPTERS = "a PEFT adapter for each task"
    MODEL = "whole model of transformers"
    POOL = "pool of prompts, in a form of this framework alone"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A folder's form; ``folders``: of a PEFT adapter each, in the order of tasks.

    ``one_by_one``: rows must be answered alone, as peft's soft prompts take no heed of padding.
    ``has_tokenizer``: the tokenizer's files lie there too.
    """

    form: Form
    folders: tuple[str, ...]
    one_by_one: bool
    has_tokenizer: bool
    merged: bool = False
    """Whether a whole model is the base with an adapter's weights merged in."""

    @property
    def library(self) -> str:
        """That loads it, by the hub's name."""
        return {Form.MODEL: "transformers", Form.POOL: "kif-lightning"}.get(self.form, "peft")


def contents_of(folder: Path, *, merged: bool = False) -> Contents:
    """What was written there; ``merged``: the weights of an adapter too."""
    inside = sorted(path.parent for path in folder.glob(f"*/{PEFT_CONFIG}"))
    if (folder / PEFT_CONFIG).is_file():
        form, adapters = Form.ADAPTER, [folder]
    elif inside:
        form, adapters = Form.ADAPTERS, inside
    elif (folder / MODEL_CONFIG).is_file():
        form, adapters = Form.MODEL, []
    else:
        form, adapters = Form.POOL, []
    configs = [PeftConfig.from_pretrained(str(adapter)) for adapter in adapters]
    return Contents(
        form=form,
        folders=tuple(adapter.name for adapter in inside),
        one_by_one=any(config.is_prompt_learning for config in configs),
        has_tokenizer=(folder / "tokenizer_config.json").is_file(),
        merged=merged,
    )
