"""The console script ``kif``: everything but training, which is ``python -m kif_lightning``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from kif_lightning.errors import UserError
from kif_lightning.paths import conf_dir

app = typer.Typer(no_args_is_help=True, add_completion=False)
SLOTS = (
    *("stream", "adapter", "importance", "units", "rule", "penalty", "gradient"),
    *("memory", "rehearsal", "boundary", "selection"),
)
GROUPS = (
    "method",
    "method/ablation",
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
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="The methods as a Markdown table, as in README.md.")
    ] = False,
) -> None:
    """List what can be chosen on the command line: methods, backbones, benchmarks, ..."""
    console = Console(highlight=False)
    if as_markdown:
        if group not in (None, "method"):
            console.print(f"--markdown is for the methods, got the group {group!r}: leave it out.")
            raise typer.Exit(2)
        typer.echo(method_table())
        return
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
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.")],
    as_markdown: Annotated[bool, typer.Option("--markdown", help="The summary alone.")] = False,
) -> None:
    """Show finished runs side by side: each task when just learnt and at the end, and metrics."""
    from kif_lightning.reporting.compare import (
        markdown,
        read_runs,
        show_comparison,
        unfinished,
    )
    from kif_lightning.reporting.console import RunConsole

    try:
        groups = read_runs(runs)
        for run in unfinished(runs):
            Console(stderr=True, soft_wrap=True).print(f"Left out, not finished: {run}")
        if as_markdown:
            typer.echo(markdown(groups))
        else:
            show_comparison(groups, RunConsole())
    except UserError as error:
        Console(stderr=True, soft_wrap=True).print(str(error), markup=False)
        raise typer.Exit(2) from error


def option_names(group: str) -> list[str]:
    """The options of a config group, without the shared bases (leading underscore)."""
    folder = Path(conf_dir()) / group
    return sorted(path.stem for path in folder.glob("*.yaml") if not path.stem.startswith("_"))


DECLARED = (
    "name", "title", "paper", "published", "needs_memory", "needs_task_id", "grows_with_tasks",
)  # fmt: skip
COSTS = {
    "needs_memory": "needs memory",
    "needs_task_id": "needs the task id at test",
    "grows_with_tasks": "grows with tasks",
}


def declarations() -> list[dict[str, Any]]:
    """What every method's yaml says of itself."""
    from hydra import compose, initialize_config_dir

    found = []
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        for name in option_names("method"):
            method = compose("config", overrides=[f"method={name}"]).method
            found.append({key: method[key] for key in DECLARED})
    return found


def method_table() -> str:
    """The declarations as a Markdown table."""
    from kif_lightning.reporting.console import markdown_table

    header = ("method", "what it is", "memory", "task id at test", "grows", "paper", "published")
    rows = [
        [
            f"`{method['name']}`",
            method["title"],
            *["yes" if method[cost] else "" for cost in COSTS],
            method["paper"],
            method["published"] or "",
        ]
        for method in declarations()
    ]
    return markdown_table(header, rows)


def _print_methods(console: Console) -> None:
    console.print("method:")
    found = declarations()
    width = max(len(method["name"]) for method in found)
    for method in found:
        notes = [method["paper"], *[words for cost, words in COSTS.items() if method[cost]]]
        line = f"  {method['name']:{width}}  {method['title']} ({'; '.join(notes)})"
        console.print(line, soft_wrap=True)
        if method["published"]:
            console.print(f"  {'':{width}}  published: {method['published']}", soft_wrap=True)


if __name__ == "__main__":
    app()
