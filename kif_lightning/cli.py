"""The console script ``kif``: everything but training, which is ``python -m kif_lightning``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from kif_lightning.paths import conf_dir

app = typer.Typer(no_args_is_help=True, add_completion=False)
GROUPS = ("method", "backbone", "benchmark", "experiment", "trainer", "optim", "logger")


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
            console.print(_method_table())
        else:
            console.print(f"{name}: {', '.join(option_names(name))}")


def option_names(group: str) -> list[str]:
    """The options of a config group, without the shared bases (leading underscore)."""
    folder = Path(conf_dir()) / group
    return sorted(path.stem for path in folder.glob("*.yaml") if not path.stem.startswith("_"))


def _method_table() -> Table:
    from hydra import compose, initialize_config_dir

    table = Table(title="method", title_justify="left", box=None)
    for column in ("name", "title", "memory", "task id", "grows", "source"):
        table.add_column(column)
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        for name in option_names("method"):
            method = compose("config", overrides=[f"method={name}"]).method
            flags = (method.needs_memory, method.needs_task_id, method.grows_with_tasks)
            table.add_row(name, method.title, *["yes" if f else "-" for f in flags], method.paper)
    return table
