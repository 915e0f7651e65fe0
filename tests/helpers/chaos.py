"""The kill test: short streams killed with SIGKILL, resumed, and compared with uninterrupted runs.

``python -m tests.helpers.chaos --runs 60 --seed 1`` (``make chaos``). Every attempt is a fork of
this process, which has imported everything. A run is killed one to three times: at a random time,
or at a drawn moment of a drawn phase, where it kills itself; then the same command runs to the end.
Exit status 1 if a killed run differs from the uninterrupted one in any byte of its adapter or
predictions or any value of its results (times apart), left a file that cannot be read, failed to go
on, or repeated more steps than the checkpoints' cadence explains.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from lightning.pytorch import Trainer
from omegaconf import DictConfig
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from transformers.utils.logging import disable_progress_bar

from kif_lightning.callbacks.fusion import KnowledgeFusion
from kif_lightning.callbacks.recurrent import RecurrentFusion
from kif_lightning.callbacks.replay import FusionWithReplay
from kif_lightning.module import ContinualModule
from tests.helpers.streams import run_stream, tiny_config
from tests.helpers.tiny import save_tiny_t5, save_toy_tasks

PHASES = ("between", "training", "evaluation", "fusion", "replay", "saving")
AIMS = ("any time", *PHASES[1:])
"""What a kill may be aimed at."""

TASKS = ("colour", "shape", "size")
COMMON = (
    "benchmark.order=[colour,shape]",
    "optim.batch_size=4",
    "optim.lr=0.01",
    "report=false",
    "lora.dropout=0.1",
    "evaluation.batch_size=3",
    "examine_data=false",
)
MEMORY = (f"benchmark.order=[{','.join(TASKS)}]", "method.memory.share=0.3")
LOOKS = ("method.selection.num_held_out=4", "method.selection.every_steps=2")
STREAMS: dict[str, tuple[str, ...]] = {
    "kif": (
        "method=kif",
        "optim.micro_batch_size=2",
        "evaluation.untrained=true",
        "keep_boundaries=true",
    ),
    "kif_m": ("method=kif_m", *MEMORY),
    "recurrent_kif": (
        "method=recurrent_kif",
        *MEMORY,
        "method.boundary.recurrent.num_inner_steps=2",
        "method.boundary.recurrent.num_outer_steps=2",
    ),
    "kif_official": ("method=kif_official", *LOOKS, "optim.epochs=2"),
    "ewc": ("method=ewc", "optim.micro_batch_size=2", "probe=general", "probe.rows=7"),
    "o_lora": ("method=o_lora", "optim.epochs=2"),
    "lwf": ("method=lwf", "optim.schedule_name=cosine"),
    "migu": ("method=migu", "optim.micro_batch_size=2"),
    "replay": ("method=replay", *MEMORY, "optim.epochs=2"),
}


# ------------------------------------------------------------------------- within the attempt


@dataclass(frozen=True, kw_only=True)
class Kill:
    """After so many seconds, or at the n-th moment (from 1) of a phase."""

    aim: str
    seconds: float | None = None
    moment: int | None = None

    def __str__(self) -> str:
        return f"{self.aim} {self.moment or format(self.seconds, '.2f') + ' s'}"


class Watch:
    """Tells the parent where the attempt is, counts moments by phase, kills at the drawn one.

    What it writes outlives the process: shared memory of the present phase, the moments of each
    and the optimizer steps that tasks were trained with.
    """

    def __init__(self) -> None:
        self.shared = RawArray("q", len(PHASES) + 2)
        self.kill: Kill | None = None
        self.folder = ""

    @property
    def phase(self) -> str:
        return PHASES[self.shared[0]]

    @property
    def steps(self) -> int:
        return int(self.shared[1])

    def moments(self) -> dict[str, int]:
        return dict(zip(PHASES, self.shared[2:], strict=True))

    def moment(self, phase: str, torn: Callable[[], object] | None = None) -> None:
        """A place where the process may die; ``torn`` leaves what half an operation leaves."""
        place = PHASES.index(phase)
        self.shared[2 + place] += 1
        kill = self.kill
        if kill is None or kill.aim != phase or kill.moment != self.shared[2 + place]:
            return
        self.shared[0] = place
        if torn is not None:
            torn()
        os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        before, self.shared[0] = self.shared[0], PHASES.index(phase)
        try:
            yield
        finally:
            self.shared[0] = before

    def span(self, owner: Any, name: str, phase: str) -> None:
        """The phase lasts while that method runs; its beginning and end are moments."""
        original = getattr(owner, name)

        @wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            # A replay trains, too: the outer phase counts.
            now = "replay" if self.phase == "replay" else phase
            with self.within(now):
                self.moment(now)
                result = original(*args, **kwargs)
                self.moment(now)
            return result

        setattr(owner, name, watched)

    def reset(self) -> None:
        """Nothing has happened yet."""
        self.shared[:] = [0] * len(self.shared)

    def begin(self, folder: Path, kill: Kill | None) -> None:
        """Hook into this process, which is the attempt's own."""
        self.folder, self.kill = str(folder), kill
        self.span(Trainer, "fit", "training")
        self.span(Trainer, "test", "evaluation")
        self.span(ContinualModule, "test_step", "evaluation")
        self.span(KnowledgeFusion, "identify", "fusion")
        self.span(KnowledgeFusion, "fuse", "fusion")
        self.span(RecurrentFusion, "_close_round", "fusion")
        self.span(RecurrentFusion, "_outer_steps", "replay")
        self.span(FusionWithReplay, "_replay", "replay")
        register_optimizer_step_pre_hook(lambda *_: self.moment(self.phase))
        register_optimizer_step_post_hook(self._stepped)
        sys.addaudithook(self._file_touched)
        self._watch_writes()

    def _stepped(self, *_: Any) -> None:
        self.shared[1] += self.phase == "training"
        self.moment(self.phase)

    def _file_touched(self, event: str, args: tuple[Any, ...]) -> None:
        """Before each operation on a file of the run folder, whoever does it."""
        if event == "open":
            path, _, flags = args
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and self._ours(path):
                # As if killed between the opening, which empties the file, and the first byte.
                self.moment("saving", lambda: Path(path).write_bytes(b""))
        # Removing a tree names its files by their folder's descriptor.
        elif (event in ("os.rename", "os.mkdir") and self._ours(args[0])) or (
            event in ("os.remove", "os.rmdir") and (self._ours(args[0]) or args[-1] != -1)
        ):
            self.moment("saving")

    def _ours(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.folder)

    def _watch_writes(self) -> None:
        """Writes that Python tells no audit hook of."""
        sync, serialize = os.fsync, safetensors.torch.serialize_file

        def watched_sync(descriptor: Any) -> None:
            self.moment("saving")
            sync(descriptor)

        def watched_serialize(tensors: Any, path: Any, *args: Any, **kwargs: Any) -> None:
            def half() -> None:
                serialize(tensors, path, *args, **kwargs)
                os.truncate(path, Path(path).stat().st_size // 2)

            self.moment("saving", half)
            serialize(tensors, path, *args, **kwargs)

        setattr(os, "fsync", watched_sync)  # noqa: B010
        setattr(safetensors.torch, "serialize_file", watched_serialize)  # noqa: B010


# ------------------------------------------------------------------------- around the attempt


@dataclass(kw_only=True)
class Attempt:
    """How one process ended: ``killed`` in which phase, or ``error`` (empty: the run is done)."""

    killed: str | None
    error: str
    seconds: float
    steps: int
    moments: dict[str, int]


@dataclass(kw_only=True)
class Reference:
    """The uninterrupted run."""

    folder: Path
    seconds: float
    steps: int
    moments: dict[str, int]


@dataclass(kw_only=True)
class Tally:
    """What happened to a stream's killed runs."""

    runs: int = 0
    resumes: int = 0
    identical: int = 0
    missed: int = 0
    """Kills whose moment did not come any more."""
    steps_lost: int = 0
    kills: Counter[str] = field(default_factory=Counter)


class Chaos:
    """Runs, kills, resumes and compares.

    Args:
        folder: for everything.
        seed: of all draws.
        every_steps: optimizer steps between two checkpoints.
        most_kills: of one run.
    """

    def __init__(
        self, *, folder: Path, seed: int, every_steps: int = 1, most_kills: int = 3
    ) -> None:
        self.folder = folder
        self.every_steps = every_steps
        self.most_kills = most_kills
        self.draw = random.Random(seed)
        self.model = save_tiny_t5(folder / "tiny_t5")
        self.data = save_toy_tasks(folder / "data", TASKS[:2], train=16, test=7)
        save_toy_tasks(folder / "data", TASKS[2:], train=16, test=7, labels=("round", "flat"))
        # What is imported at first use, every attempt would import.
        run_stream(self.config("kif", folder / "warm", "plan=true"))
        self.watch = Watch()
        self.references: dict[str, Reference] = {}
        self.tallies: dict[str, Tally] = {}
        self.problems: list[str] = []

    def config(self, stream: str, run_dir: Path, *more: str) -> DictConfig:
        """The stream's run in that folder."""
        cadence = f"checkpoint.every_steps={self.every_steps}"
        return tiny_config(
            self.model, self.data, run_dir, *COMMON, *STREAMS[stream], cadence, *more
        )

    def attempt(self, stream: str, run_dir: Path, kill: Kill | None = None, *more: str) -> Attempt:
        """One process of the stream in that folder, killed or not."""
        torn_before = set(unfinished(run_dir))
        sys.stdout.flush()
        self.watch.reset()  # here: the child may die before it begins
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            os._exit(self._child(stream, run_dir, kill, *more))
        status = self._wait(child, started, kill)
        seconds = time.monotonic() - started
        killed, error = None, ""
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            killed = self.watch.phase
            if kill is not None and kill.seconds and set(unfinished(run_dir)) - torn_before:
                killed = "saving"
        elif status != 0:
            log = log_of(run_dir).read_text(encoding="utf-8")
            error = f"exit {os.waitstatus_to_exitcode(status)}: {log[-3000:]}"
        watch = self.watch
        return Attempt(
            killed=killed,
            error=error,
            seconds=seconds,
            steps=watch.steps,
            moments=watch.moments(),
        )

    def _child(self, stream: str, run_dir: Path, kill: Kill | None, *more: str) -> int:
        with log_of(run_dir).open("w", encoding="utf-8") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                config = self.config(stream, run_dir, *more)
                self.watch.begin(run_dir, kill)
                _, said = run_stream(config)
                print(said, flush=True)
            except BaseException:
                traceback.print_exc(file=log)
                log.flush()
                return 1
            return 0

    def _wait(self, child: int, started: float, kill: Kill | None) -> int:
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status
            seconds = time.monotonic() - started
            if kill is not None and kill.seconds is not None and seconds >= kill.seconds:
                os.kill(child, signal.SIGKILL)
                return os.waitpid(child, 0)[1]
            if seconds > 300:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise TimeoutError(f"An attempt hangs: {log_of(self.folder)}")
            time.sleep(0.002)

    def reference(self, stream: str) -> Reference:
        """The uninterrupted run, made once; the same without checkpoints must not differ."""
        if stream not in self.references:
            folder = self.folder / "whole" / stream
            folder.parent.mkdir(exist_ok=True)
            done = self.attempt(stream, folder)
            if done.error:
                sys.exit(f"{stream} does not even run uninterrupted:\n{done.error}")
            self.references[stream] = Reference(
                folder=folder, seconds=done.seconds, steps=done.steps, moments=done.moments
            )
            self.problems += [f"{folder}: {path} cannot be read" for path in unreadable(folder)]
        return self.references[stream]

    def without_checkpoints(self, stream: str) -> None:
        """Checkpoints within a task change nothing."""
        reference = self.reference(stream)
        folder = self.folder / "plain" / stream
        folder.parent.mkdir(exist_ok=True)
        plain = self.attempt(stream, folder, None, "checkpoint.every_steps=null")
        differing = [plain.error] if plain.error else differences(reference.folder, folder)
        self.problems += [f"{folder} (no checkpoints in tasks): {what}" for what in differing]

    def draw_kill(self, reference: Reference, aim: str, tried: int) -> Kill:
        """Where the next attempt dies; a later attempt of a run has less before it."""
        share = 1.0 if tried == 0 else 0.5
        if aim == "any time":
            return Kill(aim=aim, seconds=self.draw.uniform(0.02, 0.97 * share * reference.seconds))
        most = max(1, int(share * reference.moments[aim]))
        return Kill(aim=aim, moment=self.draw.randint(1, most))

    def killed_run(self, stream: str, aim: str) -> None:
        """One run, killed (first as aimed, then anyhow), resumed to its end, compared."""
        reference = self.reference(stream)
        tally = self.tallies.setdefault(stream, Tally())
        tally.runs += 1
        run_dir = self.folder / "killed" / f"{tally.runs:03d}_{stream}"
        run_dir.parent.mkdir(exist_ok=True)
        possible = [a for a in AIMS if reference.moments.get(a, 1)]
        aims = [aim, *self.draw.choices(possible, k=self.draw.randrange(self.most_kills))]
        kills = [self.draw_kill(reference, a, i) for i, a in enumerate(aims)]
        story: list[str] = []
        problems: list[str] = []
        steps = 0
        for kill in [*kills, None]:
            tally.resumes += bool(story)
            ended = self.attempt(stream, run_dir, kill)
            steps += ended.steps
            if ended.killed is None:
                problems += [ended.error] if ended.error else []
                tally.missed += kill is not None
                break
            story.append(f"{kill} in {ended.killed}")
            tally.kills[ended.killed] += 1
            problems += [f"after '{story[-1]}' {p} cannot be read" for p in unreadable(run_dir)]
        if not problems:
            problems = differences(reference.folder, run_dir)
            # The steps since the last checkpoint are lost; an epoch's last step is not saved.
            lost = steps - reference.steps
            tally.steps_lost += lost
            if not 0 <= lost <= len(story) * (self.every_steps + 1):
                problems.append(f"{steps} steps were taken where {reference.steps} are needed")
        tally.identical += not problems
        self.problems += [f"{run_dir} (killed: {'; '.join(story)}): {what}" for what in problems]
        verdict = "DIFFERENT" if problems else "identical"
        print(f"{run_dir.name} killed at {'; '.join(story)}: {verdict}", flush=True)
        if not problems:
            shutil.rmtree(run_dir)

    def table(self) -> str:
        """Counts by stream and phase; ``lost``: optimizer steps that were taken again."""
        head = ["stream", "runs", *PHASES, "kills", "missed", "resumes", "lost", "identical"]
        rows: list[list[Any]] = [
            [
                name,
                t.runs,
                *(t.kills[phase] for phase in PHASES),
                t.kills.total(),
                t.missed,
                t.resumes,
                t.steps_lost,
                t.identical,
            ]
            for name, t in self.tallies.items()
        ]
        rows.append(["all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])])
        lines = [[str(cell) for cell in row] for row in [head, *rows]]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in lines
        )


# -------------------------------------------------------------------------------- the judges


def log_of(run_dir: Path) -> Path:
    return run_dir.with_name(f"{run_dir.name}.log")


def unfinished(folder: Path) -> list[Path]:
    """Files under a temporary name."""
    return [path for path in folder.rglob("*.tmp") if path.exists()]


def unreadable(folder: Path) -> list[str]:
    """Files that cannot be read whole, but for those under a temporary name."""
    readers: dict[str, Callable[[Path], Any]] = {
        "finished.jsonl": _finished,
        ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
        ".jsonl": lambda path: [json.loads(s) for s in _lines(path.read_text(encoding="utf-8"))],
        ".yaml": lambda path: _mapping(yaml.safe_load(path.read_text(encoding="utf-8"))),
        ".safetensors": safetensors.torch.load_file,
    }
    found = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        reader = readers.get(path.name) or readers.get(path.suffix)
        if reader is None or any(part.endswith(".tmp") for part in inside.parts):
            continue
        try:
            reader(path)
        except Exception as error:
            found.append(f"{inside} ({type(error).__name__})")
    return found


def _finished(path: Path) -> None:
    """What the latest pointer names of it; a kill may leave half a record after that."""
    pointer = path.with_name("latest.json")
    if not pointer.is_file():
        return
    named = json.loads(pointer.read_text(encoding="utf-8"))["run"]["finished"]
    with path.open("rb") as file:
        written = file.read(named["bytes"])
    if len(written) < named["bytes"] or zlib.crc32(written) != named["crc32"]:
        raise ValueError("not what was written")
    for line in written.splitlines():
        json.loads(line)


def _lines(text: str) -> list[str]:
    if not text.endswith("\n"):
        raise ValueError("cut short")
    return text.splitlines()


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return value


def differences(whole: Path, folder: Path) -> list[str]:
    """What of a run's outcome is not as in the uninterrupted one."""
    found = []
    for part in ("adapter", "predictions", "boundaries"):
        ours, theirs = _contents(folder / part), _contents(whole / part)
        names = sorted(ours.keys() | theirs.keys())
        found += [f"{part}/{name} differs" for name in names if ours.get(name) != theirs.get(name)]
    files = [Path("results.json"), *(p.relative_to(whole) for p in whole.glob("importance/*"))]
    for file in files:
        if not (folder / file).is_file():
            found.append(f"{file} is missing")
            continue
        ours, theirs = (_values(json.loads((f / file).read_text())) for f in (folder, whole))
        differing: dict[str, list[str]] = {}
        for key in sorted(ours.keys() | theirs.keys()):
            if not _is_time(key) and ours.get(key, "absent") != theirs.get(key, "absent"):
                values = f"{key} was {theirs.get(key, 'absent')}, is {ours.get(key, 'absent')}"
                differing.setdefault(key.split(".")[0], []).append(values)
        found += [f"{file}: {len(v)} values of {k}, as {v[0]}" for k, v in differing.items()]
    return found


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _values(value: Any, key: str = "") -> dict[str, Any]:
    """Each plain value by its dotted place."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return {key: value}
    found: dict[str, Any] = {}
    for name, item in items:
        found |= _values(item, f"{key}.{name}" if key else str(name))
    return found


def _is_time(key: str) -> bool:
    """What a clock or the process says, not the computation."""
    return "seconds" in key or "peak_" in key or key.startswith("protocol.time")


def main() -> int:
    """Exit status: 0 if every killed run ended as the uninterrupted one did."""
    parser = argparse.ArgumentParser(description="Kill, resume, compare.")
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every-steps", type=int, default=1)
    parser.add_argument("--most-kills", type=int, default=3, help="of one run")
    parser.add_argument("--streams", default=",".join(STREAMS))
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary one")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    disable_progress_bar()
    torch.set_num_threads(1)
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="kif_chaos_"))
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    os.environ["KIF_CACHE"] = str(folder / "cache")
    chaos = Chaos(
        folder=folder,
        seed=chosen.seed,
        every_steps=chosen.every_steps,
        most_kills=chosen.most_kills,
    )
    streams = chosen.streams.split(",")
    started = time.monotonic()
    if chosen.runs >= 2 * len(streams):
        for stream in streams:
            chaos.without_checkpoints(stream)
    aims = [
        (stream, aim)
        for aim in AIMS
        for stream in streams
        if chaos.reference(stream).moments.get(aim, 1)
    ]
    chaos.draw.shuffle(aims)
    for number in range(chosen.runs):
        chaos.killed_run(*aims[number % len(aims)])
    print(chaos.table())
    print(f"seed {chosen.seed}, {time.monotonic() - started:.0f} s")
    for problem in chaos.problems:
        print(f"DIFFERENCE {problem}")
    if chaos.problems:
        print(f"{len(chaos.problems)} differences; all is kept in {folder}")
    elif chosen.folder is None:
        shutil.rmtree(folder)
    return int(bool(chaos.problems))


if __name__ == "__main__":
    sys.exit(main())
