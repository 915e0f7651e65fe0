"""Our batched evaluation beside generation row by row, as public scripts do it, on the CPU.

Ours: what a run does to have the answers of tasks (tokenisation, batches, Lightning's ``test``,
decoding). Row by row: for each row the prompt is tokenised (without the answer),
``model.generate`` is called (greedy, KV cache, stopping at the end token, our cap on new tokens)
and the answer decoded. Same model, same rows. Left out on both sides: loading the model, comparing
answers with what is right, writing them to files.

    python experiments/benchmarks/evaluation.py [--no-smollm2]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from our_side import built_runner, settings, silence
from side_by_side import entry, in_turn, machine, ratio, spread, write_result

from kif_lightning.errors import UserError
from kif_lightning.interfaces import Task
from kif_lightning.runner import StreamRunner

Answers = dict[str, list[str]]
"""Task -> the answers to its test rows, in their order."""
SMOLLM2_TASKS = ("mini_sst2", "mini_agnews")


class Side:
    """One way of answering; ``answers`` are those of the last round."""

    def __init__(self, overrides: Sequence[str], folder: Path) -> None:
        self.config = settings(folder, *overrides)
        self.runner: StreamRunner = built_runner(self.config)
        self.answers: Answers = {}

    @property
    def tasks(self) -> Sequence[Task]:
        return self.runner.tasks


class Batched(Side):
    """As a run evaluates."""

    def seconds(self) -> float:
        """Of all tasks, their tokenisation included."""
        # Tokenised rows are kept for a run's later evaluations: each round begins without them.
        built = self.runner
        self.runner = StreamRunner(
            parts=built.parts, options=built.options, folder=built.folder, console=built.console
        )
        module = self.runner.module = built.module
        started = perf_counter()
        loaders = self.runner.data.evaluation_dataloaders(range(len(self.tasks)))
        module.begin_evaluation(len(loaders))
        trainer = self.runner.new_trainer([], training=False)
        trainer.test(module, dataloaders=loaders, verbose=False)
        taken = perf_counter() - started
        self.answers = {
            task.name: [found[row] for row in range(len(task.test))]
            for task, found in zip(self.tasks, module.answers, strict=True)
        }
        return taken


class RowByRow(Side):
    """As a script with a loop over rows."""

    def seconds(self) -> float:
        """Of all tasks, their tokenisation included."""
        model, data = self.runner.module.model.eval(), self.runner.data
        started = perf_counter()
        with torch.inference_mode():
            for task in self.tasks:
                cap = data.new_tokens_cap(task)
                self.answers[task.name] = [self.answer(model, row, cap) for row in task.test]
        return perf_counter() - started

    def answer(self, model: Any, row: Any, max_new_tokens: int) -> str:
        """Greedy; an encoder-decoder gives its answer alone, a decoder the prompt before it."""
        backbone: Any = self.runner.parts.backbone
        tokenizer = backbone.tokenizer
        ids = torch.tensor([backbone.encode(replace(row, output="")).prompt_ids])
        found = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )[0]
        own = found if model.config.is_encoder_decoder else found[ids.shape[1] :]
        return str(tokenizer.decode(own, skip_special_tokens=True)).strip()


def exact_match(tasks: Sequence[Task], answers: Answers) -> float:
    """Mean over tasks, percent, without normalisation."""
    means = []
    for task in tasks:
        pairs = zip(answers[task.name], task.test, strict=True)
        means.append(sum(a == row.output for a, row in pairs) / len(task.test))
    return round(100 * sum(means) / len(means), 2)


def num_different(one: Answers, other: Answers) -> int:
    """Rows that the two answer differently."""
    return sum(a != b for task in one for a, b in zip(one[task], other[task], strict=True))


def compare(
    name: str, overrides: Sequence[str], folder: Path, rounds: int, at_least: float | None
) -> list[dict[str, Any]]:
    """Entries of one model."""
    sides: dict[str, Batched | RowByRow] = {
        "batched": Batched(overrides, folder),
        "row by row": RowByRow(overrides, folder),
        "labels ranked": Batched([*overrides, "evaluation.decode=rank_labels"], folder),
    }
    works: dict[str, Any] = {key: side.seconds for key, side in sides.items()}
    seconds = in_turn(works, rounds)
    tasks = sides["batched"].tasks
    num_rows = sum(len(task.test) for task in tasks)
    told: dict[str, Any] = {
        "tasks": len(tasks),
        "rows": num_rows,
        "seconds": {key: spread(value) for key, value in seconds.items()},
        "exact_match_percent": {k: exact_match(tasks, s.answers) for k, s in sides.items()},
    }
    plain = sides["batched"].answers
    differ = num_different(plain, sides["row by row"].answers)
    print(f"{name}: {differ} of {num_rows} answers differ from row by row.", flush=True)
    return [
        entry(
            f"our batched evaluation is x times as fast as row by row: {len(tasks)} tasks, {name}",
            ratio(seconds["row by row"], seconds["batched"]),
            at_least=at_least,
            different_answers=differ,
            **told,
        ),
        entry(
            f"ranking labels is x times as fast as our batched generation: {len(tasks)} tasks, "
            f"{name}",
            ratio(seconds["batched"], seconds["labels ranked"]),
            different_answers=num_different(plain, sides["labels ranked"].answers),
            **told,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Batched evaluation beside row by row.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--test-rows", type=int, default=50, help="of each of the 15 tasks")
    parser.add_argument(
        "--smollm2",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also the packaged 135M decoder, if it is installed",
    )
    parser.add_argument("--smollm2-rows", type=int, default=16, help="of each of its 2 tasks")
    parser.add_argument("--output", type=Path, help="the JSON to write")
    arguments = parser.parse_args()
    silence()
    started_on = machine()
    stream = ("benchmark=long_sequence_mini", "method=seq_lora")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        overrides = (*stream, "backbone=t5_nano", f"benchmark.test_rows={arguments.test_rows}")
        entries = compare("t5_nano", overrides, folder, arguments.rounds, 5.0)
        if arguments.smollm2:
            chosen = f"benchmark.order=[{','.join(SMOLLM2_TASKS)}]"
            rows = f"benchmark.test_rows={arguments.smollm2_rows}"
            decoder = (*stream, "backbone=smollm2_135m", chosen, rows)
            try:
                entries += compare("smollm2_135m", decoder, folder, arguments.rounds, None)
            except UserError as error:
                print(f"smollm2_135m was not measured: {error}", flush=True)
    write_result(
        "evaluation",
        entries,
        started_on=started_on,
        output=arguments.output,
        setting={k: v for k, v in vars(arguments).items() if k != "output"},
    )


if __name__ == "__main__":
    main()
