"""The model card: what was learnt, how well, and the exact code to use it with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from kif_lightning.continual_state import LAYOUT, PastTask
from kif_lightning.exporting.facts import CardFacts, own_data
from kif_lightning.exporting.forms import Contents
from kif_lightning.metrics.transfer import FORMULAS, transfer_metrics
from kif_lightning.reporting.console import (
    MOST_COLUMNS,
    markdown_table,
    on_held_out,
    one_cell,
    stand_in_parts,
)
from kif_lightning.storage import write_text

TEMPLATE = "card.md.j2"
MOST_LABELS = 20
"""Answer words listed of a task."""
MOST_TEMPLATES = 5
"""Prompts shown as they are made of columns."""
HUB_METRICS = {"rouge_l": "rouge"}
"""Metrics that the hub knows by another name."""
NO_LICENCE = "unknown"
"""The hub's name for it."""
SETTINGS = (
    *("method", "lora", "optim", "epochs", "effective_batch", "gradient_clip", "seed"),
    *("backbone_dtype", "precision", "evaluation_precision", "prompt_and_decoding"),
    *("evaluation_rows", "selection", "kif_lightning", "commit", "packages"),
)
"""Of a protocol, those shown."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What only the person who exports can tell; empty: not told.

    ``licence`` and ``base_licence`` are ids as on the hub (``apache-2.0``), ``languages`` codes.
    """

    licence: str | None = None
    base_licence: str | None = None
    languages: Sequence[str] = ()
    author: str | None = None


def write_card(folder: Path, facts: CardFacts, contents: Contents, told: Told) -> None:
    """Write the folder's README.md."""
    write_text(folder / "README.md", str(model_card(facts, contents, told)))


def model_card(facts: CardFacts, contents: Contents, told: Told) -> ModelCard:
    """The card; without a time or a path, so that the same model has the same card."""
    stand_ins = stand_in_parts(facts.stand_ins)
    scored = "held-out rows of train" if on_held_out(facts.stand_ins) else "test"
    metrics = transfer_metrics(facts.matrix)
    text = _template().render(
        front_matter=_front_matter(facts, contents, told, scored).to_yaml(),
        facts=facts,
        contents=contents,
        told=told,
        form=contents.form.name,
        stand_ins=" and ".join(stand_ins),
        scored=scored,
        name=_name(facts),
        tasks_table=_tasks(facts.tasks),
        scores_table=_scores(facts),
        metrics={name: (value, FORMULAS[name]) for name, value in metrics.items()},
        settings_table=_settings(facts),
        weights=_words(facts.weights),
        base=_base(facts),
        templates=_templates(facts.tasks),
        versions=facts.protocols[-1]["packages"],
        dtype=facts.dtype,
        gguf=facts.weights.get("file"),
        caps={task.name: task.max_new_tokens for task in facts.tasks},
        adapters=adapter_folders(facts, contents),
        ranked=[task.name for task in facts.tasks if task.decode != "generate"],
        generation=", ".join(f"{key}={value}" for key, value in facts.use.generation.items()),
    )
    return ModelCard(text)


def _template() -> Template:
    environment = Environment(  # noqa: S701  Markdown, no HTML
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["py"] = repr
    return environment.get_template(TEMPLATE)


def adapter_folders(facts: CardFacts, contents: Contents) -> dict[str, str]:
    """Task -> the folder of its adapter, where each has one."""
    folders = contents.folders
    # As in a run, the newest answers a task that has none of its own.
    last = len(folders) - 1
    return {task.name: folders[min(i, last)] for i, task in enumerate(facts.tasks) if folders}


def _front_matter(facts: CardFacts, contents: Contents, told: Told, scored: str) -> ModelCardData:
    tags = ["continual-learning", "kif-lightning", f"method:{facts.method}"]
    languages = list(told.languages)
    results = list(_results(facts, scored))
    return ModelCardData(
        base_model=facts.base_name,
        library_name=contents.library,
        license=told.licence or NO_LICENCE,
        language=languages[0] if len(languages) == 1 else languages or None,
        tags=[*tags, *(part.replace(" ", "-") for part in stand_in_parts(facts.stand_ins))],
        model_name=f"{_name(facts)} with {facts.method}",
        eval_results=results or None,
    )


def _name(facts: CardFacts) -> str:
    number = len(facts.tasks)
    return f"{facts.backbone} after {number} task{'' if number == 1 else 's'}"


def _base(facts: CardFacts) -> str:
    """Weights of a folder may be others than those that the hub has by the name."""
    in_form_of = "a model in the form of " if facts.weights.get("source") == "folder" else ""
    return f"{in_form_of}`{facts.base_name}`"


def _templates(tasks: Sequence[PastTask]) -> dict[str, str]:
    """Task -> its prompt with columns in braces, of tasks that tell it; of the first few."""
    told = [
        (task.name, task.data[LAYOUT]["prompt"]["text"]) for task in tasks if LAYOUT in task.data
    ]
    return dict(told[:MOST_TEMPLATES])


def _results(facts: CardFacts, scored: str) -> Any:
    """The last row of the score matrix, for the hub's index."""
    models = [part for part in stand_in_parts(facts.stand_ins) if "model" in part]
    for task, score in zip(facts.tasks, facts.matrix[-1], strict=True):
        if score is None:
            continue
        is_closed = task.kind == "classification"
        yield EvalResult(
            task_type="text-classification" if is_closed else "text-generation",
            dataset_type="other",  # anything else is taken for a data set on the hub
            dataset_config=task.name,
            dataset_name=_flagged(task.name, ["stand-in data"] if task.stand_in else []),
            dataset_split=scored,
            metric_type=HUB_METRICS.get(task.metric, task.metric),
            metric_name=_flagged(f"{task.metric} in percent after all tasks", models),
            metric_value=round(score, 2),
        )


def _flagged(text: str, flags: Sequence[str]) -> str:
    return f"{text} ({', '.join(flags)})" if flags else text


def _tasks(tasks: Sequence[PastTask]) -> str:
    names = [task.name for task in tasks]
    rows = [
        [
            str(place),
            _flagged(task.name, ["stand-in data"] if task.stand_in else []),
            task.kind,
            task.metric,
            f"{task.train_rows} / {task.test_rows}",
            _words({k: v for k, v in own_data(task, names).items() if k != LAYOUT}),
            ", ".join(f"{split} {digest[:12]}" for split, digest in sorted(task.sha256.items())),
            _labels(task.labels),
        ]
        for place, task in enumerate(tasks, 1)
    ]
    header = ["", "task", "kind", "metric", "rows: train / test", "data from", "sha256 of the data"]
    return _table([*header, "answer words"], rows)


def _labels(labels: Sequence[str]) -> str:
    if not labels:
        return "free text"
    more = len(labels) - MOST_LABELS
    return ", ".join([*labels[:MOST_LABELS], *([f"and {more} more"] if more > 0 else [])])


def _scores(facts: CardFacts) -> str:
    """The matrix; of one too wide to be read, each task when just learnt and at the end."""
    names, matrix = [task.name for task in facts.tasks], facts.matrix
    if len(names) > MOST_COLUMNS and len(matrix) == len(names):
        pairs = [[name, _cell(matrix[j][j]), _cell(matrix[-1][j])] for j, name in enumerate(names)]
        return _table(["task", "when just learnt", "at the end"], pairs)
    at_once = len(matrix) < len(names)
    rows = [
        [f"after {phase}", *["" if j > i and not at_once and s is None else _cell(s)
                             for j, s in enumerate(row)]]
        for i, (phase, row) in enumerate(zip(facts.phases, matrix, strict=True))
    ]  # fmt: skip
    return _table(["", *names], rows)


def _cell(score: float | None) -> str:
    return "not evaluated" if score is None else f"{score:.1f}"


def _settings(facts: CardFacts) -> str:
    """A column for each protocol that tasks were learnt under."""
    header = [""]
    for place in range(len(facts.protocols)):
        learnt = [task.name for task in facts.tasks if task.protocol == place]
        header.append("all tasks" if len(facts.protocols) == 1 else ", ".join(learnt))
    rows = [
        [key.replace("_", " "), *[_words(protocol[key]) for protocol in facts.protocols]]
        for key in SETTINGS
        if all(key in protocol for protocol in facts.protocols)
    ]
    return _table(header, rows)


def _words(value: Any) -> str:
    """A setting as text: mappings as ``key value``, nested ones in brackets."""
    if isinstance(value, Mapping):
        inner = [
            f"{key} ({_words(item)})" if isinstance(item, Mapping) else f"{key} {_words(item)}"
            for key, item in value.items()
        ]
        return ", ".join(inner)
    return "none" if value is None else str(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table(
        [one_cell(cell) for cell in header], [[one_cell(cell) for cell in row] for row in rows]
    )
