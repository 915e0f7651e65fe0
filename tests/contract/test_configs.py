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
from kif_lightning.cli import method_table
from kif_lightning.errors import UserError
from kif_lightning.interfaces import ChecksModule
from kif_lightning.module import ContinualModule
from kif_lightning.paths import conf_dir

CONF = Path(conf_dir())
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml") if path.parent != CONF)
OPTIONS = [
    path.with_suffix("")
    for path in FILES
    # A sweep's option needs a launcher that is not installed everywhere: test_sweeps.py.
    if not path.name.startswith("_") and path.parts[0] != "sweep"
]
DESCRIPTION = ("name", "title", "paper")
COSTS = ("needs_memory", "needs_task_id", "grows_with_tasks", "single_task_reference")


def of_group(group: str) -> list[str]:
    return [option.name for option in OPTIONS if option.parent.as_posix() == group]


METHODS = [*of_group("method"), *(f"ablation/{name}" for name in of_group("method/ablation"))]
NAMES = [method.split("/")[-1] for method in METHODS]


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


def choice(group: str, option: str) -> str:
    """The command-line word that takes an option; some stand in folders of one group."""
    top, *folders = group.split("/")
    if top == "experiment" or folders == ["ablation"]:
        return f"{'+' * (top == 'experiment')}{top}={'/'.join([*folders, option])}"
    return f"{group}={option}"


EXPERIMENTS = [o for o in OPTIONS if o.parts[0] == "experiment"]


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
    config = composed(choice(group, option.name))
    assert OmegaConf.missing_keys(config) == set()
    OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_describes_itself(method: str) -> None:
    found = composed(f"method={method}").method
    assert found.name == method.split("/")[-1]
    assert all(isinstance(found[key], str) and found[key] for key in DESCRIPTION)
    assert all(isinstance(found[key], bool) for key in COSTS)
    assert set(found.fixes) == FIXES
    assert isinstance(found.published, str | None)
    own = raw(f"method/{method}")
    assert all(key in own for key in DESCRIPTION), "its own, not its parent's"


FIXES = {"precision", "gradient_clip", "truncation", "loss_mean", "lr_factor"}


@pytest.mark.parametrize("method", METHODS)
def test_the_strength_a_method_declares_is_a_number_it_has(method: str) -> None:
    """And its default lies within the range, which the checks of the part itself let pass."""
    config = composed(f"method={method}")
    strength = config.method.strength
    if strength is None:
        return
    assert set(strength) == {"key", "low", "high", "log"}
    default = OmegaConf.select(config, strength.key)
    assert isinstance(default, int | float)
    assert strength.low < default < strength.high or default in (strength.low, strength.high)
    assert not strength.log or strength.low > 0


@pytest.mark.parametrize("method", [m for m in METHODS if raw(f"method/{m}").get("strength")])
def test_the_ends_of_a_strengths_range_are_taken(method: str, tiny: Tiny) -> None:
    strength = composed(f"method={method}").method.strength
    for value in (strength.low, strength.high):
        build_parts(tiny.config(method, **{strength.key: value}))


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
    for part in (*parts.penalties.values(), *parts.gradient.values(), *parts.boundary.values()):
        if isinstance(part, ChecksModule):
            part.check(module)
    optimizer = parts.optimizer(list(module.trainable_parameters.values()))
    parts.schedule(optimizer=optimizer, num_training_steps=4)
    learnt = sum(len(group["params"]) for group in optimizer.param_groups)
    assert learnt == len(module.trainable_parameters)
    filled = {
        "importance": parts.identification is not None,
        "selection": parts.selection is not None,
        "penalty": bool(parts.penalties),
        "gradient": bool(parts.gradient),
        "boundary": bool(parts.boundary),
        "memory": parts.memory is not None,
        "rehearsal": parts.rehearsal is not None,
    }
    for slot, there in filled.items():
        assert there == bool(config.method[slot]), slot
    for task in parts.benchmark.tasks:
        parts.new_score(task.metric).update(["good"], ["good"])


def as_written(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=False)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda option: option.as_posix())
def test_an_experiment_leaves_the_method_alone(experiment: Path) -> None:
    # A method's key would survive 'method=other' on the command line.
    own = raw(experiment.as_posix())
    assert "method" not in own
    overridden = [key for entry in own.defaults if isinstance(entry, DictConfig) for key in entry]
    assert overridden
    assert not [key for key in overridden if re.search(r"/?method(/|$)", str(key))]
    chosen = choice(experiment.parent.as_posix(), experiment.name)
    for method in ("kif", "seq_lora"):
        config = composed(chosen, f"method={method}")
        plain = composed(f"method={method}").copy()
        OmegaConf.set_readonly(plain, False)
        assert as_written(config.method) == as_written(plain.method)
    assert config.experiment_name == experiment.name


PAPERS = [
    f"{stream}_{backbone}"
    for stream in ("long_seq", "superni")
    for backbone in ("t5_base", "t5_large", "t5_xl", "llama2_7b", "llama2_13b")
]


@pytest.mark.parametrize("experiment", PAPERS)
def test_the_papers_settings(experiment: str) -> None:
    config = composed(f"+experiment=paper/{experiment}")
    of_t5 = "_t5_" in experiment
    assert experiment.endswith(config.backbone.name)
    assert config.benchmark.name.startswith(experiment.split("_")[0])
    assert config.benchmark.data_dir is None
    assert (config.optim.lr, config.lora.r, config.lora.alpha, config.lora.dropout) == (
        3e-4, 8, 16, 0.05,
    )  # fmt: skip
    assert config.optim.batch_size == (8 if of_t5 else 128)
    assert config.optim.epochs == (1 if of_t5 else 5)
    assert config.optim.warmup_steps == (50 if of_t5 else 0)
    assert config.backbone.max_source_tokens == (1024 if of_t5 else 512)
    assert len(config.backbone.lora_targets) == (2 if of_t5 else 4)


def test_the_main_experiment_needs_nothing_but_the_package() -> None:
    config = composed("+experiment=long_seq_t5")
    assert (config.backbone.name, config.benchmark.name) == ("t5_nano", "long_sequence_mini")
    assert (config.method.name, config.benchmark.order) == ("kif", "order1")
    assert len(config.benchmark.orders.order1) == 15


def test_the_stand_ins_orders_are_those_of_the_real_stream() -> None:
    mini, real = (composed(f"benchmark={name}").benchmark for name in
                  ("long_sequence_mini", "long_sequence"))  # fmt: skip
    assert mini.orders.keys() == real.orders.keys()
    for name, order in real.orders.items():
        assert [f"mini_{task}" for task in order] == list(mini.orders[name])


def test_a_backbone_brings_its_learning_rate() -> None:
    assert composed("+experiment=long_seq_t5", "backbone=t5_base").optim.lr == 3e-4
    assert composed("+experiment=long_seq_t5").optim.lr > 3e-4


@pytest.mark.parametrize(
    ("group", "option"), [(g, o) for g in ("backbone", "benchmark") for o in of_group(g)]
)
def test_names_are_those_of_the_files(group: str, option: str) -> None:
    assert composed(f"{group}={option}")[group].name == option


@pytest.mark.parametrize("benchmark", of_group("benchmark"))
def test_orders_of_a_benchmark(benchmark: str) -> None:
    found = composed(f"benchmark={benchmark}").benchmark
    if "file" in found:  # the user's file has the order
        assert "orders" not in found
        return
    assert found.order in found.orders
    for name, order in found.orders.items():
        assert len(set(order)) == len(order), name
    assert set(found.get("tasks", {})) <= {
        task for order in found.orders.values() for task in order
    }


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
    ("method", "slot", "told"),
    [
        ("replay", "memory", "MemoryRehearsal works with rows of past tasks, but the method keeps"),
        ("kif_m", "memory", "FusionWithReplay works with rows of past tasks"),
        ("recurrent_kif", "memory", "RecurrentFusion works with rows of past tasks"),
        ("replay", "rehearsal", "keeps rows of past tasks, but nothing works with them"),
    ],
)
def test_memory_and_its_users_need_each_other(
    method: str, slot: str, told: str, tiny: Tiny
) -> None:
    (line,) = mistakes(tiny.config(method, **{f"method.{slot}": None}))
    assert told in line


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("method=ewc", "method/adapter=stacked_lora"), "ElasticWeights needs the same weights"),
        (("method=kif", "method/adapter=stacked_lora"), "KnowledgeFusion needs the same weights"),
        (("method=kif_m", "method/adapter=own_lora"), "FusionWithReplay needs the same weights"),
        (("method=recurrent_kif", "method/selection=held_out"), "cannot go back to an earlier"),
        (("method=o_lora", "method/adapter=lora"), "CrossTaskOrthogonality needs weights of each"),
        (("method=replay", "method/stream=joint"), "Nothing can be rehearsed where all tasks"),
        (("method=per_task", "method/adapter=lora"), "needs_task_id=false method.grows_with"),
        (("method=per_task", "method/adapter=lora"), "method.single_task_reference=false"),
        (("method=seq_lora", "method/adapter=own_lora"), "method.needs_task_id=true"),
    ],
)
def test_parts_that_do_not_go_together(overrides: tuple[str, ...], told: str, tiny: Tiny) -> None:
    config = composed(*overrides).copy()
    OmegaConf.set_readonly(config, False)
    for key, value in tiny.settings.items():
        OmegaConf.update(config, key, value)
    assert told in "\n".join(mistakes(config))


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
        found = method_names_in(path.read_text(encoding="utf-8"), NAMES)
        assert not found, f"{path.name}: variation is an injected object, never a name: {found}"


def test_the_search_for_names_finds_them() -> None:
    source = (
        '"""kif"""\ndef f():\n    """seq_lora"""\n    return x == "kif" or f"use seq_lora{x}"\n'
    )
    assert method_names_in(source, NAMES) == ["kif", "use seq_lora"]


def test_the_readme_table_is_what_the_methods_declare() -> None:
    readme = (CONF.parent / "README.md").read_text(encoding="utf-8")
    assert method_table() in readme, "put the output of 'kif list --markdown' into README.md"


def test_a_method_may_stand_outside_the_repository(tmp_path: Path, tiny: Tiny) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text(
        "defaults: [kif, override rule: static, _self_]\n"
        "name: mine\ntitle: Mine\npaper: none\nrule: {gamma: 0.9}\n"
    )
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        own = [f"hydra.searchpath=[file://{tmp_path}]", "method=mine"]
        config = compose("config", overrides=own)
    for key, value in tiny.settings.items():
        OmegaConf.update(config, key, value)
    assert build_parts(config).boundary["fusion"].rule.gamma == 0.9  # type: ignore[attr-defined]


def test_the_readme_shows_the_example_of_own_tasks() -> None:
    root = CONF.parent
    example = (root / "examples" / "own_tasks" / "tasks.yaml").read_text(encoding="utf-8")
    assert f"```yaml\n{example}```" in (root / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("selection", of_group("method/selection"))
def test_kif_official_goes_with_every_selection(selection: str) -> None:
    """Its own one is an option like the others, so that nothing of it stays behind."""
    own = composed("method=kif_official").method.selection
    assert (own.num_held_out, own.held_out_share, own.every_steps) == (100, None, 40)
    assert own.importance == "last"
    other = composed("method=kif_official", f"method/selection={selection}").method.selection
    assert other == composed("method=kif", f"method/selection={selection}").method.selection
