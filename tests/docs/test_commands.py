"""Every command and key that a page names exists: composed, parsed or looked up, never run."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import configuration
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from typer import Typer
from typer.main import get_command

from kif_lightning.cli import app
from kif_lightning.paths import conf_dir, option_names

ROOT = configuration.ROOT
PAGES = sorted(ROOT.glob("docs/**/*.md"))
TRAIN = ["python", "-m", "kif_lightning"]
MISTAKES = (HydraException, OmegaConfBaseException, AssertionError)
GROUPS = {"method", "+experiment", *configuration.GROUPS}
MINE = "defaults: [kif, override rule: static, _self_]\nname: mine\ntitle: Mine\npaper: none\n"


def spans(page: Path) -> Iterator[str]:
    """Lines of code blocks, with their continuations, and code within the text."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```(?:bash|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def commands(*start: str) -> list[list[str]]:
    """All commands of all pages that begin so, each once."""
    found = {}
    for page in PAGES:
        for span in spans(page):
            line = re.sub(r"^\$ ", "", span.strip())
            if line.startswith(" ".join(start) + " "):
                words = shlex.split(line, comments=True)
                found[tuple(words)] = words
    return list(found.values())


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conf")
    (folder / "method").mkdir()
    (folder / "method" / "mine.yaml").write_text(MINE)
    return folder


@pytest.fixture(scope="module", autouse=True)
def config_dir() -> Iterator[None]:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        yield


def overrides_of(words: list[str], mine: Path) -> list[str]:
    """As Hydra would take them, with the reader's own config folder in place."""
    words = list(words)
    if "--config-dir" in words:
        place = words.index("--config-dir")
        del words[place : place + 2]
        words.append(f"hydra.searchpath=[file://{mine}]")
    return [word for word in words if word not in ("-m", "--multirun")]


def require_composes(overrides: list[str]) -> None:
    """What Hydra would say to the first cell; of a sweep the others' options are looked up.

    Options are composed, each choice of them once; single keys are set on a copy of that.
    """
    chosen: list[str] = []
    keys: dict[str, Any] = {}
    for override in OverridesParser.create().parse_overrides(overrides):
        name, line = override.get_key_element(), str(override.input_line)
        value = override.value()
        if isinstance(value, ChoiceSweep):
            for choice in value.list:
                require_option(name, str(choice))
            value = value.list[0]
            line = f"{name}={value}"
        elif isinstance(value, Glob):
            continue
        if name == "+sweep":
            require_sweeps(line)
        elif name.startswith("hydra."):
            chosen += [line] if name == "hydra.searchpath" else []
        elif name in GROUPS:
            chosen.append(line)
        else:
            keys[name] = value
    config = composed(tuple(chosen)).copy()
    for name, value in keys.items():
        OmegaConf.update(config, name, value)


@cache
def composed(overrides: tuple[str, ...]) -> Any:
    return compose("config", overrides=list(overrides))


def require_option(group: str, option: str) -> None:
    """A group's choice is a file; another key's value may be anything."""
    if group in GROUPS or group == "sweep":
        path = configuration.CONF / group / f"{option}.yaml"
        assert path.is_file(), f"{group}={option}: there is no {path.name}"


def require_sweeps(line: str) -> None:
    """A sweep may want a launcher that is not installed: its name is looked up."""
    for name in re.findall(r"\w+", line.partition("=")[2]):
        require_option("sweep", name)


def test_commands_are_found() -> None:
    assert len(commands(*TRAIN)) > 30
    assert len(commands("kif")) > 10


def test_every_training_command_composes(mine: Path) -> None:
    wrong = []
    for words in commands(*TRAIN):
        try:
            require_composes(overrides_of(words[3:], mine))
        except MISTAKES as error:
            wrong.append(f"{shlex.join(words)}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "override",
    ["optim.learning_rate=1", "method=kiff", "+sweep=[methods,nowhere]", "method=kif,ewcc"],
)
def test_a_wrong_override_is_found(override: str) -> None:
    with pytest.raises(MISTAKES):
        require_composes(["+experiment=long_seq_t5", override])


def require_parses(application: Typer, words: list[str], mine: Path) -> None:
    """The verb and its options exist, and nothing is missing."""
    group: Any = get_command(application)
    assert words[0] in group.commands, f"kif has no verb {words[0]!r}"
    verb = group.commands[words[0]]
    if all(word.startswith("--") for word in words[1:]):  # named in passing, without what it takes
        assert set(words[1:]) <= {name for option in verb.params for name in option.opts}
        return
    context = verb.make_context(words[0], list(words[1:]))
    if words[0] == "tune":
        require_composes(overrides_of(context.params["overrides"], mine))
    if words[0] == "list" and context.params["group"]:
        assert option_names(context.params["group"])


def test_every_verb_parses(mine: Path) -> None:
    wrong = []
    for words in commands("kif"):
        try:
            require_parses(app, words[1:], mine)
        except Exception as error:
            wrong.append(f"{shlex.join(words)}: {error!r}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("line", ["compare RUN --nothing", "kompare RUN", "import OUTPUTS"])
def test_a_wrong_verb_is_found(line: str, mine: Path) -> None:
    with pytest.raises((Exception, SystemExit)):
        require_parses(app, line.split(), mine)


def test_make_targets_and_extras_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    assert {words[1] for words in commands("make")} <= targets
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = " ".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"kif-lightning\[(\w+)\]", text))
    assert named <= set(project["optional-dependencies"])


def full_keys() -> set[str]:
    """Every key of every option, as it is given on the command line."""
    found = set()
    for path in configuration.CONF.rglob("*.yaml"):
        option = configuration.read_option(path)
        before = configuration.prefix(option)
        found |= {".".join((*before, *key.path)) for key in option.keys}
    return found


def test_keys_in_the_text_exist() -> None:
    """Such as `optim.lr` or `method/rule=static`, on any page."""
    keys = full_keys()
    tops = {key.split(".")[0] for key in keys if "." in key}
    wrong = []
    for page in PAGES:
        for span in spans(page):
            for word in span.split():
                name, _, value = word.strip("'").lstrip("+").partition("=")
                if re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", name) and name.split(".")[0] in tops:
                    if name not in keys and not any(key.startswith(f"{name}.") for key in keys):
                        wrong.append(f"{page.name}: {word}")
                elif name in GROUPS and re.fullmatch(r"[a-z0-9_/]+", value) and value != "mine":
                    path = configuration.CONF / name / f"{value}.yaml"
                    wrong += [] if path.is_file() else [f"{page.name}: {word}"]
    assert not wrong, "\n".join(wrong)


def said() -> list[str]:
    """Every text of the package's source; what is filled in is left out."""
    found = []
    for path in (ROOT / "kif_lightning").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(p.value) if isinstance(p, ast.Constant) else "\0" for p in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_messages_in_the_text_are_said() -> None:
    page = (ROOT / "docs" / "when_things_go_wrong.md").read_text(encoding="utf-8")
    table = page.partition("| message |")[2].partition("\n\n")[0]
    rows = [line.split(" | ")[0] for line in table.splitlines()[2:]]
    messages = [part for row in rows for part in re.findall(r"`([^`]+)`", row)]
    assert len(messages) > 15
    texts = said()
    assert [part for part in messages if not any(part in text for text in texts)] == []
