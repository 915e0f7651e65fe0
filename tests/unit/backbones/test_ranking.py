"""Label log probabilities against one row and one label at a time, a full forward pass each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from kif_lightning.backbones import DecoderBackbone, Seq2SeqBackbone, ranking
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Row
from kif_lightning.paths import option_names
from kif_lightning.sharding import shard_model
from tests.helpers.processes import in_processes
from tests.helpers.streams import tiny_config
from tests.helpers.tiny import save_tiny_llama, save_tiny_t5, toy_rows

LABELS = ("good", "bad red green", "round", "bad")
"""Of one to several tokens; one is the beginning of another."""
END = 1
ROWS = toy_rows("colour", "test", 6, ("good", "bad"))
FAMILIES: dict[str, Any] = {"t5": Seq2SeqBackbone, "llama": DecoderBackbone}
both_families = pytest.mark.parametrize("family", FAMILIES)


class Case:
    """A tiny model of one family, loud enough that its answers depend on the prompt."""

    def __init__(self, family: str, folder: Path, adapter: Any = None) -> None:
        self.backbone = FAMILIES[family](name="tiny", hub_name="nobody/tiny", path=str(folder))
        self.examples = [self.backbone.encode(row) for row in ROWS]
        self.labels = [*map(self.label_ids, LABELS), [END]]  # the last one is empty
        self.adapter = adapter
        self.model: Any = self.backbone.load_model().eval()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(4 if parameter.ndim > 1 else 1)
        if adapter is not None:
            self.model = adapter.attach(self.model, self.backbone).eval()
            self.learn(0)

    def label_ids(self, label: str) -> list[int]:
        ids: list[int] = self.backbone.encode(Row(id="", input="Answer:", output=label)).answer_ids
        return ids

    def learn(self, task: int) -> None:
        """Something else in each task."""
        self.adapter.begin_task(self.model, task)
        draw = torch.Generator().manual_seed(task)
        with torch.no_grad():
            for parameter in self.adapter.trainable(self.model).values():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
        self.model.eval()  # what is new comes in training mode

    @torch.no_grad()
    def found(self, labels: Sequence[Sequence[int]] | None = None) -> Tensor:
        batch = self.backbone.generation_batch(self.examples)
        found: Tensor = self.backbone.label_log_probabilities(
            self.model, batch, self.labels if labels is None else labels
        )
        return found

    @torch.no_grad()
    def alone(self, prompt: list[int], label: list[int]) -> float:
        """Of one row and label, without padding, masks and caches."""
        if isinstance(self.backbone, Seq2SeqBackbone):
            logits = self.model(
                input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[0, *label[:-1]]])
            ).logits[0]
        else:
            soft = {"num_answer_tokens": torch.tensor([len(label)])}
            logits = self.model(
                input_ids=torch.tensor([[*prompt, *label]]),
                **(soft if hasattr(self.model, "source") else {}),
            ).logits[0, -len(label) - 1 : -1]
        steps = zip(logits.log_softmax(dim=1), label, strict=True)
        return sum(float(step[token]) for step, token in steps)

    def expected(self) -> Tensor:
        return torch.tensor(
            [[self.alone(e.prompt_ids, label) for label in self.labels] for e in self.examples]
        )


@pytest.fixture
def folders(tiny_t5: Path, tiny_llama: Path) -> dict[str, Path]:
    return {"t5": tiny_t5, "llama": tiny_llama}


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)


def test_the_case_is_not_an_easy_one(folders: dict[str, Path]) -> None:
    for family, folder in folders.items():
        case = Case(family, folder)
        assert len({len(e.prompt_ids) for e in case.examples}) > 2
        assert len({len(label) for label in case.labels}) > 2
        assert case.expected().std(dim=0).min() > 0.01, "the prompt decides"


@pytest.mark.parametrize("adapter", option_names("method/adapter"))
@both_families
def test_every_adapter(
    family: str, adapter: str, folders: dict[str, Path], toy_data: Path, tmp_path: Path
) -> None:
    options = ("method=seq_lora", f"method/adapter={adapter}")
    config = tiny_config(folders[family], toy_data, tmp_path, *options)
    case = Case(family, folders[family], instantiate(config.method.adapter))
    case.learn(1)
    seen = []
    for task in (0, 1):
        case.adapter.use_task(case.model, task)
        found = case.found()
        near(found, case.expected())
        seen.append(found)
    assert torch.equal(*seen) != case.adapter.needs_task_id


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@both_families
def test_every_attention_that_takes_a_mask(
    family: str, attention: str, folders: dict[str, Path]
) -> None:
    case = Case(family, folders[family])
    case.model.set_attn_implementation(attention)
    near(case.found(), case.expected())


@both_families
def test_other_attention_is_refused(family: str, folders: dict[str, Path]) -> None:
    case = Case(family, folders[family])
    case.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match=r"rank_labels .* got flash_attention_2: use sdpa"):
        next(ranking.packed_labels(case.model, case.labels, torch.zeros(1, 1)))


@pytest.mark.parametrize("room", [0, 3, 5, 1000])
@both_families
def test_many_labels_go_in_passes_and_the_prompt_runs_once(
    family: str, room: int, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``room``: columns of a pass; a longer label stands alone."""
    case = Case(family, folders[family])
    expected = case.expected()
    vocabulary = case.model.config.vocab_size
    monkeypatch.setattr(ranking, "MAX_LOGITS", room * len(ROWS) * vocabulary)
    widths: list[int] = []  # of the prompts, then of each pass
    for part in (case.model.encoder, case.model.decoder) if family == "t5" else (case.model,):
        part.get_input_embeddings().register_forward_hook(
            lambda _, inputs, output: widths.append(output.shape[1])
        )
    near(case.found(), expected)
    assert widths.pop(0) == max(len(e.prompt_ids) for e in case.examples)
    # A T5's label follows a start token of its own, a decoder's first token the prompt.
    columns = [len(label) - (family == "llama") for label in case.labels]
    assert sum(widths) == sum(columns)
    assert max(widths) <= max(room, *columns)
    assert (len(widths) == 1) == (room == 1000)


@both_families
def test_under_autocast_the_numbers_are_float32_and_near(
    family: str, folders: dict[str, Path]
) -> None:
    case = Case(family, folders[family])
    exact = case.found()
    with torch.autocast("cpu", torch.bfloat16):
        found = case.found()
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    assert (found - exact).abs().mean() < 0.02 * exact.abs().mean()


@both_families
def test_weights_in_bfloat16(family: str, folders: dict[str, Path]) -> None:
    case = Case(family, folders[family])
    exact = case.found()
    case.model.bfloat16()
    found = case.found()
    assert found.dtype == torch.float32
    assert (found - exact).abs().mean() < 0.02 * exact.abs().mean()


def spread(folder: Path) -> list[Tensor]:
    """Of two ranks with other numbers of rows each, and LoRA."""
    ranking.MAX_LOGITS = 5 * len(ROWS) * 300
    found = []
    for family in FAMILIES:
        case = Case(family, folder / family)
        config = peft.LoraConfig(r=2, target_modules=".*(q|q_proj)", init_lora_weights=False)
        torch.manual_seed(0)
        case.model = peft.get_peft_model(case.model, config).eval()
        if torch.distributed.is_initialized():
            case.examples = case.examples[: 2 + 3 * torch.distributed.get_rank()]
            shard_model(case.model, init_device_mesh("cpu", (2,)))
        found.append(case.found())
    return found


@pytest.mark.slow
def test_weights_spread_over_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_t5(tmp_path / "t5")
    save_tiny_llama(tmp_path / "llama")
    monkeypatch.setattr(ranking, "MAX_LOGITS", ranking.MAX_LOGITS)
    whole = spread(tmp_path)
    for rank, found in enumerate(in_processes(spread, tmp_path)):
        for ours, expected in zip(found, whole, strict=True):
            near(ours, expected[: 2 + 3 * rank])
