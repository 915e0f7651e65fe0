"""``kif predict``: a learnt model answers the prompts of a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import tee
from pathlib import Path

from tqdm.auto import tqdm

from kif_lightning.benchmarks.own import Layout, layout_of
from kif_lightning.benchmarks.own.description import read_descriptions
from kif_lightning.continual_state import LAYOUT, ContinualState
from kif_lightning.errors import UserError, nearest_names
from kif_lightning.learnt_model import LearntModel, learnt_model, require_learnt
from kif_lightning.packing import open_state
from kif_lightning.predicting.answers import Answers, cut_prompts
from kif_lightning.predicting.prompt_file import PromptFile, prompt_file
from kif_lightning.reporting.console import RunConsole
from kif_lightning.storage import replacing


def predict(
    model_place: Path,
    source: Path | None,
    *,
    out: Path | None = None,
    force: bool = False,
    task: str | None = None,
    tasks: Path | None = None,
    after: str | None = None,
    batch_size: int = 64,
    max_new_tokens: int | None = None,
    device: str | None = None,
    overrides: Sequence[str] = (),
    console: RunConsole,
) -> None:
    """Answer every prompt, as JSON lines of ``id`` and ``prediction`` in the prompts' order.

    All prompts are read, and what is wrong with one is told, before the model is loaded.

    Args:
        model_place: the folder of a continual state or of a run.
        source: the prompts, see :func:`~kif_lightning.predicting.prompt_file.prompt_file`.
        out: the file, written whole or not at all; None: standard output, as answers come.
        force: write over a file that is there.
        task: the one that the prompts are of.
        tasks: the yaml of own tasks that tells how prompts are built of columns; None: the state
            tells it, if the task was learnt from such a yaml.
        after: of a run: the task whose state is wanted.
        batch_size: prompts answered together, at most.
        max_new_tokens: see :meth:`~kif_lightning.learnt_model.LearntModel.predict_each`.
        device: see :func:`~kif_lightning.learnt_model.load`.
        overrides: the same.
        console: where it speaks; not standard output.

    Raises:
        UserError: no state, prompts that cannot be read, a file that is there or cannot be written,
            an unknown task.
    """
    if out is not None and out.exists() and not force:
        raise UserError(
            f"--out must be a new file, got {out}, which exists: name another one, or write over "
            "it with --force."
        )
    if out is not None and out.is_dir():
        raise UserError(f"--out must be a file, got the folder {out}: name a file in it.")
    state = open_state(model_place, after)
    if task is not None:
        require_learnt(state, task)
    with prompt_file(
        source,
        layout=_layout(state, task, tasks),
        built=tasks is not None,
        hint=_hint(state, task),
    ) as prompts:
        number = prompts.count()
        model = learnt_model(state, place=model_place, overrides=overrides, device=device)
        asked, texts = tee(prompts)
        answers = model.predict_each(
            (row.input for row in texts),
            task=task,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
        )
        console.say(_beginning(model, prompts, number, task))
        stand_ins = {"stand_ins": list(model.stand_ins)} if model.stand_ins else {}
        with _writing(out) as write:
            for row, text in zip(asked, _shown(answers, number, out), strict=True):
                record = {"id": row.id, "prediction": text, **stand_ins}
                write(f"{json.dumps(record, ensure_ascii=False)}\n".encode())
    if told := cut_prompts(answers):
        console.say(told)
    if out is not None:
        console.say(f"Predictions: {out}")


def _layout(state: ContinualState, task: str | None, tasks: Path | None) -> Layout | None:
    """How the task's prompts are built, where they are."""
    if tasks is not None:
        if task is None:
            raise UserError("--tasks tells how a task's prompts are built: add --task=NAME.")
        _, described = read_descriptions(tasks)
        if task not in described:
            raise UserError(f"{tasks} has no task {task}: {nearest_names(task, described)}.")
        return described[task].layout
    found = _layouts(state).get(task or "")
    return None if found is None else layout_of(found)


def _layouts(state: ContinualState) -> dict[str, dict[str, object]]:
    return {task.name: task.data[LAYOUT] for task in state.tasks if LAYOUT in task.data}


def _hint(state: ContinualState, task: str | None) -> str:
    built = _layouts(state)
    if task is not None or not built:
        return ""
    return f"; --task builds it of columns, for {' or '.join(built)}"


def _beginning(model: LearntModel, prompts: PromptFile, number: int, task: str | None) -> str:
    of = "" if task is None else f" of task {task}"
    told = f" - on {' and '.join(model.stand_ins)}" if model.stand_ins else ""
    return f"{number} prompts{of} from {prompts.name}, answered on {model.device}{told}."


def _shown(answers: Answers, number: int, out: Path | None) -> Iterator[str]:
    """With a bar on the terminal, unless the answers are to be seen there."""
    hidden = not sys.stderr.isatty() or (out is None and sys.stdout.isatty())
    yield from tqdm(answers, desc="predict", total=number, unit="prompt", disable=hidden)


@contextmanager
def _writing(out: Path | None) -> Iterator[Callable[[bytes], object]]:
    if out is None:
        yield _to_standard_output
        return
    try:
        with replacing(out) as file:
            yield file.write
    except OSError as error:
        raise UserError(
            f"The predictions cannot be written to {out} ({error.strerror or error}): name a file "
            "that can be."
        ) from error


def _to_standard_output(line: bytes) -> None:
    """At once: who reads it may want no more, and then nothing else is to be answered."""
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()
