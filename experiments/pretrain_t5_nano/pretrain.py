"""Pretrains ``t5_nano`` by span corruption; see README.md for the command.

python pretrain.py --general general.txt --work FOLDER --out ../../kif_lightning/backbones/t5_nano

A run that stopped goes on from FOLDER's last checkpoint. Shapes: N rows, S source tokens, L target
tokens.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import numpy
import torch
from model import END, PAD, new_model, new_optimizer, set_learning_rates
from sentences import KINDS, asked, sentences, widen
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration

SEED = 20408
VOCABULARY = 8192
SENTINELS = 32
PEAK_RATE = 2e-2
# Step: share of PEAK_RATE, linear between.
SCHEDULE = {
    0: 0.003, 300: 0.9625, 3500: 0.5625, 4250: 0.36, 4500: 0.5, 5250: 0.366, 5500: 0.55,
    6000: 0.467, 8000: 0.01,
}  # fmt: skip
FRAMED_FROM = 4250  # bare sentences first; from this step on the same knowledge is asked for too
WIDE_FROM = 5250  # a few hundred words first; from this step on thousands, and texts said twice
TWICE_SHARE = 0.25  # of general texts
STEPS = max(SCHEDULE)
BATCH_TOKENS = 3072
GENERAL_TEXTS, GENERATED_TEXTS = 700, 1400  # of a pool
HELD_OUT_SEED = 7


def new_tokenizer(general: list[str]) -> Tokenizer:
    """A lower-casing unigram tokenizer of VOCABULARY pieces."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace("\n", " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Metaspace()
    sentinels = [f"<extra_id_{i}>" for i in range(SENTINELS)]
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY - SENTINELS,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    generated = [text.replace("|", "") for text in sentences(SEED, 60_000)]
    tokenizer.train_from_iterator([*general, *generated], trainer)
    tokenizer.add_special_tokens(sentinels)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", END)]
    )
    return tokenizer


def corrupt(ids: list[int], noisy: list[bool], first_sentinel: int) -> tuple[list[int], list[int]]:
    """Source with a sentinel for each noisy run, target with sentinels and what they hide."""
    source: list[int] = []
    target: list[int] = []
    spans = 0
    for index, token in enumerate(ids):
        if not noisy[index]:
            source.append(token)
            continue
        if index == 0 or not noisy[index - 1]:
            if spans == SENTINELS:
                source.append(token)
                noisy[index] = False
                continue
            source.append(first_sentinel + spans)
            target.append(first_sentinel + spans)
            spans += 1
        target.append(token)
    return [*source, END], [*target, END]


def example(
    tokenizer: Tokenizer, text: str, random: Random, *, only_keys: bool = False
) -> tuple[list[int], list[int]] | None:
    """A corrupted text: its marked words often, any other words seldom."""
    parts = text.split("|")
    plain = "".join(parts)
    encoding = tokenizer.encode(plain, add_special_tokens=False)
    ids = encoding.ids[:160]
    if len(ids) < 5:
        return None
    noisy = [False] * len(ids)
    place, marked = 0, len(parts) > 1
    for number, part in enumerate(parts):
        if number % 2 and (only_keys or random.random() < 0.7):
            for index, (start, end) in enumerate(encoding.offsets[: len(ids)]):
                if start < place + len(part) and end > place and plain[start:end].strip():
                    noisy[index] = True
        place += len(part)
    if not only_keys:
        rate, mean = (0.05, 1.5) if marked else (0.15, 2.5)
        index = 0
        while index < len(ids):
            if random.random() < rate / mean:
                length = 1 + int(random.expovariate(1 / (mean - 0.5)))
                for covered in range(index, min(index + length, len(ids))):
                    noisy[covered] = True
                index += length
            index += 1
    if not any(noisy):
        noisy[random.randrange(len(ids))] = True
    return corrupt(ids, noisy, tokenizer.token_to_id("<extra_id_0>"))


def batches(
    tokenizer: Tokenizer, general: list[str], start: int, step: int
) -> Iterator[tuple[Any, Any]]:
    """Endless (source, target) batches of about BATCH_TOKENS source tokens, alike in length.

    Each pool of texts has a seed of its own, so that a resumed run goes on with fresh ones.
    """
    pool = start
    while True:
        random = Random(f"{SEED}/{pool}")
        texts = [random.choice(general) for _ in range(GENERAL_TEXTS)]
        if step >= WIDE_FROM:
            texts = [f"{t} {t}" if random.random() < TWICE_SHARE else t for t in texts]
        framed = step >= FRAMED_FROM
        texts += list(sentences(random.randrange(1 << 40), GENERATED_TEXTS, framed=framed))
        found = [e for text in texts if (e := example(tokenizer, text, random))]
        found.sort(key=lambda pair: len(pair[0]))
        grouped: list[list[tuple[list[int], list[int]]]] = [[]]
        for pair in found:
            if (len(grouped[-1]) + 1) * len(pair[0]) > BATCH_TOKENS:
                grouped.append([])
            grouped[-1].append(pair)
        random.shuffle(grouped)
        for group in grouped:
            yield stack(group)
        pool += 1


def stack(pairs: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, S) source padded with PAD, (N, L) labels padded with -100."""
    sources, targets = zip(*pairs, strict=True)
    wide, long = max(map(len, sources)), max(map(len, targets))
    return (
        torch.tensor([[*s, *[PAD] * (wide - len(s))] for s in sources]),
        torch.tensor([[*t, *[-100] * (long - len(t))] for t in targets]),
    )


def loss_of(
    model: Any, source: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss of the target tokens, and which of them (N, L) are got right; padding is right.

    The vocabulary projection, half of so small a model's work, runs on real target tokens alone.
    """
    mask = (source != PAD).long()
    real = target >= 0
    started = torch.full_like(target[:, :1], PAD)
    inputs = torch.cat([started, target[:, :-1].clamp(min=PAD)], dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoded = model.encoder(input_ids=source, attention_mask=mask).last_hidden_state
        decoded = model.decoder(
            input_ids=inputs,
            encoder_hidden_states=encoded,
            encoder_attention_mask=mask,
            use_cache=False,
        ).last_hidden_state[real]
        if model.config.scale_decoder_outputs:
            decoded = decoded * model.model_dim**-0.5
        logits = model.lm_head(decoded)
    right = torch.ones_like(real)
    right[real] = logits.argmax(-1) == target[real]
    return torch.nn.functional.cross_entropy(logits.float(), target[real]), right


@torch.no_grad()
def measure(model: Any, tokenizer: Tokenizer, general: list[str]) -> dict[str, float]:
    """Held-out loss on general English; share of marked words got right, by kind of text."""
    model.eval()
    random = Random(HELD_OUT_SEED)
    pairs = [e for text in general[:400] if (e := example(tokenizer, text, random))]
    found = {"general_loss": float(loss_of(model, *stack(pairs))[0])}
    texts = list(sentences(HELD_OUT_SEED, 100 * len(KINDS)))
    frames = [asked(random) for _ in range(400)]
    pools = {kind.__name__: texts[i :: len(KINDS)] for i, kind in enumerate(KINDS)}
    for name, pool in {**pools, "asked": frames}.items():
        pairs = [e for text in pool if (e := example(tokenizer, text, random, only_keys=True))]
        source, target = stack(pairs)
        right = loss_of(model, source, target)[1]
        found[name] = round(100 * float(right.all(1).float().mean()), 1)
    model.train()
    return found


def main(arguments: argparse.Namespace) -> None:
    torch.manual_seed(SEED)
    work = Path(arguments.work)
    work.mkdir(parents=True, exist_ok=True)
    lines = Path(arguments.general).read_text(encoding="utf-8").splitlines()
    Random(SEED).shuffle(lines)
    held_out, general = lines[:2000], lines[2000:]
    tokenizer_file = work / "tokenizer.json"
    if tokenizer_file.is_file():
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    else:
        tokenizer = new_tokenizer(general)
        tokenizer.save(str(tokenizer_file))
    model = new_model(VOCABULARY)
    optimizer = new_optimizer(model)
    log: list[dict[str, float]] = []
    step, seconds, tokens = 0, 0.0, 0
    checkpoint = work / "checkpoint.pt"
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        log, step, seconds, tokens = (saved[k] for k in ("log", "step", "seconds", "tokens"))
    stream = batches(tokenizer, general, 1_000_000 * step, step)
    if step >= WIDE_FROM:
        widen()
    bar = tqdm(total=STEPS, initial=step, mininterval=10)
    began, running = time.perf_counter() - seconds, 0.0
    model.train()
    while step < STEPS:
        if step in (FRAMED_FROM, WIDE_FROM):
            stream = batches(tokenizer, general, 1_000_000 * step, step)
        if step == WIDE_FROM:
            widen()
        source, target = next(stream)
        loss = loss_of(model, source, target)[0]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        share = numpy.interp(step, list(SCHEDULE), list(SCHEDULE.values()))
        set_learning_rates(optimizer, PEAK_RATE * float(share))
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        tokens += int((source != PAD).sum())
        value = loss.item()
        running = 0.98 * running + 0.02 * value if running else value
        bar.update()
        if step % 250 == 0 or step == STEPS:
            seconds = time.perf_counter() - began
            row = {"step": step, "tokens": tokens, "seconds": round(seconds), "loss": running}
            log.append({**row, **measure(model, tokenizer, held_out)})
            bar.write(json.dumps(log[-1]))
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                     "log": log, "step": step, "seconds": seconds, "tokens": tokens}  # fmt: skip
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            export(model, tokenizer, Path(arguments.out))
            write_log(Path(__file__).parent / "results" / "log.json", log)


def export(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Weights in float16 (safetensors), config and tokenizer, as ``from_pretrained`` reads them."""
    half = T5ForConditionalGeneration(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def write_log(path: Path, log: list[dict[str, float]]) -> None:
    path.parent.mkdir(exist_ok=True)
    record = {
        "seed": SEED, "steps": STEPS, "date": date.today().isoformat(),
        "hardware": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "torch": re.sub(r"\+.*", "", torch.__version__), "curve": log,
    }  # fmt: skip
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--general", required=True, help="the text that general.py wrote")
    parser.add_argument("--work", required=True, help="folder of tokenizer and checkpoint")
    parser.add_argument("--out", required=True, help="folder of the finished model")
    main(parser.parse_args())
