"""The run folder: its settings, the state after the last complete task, and what stands in it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kif_lightning.errors import UserError
from kif_lightning.storage import flat, load_state, read_json, save_state, write_json, write_text


@dataclass
class RunState:
    """What the next task needs to know of the ones before.

    ``num_tasks`` counts what is trained on, phase by phase. ``score_matrix[i][j]``: percent on task
    j after phase i, None where not evaluated.
    """

    num_tasks: int
    next_task: int = 0
    score_matrix: list[list[float | None]] = field(default_factory=list)
    untrained: list[float | None] | None = None
    phases: list[dict[str, Any]] = field(default_factory=list)
    logged_steps: int = 0
    data_sha256: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether every task has been learnt and evaluated."""
        return self.next_task >= self.num_tasks


def require_same_data(
    before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]], *, since: str
) -> None:
    """Raise UserError unless both are the same data in the same order of tasks.

    Args:
        before: task name -> split -> sha256.
        now: the same.
        since: when it was ``before``, for the message.
    """
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed or list(before) != list(now):
        what = f"data of {', '.join(changed)}" if changed else "order of the tasks"
        raise UserError(
            f"The {what} changed since {since}: put the old files back, choose another "
            "run_dir=FOLDER, or start anew with rerun=true."
        )


class RunFolder:
    """Reads and writes one run's folder; every write is atomic, the state's pointer comes last.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_finished(self, settings: dict[str, Any]) -> bool:
        """Whether a complete run of these very settings stands here.

        Raises:
            UserError: the folder belongs to other settings.
        """
        if not (self.path / "results.json").is_file() or not self._config.is_file():
            return False
        self._check_same(settings, OmegaConf.to_container(OmegaConf.load(self._config)))
        return True

    def require_same_data(self, data_sha256: Mapping[str, Mapping[str, str]]) -> None:
        """Raise UserError unless a finished run was of this very data.

        Args:
            data_sha256: task name -> split -> sha256, in the order of tasks.
        """
        before = self.results()["protocol"]["data_sha256"]
        require_same_data(before, data_sha256, since=f"the run in {self.path} ended")

    @property
    def _config(self) -> Path:
        return self.path / "config.yaml"

    def open(self, settings: dict[str, Any], *, rerun: bool) -> None:
        """Claim the folder for these settings, or check that it already has them.

        Raises:
            UserError: the folder belongs to other settings, or holds something else.
        """
        ours = self._config.is_file()
        if rerun and ours:
            self._throw_away()
        if self._config.is_file():
            self._check_same(settings, OmegaConf.to_container(OmegaConf.load(self._config)))
            return
        if not ours and self.path.is_dir() and any(self.path.iterdir()):
            raise UserError(
                f"The run folder {self.path} holds files, but no run's config.yaml: choose another "
                "with run_dir=FOLDER, or empty it."
            )
        write_text(self._config, OmegaConf.to_yaml(OmegaConf.create(settings)))

    def _throw_away(self) -> None:
        """Remove what a run writes, ``config.yaml`` last, and nothing else."""
        stored: Any = OmegaConf.to_container(OmegaConf.load(self._config))
        if not isinstance(stored, dict) or not {"method", "benchmark", "seed"} <= stored.keys():
            raise UserError(
                f"{self._config} is not a run's: rerun=true deletes only what a run wrote; choose "
                "another run_dir=FOLDER."
            )
        (self.path / "results.json").unlink(missing_ok=True)
        for name in ("state", "predictions", "importance", "adapter", "logs", "wandb"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        self._config.unlink()

    def _check_same(self, settings: dict[str, Any], stored: Any) -> None:
        now, before = flat(settings), flat(stored)
        differing = [
            f"{key}: {before.get(key, 'absent')} there, {now.get(key, 'absent')} now"
            for key in sorted(now.keys() | before.keys())
            if now.get(key, "absent") != before.get(key, "absent")
        ]
        if differing:
            raise UserError(
                f"The run folder {self.path} belongs to other settings ({'; '.join(differing)}): "
                "use the same settings to resume, another run_dir=FOLDER, or rerun=true to start "
                "anew."
            )

    def save(self, state: RunState, parts: dict[str, Any]) -> None:
        """Keep the state after a complete task, then drop the one before."""
        name = f"after_{state.next_task:03d}"
        save_state(self.path / "state" / name, {"run": asdict(state), "parts": parts})
        write_json(self.path / "state" / "latest.json", {"folder": name})
        for old in (self.path / "state").glob("after_*"):
            if old.name != name:
                shutil.rmtree(old)

    def load(self) -> tuple[RunState, dict[str, Any]] | None:
        """The last complete state, or None in a new run.

        Raises:
            UserError: the state is damaged.
        """
        pointer = self.path / "state" / "latest.json"
        if not pointer.is_file():
            return None
        loaded = load_state(self.path / "state" / read_json(pointer)["folder"])
        return RunState(**loaded["run"]), loaded["parts"]

    def write_results(self, results: dict[str, Any]) -> None:
        """``results.json``."""
        write_json(self.path / "results.json", results)

    def results(self) -> dict[str, Any]:
        """What a finished run wrote."""
        found: dict[str, Any] = read_json(self.path / "results.json")
        return found
