"""The lock of a run folder, with real second processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kif_lightning.errors import UserError
from kif_lightning.run_lock import RunLock, _age

HOLD = """
import os, sys, time
from pathlib import Path
from kif_lightning.run_lock import RunLock
with RunLock(folder=Path(sys.argv[1])):
    worker = os.fork()
    if worker:
        print(worker, flush=True)
    time.sleep(60)
"""
"""Holds the lock, with a child as the workers of a data loader are: it outlives a killed parent."""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of ``folder``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    try:
        yield process
    finally:
        process.kill()
        os.kill(worker, signal.SIGKILL)
        process.communicate()


def owner_file(folder: Path) -> Path:
    return folder / ".owner.json"


def left_behind(folder: Path, *, host: str, silent_for: float) -> None:
    """An owner file without a lock of the system, as another machine's may look."""
    folder.mkdir(exist_ok=True)
    owner = {"host": host, "pid": 4242, "started": "2026-01-02T03:04:05+00:00"}
    owner_file(folder).write_text(json.dumps(owner))
    then = time.time() - silent_for
    os.utime(owner_file(folder), (then, then))


def test_it_makes_the_folder_names_the_owner_and_leaves_no_owner(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with RunLock(folder=folder) as told:
        assert told is None
        owner = json.loads(owner_file(folder).read_text())
        assert (owner["host"], owner["pid"]) == (socket.gethostname(), os.getpid())
    assert not owner_file(folder).exists()
    with RunLock(folder=folder) as told:
        assert told is None


def test_an_exception_frees_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunLock(folder=tmp_path):
        raise KeyboardInterrupt
    assert not owner_file(tmp_path).exists()
    with RunLock(folder=tmp_path) as told:
        assert told is None


def test_a_living_process_is_named_and_a_killed_one_succeeded(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        then = time.time() - 200
        os.utime(owner_file(tmp_path), (then, then))
        with pytest.raises(UserError) as refused, RunLock(folder=tmp_path):
            pass
        told = str(refused.value)
        assert f"process {process.pid} on {socket.gethostname()}, since 20" in told
        assert "last sign of life 3 minutes ago" in told
        assert "run_dir=FOLDER" in told
        assert "\n" not in told
        assert json.loads(owner_file(tmp_path).read_text())["pid"] == process.pid

        process.send_signal(signal.SIGKILL)
        process.wait()
        with RunLock(folder=tmp_path) as sentence:
            assert sentence is not None
            assert f"process {process.pid} on {socket.gethostname()}" in sentence
            assert sentence.endswith("going on.")
            assert json.loads(owner_file(tmp_path).read_text())["pid"] == os.getpid()


def test_two_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    with RunLock(folder=tmp_path):
        with pytest.raises(UserError, match="in use"), RunLock(folder=tmp_path):
            pass
        with pytest.raises(UserError, match="in use"), RunLock(folder=tmp_path):
            pass


@pytest.mark.parametrize("silent_for", [0.0, 290.0])
def test_another_machines_recent_owner_is_believed(tmp_path: Path, silent_for: float) -> None:
    left_behind(tmp_path, host="elsewhere", silent_for=silent_for)
    before = owner_file(tmp_path).read_bytes()
    with pytest.raises(UserError, match="process 4242 on elsewhere") as refused:
        RunLock(folder=tmp_path).__enter__()
    assert "2026-01-02T03:04:05" in str(refused.value)
    assert "5 minutes" in str(refused.value)
    assert owner_file(tmp_path).read_bytes() == before
    owner_file(tmp_path).unlink()
    with RunLock(folder=tmp_path) as told:  # the refused one kept nothing
        assert told is None


@pytest.mark.parametrize(("host", "silent_for"), [("elsewhere", 310.0), (socket.gethostname(), 1)])
def test_a_dead_owner_is_succeeded(tmp_path: Path, host: str, silent_for: float) -> None:
    left_behind(tmp_path, host=host, silent_for=silent_for)
    with RunLock(folder=tmp_path) as told:
        assert told is not None
        assert f"process 4242 on {host}" in told


@pytest.mark.parametrize("content", ["{", "[]", '{"pid": 1}'])
def test_a_damaged_owner_file_is_named(tmp_path: Path, content: str) -> None:
    owner_file(tmp_path).write_text(content)
    with pytest.raises(UserError, match=r"\.owner\.json.*damaged.*delete it"):
        RunLock(folder=tmp_path).__enter__()


def test_signs_of_life_while_held_and_none_after(tmp_path: Path) -> None:
    with RunLock(folder=tmp_path, touch_seconds=0.02):
        os.utime(owner_file(tmp_path), (0, 0))
        deadline = time.time() + 5
        while owner_file(tmp_path).stat().st_mtime == 0 and time.time() < deadline:
            time.sleep(0.02)
        assert time.time() - owner_file(tmp_path).stat().st_mtime < 5
    time.sleep(0.1)
    assert not owner_file(tmp_path).exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be locked.*run_dir=FOLDER"):
        RunLock(folder=tmp_path / "file" / "run").__enter__()


def test_an_owner_that_cannot_be_written_frees_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("kif_lightning.run_lock.write_json", full)
        with pytest.raises(OSError, match="No space"):
            RunLock(folder=tmp_path).__enter__()
    with RunLock(folder=tmp_path) as told:
        assert told is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 seconds"),
        (1.0, "1 second"),
        (119.9, "119 seconds"),
        (120.0, "2 minutes"),
        (7199, "119 minutes"),
        (7200, "2 hours"),
        (129600, "36 hours"),
        (172800, "2 days"),
    ],
)
def test_ages(seconds: float, words: str) -> None:
    assert _age(seconds) == words
