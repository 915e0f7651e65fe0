"""The console script ``kif``: everything but training, which is ``python -m kif_lightning``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from kif_lightning.errors import UserError
from kif_lightning.paths import conf_dir

app = typer.Typer(no_args_is_help=True, add_completion=False)
SLOTS = ("adapter", "importance", "units", "rule", "penalty", "boundary", "selection")
GROUPS = (
    "method",
    *(f"method/{slot}" for slot in SLOTS),
    *("backbone", "benchmark", "experiment", "experiment/paper"),
    *("trainer", "optim", "evaluation", "logger"),
)


@app.callback()
def main() -> None:
    """KIF: continual learning of language models. Train with: python -m kif_lightning --help."""


@app.command("list")
def list_options(
    group: Annotated[str | None, typer.Argument(help=f"One of: {', '.join(GROUPS)}.")] = None,
) -> None:
    """List what can be chosen on the command line: methods, backbones, benchmarks, ..."""
    console = Console(highlight=False)
    if group is not None and group not in GROUPS:
        console.print(f"There is no group {group!r}: choose one of {', '.join(GROUPS)}.")
        raise typer.Exit(2)
    for name in GROUPS if group is None else (group,):
        if name == "method":
            _print_methods(console)
        else:
            console.print(f"{name}: {', '.join(option_names(name))}", soft_wrap=True)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")],
) -> None:
    """Show finished runs side by side: each task when just learnt and at the end, and metrics."""
    from kif_lightning.reporting.compare import read_runs, show_comparison
    from kif_lightning.reporting.console import RunConsole

    try:
        show_comparison(read_runs(runs), RunConsole())
    except UserError as error:
        Console(stderr=True, soft_wrap=True).print(str(error), markup=False)
        raise typer.Exit(2) from error


def option_names(group: str) -> list[str]:
    """The options of a config group, without the shared bases (leading underscore)."""
    folder = Path(conf_dir()) / group
    return sorted(path.stem for path in folder.glob("*.yaml") if not path.stem.startswith("_"))


def _print_methods(console: Console) -> None:
    from hydra import compose, initialize_config_dir

    console.print("method:")
    names = option_names("method")
    width = max(len(name) for name in names)
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        for name in names:
            method = compose("config", overrides=[f"method={name}"]).method
            costs = {
                "needs memory": method.needs_memory,
                "needs the task id at test": method.needs_task_id,
                "grows with tasks": method.grows_with_tasks,
            }
            notes = [method.paper, *[cost for cost, paid in costs.items() if paid]]
            console.print(f"  {name:{width}}  {method.title} ({'; '.join(notes)})", soft_wrap=True)


if __name__ == "__main__":
    app()
