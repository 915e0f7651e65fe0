"""The console script ``kif``: everything but training, which is ``python -m kif_lightning``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from kif_lightning.errors import UserError
from kif_lightning.paths import option_names

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
    *("trainer", "optim", "evaluation", "probe", "logger", "sweep"),
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
    out: Annotated[
        Path | None,
        typer.Option(help="Write a page, tables (CSV, Markdown, LaTeX), figures there."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="A method: paired differences of the others from it.")
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Beside them, what papers print for the benchmark.")
    ] = False,
    show_differences: Annotated[
        bool,
        typer.Option(
            "--show-differences", help="Runs of different protocols: told apart, not refused."
        ),
    ] = False,
) -> None:
    """Show finished runs side by side: each task when just learnt and at the end, and metrics."""
    from kif_lightning.reporting import comparison
    from kif_lightning.reporting.console import RunConsole

    aside = Console(stderr=True, soft_wrap=True, highlight=False)
    with _telling_mistakes():
        groups = comparison.read_runs(runs, show_differences=show_differences)
        for run in comparison.unfinished(runs):
            aside.print(f"Left out, not finished: {run}", markup=False)
        found = comparison.contents(groups, baseline=baseline, published=published)
        if as_markdown:
            typer.echo(comparison.markdown(found))
        else:
            comparison.show_comparison(found, RunConsole())
        if out is not None:
            page = comparison.write_comparison(found, out)
            aside.print(f"Report: {page}", markup=False)
        elif not as_markdown:
            aside.print("A page with figures, CSV and LaTeX: add --out FOLDER.", markup=False)


@app.command()
def tune(
    overrides: Annotated[
        list[str], typer.Argument(help="As of a run: +experiment=NAME method=A,B ...")
    ],
    trials: Annotated[int, typer.Option(help="Runs of each method, its defaults first.")] = 12,
    order: Annotated[
        str | None,
        typer.Option(
            help="benchmark.order of the search; without, the reported tasks are shuffled."
        ),
    ] = None,
    lr_span: Annotated[
        float, typer.Option(help="The learning rate: from the default / this to that times this.")
    ] = 10.0,
) -> None:
    """Choose each method's learning rate and one strength by runs scored on held-out train rows."""
    from kif_lightning.reporting.console import RunConsole
    from kif_lightning.tuning import tune as search

    with _telling_mistakes():
        search(overrides, num_trials=trials, order=order, lr_span=lr_span, console=RunConsole())


@app.command()
def pack(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    to: Annotated[Path, typer.Option(help="The state's folder, a new one.")],
    after: Annotated[
        str | None,
        typer.Option(help="Go back to the state after this task (number or name)."),
    ] = None,
    with_memory: Annotated[
        bool,
        typer.Option("--with-memory", help="Also raw rows of past tasks that the method keeps."),
    ] = False,
) -> None:
    """Take a run's continual state out: a folder that any machine can go on learning from."""
    from kif_lightning.packing import pack as pack_run
    from kif_lightning.reporting.console import RunConsole

    console = RunConsole()
    with _telling_mistakes():
        _tell_state(pack_run(run, to, after=after, with_memory=with_memory), console)


@app.command()
def extend(
    state: Annotated[Path, typer.Argument(help="A state's folder (of kif pack or kif extend).")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TASKS] [KEY=VALUE]...",
            help="A yaml of own tasks or a folder of tasks; then settings other than the state's.",
        ),
    ] = None,
    to: Annotated[Path, typer.Option(help="The new state's folder.")] = ...,  # type: ignore[assignment]
    with_memory: Annotated[
        bool,
        typer.Option("--with-memory", help="Also raw rows of past tasks that the method keeps."),
    ] = False,
) -> None:
    """Learn new tasks from where a state stands; the old one stays, a new one is written."""
    from kif_lightning.extending import extend as extend_state
    from kif_lightning.launch import new_console
    from kif_lightning.ranks import is_first

    console = new_console()
    tasks, overrides = _places_and_settings(settings)
    with _telling_mistakes():
        if len(tasks) > 1:
            raise UserError(f"Expected one yaml or folder of tasks, got {', '.join(tasks)}.")
        written = extend_state(
            state,
            to,
            tasks=Path(tasks[0]) if tasks else None,
            overrides=overrides,
            with_memory=with_memory,
            console=console,
        )
        if written is not None and is_first():
            _tell_state(written, console)


def _tell_state(folder: Path, console: Any) -> None:
    """Where a state was written, and what of its memory."""
    from kif_lightning.continual_state import memory_note

    note = memory_note(folder)
    if note is not None:
        console.say(note)
    console.say(f"State: {folder}")


@app.command()
def show(
    state: Annotated[Path, typer.Argument(help="A state's folder (of kif pack or kif extend).")],
) -> None:
    """Show a continual state: its tasks with their scores, where it came from, what is in it."""
    from kif_lightning.continual_state import read_state
    from kif_lightning.reporting.console import RunConsole
    from kif_lightning.reporting.state_table import show_state

    with _telling_mistakes():
        show_state(read_state(state), state, RunConsole())


@app.command()
def export(
    place: Annotated[Path, typer.Argument(help="A state's folder, or a run's.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="As backbone.path=FOLDER: of this machine."),
    ] = None,
    to: Annotated[Path, typer.Option(help="The folder to write, a new one.")] = ...,  # type: ignore[assignment]
    merged: Annotated[
        bool, typer.Option("--merged", help="A whole model, the learnt weights merged into it.")
    ] = False,
    task: Annotated[
        str | None, typer.Option(help="Where each task has its own weights: this one's alone.")
    ] = None,
    after: Annotated[
        str | None, typer.Option(help="Of a run: as it was after this task (number or name).")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", help="For the card, as apache-2.0.")
    ] = None,
    base_licence: Annotated[
        str | None, typer.Option("--base-licence", "--base-license", help="Of the base model.")
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="For the card, as en; repeatable.")
    ] = None,
    author: Annotated[str | None, typer.Option(help="For the card.")] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Then upload it to the model hub.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push: no one else may see the repository.")
    ] = False,
) -> None:
    """Write what was learnt for others: a PEFT adapter or a whole model, with a model card."""
    from kif_lightning.exporting import hub
    from kif_lightning.exporting.card import Told
    from kif_lightning.exporting.writing import export as export_learnt
    from kif_lightning.launch import quiet
    from kif_lightning.reporting.console import RunConsole

    quiet()
    console = RunConsole()
    with _telling_mistakes():
        if push is not None:
            hub.require_name(push)
        elif private:
            raise UserError("--private is for a repository on the hub: add --push OWNER/NAME.")
        stray = [text for text in settings or [] if "=" not in text]
        if stray:
            raise UserError(
                f"Expected one folder, then settings as KEY=VALUE, got {' '.join(stray)}: leave it "
                "out (where to write is --to FOLDER)."
            )
        contents = export_learnt(
            place,
            to,
            merged=merged,
            task=task,
            after=after,
            told=Told(
                licence=licence,
                base_licence=base_licence,
                languages=language or (),
                author=author,
            ),
            overrides=settings or [],
        )
        console.say(f"Export: {to} ({contents.form.value}; README.md is its card).")
        if push is not None:
            console.say(f"Pushed: {hub.push(to, push, private=private)}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    figures: Annotated[
        Path | None, typer.Option(help="Write each figure as a file of its own there.")
    ] = None,
    formats: Annotated[str, typer.Option(help="Of those: any of png,svg,pdf.")] = "png,svg,pdf",
) -> None:
    """Write a run's report.html: one file with its numbers, figures, answers and protocol."""
    from kif_lightning.reporting.console import RunConsole
    from kif_lightning.reporting.figures import require_formats, save_figures
    from kif_lightning.reporting.run_record import read_run
    from kif_lightning.reporting.run_report import save_report

    console = RunConsole()
    wanted = [name.strip() for name in formats.split(",")]
    with _telling_mistakes():
        require_formats(wanted)
        record = read_run(run)
        console.say(f"Report: {save_report(record)}")
        if figures is not None:
            try:
                paths = save_figures(record, figures, wanted)
            except OSError as error:
                raise UserError(
                    f"The figures cannot be written to {figures} ({error.strerror or error}): name "
                    "a folder that can be."
                ) from error
            console.say(f"Figures: {len(paths)} files in {figures}")


@app.command()
def doctor(
    path: Annotated[
        Path,
        typer.Argument(help="A folder of <task>/{train,dev,test}.jsonl, or a yaml of own tasks."),
    ],
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|NAME=FOLDER",
            help="A model whose limits the lengths are held against, and a saved copy of it.",
        ),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="Of tasks that no manifest describes: classification, ...")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report there.")
    ] = None,
    fix: Annotated[
        Path | None, typer.Option(help="Write a corrected copy as that new folder.")
    ] = None,
) -> None:
    """Find what is wrong with the rows of tasks; exit status 1 if that makes results wrong."""
    from kif_lightning.benchmarks.doctor import write_fixed
    from kif_lightning.checkup import RowTokens, examine_all, named_backbone, read_tasks
    from kif_lightning.reporting.console import RunConsole
    from kif_lightning.reporting.doctor_table import brief, findings_table, splits_table
    from kif_lightning.storage import write_json

    console = RunConsole()
    with _telling_mistakes():
        tokens = None if backbone is None else RowTokens(named_backbone(backbone))
        described = read_tasks(path, kind)
        report = examine_all(described.tasks, tokens)
        console.console.print(splits_table(report))
        console.console.print(findings_table(report))
        if report["findings"]:
            console.say("(Indented: some of the rows, by their ids.)")
        if described.undescribed and kind is None:
            console.say(
                f"No manifest describes {', '.join(described.undescribed)}: their kind was guessed "
                "from their answers (--kind says it)."
            )
        elif kind is not None and not described.undescribed:
            console.say(f"--kind={kind} has no effect: all tasks there are described.")
        if json_file is not None:
            try:
                write_json(json_file, report)
            except OSError as error:
                raise UserError(
                    f"The report cannot be written to {json_file} ({error.strerror or error}): "
                    "name a file that can be."
                ) from error
        if fix is not None:
            for task, counts in write_fixed(described.tasks, fix, original=path).items():
                mended = ", ".join(f"{count} {check}" for check, count in counts.items() if count)
                console.say(f"{task}: rows dropped or changed: {mended or 'none'}")
            left = brief(examine_all(read_tasks(fix).tasks, tokens), f"kif doctor {fix}")
            console.say(f"Corrected copy: {fix}. {'It still has:' if left else 'It is clean.'}")
            for line in left:
                console.say(f"  {line}")
    if report["counts"]["error"]:
        raise typer.Exit(1)


@app.command()
def whatif(
    run: Annotated[Path, typer.Argument(help="A run's folder, made with keep_boundaries=true.")],
    task: Annotated[
        str | None, typer.Option(help="Number or name of the task whose fusion is made again.")
    ] = None,
    rule: Annotated[
        str | None, typer.Option(help="As under method/rule, such as static,adaptive.")
    ] = None,
    tau: Annotated[str | None, typer.Option(help="Of the adaptive rule, such as 0.05,0.5.")] = None,
    gamma: Annotated[str | None, typer.Option(help="Of the static rule.")] = None,
    top: Annotated[str | None, typer.Option(help="Of the static rule, in percent.")] = None,
    beta: Annotated[str | None, typer.Option(help="Of the accumulated importance.")] = None,
) -> None:
    """Fuse ONE boundary of a run otherwise and evaluate, without training; lists are a sweep.

    A counterfactual of a single boundary: later tasks would have started elsewhere.
    """
    from kif_lightning.launch import quiet
    from kif_lightning.reporting.console import RunConsole
    from kif_lightning.whatif import Asked, what_if

    quiet()
    asked = Asked(task=task, rule=rule, tau=tau, gamma=gamma, top=top, beta=beta)
    with _telling_mistakes():
        what_if(run, asked, RunConsole())


@app.command("import")
def import_results(
    outputs: Annotated[
        Path, typer.Argument(help="The folder that holds <k>-<task>/all_results.json.")
    ],
    to: Annotated[Path, typer.Option(help="The run folder to write.")],
    method: Annotated[str, typer.Option(help="How tables call it.")],
    metric: Annotated[str, typer.Option(help="exact_match or rouge_l, of all tasks.")] = "rouge_l",
    metric_of: Annotated[
        list[str] | None, typer.Option(help="TASK=METRIC where a task has another; repeatable.")
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(help="THEIRS=OURS, or a JSON file of such names; repeatable."),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="The model's name here.")] = None,
    benchmark: Annotated[str | None, typer.Option(help="The benchmark's name here.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the run.")] = None,
    source: Annotated[
        str | None, typer.Option(help="Where it comes from: repository, commit, paper.")
    ] = None,
) -> None:
    """Take a result folder of O-LoRA or SAPT as a run folder, its metrics computed anew."""
    from kif_lightning.reporting.console import RunConsole
    from kif_lightning.reporting.importing import import_run, named_pairs

    console = RunConsole()
    with _telling_mistakes():
        found = import_run(
            outputs,
            to,
            method=method,
            metric=metric,
            metric_of=named_pairs("--metric-of", metric_of or []),
            rename=named_pairs("--rename", rename or []),
            backbone=backbone,
            benchmark=benchmark,
            seed=seed,
            source=source,
        )
        console.finished(found)
        for name, variant in found["peer_variants"].items():
            console.say(f"{name} = {variant['value']:.2f}  ({variant['formula']})")
        console.say(f"Results: {to / 'results.json'} (kif compare shows them beside other runs).")


@app.command()
def dashboard(
    entity: Annotated[str, typer.Option(help="The team or user on wandb.")],
    project: Annotated[str, typer.Option(help="As in logger.wandb.project.")] = "kif-lightning",
    name: Annotated[str, typer.Option(help="Of the new workspace.")] = "Continual learning",
) -> None:
    """Make a wandb workspace (scores, forgetting, training, importance, cost) for a team."""
    from kif_lightning.dashboard import save_workspace

    with _telling_mistakes():
        typer.echo(save_workspace(entity=entity, project=project, name=name))


@app.command()
def predict(
    model: Annotated[
        Path, typer.Argument(metavar="STATE|RUN", help="A state's folder, or a run's.")
    ],
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PROMPTS] [KEY=VALUE]...",
            help="A file of prompts, - or nothing: standard input. JSON lines with 'input' and, if "
            "there is one, 'id' (so in .csv, .tsv, .parquet: columns); else a prompt a line: the "
            "first line decides. Then settings of this machine, such as backbone.path=FOLDER.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the answers there, once all are known.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over --out.")] = False,
    task: Annotated[
        str | None,
        typer.Option(help="The task they are of: caps answers, builds prompts of own columns."),
    ] = None,
    tasks: Annotated[
        Path | None,
        typer.Option(help="Yaml that tells how --task's prompts are built; else the state does."),
    ] = None,
    after: Annotated[
        str | None, typer.Option(help="Of a run: the model after this task (number or name).")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts answered together, at most.")] = 64,
    max_new_tokens: Annotated[int | None, typer.Option(help="Tokens of an answer.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, ...; without, a GPU if there is one.")
    ] = None,
) -> None:
    """Answer prompts with a learnt model: JSON lines of id and prediction, in their order."""
    from kif_lightning.launch import quiet
    from kif_lightning.predicting.command import predict as answer
    from kif_lightning.reporting.console import RunConsole

    quiet()
    sources, overrides = _places_and_settings(given)
    with _telling_mistakes():
        if len(sources) > 1:
            raise UserError(f"Expected one file of prompts, got {', '.join(sources)}.")
        answer(
            model,
            Path(sources[0]) if sources and sources != ["-"] else None,
            out=out,
            force=force,
            task=task,
            tasks=tasks,
            after=after,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            device=device,
            overrides=overrides,
            console=RunConsole(Console(stderr=True, soft_wrap=True, highlight=False)),
        )


def _places_and_settings(given: list[str] | None) -> tuple[list[str], list[str]]:
    """Paths, which may hold an equals sign, and ``key=value``, apart."""
    # Not Path.exists, which raises for a text that is too long to be a name.
    places = [text for text in given or [] if "=" not in text or os.path.exists(text)]
    return places, [text for text in given or [] if text not in places]


@contextmanager
def _telling_mistakes() -> Iterator[None]:
    """A user's mistake: one sentence, exit status 2."""
    try:
        yield
    except UserError as error:
        Console(stderr=True, soft_wrap=True).print(str(error), markup=False)
        raise typer.Exit(2) from error


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
    from kif_lightning.composing import composed

    methods = [composed([f"method={name}"]).method for name in option_names("method")]
    return [{key: method[key] for key in DECLARED} for method in methods]


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
