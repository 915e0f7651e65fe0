"""A state may come from anybody: its settings run no code and name no place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from kif_lightning import continual_state
from kif_lightning.continual_state import ContinualState, read_state, write_state
from kif_lightning.errors import UserError
from kif_lightning.extending import config_of
from kif_lightning.launch import run_settings
from kif_lightning.state_settings import settings_of
from tests.helpers.states import past, state
from tests.helpers.streams import composed


def made(**values: Any) -> ContinualState:
    """A state with the settings of a plain run but for these, dots as double underscores."""
    config = OmegaConf.create(run_settings(composed("trainer.accelerator=cpu")))
    for key, value in values.items():
        OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
    plain: Any = OmegaConf.to_container(config)
    return state(config=plain, protocols=({"seed": 1, "weights": {}, "method": "any"},))


@pytest.mark.parametrize(
    "key",
    [
        "backbone._target_",
        "method.rule._target_",
        "method.boundary.fusion.rule._target_",
        "method.adapter.config._target_",
        "optim.optimizer._target_",
        "evaluation.metrics.exact_match._target_",
        "method.anything.new._target_",
    ],
)
def test_code_of_others_is_not_run(key: str) -> None:
    theirs = made(**{key.replace(".", "__"): "os.system"})
    with pytest.raises(UserError, match=rf"^The state would run os\.system \(its {key}\)") as error:
        config_of(theirs, ["benchmark=long_sequence_mini"])
    assert "\n" not in str(error.value)
    # One's own is said again, once, wherever it stands.
    assert settings_of(theirs, [f"{key}=os.system"])
    assert settings_of(theirs, ["method.rule._target_=os.system"])
    with pytest.raises(UserError, match="would run"):
        settings_of(theirs, [f"{key}=os.popen"])


def test_code_in_a_list() -> None:
    with pytest.raises(UserError, match=r"would run os\.system .*rehearsal\.0\._target_"):
        settings_of(made(method__rehearsal=[{"_target_": "os.system"}]))


def test_where_a_part_is_not_made_its_code_need_not_be_said() -> None:
    theirs = made(method__rule___target_="my_rules.Mine")
    assert settings_of(theirs, built=("backbone", "method.adapter"))
    theirs = made(method__adapter___target_="my_rules.Mine")
    with pytest.raises(UserError, match="would run"):
        settings_of(theirs, built=("backbone", "method.adapter"))


def test_every_part_of_the_package_is_taken() -> None:
    for method in ("kif_m", "prog_prompt"):
        own = run_settings(composed(f"method={method}"))
        assert settings_of(state(config=own, protocols=({"method": method},)))


@pytest.mark.parametrize("key", ["backbone__hub_name", "optim__lr", "evaluation__metrics__x"])
def test_values_are_plain(key: str) -> None:
    with pytest.raises(UserError, match="must be a plain value"):
        settings_of(made(**{key: ["a", "${oc.env:HOME}"]}))


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", "a\\b", "", 7, None])
def test_names_are_no_paths(name: Any) -> None:
    for theirs in (
        made(backbone__name=name),
        made(method__name=name),
        replace(made(), tasks=(replace(past("colour"), name=name),)),
        replace(made(), protocols=({"method": name},)),
    ):
        with pytest.raises(UserError, match="must be a plain name"):
            settings_of(theirs)


def test_only_what_a_state_is_to_say_is_taken() -> None:
    """Places and switches of a run are not; what the machine has is the machine's."""
    theirs = made(
        run_dir="/elsewhere",
        rerun=True,
        run_root="/elsewhere",
        logger={"wandb": {"_target_": "os.system"}},
        experiment_name="../x",
        trainer={"accelerator": "gpu", "devices": 4, "strategy": "ddp", "num_nodes": 2,
                 "precision": "bf16-mixed", "deterministic": True},
    )  # fmt: skip
    config = config_of(theirs, ["benchmark=long_sequence_mini", "trainer.devices=2"])
    assert (config.run_dir, config.rerun, config.run_root) == (None, False, "runs")
    assert (config.logger, config.experiment_name) == ({}, "extended")
    trainer = config.trainer
    assert (trainer.accelerator, trainer.devices, trainer.strategy) == ("auto", 2, "auto")
    assert (trainer.precision, trainer.deterministic) == ("bf16-mixed", True)
    assert "num_nodes" not in trainer


def test_settings_that_lack_something() -> None:
    theirs = made()
    config = {key: value for key, value in theirs.config.items() if key != "optim"}
    with pytest.raises(UserError, match="settings lack optim"):
        settings_of(replace(theirs, config=config))


def test_a_base_model_is_where_the_user_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even a state that was written by other means says where one lies."""
    with monkeypatch.context() as patch:
        patch.setattr(continual_state, "_without_place", lambda config: config)
        write_state(made(backbone__path="/theirs"), tmp_path / "s")
    assert "/theirs" in (tmp_path / "s" / "state.json").read_text()
    assert read_state(tmp_path / "s").config["backbone"]["path"] is None
