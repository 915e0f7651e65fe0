"""What mixed precision, frozen weights cast once, and torch.compile give on this machine's CPU.

    python experiments/benchmarks/precision.py [--shapes smollm2 t5_base] [--compile]

Random weights of the real shapes, LoRA r 8 on the query and value projections; no download. For
each shape a training step and a batch decoded greedily to a fixed number of tokens: in float32; in
bfloat16 autocast that casts every frozen weight in every pass (what autocast does); and in the same
with frozen weights cast once (what this package does; the same numbers bit for bit). Casting itself
happens once a fit or evaluation and is not in these seconds; the JSON has it beside them.
``--compile`` adds, for the training step in float32, the seconds the compiler takes and after how
many steps they are won back.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from our_side import LLAMA_SHAPES, T5_SHAPES, random_model
from peft import LoraConfig, get_peft_model
from side_by_side import entry, in_turn, machine, ratio, spread, timed, write_result

from kif_lightning.backbones.decoding import answer_ids
from kif_lightning.mixed_precision import drop_casts_, keep_casts_

SHAPES: dict[str, tuple[str, list[str]]] = {
    "smollm2": ("num_hidden_layers", ["q_proj", "v_proj"]),
    "t5_base": ("num_layers", ["q", "v"]),
}
"""What its config calls the depth; where LoRA goes."""


class Learner:
    """A model with LoRA; rows are random tokens."""

    def __init__(self, shape: str, arguments: argparse.Namespace) -> None:
        depth, targets = SHAPES[shape]
        layers = {**LLAMA_SHAPES, **T5_SHAPES}[shape][depth] // arguments.depth_divisor
        torch.manual_seed(0)
        base = random_model(shape, **{depth: layers})
        lora = LoraConfig(r=8, target_modules=targets, task_type=None)
        self.model: Any = get_peft_model(base, lora).train()
        size = (arguments.rows, arguments.source)
        self.ids = torch.randint(3, 30000, size)
        decoder_alone = shape in LLAMA_SHAPES
        self.labels = self.ids if decoder_alone else self.ids[:, : arguments.target].clone()
        self.new_tokens = arguments.target
        self.optimizer = torch.optim.AdamW(p for p in self.model.parameters() if p.requires_grad)

    def train(self) -> None:
        loss = self.model(input_ids=self.ids, labels=self.labels, use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def decode(self) -> None:
        self.model.eval()
        with torch.inference_mode():
            answer_ids(
                self.model,
                top_k=None,
                input_ids=self.ids,
                attention_mask=torch.ones_like(self.ids),
                max_new_tokens=self.new_tokens,
                min_new_tokens=self.new_tokens,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=1,
                decoder_start_token_id=0,
            )
        self.model.train()

    def seconds(self, work: Callable[[], None], *, mixed: bool, once: bool) -> float:
        if once:
            self.casting = timed(lambda: keep_casts_(self.model, torch.bfloat16))
        try:
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                return timed(work)
        finally:
            drop_casts_(self.model)


def measure(shape: str, arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], Any]:
    learner, entries, raw = Learner(shape, arguments), [], {}
    for name, work in (("a training step", learner.train), ("decoding", learner.decode)):
        variants = {
            "float32": lambda w=work: learner.seconds(w, mixed=False, once=False),
            "cast each time": lambda w=work: learner.seconds(w, mixed=True, once=False),
            "cast once": lambda w=work: learner.seconds(w, mixed=True, once=True),
        }
        seconds = raw[name] = in_turn(variants, arguments.rounds)
        once = seconds["cast once"]
        entries += [
            entry(f"seconds of {name} in bf16-mixed, frozen weights cast once: {shape}",
                  spread(once), unit="s", seconds_of_casting=learner.casting),
            entry(f"frozen weights cast once is x times as fast as cast each time: {shape}, {name}",
                  ratio(seconds["cast each time"], once)),
            entry(f"bf16-mixed, cast once, is x times as fast as float32: {shape}, {name}",
                  ratio(seconds["float32"], once)),
        ]  # fmt: skip
    if arguments.compile:
        entries.append(compiled(shape, learner, arguments.rounds))
    return entries, raw


def compiled(shape: str, learner: Learner, rounds: int) -> dict[str, Any]:
    """Its step against the plain one in float32."""
    learner.train()
    plain = [timed(learner.train) for _ in range(rounds)]
    learner.model.compile(dynamic=True)
    first = timed(learner.train)
    learner.train()
    fast = [timed(learner.train) for _ in range(rounds)]
    gain = spread(plain)["median"] - spread(fast)["median"]
    return entry(
        f"torch.compile is x times as fast as without: {shape}, a training step in float32",
        ratio(plain, fast),
        seconds_to_compile=first,
        pays_after_steps=None if gain <= 0 else round(first / gain),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Mixed precision and compilation on the CPU.")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--source", type=int, default=64, help="prompt tokens")
    parser.add_argument("--target", type=int, default=8, help="answer tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--depth-divisor", type=int, default=1, help="for a first look")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--output", type=Path, help="the JSON to write")
    arguments = parser.parse_args()
    started_on = machine()
    entries, raw = [], {}
    for shape in arguments.shapes:
        found, raw[shape] = measure(shape, arguments)
        entries += found
    settings = {key: value for key, value in vars(arguments).items() if key != "output"}
    write_result("precision", entries, started_on=started_on, output=arguments.output,
                 settings=settings, seconds=raw)  # fmt: skip


if __name__ == "__main__":
    main()
