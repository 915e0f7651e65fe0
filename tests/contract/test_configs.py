"""The config tree: every yaml found there composes, and every method builds on tiny models."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

import kif_lightning
from kif_lightning.assembly import Parts, build_parts
from kif_lightning.errors import UserError
from kif_lightning.module import ContinualModule
from kif_lightning.paths import conf_dir

CONF = Path(conf_dir())
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml") if path.parent != CONF)
OPTIONS = [path.with_suffix("") for path in FILES if not path.name.startswith("_")]
DESCRIPTION = ("name", "title", "paper")
COSTS = ("needs_memory", "needs_task_id", "grows_with_tasks")


def of_group(group: str) -> list[str]:
    return [option.name for option in OPTIONS if option.parent.as_posix() == group]


METHODS = of_group("method")


@cache
def composed(*overrides: str) -> DictConfig:
    """Read-only: composing takes 0.2 s, so each is made once."""
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("config", overrides=list(overrides))
    OmegaConf.set_readonly(config, True)
    return config


class Tiny:
    """A method's config with the toy tasks and the tiny T5 in place of the real ones."""

    def __init__(self, model: Path, data: Path) -> None:
        self.settings = {
            "backbone.path": str(model),
            "benchmark.data_dir": str(data),
            "benchmark.order": ["colour", "shape"],
        }

    def config(self, method: str = "kif", **settings: Any) -> DictConfig:
        config = composed(f"method={method}").copy()
        OmegaConf.set_readonly(config, False)
        for key, value in {**self.settings, **settings}.items():
            OmegaConf.update(config, key, value)
        return config


@pytest.fixture
def tiny(tiny_t5: Path, toy_data: Path) -> Tiny:
    return Tiny(tiny_t5, toy_data)


def raw(option: str) -> DictConfig:
    loaded = OmegaConf.load(CONF / f"{option}.yaml")
    assert isinstance(loaded, DictConfig)
    return loaded


def test_the_walk_finds_the_tree() -> None:
    assert {"kif", "seq_lora"} <= set(METHODS)
    assert {"method/rule", "backbone", "experiment"} <= {o.parent.as_posix() for o in OPTIONS}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.as_posix())
def test_every_option_composes_and_resolves(option: Path) -> None:
    group = option.parent.as_posix()
    config = composed(f"{'+' if group == 'experiment' else ''}{group}={option.name}")
    assert OmegaConf.missing_keys(config) == set()
    OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_describes_itself(method: str) -> None:
    found = composed(f"method={method}").method
    assert found.name == method
    assert all(isinstance(found[key], str) and found[key] for key in DESCRIPTION)
    assert all(isinstance(found[key], bool) for key in COSTS)
    assert set(found.fixes) == {"precision", "gradient_clip", "truncation", "loss_mean"}
    own = raw(f"method/{method}")
    assert all(key in own for key in DESCRIPTION), "its own, not its parent's"


def test_methods_do_not_share_titles() -> None:
    titles = [raw(f"method/{method}").title for method in METHODS]
    assert len(set(titles)) == len(titles)


def learning_module(parts: Parts) -> Any:
    """What the runner makes of the parts, as far as the weights."""
    model = parts.adapter.attach(parts.backbone.load_model(), parts.backbone)
    module = ContinualModule(
        backbone=parts.backbone,
        model=model,
        optimizer=parts.optimizer,
        schedule=parts.schedule,
        penalties=list(parts.penalties.values()),
        identification=parts.identification,
    )
    module.trainable_parameters = parts.adapter.trainable(model)
    return module


@pytest.mark.parametrize("method", METHODS)
def test_a_method_builds_on_a_tiny_model(method: str, tiny: Tiny) -> None:
    config = tiny.config(method)
    parts = build_parts(config)
    assert [task.name for task in parts.benchmark.tasks] == ["colour", "shape"]
    module = learning_module(parts)
    assert module.trainable_parameters
    for part in (*parts.penalties.values(), *parts.boundary.values()):
        part.check(module)
    optimizer = parts.optimizer(list(module.trainable_parameters.values()))
    parts.schedule(optimizer=optimizer, num_training_steps=4)
    learnt = sum(len(group["params"]) for group in optimizer.param_groups)
    assert learnt == len(module.trainable_parameters)
    filled = {
        "importance": parts.identification is not None,
        "selection": parts.selection is not None,
        "penalty": bool(parts.penalties),
        "boundary": bool(parts.boundary),
    }
    for slot, there in filled.items():
        assert there == bool(config.method[slot]), slot
    for task in parts.benchmark.tasks:
        parts.new_score(task.metric).update(["good"], ["good"])


def as_written(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=False)


@pytest.mark.parametrize("experiment", of_group("experiment"))
def test_an_experiment_leaves_the_method_alone(experiment: str) -> None:
    # A method's key would survive 'method=other' on the command line.
    own = raw(f"experiment/{experiment}")
    assert "method" not in own
    overridden = [key for entry in own.defaults if isinstance(entry, DictConfig) for key in entry]
    assert overridden
    assert not [key for key in overridden if re.search(r"/?method(/|$)", str(key))]
    for method in ("kif", "seq_lora"):
        config = composed(f"+experiment={experiment}", f"method={method}")
        assert as_written(config.method) == as_written(composed(f"method={method}").method)
    assert config.experiment_name == experiment


@pytest.mark.parametrize(
    ("group", "option"), [(g, o) for g in ("backbone", "benchmark") for o in of_group(g)]
)
def test_names_are_those_of_the_files(group: str, option: str) -> None:
    assert composed(f"{group}={option}")[group].name == option


@pytest.mark.parametrize("benchmark", of_group("benchmark"))
def test_orders_of_a_benchmark(benchmark: str) -> None:
    found = composed(f"benchmark={benchmark}").benchmark
    assert found.order in found.orders
    for name, order in found.orders.items():
        assert len(set(order)) == len(order), name
    assert set(found.tasks) <= {task for order in found.orders.values() for task in order}


WRONG: dict[str, tuple[Any, str]] = {
    # key -> (a value out of range, how the mistake is told)
    "method.importance.tracker.alpha1": (1.5, "importance.alpha1"),
    "method.rule.tau": (0, "rule.tau"),
    "optim.lr": (-1, "optim.lr"),
    "optim.epochs": (0, "optim.epochs"),
    "method.penalty.orthonormality.coefficient": (-1, "penalty.orthonormality.coefficient"),
    "benchmark.train_rows": (0, "benchmark.train_rows"),
    "backbone.dtype": ("float8", "backbone.dtype"),
    "seed": (-1, "seed must"),
}
WRONG_WITHIN_A_PART: dict[str, tuple[Any, str]] = {
    "method.boundary.fusion.beta": (2, "fusion.beta"),
    "method.boundary.fusion.top_percent": (0, "fusion.top_percent"),
    "method.importance.tracker.alpha2": (7, "importance.alpha2"),
}


def mistakes(config: DictConfig) -> list[str]:
    with pytest.raises(UserError) as error:
        build_parts(config)
    return str(error.value).splitlines()


@pytest.mark.parametrize("key", {**WRONG, **WRONG_WITHIN_A_PART})
def test_a_value_out_of_range_is_told(key: str, tiny: Tiny) -> None:
    value, told = {**WRONG, **WRONG_WITHIN_A_PART}[key]
    (line,) = mistakes(tiny.config(**{key: value}))
    assert told in line
    assert str(value) in line


def test_all_mistakes_are_told_at_once(tiny: Tiny) -> None:
    lines = mistakes(tiny.config(**{key: value for key, (value, _) in WRONG.items()}))
    assert len(lines) == len(WRONG), "each once, on its line"
    assert [told for _, told in WRONG.values() if told not in "\n".join(lines)] == []


def test_all_mistakes_of_one_part_are_told_at_once(tiny: Tiny) -> None:
    wrong = {**WRONG, **WRONG_WITHIN_A_PART}
    lines = mistakes(tiny.config(**{key: value for key, (value, _) in wrong.items()}))
    assert [told for _, told in wrong.values() if told not in "\n".join(lines)] == []


@pytest.mark.parametrize(
    "override",
    ["optim.learning_rate=1", "method.importance.tracker.alpha=1", "lr=1", "method.tau=1"],
)
def test_an_unknown_key_fails(override: str) -> None:
    with pytest.raises(ConfigCompositionException):
        composed(override)


@pytest.mark.parametrize("override", ["method=kiff", "backbone=t6", "+experiment=none_such"])
def test_an_unknown_option_fails(override: str) -> None:
    with pytest.raises(ConfigCompositionException):
        composed(override)


def method_names_in(source: str, names: list[str]) -> list[str]:
    """String literals that are a method's name, or hold one of several words; docstrings may."""
    tree = ast.parse(source)
    allowed = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    literals = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in allowed
    ]
    compound = [name for name in names if "_" in name]
    words = re.compile(rf"(?<!\w)({'|'.join(compound)})(?!\w)")
    return [text for text in literals if text in names or words.search(text)]


def test_no_python_file_names_a_method() -> None:
    for path in Path(kif_lightning.__file__).parent.rglob("*.py"):
        found = method_names_in(path.read_text(encoding="utf-8"), METHODS)
        assert not found, f"{path.name}: variation is an injected object, never a name: {found}"


def test_the_search_for_names_finds_them() -> None:
    source = (
        '"""kif"""\ndef f():\n    """seq_lora"""\n    return x == "kif" or f"use seq_lora{x}"\n'
    )
    assert method_names_in(source, METHODS) == ["kif", "use seq_lora"]
