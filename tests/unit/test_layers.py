"""The layers: who may import whom. Read from the source, so imports within functions count too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kif_lightning

PACKAGE = "kif_lightning"
LAYERS: dict[int, tuple[str, ...]] = {
    0: ("__init__", "errors", "seeding", "modes", "ranks", "kif", "metrics"),
    1: ("interfaces",),
    2: ("penalties", "adapters", "backbones", "benchmarks", "memory"),
    3: (
        *("identification", "sharding", "mixed_precision", "module", "tokenised"),
        *("batches", "datamodule", "checkpoint_io", "callbacks"),
    ),
    4: (
        *("run_state", "run_lock", "assembly", "protocol", "composing", "checkup"),
        *("evaluation", "boundaries", "probe", "tracking", "dashboard", "runner", "plan"),
        *("sweep", "launch", "tuning", "whatif", "continual_state", "continuing"),
        *("packing", "extending", "state_settings"),
        *("learnt_model", "predicting", "exporting"),
    ),
    5: ("__main__", "cli", "api"),
}
SIDE: dict[str, tuple[str, ...]] = {
    # Units beside the stack -> what they may import of the package.
    "storage": ("__init__", "errors"),
    "paths": ("__init__", "errors"),
    "online": ("__init__",),
    "interruption": ("__init__", "errors"),
    "reporting": ("__init__", "errors", "metrics", "storage"),
}
LAYER_OF = {unit: layer for layer, units in LAYERS.items() for unit in units}
PARTS = LAYERS[2]
KNOW_HYDRA = {*LAYERS[4], *LAYERS[5]}
WITHOUT_LIGHTNING = {*LAYERS[0], *LAYERS[1], *LAYERS[2]}
LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric"}


def unit_of(module: str) -> str:
    """``kif_lightning.callbacks.fusion`` -> ``callbacks``; the package itself: ``__init__``."""
    return [*module.split("."), "__init__"][1]


def imports(package_dir: Path) -> Iterator[tuple[str, str]]:
    """(importing module, imported module or name in it), full dotted names, one for each import."""
    for path in sorted(package_dir.rglob("*.py")):
        parts = [PACKAGE, *path.relative_to(package_dir).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        home = module if is_package else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((module, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    up = home.split(".")[: len(home.split(".")) - node.level + 1]
                    base = ".".join([*up, *([base] if base else [])])
                names = [_of_package(a.name, package_dir) for a in node.names]
                yield from ((module, name) for name in (names if base == PACKAGE else [base]))


def _of_package(name: str, package_dir: Path) -> str:
    """What ``from kif_lightning import name`` imports: a module, or an attribute of the package."""
    place = package_dir / name
    is_module = place.is_dir() or place.with_suffix(".py").is_file()
    return f"{PACKAGE}.{name}" if is_module else PACKAGE


def problems(package_dir: Path) -> list[str]:
    """One sentence for each breach."""
    files = [path.relative_to(package_dir) for path in package_dir.rglob("*.py")]
    units = {path.with_suffix("").parts[0] for path in files}
    found = [
        f"{unit} has no layer: add it to LAYERS or SIDE in {Path(__file__).name}."
        for unit in sorted(units - LAYER_OF.keys() - SIDE.keys())
    ]
    for module, imported in imports(package_dir):
        if unit_of(module) not in LAYER_OF.keys() | SIDE.keys():
            continue
        inside = imported.split(".")[0] == PACKAGE
        complaint = _inside(module, imported) if inside else _outside(module, imported)
        if complaint:
            found.append(f"{module} must not import {imported}: {complaint}.")
    return found


def _inside(module: str, imported: str) -> str | None:
    here, there = unit_of(module), unit_of(imported)
    # The package's front shows names of all layers, which it imports when they are asked for.
    if here in (there, "__init__"):
        return None
    if here in SIDE:
        allowed = ", ".join(SIDE[here])
        return None if there in SIDE[here] else f"{here} stands aside and may import {allowed} only"
    layer = LAYER_OF[here]
    if there in SIDE:
        enough = 4 if there == "reporting" else 2
        return None if layer >= enough else f"{there} is for layer {enough} and above"
    if there not in LAYER_OF:
        return None  # told already
    if LAYER_OF[there] > layer:
        return f"{here} (layer {layer}) is below {there} (layer {LAYER_OF[there]})"
    if here in PARTS and there in PARTS:
        return "the swappable parts do not see each other"
    if layer == 3 and there in PARTS:
        return "parts arrive by injection"
    return None


def _outside(module: str, imported: str) -> str | None:
    here, top = unit_of(module), imported.split(".")[0]
    if here == "kif" and top not in {"torch", *sys.stdlib_module_names}:
        return "the mathematics knows torch and the standard library only"
    if top in {"hydra", "omegaconf"} and here not in KNOW_HYDRA:
        return "constructors take flat arguments, only layers 4 and 5 know Hydra"
    if top in LIGHTNING and here in WITHOUT_LIGHTNING:
        return "layers 0 to 2 do not know Lightning"
    return None


def test_every_import_goes_down() -> None:
    assert problems(Path(kif_lightning.__file__).parent) == []


def test_the_walk_sees_the_real_package() -> None:
    edges = set(imports(Path(kif_lightning.__file__).parent))
    assert {
        ("kif_lightning.runner", "kif_lightning.module"),
        ("kif_lightning.__main__", "kif_lightning.launch"),  # within a function
        ("kif_lightning.cli", "kif_lightning.composing"),  # within a function
        ("kif_lightning.callbacks", "kif_lightning.callbacks.fusion"),  # of an __init__
        ("kif_lightning.reporting.stamp", "kif_lightning"),
    } <= edges


def planted(folder: Path, module: str, source: str) -> Path:
    """A package with one module of that source, and the modules it may name."""
    for name in ("errors", "storage", "runner", "kif/units", module):
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / f"{module}.py").write_text(source)
    return folder


@pytest.mark.parametrize(
    ("module", "source", "part"),
    [
        ("kif/fusion", "from kif_lightning.runner import StreamRunner", "kif (layer 0) is below"),
        ("kif/fusion", "from ..runner import StreamRunner", "kif (layer 0) is below runner"),
        ("kif/fusion", "def f():\n    import kif_lightning.runner", "kif (layer 0) is below"),
        ("module", "from kif_lightning import runner", "module (layer 3) is below runner"),
        ("module", "if TYPE_CHECKING:\n    from . import runner", "is below runner (layer 4)"),
        ("interfaces", "from kif_lightning.module import X", "below module (layer 3)"),
        ("run_state", "from kif_lightning.cli import app", "below cli (layer 5)"),
        ("adapters/full", "from kif_lightning.backbones.tokens import cut", "each other"),
        ("callbacks/fusion", "from kif_lightning.adapters import PeftAdapter", "by injection"),
        ("reporting/plots", "import kif_lightning.module", "reporting stands aside"),
        ("reporting/plots", "from kif_lightning.backbones import X", "reporting stands aside"),
        ("module", "from kif_lightning.reporting import stamp", "layer 4 and above"),
        ("kif/units", "from kif_lightning import storage", "layer 2 and above"),
        ("kif/units", "import numpy as np", "torch and the standard library only"),
        ("callbacks/fusion", "from omegaconf import DictConfig", "know Hydra"),
        ("storage", "def f():\n    from hydra.utils import instantiate", "know Hydra"),
        ("adapters/full", "import lightning.pytorch as pl", "do not know Lightning"),
        ("metrics/text", "from lightning_fabric import Fabric", "do not know Lightning"),
        ("trainer", "import torch", "trainer has no layer: add it"),
        ("sub/deep/inside", "import torch", "sub has no layer: add it"),
    ],
)
def test_a_planted_breach_is_caught(tmp_path: Path, module: str, source: str, part: str) -> None:
    found = problems(planted(tmp_path, module, source))
    assert len(found) == 1, found
    assert part in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("runner", "import hydra\nfrom kif_lightning.kif.units import SkillUnits"),
        ("kif/fusion", "import math, torch\nfrom . import units\nfrom ..errors import UserError"),
        ("metrics/text", "from torchmetrics import Metric\nfrom kif_lightning import __version__"),
        ("adapters/full", "import peft\nfrom .peft_adapter import copy_exactly"),
        ("reporting/plots", "import kif_lightning\nimport torch"),
    ],
)
def test_what_is_allowed_passes(tmp_path: Path, module: str, source: str) -> None:
    assert problems(planted(tmp_path, module, source)) == []
