"""A model as a run or a continual state left it, loaded to answer or to be exported."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from omegaconf import DictConfig
from torch import nn
from tqdm.auto import tqdm

from kif_lightning.assembly import build_learner, fixed
from kif_lightning.backbones.fingerprint import require_same_base, weights_fingerprint
from kif_lightning.continual_state import ContinualState
from kif_lightning.errors import UserError, nearest_names, require_choice, require_count
from kif_lightning.extending import config_of
from kif_lightning.interfaces import Adapter, Backbone, Decode
from kif_lightning.packing import open_state
from kif_lightning.predicting.answers import Answers, cut_prompts
from kif_lightning.reporting.console import stamped

OF_THE_MACHINE = (
    *(f"backbone.{key}" for key in ("path", "source", "dtype", "attention", "quantisation")),
    *("backbone.compile", "backbone._target_", "method.adapter._target_"),
    *(f"evaluation.{key}" for key in ("decode", "precision", "batch_tokens", "max_new_tokens")),
)
"""Settings that leave the model what it is (the base weights' fingerprint is compared), or that
confirm a part of the state's own."""
BUILT = ("backbone", "method.adapter")
"""Of a state's settings, those of which parts are made here."""


@dataclass(frozen=True, kw_only=True, repr=False)
class LearntModel:
    """The adapted model in evaluation mode, and what belongs to it."""

    state: ContinualState
    backbone: Backbone
    adapter: Adapter
    model: nn.Module
    config: DictConfig
    """The state's settings, with what was said otherwise when it was loaded."""

    def __repr__(self) -> str:
        name, number = self.state.config["method"]["name"], len(self.tasks)
        told = f"{name} on {self.backbone.name}, {number} task{'s' * (number != 1)}"
        return f"<LearntModel: {stamped(told, self.stand_ins)}>"

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks it has learnt, in their order."""
        return tuple(task.name for task in self.state.tasks)

    @property
    def stand_ins(self) -> tuple[str, ...]:
        """What only stands for something real in what it was learnt with; say so beside answers."""
        return self.state.stand_ins

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.model.parameters()).device

    def predict(
        self,
        prompts: Iterable[str],
        *,
        task: str | None = None,
        batch_size: int = 64,
        batch_tokens: int | None = None,
        max_new_tokens: int | None = None,
        decode: Decode | None = None,
        progress: bool = False,
    ) -> list[str]:
        """Answer prompts as a run's evaluation does: an answer a prompt, in their order.

        ``progress`` shows a bar, the other arguments and what is raised are
        :meth:`predict_each`'s. Warns if prompts were longer than the model reads.
        """
        if not isinstance(prompts, str):  # which is refused below
            prompts = list(prompts)
        answers = self.predict_each(
            prompts,
            task=task,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            max_new_tokens=max_new_tokens,
            decode=decode,
        )
        shown = tqdm(answers, total=len(prompts), unit="prompt", disable=not progress)
        found = list(shown)
        if told := cut_prompts(answers):
            warnings.warn(told, stacklevel=2)
        return found

    def predict_each(
        self,
        prompts: Iterable[str],
        *,
        task: str | None = None,
        batch_size: int = 64,
        batch_tokens: int | None = None,
        max_new_tokens: int | None = None,
        decode: Decode | None = None,
    ) -> Answers:
        """The same, each answer as soon as it and all before it are there.

        The prompts may be endless: no more than some thousand are in memory.

        Args:
            prompts: whole, as they are in the rows that were trained on.
            task: the one they are of. It caps the answer at the task's longest label, may have the
                labels ranked (``decode``), and tells a model which task it is asked.
            batch_size: prompts answered together, at most.
            batch_tokens: their tokens, padding and what may be generated included, at most; None:
                the state's ``evaluation.batch_tokens``.
            max_new_tokens: of an answer; None: the task's, else ``evaluation.max_new_tokens``.
            decode: ``generate``, or ``rank_labels``: the likeliest label of the task answers; None:
                the state's ``evaluation.decode``, by which a task without labels generates.

        Raises:
            UserError: an unknown task, none where the model must know it, labels to be ranked where
                there are none; prompts that are no texts, or blank: of a list at once, else as they
                come.
        """
        number = self._number(task)
        known = None if number is None else self.state.tasks[number]
        labels = known.labels if known else ()
        evaluation = self.config.evaluation
        if decode is not None:
            require_choice("decode", decode, get_args(Decode))
        ranked = (decode or evaluation.decode) == "rank_labels"
        # As in the run, a task without labels generates; not where ranking was asked for here.
        if ranked and not labels and (task is None or decode is not None):
            raise UserError(
                "decode=rank_labels (evaluation.decode) chooses from the labels of a task, got "
                f"{'no task' if task is None else f'task {task}, which has none'}: name a "
                "classification task (task=, --task), or use generate."
            )
        if max_new_tokens is None:
            capped = known if labels else None
            max_new_tokens = capped.max_new_tokens if capped else evaluation.max_new_tokens
        batch_tokens = evaluation.batch_tokens if batch_tokens is None else batch_tokens
        require_count("max_new_tokens", max_new_tokens)
        require_count("batch_size", batch_size)
        if batch_tokens is not None:
            require_count("batch_tokens", batch_tokens)
        training = fixed(self.config, "precision", self.config.trainer.precision)
        return Answers(
            prompts,
            backbone=self.backbone,
            model=self.model,
            device=self.device,
            precision=str(evaluation.precision or training),
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            max_new_tokens=max_new_tokens,
            task=task or "",
            labels=labels if ranked else (),
            prepare=partial(self.adapter.use_task, self.model, number or 0),
        )

    def _number(self, task: str | None) -> int | None:
        """The task's place in the stream."""
        if task is None:
            if self.adapter.needs_task_id:
                raise UserError(
                    "The model has weights of its own for each task and must be told which one the "
                    f"prompts are of: name one of {', '.join(self.tasks)} (task=, --task)."
                )
            return None
        require_learnt(self.state, task)
        return self.tasks.index(task)


def require_learnt(state: ContinualState, task: str) -> None:
    """Raise UserError unless the task is one of the state's."""
    names = [known.name for known in state.tasks]
    if task not in names:
        raise UserError(
            f"Expected a task that the model has learnt, got {task}: {nearest_names(task, names)}."
        )


def load(
    place: str | Path,
    *,
    after: str | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
) -> LearntModel:
    """Load the model of a continual state's folder or of a run's.

    Args:
        place: the folder.
        after: of a run: the task (number or name) whose state is wanted; None: the last one learnt.
        overrides: settings of this machine (:data:`OF_THE_MACHINE`), as ``backbone.path=FOLDER``.
        device: where it shall compute, as torch calls it; None: a GPU if there is one.

    Raises:
        UserError: no state there, a damaged one, base weights that cannot be had or are others,
            another setting, a device that there is not.
    """
    return learnt_model(
        open_state(Path(place), after), place=place, overrides=overrides, device=device
    )


def learnt_model(
    state: ContinualState,
    *,
    place: str | Path,
    overrides: Sequence[str] = (),
    device: str | None = None,
) -> LearntModel:
    """The model of a state that was read from ``place``; see :func:`load`."""
    where = _device(device)
    _require_of_machine(overrides)
    config = config_of(state, overrides, built=BUILT)
    backbone, adapter = build_learner(config)
    backbone.require_available()
    base = backbone.load_model()
    require_same_base(
        state.parts["base"],
        weights_fingerprint(base),
        what=f"the state in {place}",
        mend="give the same model (backbone.path=FOLDER, backbone.dtype)",
    )
    model = adapter.attach(base, backbone)
    adapter.load_state_dict(model, state.parts["adapter"])
    # Packed weights were loaded where they compute, and may not move.
    if any(parameter.device != where for parameter in model.parameters()):
        model = model.to(where)
    return LearntModel(
        state=state, backbone=backbone, adapter=adapter, model=model.eval(), config=config
    )


def _require_of_machine(overrides: Sequence[str]) -> None:
    others = [text for text in overrides if text.partition("=")[0] not in OF_THE_MACHINE]
    if others:
        raise UserError(
            f"{' '.join(others)} would make another model than was learnt, or changes nothing: "
            f"expected settings of this machine, {', '.join(OF_THE_MACHINE)}."
        )


def _device(name: str | None) -> torch.device:
    if name is None:
        gpus = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        name = next((gpu for gpu, there in gpus.items() if there), "cpu")
    try:
        # With its number, as parameters name it.
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        told = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"There is no device {name!r} here ({told}): use cpu, cuda, cuda:1 or mps."
        ) from error
