"""Continual states of tiny runs, made in this process, and what two of them have apart."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from kif_lightning.continual_state import ContinualState, PastTask, read_state
from kif_lightning.extending import extend
from kif_lightning.packing import pack
from kif_lightning.reporting.console import RunConsole
from kif_lightning.storage import flat
from tests.helpers.streams import run_stream, tiny_config

QUICK = ("examine_data=false", "save_model=false", "optim.batch_size=4", "optim.lr=0.01")
"""Settings of every tiny run here."""


@dataclass(frozen=True)
class Workshop:
    """Makes runs and states of toy tasks in one folder.

    Args:
        model: a folder that tiny_t5 gave.
        data: of toy tasks.
        folder: where runs and states go.
    """

    model: Path
    data: Path
    folder: Path

    def learn(self, name: str, tasks: Sequence[str], *overrides: str) -> Path:
        """A run of the tasks; its folder."""
        order = f"benchmark.order=[{','.join(tasks)}]"
        config = tiny_config(self.model, self.data, self.folder / name, order, *QUICK, *overrides)
        run_stream(config)
        return self.folder / name

    def packed(self, name: str, tasks: Sequence[str] = ("colour",), *overrides: str) -> Path:
        """The state after the tasks, with its memory if there is one."""
        run = self.learn(f"{name}_run", tasks, *overrides)
        return self.pack(run, name)

    def pack(self, run: Path, name: str, after: str | None = None) -> Path:
        """A run's state, with its memory if there is one."""
        keeps = (run / "state" / "stream.json").read_text().count('"keeps_memory": true')
        return pack(run, self.folder / name, after=after, with_memory=bool(keeps))

    def go_on(self, state: Path, name: str, *overrides: str, model: Path | None = None) -> str:
        """A plain run that goes on from a state with the task shape; what was said."""
        config = tiny_config(
            model or self.model,
            self.data,
            self.folder / name,
            "benchmark.order=[shape]",
            f"continue_from={state}",
            *QUICK,
            *overrides,
        )
        return run_stream(config)[1]

    def extend(self, state: Path, name: str, tasks: Sequence[str], *overrides: str) -> str:
        """Learn the tasks from a state on, with its memory; what was said."""
        said = io.StringIO()
        given = [
            "benchmark=long_sequence",
            f"benchmark.data_dir={self.data}",
            f"benchmark.order=[{','.join(tasks)}]",
            f"run_dir={self.folder / name}_run",
            "report=false",
            f"backbone.path={self.model}",
        ]
        named = {text.partition("=")[0] for text in overrides}
        given = [text for text in given if text.partition("=")[0] not in named]
        extend(
            state,
            self.folder / name,
            overrides=[*given, *overrides],
            with_memory=read_state(state).memory is not None,
            console=RunConsole(Console(file=said, width=200, highlight=False, soft_wrap=True)),
        )
        return said.getvalue()


def past(name: str, **scores: float) -> PastTask:
    """A task; ``on_0=50.0``: its score on the first one."""
    return PastTask(
        name=name,
        kind="classification",
        metric="exact_match",
        labels=("good", "bäd"),
        sha256={"train": "1", "test": "2"},
        train_rows=16,
        test_rows=6,
        test_sha256="3",
        decode="generate",
        max_new_tokens=3,
        data={"source": "test"},
        stand_in=False,
        phase={"name": name, "seconds": {"train": 1.5}},
        scores={key.removeprefix("on_"): value for key, value in scores.items()},
    )


def state(seed: int = 0, **changes: Any) -> ContinualState:
    """A small one that no run made; ``seed``: of its weights."""
    draw = torch.Generator().manual_seed(seed)
    weights = {f"layer{i}.lora_A": torch.randn(3, 4, generator=draw) for i in range(2)}
    made = ContinualState(
        config={"seed": 1, "method": {"name": "on"}, "backbone": {"name": "t5", "path": None}},
        tasks=(past("colour", on_0=50.0), past("shape", on_1=75.0)),
        protocols=({"seed": 1},),
        stand_ins=("stand-in data",),
        parts={
            "base": {"sha256": "4", "weights": 9},
            "adapter": weights,
            "boundary": {"fusion": {"unit_ids": ["a/rank:0"], "accumulated": torch.ones(1)}},
            "penalties": {"numbers": {0: float("inf"), 1: None}},
        },
        memory={"colour": [{"id": "7", "input": "sécret words", "output": "good"}]},
        keeps_memory=True,
        parent="5",
    )
    return replace(made, **changes)


def differences(a: ContinualState, b: ContinualState) -> list[str]:
    """Names of what the method's parts and its memory have apart, bit for bit."""
    first, second = (flat({"parts": dict(s.parts), "memory": dict(s.memory or {})}) for s in (a, b))
    return sorted(
        name
        for name in first.keys() | second.keys()
        if name not in first or name not in second or not _equal(first[name], second[name])
    )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return bool(a == b)


def content(folder: Path) -> dict[str, bytes]:
    """Every file there."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
