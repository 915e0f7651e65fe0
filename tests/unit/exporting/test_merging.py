"""Merged weights give the logits of the adapter beside them, for every adapter that lives in them.

One that starts at no effect is moved away from it first.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from kif_lightning.errors import UserError
from kif_lightning.exporting.writing import export
from kif_lightning.paths import conf_dir
from tests.helpers.streams import tiny_backbone
from tests.helpers.tiny import toy_rows

NUM_TASKS = 2


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "stacked_lora", "own_lora"])
def test_merged_is_the_same_function(name: str, tiny_t5: Path) -> None:
    overrides = ["backbone=t5_base", f"method/adapter={name}"]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        adapter = instantiate(compose("config", overrides=overrides).method.adapter)
    backbone = tiny_backbone(tiny_t5)
    batch = backbone.training_batch(
        backbone.encode_rows(toy_rows("colour", "test", 4, ("good", "round bad")))
    )
    plain = backbone.load_model().double().eval()
    model = adapter.attach(backbone.load_model(), backbone)
    torch.manual_seed(0)
    for task in range(NUM_TASKS):
        adapter.begin_task(model, task)
        for weight in adapter.trainable(model).values():
            weight.data.add_(torch.randn_like(weight), alpha=0.3)
    adapter.use_task(model, 0)
    model.double().eval()  # merging rounds: in float32 some logits move by 1e-5
    with torch.no_grad():
        untrained, _ = backbone.answer_logits(plain, batch)
        expected, _ = backbone.answer_logits(model, batch)
        found, _ = backbone.answer_logits(model.merge_and_unload(), batch)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert (untrained - expected).abs().max() > 1e-3


def test_a_folder_may_be_given_as_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which exists"):
        export("state", str(tmp_path))
