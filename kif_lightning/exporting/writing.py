"""``kif export``: a folder that plain peft or transformers load, with card and kif.json."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from kif_lightning.backbones.decoding import base_model
from kif_lightning.errors import UserError, nearest_names
from kif_lightning.exporting.card import Told, adapter_folders, write_card
from kif_lightning.exporting.facts import CardFacts, facts_of_state
from kif_lightning.exporting.forms import Contents, contents_of
from kif_lightning.learnt_model import LearntModel, learnt_model
from kif_lightning.packing import open_state
from kif_lightning.reporting.stamp import software
from kif_lightning.storage import replacing_folder, write_json

FOR_TOOLS = "kif.json"
FORMAT, VERSION = "kif-lightning export", 1


def export(
    place: str | Path,
    to: str | Path,
    *,
    merged: bool = False,
    task: str | None = None,
    after: str | None = None,
    told: Told | None = None,
    overrides: Sequence[str] = (),
) -> Contents:
    """Write what was learnt as a folder that others' tools load.

    Args:
        place: the folder of a continual state or of a run.
        to: a new folder.
        merged: the base model with the learnt weights merged into its own, as a whole model.
        task: of an adapter that answers by the task: export this one's alone; None: all.
        after: of a run: the task (number or name) whose state is wanted; None: the last one learnt.
        told: licence, languages and author, for the card.
        overrides: settings of this machine, as of :func:`~kif_lightning.learnt_model.load`.

    Returns:
        What the folder holds.

    Raises:
        UserError: no state, a folder that exists, weights that cannot be merged, an unknown task.
    """
    to = Path(to)
    if to.exists():
        raise UserError(f"--to must be a new folder, got {to}, which exists: name another one.")
    state = open_state(Path(place), after)
    # Packed weights alone need a GPU; others would only have to fit into one.
    device = None if state.config["backbone"].get("quantisation") else "cpu"
    learnt = learnt_model(state, place=place, overrides=overrides, device=device)
    chosen = _chosen(learnt, task, merged=merged)
    facts = facts_of_state(learnt.state, learnt.backbone, learnt.model)
    if chosen is not None:
        learnt.adapter.use_task(learnt.model, chosen)
        facts = facts.of_task(chosen)
    base = base_model(learnt.model)
    # A model's own generation settings (sampling, penalties) would give answers of another kind.
    base.generation_config = GenerationConfig(**facts.use.generation)
    base.config._name_or_path = learnt.backbone.public_name
    try:
        with replacing_folder(to) as folder:
            contents = _write_weights(learnt, folder, chosen, merged=merged)
            write_card(folder, facts, contents, told or Told())
            write_json(folder / FOR_TOOLS, for_tools(facts, contents))
    except OSError as error:
        raise UserError(
            f"The export cannot be written to {to} ({error.strerror or error}): name a folder that "
            "can be."
        ) from error
    return contents


def for_tools(facts: CardFacts, contents: Contents) -> dict[str, Any]:
    """The content of ``kif.json``: all that a program must know to ask as the tasks' rows do."""
    adapters = adapter_folders(facts, contents)
    return {
        "format": FORMAT,
        "version": VERSION,
        "form": contents.form.name.lower(),
        "merged": contents.merged,
        "one_row_at_a_time": contents.one_by_one,
        "stand_ins": list(facts.stand_ins),
        "backbone": facts.backbone,
        "base_model": {
            "name": facts.base_name,
            "dtype": facts.dtype,
            "weights": dict(facts.weights),
            "fingerprint": dict(facts.base),
        },
        "auto_class": facts.use.auto_class,
        "prompt": {
            "rule": facts.use.rule,
            "encode": facts.use.encode,
            "padding_side": facts.use.padding_side,
            **facts.prompt,
        },
        "generation": {"do_sample": False, "num_beams": 1, **facts.use.generation},
        "tasks": [
            {
                "name": task.name,
                "kind": task.kind,
                "metric": task.metric,
                "labels": list(task.labels),
                "decode": task.decode,
                "max_new_tokens": task.max_new_tokens,
                "stand_in": task.stand_in,
                **({"folder": adapters[task.name]} if adapters else {}),
            }
            for task in facts.tasks
        ],
        "state": facts.digest,
        "software": software(),
    }


def _chosen(learnt: LearntModel, task: str | None, *, merged: bool) -> int | None:
    """Place of the task whose own weights are wanted; refuses what cannot be."""
    names = [past.name for past in learnt.state.tasks]
    if task is not None and not learnt.adapter.needs_task_id:
        raise UserError(
            "--task is for methods with weights of their own for each task, but one adapter "
            "answers all tasks here: leave it out."
        )
    if task is not None and task not in names:
        raise UserError(f"--task must be a task that was learnt: {nearest_names(task, names)}.")
    if merged:
        _require_mergeable(learnt, task)
    return None if task is None else names.index(task)


def _require_mergeable(learnt: LearntModel, task: str | None) -> None:
    if learnt.backbone.provenance.get("quantisation"):
        raise UserError(
            "The learnt weights cannot be merged into quantised base weights without rounding "
            "them: leave --merged out."
        )
    model = learnt.model
    if isinstance(model, PreTrainedModel):
        return  # all its own weights were learnt
    if not isinstance(model, PeftModel) or model.active_peft_config.is_prompt_learning:
        raise UserError(
            "Prompts are an input, no weights that could be merged: leave --merged out."
        )
    if learnt.adapter.needs_task_id and task is None:
        raise UserError(
            "Each task has weights of its own, and one of them can be merged: add --task NAME, or "
            "leave --merged out."
        )


def _write_weights(
    learnt: LearntModel, folder: Path, chosen: int | None, *, merged: bool
) -> Contents:
    """Write weights and tokenizer; tells what then is in the folder."""
    model: Any = learnt.model
    merges = merged and isinstance(model, PeftModel)
    shows_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        if merges:
            model.merge_and_unload().save_pretrained(str(folder))
        else:
            learnt.adapter.save(model, folder)
    finally:
        if shows_bar:
            transformers_logging.enable_progress_bar()
    if chosen is not None and not merges:
        _keep_one(folder, chosen)
    contents = contents_of(folder, merged=merges)
    if contents.has_tokenizer:  # saved with all the weights
        return contents
    learnt.backbone.save_tokenizer(folder)
    return replace(contents, has_tokenizer=True)


def _keep_one(folder: Path, place: int) -> None:
    """Make the adapter of a task, one folder of several, the folder itself."""
    adapters = contents_of(folder).folders
    for path in (folder / adapters[place]).iterdir():
        path.rename(folder / path.name)
    for name in adapters:
        shutil.rmtree(folder / name)
