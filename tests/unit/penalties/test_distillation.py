"""Distillation against a copy of the old model and the divergence written out."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn

from kif_lightning.adapters import FullAdapter, PeftAdapter
from kif_lightning.backbones.decoder import DecoderBackbone
from kif_lightning.errors import UserError
from kif_lightning.interfaces import LossContext
from kif_lightning.penalties import Distillation
from tests.helpers.streams import tiny_backbone, toy_task

KINDS = ["t5-lora", "t5-full", "llama-lora", "llama-full"]


@dataclass
class Student:
    """A tiny model, its batch and its contexts."""

    kind: str
    folder: Path
    adapter: Any = field(init=False)

    def __post_init__(self) -> None:
        family, _, way = self.kind.partition("-")
        is_t5 = family == "t5"
        self.backbone: Any = (
            tiny_backbone(self.folder)
            if is_t5
            else DecoderBackbone(name="tiny", hub_name="tiny/llama", path=str(self.folder))
        )
        torch.manual_seed(3)
        targets = ["q", "v"] if is_t5 else ["q_proj", "v_proj"]
        lora = LoraConfig(r=2, lora_alpha=8, target_modules=targets, lora_dropout=0.3)
        self.adapter = FullAdapter() if way == "full" else PeftAdapter(config=lora)
        self.model = self.adapter.attach(self.backbone.load_model(), self.backbone)
        self.parameters = self.adapter.trainable(self.model)
        rows = toy_task(train=5).train
        self.examples = [self.backbone.encode(row) for row in rows]

    def move(self, size: float = 0.3) -> None:
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.parameters.values():
                parameter += size * torch.randn(parameter.shape, generator=draw)

    def context(self, start: int = 0, stop: int = 5, micro_batches: int = 1) -> LossContext:
        batch = self.backbone.training_batch(self.examples[start:stop])
        logits, labels = self.backbone.answer_logits(self.model, batch)
        return LossContext(
            parameters=self.parameters,
            model=self.model,
            batch=batch,
            logits=logits,
            labels=labels,
            answer_logits=self.backbone.answer_logits,
            step_tokens=sum(len(example.answer_ids) for example in self.examples),
            step_micro_batches=micro_batches,
            step_rows=1,
        )


@pytest.fixture(params=KINDS)
def student(request: pytest.FixtureRequest, tiny_t5: Path, tiny_llama: Path) -> Student:
    return Student(request.param, tiny_t5 if "t5" in request.param else tiny_llama)


def by_hand(old: Tensor, new: Tensor, labels: Tensor, temperature: float) -> float:
    """T^2 times the mean over answer tokens of sum_v p_v log(p_v / q_v), in float64."""
    divergences = []
    for row in range(labels.shape[0]):
        for place in range(labels.shape[1]):
            if labels[row, place] == -100:
                continue
            p = torch.exp(old[row, place].double() / temperature)
            q = torch.exp(new[row, place].double() / temperature)
            p, q = p / p.sum(), q / q.sum()
            divergences.append(float((p * torch.log(p / q)).sum()))
    return temperature**2 * math.fsum(divergences) / len(divergences)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_value_and_gradient_are_those_of_a_copied_old_model(
    student: Student, temperature: float
) -> None:
    penalty = Distillation(coefficient=0.7, temperature=temperature)
    penalty.begin_task(student.parameters, 1)
    old = copy.deepcopy(student.model).eval()
    student.move()
    student.model.train()
    context = student.context()
    assert (context.labels == -100).any()
    old_logits = student.backbone.answer_logits(old, context.batch)[0].detach()
    expected = 0.7 * by_hand(old_logits, context.logits.detach(), context.labels, temperature)
    assert expected > 1e-3
    term = penalty(context)
    assert term.shape == ()
    assert float(term.detach()) == pytest.approx(expected, rel=1e-3)
    # d/dz of T^2 KL(p || q), softened: T (q - p) at each answer token.
    (found,) = torch.autograd.grad(term, context.logits, retain_graph=True)
    q, p = (torch.softmax(z.detach() / temperature, -1) for z in (context.logits, old_logits))
    slope = 0.7 * temperature * (q - p) / context.step_tokens
    slope[context.labels == -100] = 0
    torch.testing.assert_close(found, slope, rtol=1e-3, atol=1e-6)
    term.backward()
    assert any(x.grad is not None and x.grad.any() for x in student.parameters.values())


def test_model_is_left_alone_and_the_gradient_goes_through_the_new_logits_only(
    student: Student,
) -> None:
    penalty = Distillation()
    penalty.begin_task(student.parameters, 2)
    student.move()
    student.model.train()
    next(m for m in student.model.modules() if isinstance(m, nn.Dropout | nn.Linear)).eval()
    modes = [module.training for module in student.model.modules()]
    assert len(set(modes)) == 2
    objects = dict(student.model.named_parameters(remove_duplicate=False))
    weights = {name: weight.detach().clone() for name, weight in objects.items()}
    context = student.context()
    alone = LossContext(**{**vars(context), "logits": context.logits.detach()})
    assert not penalty(alone).requires_grad
    assert [module.training for module in student.model.modules()] == modes
    after = dict(student.model.named_parameters(remove_duplicate=False))
    assert after.keys() == objects.keys()
    for name, weight in after.items():
        assert weight is objects[name]
        assert torch.equal(weight, weights[name])
        assert weight.grad is None


def test_modes_come_back_when_the_teacher_fails(student: Student) -> None:
    penalty = Distillation()
    penalty.begin_task(student.parameters, 1)
    student.model.train()
    context = student.context()

    def broken(*_: Any) -> Any:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        penalty(LossContext(**{**vars(context), "answer_logits": broken}))
    assert all(module.training for module in student.model.modules())


@pytest.mark.parametrize("mixed", [False, True])
def test_unchanged_weights_cost_nothing(student: Student, mixed: bool) -> None:
    """In mixed precision too: the teacher is computed as the student is."""
    penalty, dtypes = Distillation(), []
    penalty.begin_task(student.parameters, 1)
    student.model.eval()

    def answer_logits(*args: Any) -> tuple[Tensor, Tensor]:
        logits, labels = student.backbone.answer_logits(*args)
        dtypes.append(logits.dtype)
        return logits, labels

    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        context = LossContext(**{**vars(student.context()), "answer_logits": answer_logits})
        with torch.autocast("cpu", enabled=False):
            term = penalty(context)
    assert [context.logits.dtype] == dtypes == [torch.bfloat16 if mixed else torch.float32]
    assert term.dtype == torch.float32
    # Without a graph T5's attention takes another kernel, which rounds otherwise.
    assert abs(float(term.detach())) < (1e-4 if mixed else 1e-6)


def test_micro_batches_of_unequal_tokens_are_the_whole_batch(student: Student) -> None:
    penalty = Distillation()
    penalty.begin_task(student.parameters, 1)
    student.move()
    student.model.eval()
    whole = float(penalty(student.context()).detach())
    cuts = [(0, 1), (1, 2), (2, 5)]
    sizes = {sum(len(e.answer_ids) for e in student.examples[a:b]) for a, b in cuts}
    assert len(sizes) == 3
    # The module counts each term as a third.
    parts = [float(penalty(student.context(a, b, len(cuts))).detach()) / 3 for a, b in cuts]
    assert sum(parts) == pytest.approx(whole, rel=1e-4)


def test_the_first_task_has_no_teacher_and_later_ones_the_last_weights(tiny_t5: Path) -> None:
    student = Student("t5-lora", tiny_t5)
    student.model.eval()
    penalty = Distillation()
    penalty.begin_task(student.parameters, 0)
    student.move()
    assert float(penalty(student.context())) == 0.0
    penalty.end_task(student.parameters, 0, learnt=None)  # type: ignore[arg-type]
    penalty.begin_task(student.parameters, 1)
    assert float(penalty(student.context()).detach()) == 0.0
    student.move()
    assert float(penalty(student.context()).detach()) > 1e-4
    penalty.begin_task(student.parameters, 2)
    assert float(penalty(student.context()).detach()) == 0.0
    assert penalty.state_dict() == {}
    penalty.load_state_dict({})


@pytest.mark.parametrize(
    ("name", "value"),
    [("coefficient", -0.1), ("coefficient", None), ("temperature", 0.0), ("temperature", -1)],
)
def test_values_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"penalty\.distillation\.{name}"):
        Distillation(**{name: value})
