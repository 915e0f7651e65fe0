"""Lightning's checkpoints as folders: whole or not there, read back as they were, no pickle."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from safetensors import SafetensorError
from torch.optim import AdamW
from torch.utils.data import DataLoader

from kif_lightning import storage
from kif_lightning.checkpoint_io import SafeCheckpointIO
from kif_lightning.errors import UserError

CHECKPOINT: dict[str, Any] = {
    "epoch": 1,
    "state_dict": {"layer.weight": torch.arange(6.0).reshape(2, 3)},
    "optimizer_states": [
        {
            "state": {
                0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, dtype=torch.bfloat16)}
            },
            "param_groups": [{"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "foreach": None}],
        }
    ],
    "best": float("inf"),
}


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, torch.Tensor):
        return found.dtype == expected.dtype and torch.equal(found, expected)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[k], expected[k]) for k in found)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return type(found) is type(expected) and found == expected


def test_what_is_saved_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io, path = SafeCheckpointIO(), tmp_path / "step"
    monkeypatch.setattr(torch, "save", None)
    monkeypatch.setattr(torch, "load", None)
    io.save_checkpoint(CHECKPOINT, path)
    assert same(io.load_checkpoint(str(path), weights_only=False), CHECKPOINT)
    names = sorted(file.name for file in path.iterdir())
    assert names == ["contents.json", "state.json", "tensors.safetensors"]
    io.save_checkpoint({"epoch": 2}, path)
    assert io.load_checkpoint(path) == {"epoch": 2}
    io.remove_checkpoint(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["contents.json", "state.json", "tensors.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str, damage: str) -> None:
    io, path = SafeCheckpointIO(), tmp_path / "step"
    io.save_checkpoint(CHECKPOINT, path)
    file = path / name
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:-5])
    else:
        place = content.rindex(b"5") if name == "contents.json" else len(content) - 3
        content[place] ^= 1
        file.write_bytes(content)
    with pytest.raises(UserError, match="is missing or damaged") as error:
        io.load_checkpoint(path)
    assert str(path) in str(error.value)


def no_room(*_: Any) -> None:
    raise SafetensorError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    )


def no_sync(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("owner", "name", "fails"), [(storage, "save_file", no_room), (os, "fsync", no_sync)]
)
def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    fails: Callable[..., None],
) -> None:
    io, path = SafeCheckpointIO(), tmp_path / "step"
    io.save_checkpoint(CHECKPOINT, path)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails)
        with pytest.raises(OSError, match="No space left") as error:
            io.save_checkpoint({"epoch": 2}, path)
    assert error.value.errno == errno.ENOSPC
    assert same(io.load_checkpoint(path), CHECKPOINT)
    assert [folder.name for folder in tmp_path.iterdir()] == ["step"]


class Line(LightningModule):
    """One weight; stands for any module that Lightning trains."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(float(batch))
        return self.layer(batch[:, None]).square().mean()

    def configure_optimizers(self) -> AdamW:
        return AdamW(self.parameters(), lr=0.1)


def test_lightning_resumes_from_it(tmp_path: Path) -> None:
    def fit(epochs: int, start: Path | None = None) -> tuple[Line, Trainer]:
        torch.manual_seed(1)
        module = Line()
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            plugins=[SafeCheckpointIO()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(torch.tensor([1.0, 2.0, 3.0])), ckpt_path=start)  # type: ignore[arg-type]
        return module, trainer

    whole, _ = fit(2)
    _, first = fit(1)
    first.save_checkpoint(tmp_path / "step")
    resumed, trainer = fit(2, tmp_path / "step")
    assert (trainer.global_step, resumed.seen) == (6, [1.0, 2.0, 3.0])
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
