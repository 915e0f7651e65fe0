"""A LoRA for every task: their sum, who learns, who answers, resuming, folders of plain peft."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from kif_lightning.adapters import PeftAdapter, TaskLoras
from kif_lightning.backbones import DecoderBackbone, Seq2SeqBackbone
from kif_lightning.errors import UserError

FAMILIES = {
    "t5": (Seq2SeqBackbone, AutoModelForSeq2SeqLM, ["q", "v"]),
    "llama": (DecoderBackbone, AutoModelForCausalLM, ["q_proj", "v_proj"]),
}
IDS = torch.tensor([[5, 9, 40, 77, 3], [8, 1, 33, 20, 6]])


class Case:
    """The adapter on a tiny model of one family."""

    def __init__(
        self, family: str, folder: Path, active: Any, *, dtype: str | None = None, **settings: Any
    ) -> None:
        backbone_class, self.auto_class, targets = FAMILIES[family]
        self.folder = folder
        more = {"dtype": dtype} if dtype else {}
        self.backbone = backbone_class(
            name="tiny", hub_name="nobody/tiny", path=str(folder), **more
        )
        lora = {"r": 2, "lora_alpha": 6, "target_modules": targets, **settings}
        self.config = peft.LoraConfig(**lora)
        self.adapter = TaskLoras(config=self.config, active=active)
        self.attach()

    def attach(self) -> None:
        """A fresh process: new weights, the first LoRA drawn with the run's seed."""
        torch.manual_seed(100)
        self.model: Any = self.adapter.attach(self.backbone.load_model(), self.backbone).eval()

    def begin(self, task: int) -> None:
        """As the runner begins a task: seeded, then the adapter."""
        torch.manual_seed(200 + task)
        self.adapter.begin_task(self.model, task)
        self.model.eval()

    def train(self, task: int, steps: int = 2) -> None:
        """Real optimizer steps over everything that peft calls trainable."""
        optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], 0.05)
        for _ in range(steps):
            ids = IDS.roll(task, 1)
            optimizer.zero_grad()
            self.model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()

    def learn(self, *tasks: int) -> None:
        for task in tasks:
            self.begin(task)
            self.train(task)

    @torch.no_grad()
    def logits(self, model: nn.Module | None = None) -> Tensor:
        labels = {"labels": IDS} if self.backbone.task_type == "SEQ_2_SEQ_LM" else {}
        output: Tensor = (model or self.model)(input_ids=IDS, **labels).logits
        return output

    def state(self) -> dict[str, Tensor]:
        return {name: t.clone() for name, t in self.adapter.state_dict(self.model).items()}

    def learning(self) -> set[str]:
        return {n for n, p in self.model.named_parameters() if p.requires_grad}

    def by_hand(self, *tasks: str, scaling: float = 3.0) -> nn.Module:
        """A base model whose own weights took up ``scaling * B A`` of these tasks."""
        base = self.backbone.load_model().eval()
        weights = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, weight in base.named_parameters():
                module = f"base_model.model.{name.removesuffix('.weight')}"
                for task in tasks:
                    a = weights.get(f"{module}.lora_A.{task}.weight")
                    b = weights.get(f"{module}.lora_B.{task}.weight")
                    if a is not None and b is not None:
                        weight += scaling * torch.einsum("or,ri->oi", b, a)
        return base


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> tuple[str, Path]:
    return request.param, request.getfixturevalue(f"tiny_{request.param}")


def test_the_sum_is_the_base_weight_plus_all_updates(
    family: tuple[str, Path], tmp_path: Path
) -> None:
    case = Case(*family, "sum")
    case.learn(0, 1, 2)
    ours = case.logits()
    expected = case.logits(case.by_hand("task_001", "task_002", "task_003"))
    torch.testing.assert_close(ours, expected)
    for part in (["task_003"], ["task_001", "task_002"], []):
        assert not torch.allclose(ours, case.logits(case.by_hand(*part)), atol=1e-3), part

    case.adapter.save(case.model, tmp_path)
    fresh = case.auto_class.from_pretrained(case.folder)
    loaded: Any = peft.PeftModel.from_pretrained(fresh, str(tmp_path)).eval()
    torch.testing.assert_close(case.logits(loaded), expected)
    torch.testing.assert_close(case.logits(loaded.merge_and_unload()), expected)
    merged = copy.deepcopy(case.model).merge_and_unload()
    torch.testing.assert_close(case.logits(merged), expected)


@pytest.mark.parametrize(
    ("settings", "scaling"),
    [
        ({"use_rslora": True}, 6 / 2**0.5),
        ({"rank_pattern": {"v_proj": 3}, "alpha_pattern": {"v_proj": 9}}, 3.0),
        ({"init_lora_weights": "gaussian", "lora_dropout": 0.5}, 3.0),
    ],
)
def test_the_exported_sum_keeps_every_layers_scaling(
    settings: dict[str, Any], scaling: float, tiny_llama: Path, tmp_path: Path
) -> None:
    case = Case("llama", tiny_llama, "sum", **settings)
    case.learn(0, 1, 2)
    expected = case.logits(case.by_hand("task_001", "task_002", "task_003", scaling=scaling))
    torch.testing.assert_close(case.logits(), expected)
    case.adapter.save(case.model, tmp_path)
    fresh = case.auto_class.from_pretrained(case.folder)
    loaded = peft.PeftModel.from_pretrained(fresh, str(tmp_path)).eval()
    torch.testing.assert_close(case.logits(loaded), expected)


def test_an_embeddings_loras_are_exported_too(tiny_llama: Path, tmp_path: Path) -> None:
    case = Case("llama", tiny_llama, "sum", target_modules=["embed_tokens", "q_proj"])
    case.learn(0, 1)
    case.adapter.save(case.model, tmp_path)
    fresh = case.auto_class.from_pretrained(case.folder)
    loaded = peft.PeftModel.from_pretrained(fresh, str(tmp_path)).eval()
    assert any("lora_embedding_A" in name for name in case.adapter.trainable(case.model))
    torch.testing.assert_close(case.logits(loaded), case.logits())


def test_the_saved_sum_is_one_folder_and_leaves_the_model_as_it_was(
    family: tuple[str, Path], tmp_path: Path
) -> None:
    case = Case(*family, "sum")
    case.learn(0, 1)
    before = case.state(), case.learning(), case.model.active_adapters, case.logits()
    random_state = torch.get_rng_state()
    case.adapter.save(case.model, tmp_path)
    after = case.state(), case.learning(), case.model.active_adapters, case.logits()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert list(case.model.peft_config) == ["task_001", "task_002"]
    assert before[1:3] == after[1:3]
    assert before[0].keys() == after[0].keys()
    assert torch.equal(before[3], after[3])
    files = {file.name for file in tmp_path.iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["inference_mode"]) == (4, True)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    shared = PeftAdapter(config=case.config)
    names = shared.trainable(shared.attach(case.backbone.load_model(), case.backbone))
    assert saved.keys() == {f"base_model.model.{name}" for name in names}


@pytest.mark.parametrize("active", ["sum", "own"])
def test_saved_folders_name_the_hub_model_and_no_path(
    active: str, family: tuple[str, Path], tmp_path: Path
) -> None:
    case = Case(*family, active)
    case.learn(0, 1)
    case.adapter.save(case.model, tmp_path)
    configs = list(tmp_path.rglob("adapter_config.json"))
    assert len(configs) == {"sum": 1, "own": 2}[active]
    for file in configs:
        config = json.loads(file.read_text())
        assert config["base_model_name_or_path"] == "nobody/tiny"
        assert config["task_type"] == case.backbone.task_type
    for file in tmp_path.rglob("*.*"):
        assert str(case.folder).encode() not in file.read_bytes(), file.name


@pytest.mark.parametrize("active", ["sum", "own"])
def test_only_the_newest_learns(active: str, family: tuple[str, Path]) -> None:
    case = Case(*family, active)
    shared = PeftAdapter(config=case.config)
    names = shared.trainable(shared.attach(case.backbone.load_model(), case.backbone)).keys()
    assert case.adapter.trainable(case.model).keys() == names, "before the first task"
    for task in range(3):
        case.begin(task)
        if active == "own":
            # Evaluation asks old tasks: their LoRAs must not learn because of that.
            case.adapter.use_task(case.model, 0)
            assert all(f".task_{task + 1:03d}." in name for name in case.learning())
            case.begin(task)
        before = {n: p.clone() for n, p in case.model.named_parameters()}
        case.train(task)
        changed = {n for n, p in case.model.named_parameters() if not torch.equal(p, before[n])}
        assert changed == case.learning()
        trainable = case.adapter.trainable(case.model)
        assert trainable.keys() == names
        assert {id(p) for p in trainable.values()} == {
            id(p) for n, p in case.model.named_parameters() if n in changed
        }
        assert all(f".task_{task + 1:03d}." in name for name in changed)
        for name, parameter in case.model.named_parameters():
            assert (parameter.grad is not None) <= ("lora_" in name), name


@pytest.mark.parametrize("active", ["sum", "own"])
def test_a_new_lora_starts_without_effect(active: str, family: tuple[str, Path]) -> None:
    case = Case(*family, active)
    untouched = case.logits(case.backbone.load_model().eval())
    case.learn(0)
    learnt = case.logits()
    case.begin(1)
    assert torch.equal(case.logits(), learnt if active == "sum" else untouched)
    first, second = case.state(), case.adapter.trainable(case.model)
    for name, parameter in second.items():
        if ".lora_B." in name:
            assert not parameter.any(), name
        else:
            old = first[name.replace(".lora_A.", ".lora_A.task_001.")]
            assert parameter.std() > 0
            assert not torch.equal(parameter, old), "drawn anew"


def test_every_task_keeps_its_own_answers(family: tuple[str, Path]) -> None:
    case = Case(*family, "own")
    learnt = []
    for task in range(3):
        case.learn(task)
        learnt.append(case.logits())
    assert not torch.allclose(learnt[0], learnt[1])
    with torch.inference_mode():
        for task in (2, 0, 1, 0):
            case.adapter.use_task(case.model, task)
            assert torch.equal(case.logits(), learnt[task])
            torch.testing.assert_close(
                learnt[task], case.logits(case.by_hand(f"task_{task + 1:03d}"))
            )
        case.adapter.use_task(case.model, 7)
        assert torch.equal(case.logits(), learnt[2]), "not learnt yet: the newest answers"
        case.adapter.use_task(case.model, 0)
    case.begin(3)
    assert case.model.active_adapters == ["task_004"]


def test_every_tasks_folder_loads_with_plain_peft(family: tuple[str, Path], tmp_path: Path) -> None:
    case = Case(*family, "own")
    learnt = []
    for task in range(2):
        case.learn(task)
        learnt.append(case.logits())
    before = case.learning(), case.model.active_adapters
    case.adapter.save(case.model, tmp_path)
    assert (case.learning(), case.model.active_adapters) == before
    for name, expected in zip(("task_001", "task_002"), learnt, strict=True):
        fresh = case.auto_class.from_pretrained(case.folder)
        loaded = peft.PeftModel.from_pretrained(fresh, str(tmp_path / name)).eval()
        assert torch.equal(case.logits(loaded), expected)


def test_the_sum_does_not_ask_which_task_it_is(tiny_t5: Path) -> None:
    case = Case("t5", tiny_t5, "sum")
    case.learn(0, 1)
    together = case.logits()
    case.adapter.use_task(case.model, 0)
    assert torch.equal(case.logits(), together)


@pytest.mark.parametrize("active", ["sum", "own"])
def test_state_goes_round_bit_for_bit(active: str, family: tuple[str, Path]) -> None:
    case = Case(*family, active)
    case.learn(0, 1, 2)
    kept, learning, logits = case.state(), case.learning(), case.logits()
    assert len(kept) == 3 * len(case.adapter.trainable(case.model))
    case.attach()
    assert not torch.equal(case.logits(), logits)
    case.adapter.load_state_dict(case.model, kept)
    case.model.eval()
    found = case.state()
    assert found.keys() == kept.keys()
    assert all(torch.equal(found[name], kept[name]) for name in kept)
    assert case.learning() == learning
    assert torch.equal(case.logits(), logits)


@pytest.mark.parametrize("active", ["sum", "own"])
@pytest.mark.parametrize("interrupted", [0, 1, 2])
def test_a_resumed_run_learns_as_one_that_was_not_interrupted(
    interrupted: int, active: str, family: tuple[str, Path]
) -> None:
    case = Case(*family, active)
    case.learn(0, 1, 2)
    whole, logits = case.state(), case.logits()

    case.attach()
    kept = case.state()
    for task in range(interrupted):
        case.learn(task)
        kept = case.state()
    case.begin(interrupted)
    case.train(interrupted, steps=1)
    case.attach()
    case.adapter.load_state_dict(case.model, kept)
    case.learn(*range(interrupted, 3))
    found = case.state()
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert torch.equal(case.logits(), logits)


@pytest.mark.parametrize("active", ["sum", "own"])
def test_beginning_a_task_twice_neither_adds_nor_draws(active: str, tiny_llama: Path) -> None:
    case = Case("llama", tiny_llama, active)
    for task in range(2):
        if task:
            case.begin(task)
        kept, learning = case.state(), case.learning()
        torch.manual_seed(999)
        case.adapter.begin_task(case.model, task)
        found = case.state()
        assert found.keys() == kept.keys()
        assert all(torch.equal(found[name], kept[name]) for name in kept)
        assert case.learning() == learning


def test_frozen_loras_act_without_dropout_and_the_newest_with_it(family: tuple[str, Path]) -> None:
    case = Case(*family, "sum", lora_dropout=0.5)
    for module in case.model.modules():
        # T5's own dropout would hide what LoRA's does.
        if isinstance(module, nn.Dropout) and module.p != 0.5:
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    case.learn(0)
    case.model.train()
    assert not torch.equal(case.logits(), case.logits()), "the first learns with dropout"
    case.begin(1)
    case.model.train()
    # The newest has B = 0 and no effect yet: only the old one's dropout could be seen.
    assert torch.equal(case.logits(), case.logits())
    with torch.no_grad():
        for parameter in case.adapter.trainable(case.model).values():
            parameter.add_(0.5)
    assert not torch.equal(case.logits(), case.logits())


def test_loras_are_float32_on_a_bfloat16_model(tiny_llama: Path) -> None:
    case = Case("llama", tiny_llama, "sum", dtype="bfloat16")
    case.learn(0, 1)
    for name, parameter in case.model.named_parameters():
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16)


@pytest.mark.parametrize(
    "foreign",
    ["other.lora_A.task_001.weight", "other.lora_A.weight", "other.lora_A.task_003.weight"],
)
def test_state_of_another_adapter_is_refused(foreign: str, tiny_llama: Path) -> None:
    case = Case("llama", tiny_llama, "sum")
    case.learn(0, 1)
    with pytest.raises(UserError, match="another adapter"):
        case.adapter.load_state_dict(case.model, {**case.state(), foreign: torch.zeros(2, 2)})


def test_state_of_fewer_tasks_is_refused(tiny_llama: Path) -> None:
    case = Case("llama", tiny_llama, "own")
    kept = case.state()
    case.learn(0, 1)
    with pytest.raises(UserError, match="another adapter"):
        case.adapter.load_state_dict(case.model, kept)


def test_targets_that_match_nothing_name_the_models_layers(tiny_t5: Path) -> None:
    with pytest.raises(UserError, match=r"\['query'\] match no layer.*backbone.lora_targets"):
        Case("t5", tiny_t5, "sum", target_modules=["query"])


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(UserError, match=r"method.adapter.active must be 'sum' or 'own'"):
        TaskLoras(config=peft.LoraConfig(), active="mean")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (peft.IA3Config(), "needs a peft.LoraConfig, got IA3Config"),
        (peft.LoraConfig(use_dora=True), "use_dora=True"),
        (peft.LoraConfig(bias="all"), "bias='all'"),
        (peft.LoraConfig(modules_to_save=["lm_head"]), r"modules_to_save=\['lm_head'\]"),
        (peft.LoraConfig(init_lora_weights="pissa"), "init_lora_weights='pissa'"),
        (peft.LoraConfig(init_lora_weights=False), "init_lora_weights=False"),
    ],
)
def test_what_is_not_plain_lora_is_refused(config: peft.PeftConfig, part: str) -> None:
    with pytest.raises(UserError, match=part):
        TaskLoras(config=config, active="sum")
