"""Tokenising the bundled stream row by row and in batches; token ids in lists and in Arrow.

One process, the bundled t5_nano's tokenizer, train rows of all 15 tasks. Row by row is two calls of
the tokenizer for each, as the data module once did. Both sides cut to the same limits and must give
the same ids. A batch may use several threads, a single row cannot: TOKENIZERS_PARALLELISM=false
takes them away.

    python experiments/benchmarks/tokenising.py
"""

from __future__ import annotations

import argparse
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from side_by_side import entry, in_turn, machine, ratio, spread, timed, write_result

from kif_lightning.backbones import Seq2SeqBackbone
from kif_lightning.backbones.tokens import cut
from kif_lightning.benchmarks import MiniBenchmark
from kif_lightning.benchmarks.mini.tasks import TASKS
from kif_lightning.interfaces import Example, Row
from kif_lightning.tokenised import TokenisedRows, tokenised


def row_by_row(backbone: Seq2SeqBackbone, rows: Sequence[Row]) -> list[Example]:
    """Two calls of the tokenizer a row."""
    tokenizer = backbone.tokenizer
    found = []
    for row in rows:
        prompt = tokenizer(row.input)["input_ids"]
        answer = tokenizer(text_target=row.output)["input_ids"]
        prompt = cut(prompt, backbone.max_source_tokens, backbone.truncation)
        found.append(Example(prompt_ids=prompt, answer_ids=answer[: backbone.max_target_tokens]))
    return found


def traced(make: Callable[[], Any]) -> tuple[Any, int]:
    """What it makes, and the bytes of Python objects that stay."""
    tracemalloc.start()
    made = make()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return made, kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000, help="train rows a task")
    parser.add_argument("--tasks", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    started_on = machine()
    backbone: Any = Seq2SeqBackbone(name="t5_nano", hub_name="t5_nano", source="bundled")
    benchmark = MiniBenchmark(
        name="mini",
        orders={"all": [task.name for task in TASKS[: arguments.tasks]]},
        order="all",
        train_rows=arguments.rows,
    )
    tasks = [task.train for task in benchmark.tasks]

    def lists() -> list[list[Example]]:
        return [row_by_row(backbone, rows) for rows in tasks]

    def arrow() -> list[TokenisedRows]:
        # The lengths are kept too: the data module asks for them.
        found = [tokenised(backbone, rows) for rows in tasks]
        for rows in found:
            _ = rows.prompt_lengths, rows.answer_lengths
        return found

    seconds = in_turn(
        {"row by row": partial(timed, lists), "batches": partial(timed, arrow)}, arguments.rounds
    )
    as_lists, list_bytes = traced(lists)
    as_arrow, beside = traced(arrow)
    if as_lists != [list(rows) for rows in as_arrow]:
        raise SystemExit("Both sides must give the same ids.")
    arrow_bytes = beside + sum(rows.nbytes for rows in as_arrow)
    tokens = sum(len(e.prompt_ids) + len(e.answer_ids) for rows in as_lists for e in rows)
    num_rows = sum(map(len, tasks))
    write_result(
        "tokenising",
        [
            entry(
                f"tokenising {num_rows} rows in batches is x times as fast as row by row",
                ratio(seconds["row by row"], seconds["batches"]),
                rows_a_second=num_rows / spread(seconds["batches"])["median"],
            ),
            entry(
                "token ids in lists take x times the memory of those in Arrow",
                ratio([list_bytes], [arrow_bytes]),
                bytes_a_token={"lists": list_bytes / tokens, "arrow": arrow_bytes / tokens},
            ),
        ],
        started_on=started_on,
        output=arguments.output,
        settings={key: value for key, value in vars(arguments).items() if key != "output"},
        seconds=seconds,
        tokens=tokens,
    )


if __name__ == "__main__":
    main()
