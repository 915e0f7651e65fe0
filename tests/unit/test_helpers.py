"""What the other tests stand on."""

from __future__ import annotations

import multiprocessing

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from kif_lightning.paths import conf_dir
from tests.helpers import processes
from tests.helpers.streams import composed


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=7", "+experiment=long_seq_t5", "optim.lr=1", "optim.lr=2"],
        ["method=ablation/kif_dora", "method/rule=static", "method.rule.gamma=0.9"],
        ["method/penalty=none", "~logger", "benchmark.order=[a,b]", "backbone.path='a b=c'"],
        [
            "+experiment=paper/superni_t5_base",
            "method=seq_full",
            "++optim.more={x: 1}",
            "run_dir=null",
        ],
    ],
    ids=lambda overrides: overrides[0],
)
def test_composing_faster_gives_what_hydra_gives(overrides: list[str]) -> None:
    ours = composed(*overrides)
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        theirs = compose("config", overrides=overrides)
    assert OmegaConf.to_yaml(ours) == OmegaConf.to_yaml(theirs)
    assert flags(ours) == flags(theirs)


def flags(config: DictConfig, above: str = "") -> dict[str, tuple[bool | None, bool | None]]:
    """Whether each mapping takes new keys, and new values."""
    found = {above: (config._get_flag("struct"), config._get_flag("readonly"))}
    for key in config:
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none():
            found |= flags(node, f"{above}.{key}")
    return found


def test_processes_need_no_fork_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert processes._context().get_start_method() == "spawn"
