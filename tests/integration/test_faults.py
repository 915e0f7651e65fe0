"""Runs that are stopped by a signal, find the disk full or their state damaged, and go on.

Every cut run must end as the uninterrupted one did: adapter, predictions and results.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from kif_lightning import launch, storage
from kif_lightning.callbacks.replay import FusionWithReplay
from kif_lightning.interfaces import LossContext
from kif_lightning.module import ContinualModule
from kif_lightning.run_state import RunFolder, RunState
from kif_lightning.runner import StreamRunner
from tests.helpers.chaos import differences, unreadable
from tests.helpers.fits import PenaltyBase
from tests.helpers.streams import tiny_config
from tests.helpers.tiny import tiny_tokenizer

ROOT = Path(__file__).parents[2]
# Two optimizer steps an epoch, each saved but for an epoch's last; two batches of test rows a task.
COMMON = (
    "benchmark.train_rows=8",
    "optim.batch_size=4",
    "optim.lr=0.01",
    "evaluation.batch_size=4",
    "lora.dropout=0.1",
    "checkpoint.every_steps=1",
    "examine_data=false",
)
METHODS = {
    "kif": ("method=kif", "optim.micro_batch_size=2", "optim.epochs=2"),
    "kif_m": ("method=kif_m", "method.memory.share=0.3"),
}
RELEASE = "KIF_TEST_RELEASE"
SLOW = pytest.mark.slow


class Waits(PenaltyBase):
    """Zero; in its third call it waits for a file, if the environment names one."""

    calls = 0

    def __call__(self, context: LossContext) -> Tensor:
        self.calls += 1
        released = os.environ.get(RELEASE)
        deadline = time.monotonic() + 120
        while self.calls == 3 and released and not Path(released).exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return 0.0 * next(iter(context.parameters.values())).sum()


Configs = Callable[..., DictConfig]


@pytest.fixture
def config(tiny_t5: Path, toy_data: Path, tmp_path: Path) -> Configs:
    def make(*more: str, method: str = "kif", name: str = "cut") -> DictConfig:
        return tiny_config(tiny_t5, toy_data, tmp_path / name, *COMMON, *METHODS[method], *more)

    return make


@pytest.fixture(scope="module")
def whole(
    tiny_t5: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The folder of a method's uninterrupted run, made once."""
    made: dict[str, Path] = {}

    def find(method: str = "kif") -> Path:
        if method not in made:
            folder = made[method] = tmp_path_factory.mktemp("whole") / method
            assert status(tiny_config(tiny_t5, toy_data, folder, *COMMON, *METHODS[method])) == 0
        return made[method]

    return find


def status(config: DictConfig) -> int:
    """The exit status of the command with this config."""
    try:
        launch.launch(config)
    except SystemExit as end:
        return int(str(end.code))
    return 0


@contextmanager
def before_call(owner: Any, name: str, call: int, act: Callable[[], object]) -> Iterator[list[int]]:
    """``act`` once, before the method's n-th call (from 1)."""
    original = getattr(owner, name)
    calls: list[int] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls) + 1)
        if len(calls) == call:
            act()
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, watched)
        yield calls


def by_signal(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


# ---------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("method", "name", "owner", "moment", "call", "reached"),
    [
        # Two micro-batches a step: the signal comes before the first one of the third step.
        ("kif", "SIGTERM", ContinualModule, "training_step", 5, "step 3 of task 1 of 2"),
        # An epoch's last step is not saved: the next one is waited for.
        pytest.param(
            *("kif", "SIGUSR1", ContinualModule, "training_step", 3, "step 3 of task 1 of 2"),
            marks=SLOW,
        ),
        ("kif", "SIGINT", ContinualModule, "training_step", 10, "step 1 of task 2 of 2"),
        pytest.param(
            *(
                "kif",
                "SIGTERM",
                ContinualModule,
                "test_step",
                1,
                "the evaluation after task 1 of 2",
            ),
            marks=SLOW,
        ),
        ("kif", "SIGINT", ContinualModule, "test_step", 5, "the evaluation after task 2 of 2"),
        ("kif_m", "SIGTERM", FusionWithReplay, "_replay", 2, "step 2 of task 2 of 2"),
    ],
)
def test_a_signal_ends_the_run_saved_and_the_same_command_goes_on(
    config: Configs,
    whole: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    method: str,
    name: str,
    owner: Any,
    moment: str,
    call: int,
    reached: str,
) -> None:
    with before_call(owner, moment, call, by_signal(getattr(signal, name))):
        assert status(config(method=method)) == 75
    said = " ".join(capsys.readouterr().out.split())
    assert f"{name}: stopping after this step, its state saved" in said
    assert "The same command goes on from there (exit status 75)." in said
    assert ("Ctrl-C again" in said) == (name == "SIGINT")
    folder = tmp_path / "cut"
    assert not (folder / "results.json").exists()
    assert not list(folder.glob(".owner*")), "the folder is free again"
    assert unreadable(folder) == []
    assert status(config(method=method)) == 0
    assert f"Resuming after {reached}." in " ".join(capsys.readouterr().out.split())
    assert differences(whole(method), folder) == []


def test_a_second_ctrl_c_stops_at_once(config: Configs, whole: Any, tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with before_call(ContinualModule, "training_step", 6, twice) as calls:
        with pytest.raises((KeyboardInterrupt, SystemExit)) as end:
            launch.launch(config())
        assert calls == [1, 2, 3, 4, 5, 6]
    assert not (isinstance(end.value, SystemExit) and end.value.code in (0, 75))
    assert status(config()) == 0
    assert differences(whole(), tmp_path / "cut") == []


def test_the_command_line_ends_saved_and_one_folder_has_one_writer(
    config: Configs,
    tiny_t5: Path,
    toy_data: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow = ("+method.penalty.slow={_target_: tests.integration.test_faults.Waits}",)
    release, folder = tmp_path / "release", tmp_path / "cut"
    overrides = [
        "backbone=t5_base",
        f"backbone.path={tiny_t5}",
        f"benchmark.data_dir={toy_data}",
        "benchmark.order=[colour,shape]",
        "trainer.accelerator=cpu",
        *COMMON,
        *METHODS["kif"],
        *slow,
        f"run_dir={folder}",
    ]
    settings = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", RELEASE: str(release)}
    with subprocess.Popen(
        [sys.executable, "-m", "kif_lightning", *overrides],
        cwd=ROOT,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while not (folder / "state" / "latest.json").exists():
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < deadline
                time.sleep(0.02)
            # The first step is saved, and the epoch's last does not end before it is released.
            assert status(config(*slow)) == 2
            assert f"is in use by process {process.pid} on " in caplog.text
            assert caplog.text.count("ERROR") == 1
            process.send_signal(signal.SIGTERM)
            release.touch()
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 75, said
    assert "SIGTERM: stopping after this step" in said
    assert "Traceback" not in said
    assert RunFolder(folder).load().training.name.endswith("step_00000003")  # type: ignore[union-attr]
    assert status(config(*slow)) == 0
    assert status(config(*slow, name="whole")) == 0
    assert differences(tmp_path / "whole", folder) == []


# -------------------------------------------------------------------------------- full disks


@contextmanager
def full_for(what: str) -> Iterator[None]:
    """No room for files whose path holds these words: half of the first such file is written."""
    replacing, save_file = storage.replacing, storage.save_file

    @contextmanager
    def no_file(path: Path) -> Iterator[Any]:
        with replacing(path) as file:
            yield file
            if what in str(path):
                file.truncate(file.tell() // 2)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)

    def no_tensors(tensors: Any, path: str) -> None:
        save_file(tensors, path)
        if what in path:
            os.truncate(path, Path(path).stat().st_size // 2)
            raise SafetensorError(
                "Error while serializing: I/O error: No space left on device (os error 28)"
            )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "replacing", no_file)
        patch.setattr(storage, "save_file", no_tensors)
        yield


@pytest.mark.parametrize(
    ("what", "reached"),
    [
        ("task_001_step_00000001", None),
        pytest.param(*("task_002_step_00000003", "step 1 of task 2 of 2"), marks=SLOW),
        ("after_001", "step 4 of task 1 of 2"),
        pytest.param(*("importance/01_colour", "step 4 of task 1 of 2"), marks=SLOW),
        ("predictions/after_02_shape__on_02", "the evaluation after task 2 of 2"),
        pytest.param(*("results.json", "the end of task 2 of 2"), marks=SLOW),
    ],
)
def test_a_full_disk_is_told_and_loses_nothing_that_was_saved(
    config: Configs,
    whole: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    what: str,
    reached: str | None,
) -> None:
    folder = tmp_path / "cut"
    with full_for(what):
        assert status(config()) == 2
    assert_told(caplog)
    assert unreadable(folder) == []
    assert not (folder / "results.json").exists()
    found = RunFolder(folder).load()
    assert (found is not None) == (reached is not None)
    capsys.readouterr()
    assert status(config()) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (f"Resuming after {reached}." in said) if reached else ("Resuming" not in said)
    assert differences(whole(), folder) == []
    assert not list(folder.rglob("*.tmp"))


def assert_told(caplog: pytest.LogCaptureFixture) -> None:
    told = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(told) == 1
    assert told[0].startswith("There is no room left for ")
    assert "free some space and give the same command again" in told[0]


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 2 MB; skips where one cannot be had."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize(
    ("moment", "call", "left"),
    [
        ("_save_training", 3, 0),
        pytest.param(*("_judge", 1, 0), marks=SLOW),
        ("_finish", 1, 0),
        ("_finish", 1, 8192),  # enough for the adapter's small files, not for its weights
    ],
)
def test_a_disk_that_is_really_full(
    config: Configs,
    whole: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    moment: str,
    call: int,
    left: int,
) -> None:
    """All but so many bytes are taken before that."""
    with small_disk(tmp_path / "disk") as disk:
        ballast = disk / "ballast"

        def fill() -> None:
            with ballast.open("wb", buffering=0) as file, suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            os.truncate(ballast, ballast.stat().st_size - left)

        with before_call(StreamRunner, moment, call, fill):
            assert status(config(name="disk/cut")) == 2
        assert_told(caplog)
        assert unreadable(disk / "cut") == []
        ballast.unlink()
        assert status(config(name="disk/cut")) == 0
        assert differences(whole(), disk / "cut") == []


# ---------------------------------------------------------------------------- damaged states


@pytest.mark.parametrize(
    ("owner", "moment", "call", "file", "reached"),
    [
        (ContinualModule, "training_step", 5, "{training}/tensors.safetensors", "step 1 of task 1"),
        (ContinualModule, "test_step", 2, "{parts}/tensors.safetensors", "step 4 of task 1"),
        pytest.param(
            *(ContinualModule, "test_step", 2, "{parts}/contents.json", "step 4 of task 1"),
            marks=SLOW,
        ),
        pytest.param(
            *(ContinualModule, "training_step", 13, "latest.json", "step 1 of task 2"), marks=SLOW
        ),
        (
            *(ContinualModule, "training_step", 13, "{parts}/tensors.safetensors"),
            "the beginning of the run",
        ),
    ],
)
def test_a_state_cut_short_is_named_and_the_one_before_offered(
    config: Configs,
    whole: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    owner: Any,
    moment: str,
    call: int,
    file: str,
    reached: str,
) -> None:
    with before_call(owner, moment, call, by_signal(signal.SIGTERM)):
        assert status(config()) == 75
    states = tmp_path / "cut" / "state"
    pointed = json.loads((states / "latest.json").read_text())
    damaged = states / file.format_map(pointed)
    os.truncate(damaged, damaged.stat().st_size // 2)
    before = sorted(states.rglob("*"))
    assert status(config()) == 2
    (told,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert str(damaged) in told
    assert reached in told
    assert "resume=previous" in told
    assert sorted(states.rglob("*")) == before, "a refusal deletes nothing"
    assert status(config("resume=previous")) == 0
    assert differences(whole(), tmp_path / "cut") == []


# ------------------------------------------------------------------------------------- sizes


def wide_t5(folder: Path) -> Path:
    """A T5 whose checkpoints weigh more than their lists of names; no dimension like a rank's."""
    tokenizer = tiny_tokenizer(ends_sequences=True)
    torch.manual_seed(0)
    sizes = {"d_model": 192, "d_kv": 48, "d_ff": 224, "num_layers": 2, "num_heads": 4}
    tokens = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    config = T5Config(vocab_size=len(tokenizer), **sizes, **tokens)  # type: ignore[arg-type]
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def read_values(path: Path) -> list[str]:
    """The JSON values of a file."""
    text = path.read_text()
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("method", ["kif", pytest.param("kif_full", marks=SLOW)])
def test_a_checkpoint_is_small_and_holds_no_frozen_weight_and_no_pickle(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    model = wide_t5(tmp_path / "wide_t5")

    def again() -> DictConfig:
        own = (f"method={method}", "lora.r=64", "evaluation.max_new_tokens=2")
        return tiny_config(model, toy_data, tmp_path / "cut", *COMMON, *own)

    with before_call(ContinualModule, "training_step", 4, by_signal(signal.SIGTERM)):
        assert status(again()) == 75
    states = tmp_path / "cut" / "state"
    pointed = json.loads((states / "latest.json").read_text())
    training, parts = states / pointed["training"], states / pointed["parts"]
    assert (training.name, parts.name) == ("task_002_step_00000002", "after_001")

    base = T5ForConditionalGeneration.from_pretrained(model)
    frozen = {tuple(p.shape) for p in base.parameters() if p.dim() > 1}
    if method == "kif":
        # A and B of rank 64 beside q and v, 6 attentions of 2 x 2 layers, all of width 192.
        trainable = 4 * 6 * 2 * 2 * 64 * 192
    else:
        trainable = 4 * sum(p.numel() for p in base.parameters())
    assert trainable > 1 << 20
    share = (size(training) + size(parts)) / trainable
    assert share <= 1.2 * 6, share
    assert share >= 5, "weights, AdamW's two moments and two averages are all there"

    pointers = {"latest.json", "previous.json", "earlier.json", "finished.jsonl", "stream.json"}
    names = {"tensors.safetensors", "state.json", "contents.json", *pointers}
    files = [path for path in states.rglob("*") if path.is_file()]
    for path in files:
        assert path.name in names
        if path.suffix in (".json", ".jsonl"):
            [json.loads(text) for text in read_values(path)]
            continue
        shapes = {tuple(tensor.shape) for tensor in load_file(path).values()}
        assert method == "kif_full" or not shapes & frozen
        with safe_open(path, "pt") as opened:
            assert opened.metadata() is None or "pickle" not in str(opened.metadata())

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a pickle is loaded")

    monkeypatch.setattr(torch, "load", refuse)
    assert status(again()) == 0


def test_of_the_finished_tasks_the_judge_reads_what_the_pointer_names(tmp_path: Path) -> None:
    folder, path = RunFolder(tmp_path), tmp_path / "state" / "finished.jsonl"
    folder.save(RunState(num_tasks=1, data_sha256={"colour": {"train": "abc"}}))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"phase": {"na')  # killed while it was appended
    assert unreadable(tmp_path) == []
    for damaged in (whole[:-1], whole.replace(b"abc", b"abd")):
        path.write_bytes(damaged)
        assert unreadable(tmp_path) == ["state/finished.jsonl (ValueError)"]
