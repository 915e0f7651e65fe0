"""The practitioner's path on the bundled parts: learn, ship, go on learning elsewhere, export, use.

    python examples/ship_and_extend/story.py [FOLDER]

Machine 1 learns three tasks and ships its continual state. Machine 2, a folder that gets nothing
but the state and one CSV file, learns a fourth task, exports the model and answers new messages.
Back on machine 1, which still has the old test rows, the shipped and the extended model answer them
side by side. Each step is a command of its own, in a process of its own; the script shows it.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TICKETS = HERE.parent / "own_tasks" / "tickets.csv"
OLD_TASKS = ["mini_wic", "mini_boolqa", "mini_multirc"]
MESSAGES = [
    {"message": "My parcel has been stuck in the depot since Monday."},
    {"message": "You charged my card twice for the same lamp."},
    {"message": "The rear brake squeals since you repaired it."},
]


def main(folder: Path) -> None:
    """The story, in a new folder."""
    if folder.exists():
        sys.exit(f"{folder} exists: remove it, or name another folder.")
    first, second = folder / "machine_1", folder / "machine_2"
    first.mkdir(parents=True)
    second.mkdir()

    say("Machine 1 learns three tasks, one after another, with KIF")
    train = "python -m kif_lightning +experiment=long_seq_t5 run_dir=run report=false"
    rows = [f"benchmark.order=[{','.join(OLD_TASKS)}]", "benchmark.train_rows=320"]
    command(first, *shlex.split(train), *rows)
    command(first, "kif", "pack", "run", "--to", "state")

    say("\nMachine 2 gets the state, a CSV file and what its columns mean; no row of an old task")
    shutil.copytree(first / "state", second / "state")
    shutil.copy(TICKETS, second)
    shutil.copy(HERE / "tickets.yaml", second)
    extend = "kif extend state tickets.yaml --to state_4 optim.lr=3e-3 optim.epochs=10"
    command(second, *shlex.split(extend))

    say("\nIt exports the model for whoever uses plain peft, and answers new messages itself")
    command(second, "kif", "export", "state_4", "--to", "adapter")
    (second / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MESSAGES))
    predict = "kif predict state_4 new.jsonl --task tickets --out answers.jsonl"
    command(second, *shlex.split(predict))
    for row, answer in zip(MESSAGES, lines(second / "answers.jsonl"), strict=True):
        say(f"    {row['message']:55} -> {answer['prediction']}")

    say("\nBack on machine 1, which has the old rows: the old tasks, before and after the fourth")
    shutil.copytree(second / "state_4", first / "state_4")
    old = sorted((first / "run" / "test_rows").iterdir())
    (first / "old.jsonl").write_text("".join(path.read_text(encoding="utf-8") for path in old))
    for state in ("state", "state_4"):
        command(first, "kif", "predict", state, "old.jsonl", "--out", f"{state}.jsonl")
    say(f"{'percent right on':20} {'shipped':>8} {'extended':>9}   (stand-in data and model)")
    for task in OLD_TASKS:
        shown = [right(first, task, f"{state}.jsonl") for state in ("state", "state_4")]
        say(f"{task:20} {shown[0]:8.1f} {shown[1]:9.1f}")


def right(machine: Path, task: str, answers: str) -> float:
    """Percent of a task's test rows that were answered right."""
    known = sorted((machine / "run" / "predictions").glob(f"*_{task}.jsonl"))[-1]
    reference = {row["id"]: row["reference"].lower() for row in lines(known)}
    found = {row["id"]: row["prediction"].lower() for row in lines(machine / answers)}
    return 100 * sum(found[name] == word for name, word in reference.items()) / len(reference)


def command(machine: Path, program: str, *arguments: str) -> None:
    """Run one command in a machine's folder, as a new process."""
    say(f"\n{machine.name}$ {shlex.join([program, *arguments])}")
    arguments = ("-m", "kif_lightning.cli", *arguments) if program == "kif" else arguments
    subprocess.run(  # noqa: S603 - our own commands
        [sys.executable, *arguments], cwd=machine, check=True
    )


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def say(text: str) -> None:
    """To standard output, before what the next command prints."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/ship_and_extend").resolve())
