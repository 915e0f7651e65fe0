"""The bundled model: what is in the folder, and that it is a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, T5ForConditionalGeneration

from kif_lightning.backbones import Seq2SeqBackbone, bundled_folder
from kif_lightning.benchmarks.mini.benchmark import draw_rows
from kif_lightning.benchmarks.mini.tasks import TASKS
from kif_lightning.metrics import ExactMatch

FOLDER = bundled_folder("t5_nano")


@pytest.fixture(scope="module")
def backbone() -> Seq2SeqBackbone:
    return Seq2SeqBackbone(name="t5_nano", hub_name="kif-lightning/t5_nano", source="bundled")


def test_it_is_small_and_stored_in_half_precision() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 12e6
    assert {tensor.dtype for tensor in load_file(FOLDER / "model.safetensors").values()} == {
        torch.float16
    }


def test_plain_transformers_reads_it() -> None:
    model = T5ForConditionalGeneration.from_pretrained(FOLDER)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert len(tokenizer) <= model.config.vocab_size
    assert tokenizer("Anna")["input_ids"][-1] == model.config.eos_token_id


def test_it_says_that_it_stands_in(backbone: Seq2SeqBackbone, tiny_t5: Path) -> None:
    assert backbone.stand_in
    assert backbone.provenance["source"] == "bundled"
    assert len(backbone.provenance["sha256"]) == 64
    assert not Seq2SeqBackbone(name="t5_nano", hub_name="a/b", path=str(tiny_t5)).stand_in
    assert not Seq2SeqBackbone(name="t5_nano", hub_name="a/b").stand_in


def test_every_answer_survives_the_tokenizer(backbone: Seq2SeqBackbone) -> None:
    unknown = backbone.tokenizer.unk_token_id
    for task in TASKS:
        for label in task.labels:
            ids = backbone.tokenizer(label)["input_ids"]
            assert unknown not in ids
            read = backbone.tokenizer.decode(ids, skip_special_tokens=True)
            score = ExactMatch(normalisation="raw")
            score.update([read], [label])
            assert float(score.compute()) == 100.0, (label, read)
        for row in draw_rows(task)["test"][:20]:
            assert unknown not in backbone.encode(row).prompt_ids


def test_it_learnt_from_its_corpus() -> None:
    # Span corruption: what follows from the sentence is filled in, for words in any order.
    model = T5ForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    qualities = ("wide", "rural", "loud", "heavy")
    right = 0
    for i, asked in enumerate(qualities):
        other = qualities[(i + 1) % 4]
        text = f"the table is {asked}. the bottle is {other}. so the table is <extra_id_0>."
        ids = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=6)
        right += asked in tokenizer.decode(ids[0])
    assert right >= 3


def test_its_making_is_on_record() -> None:
    record = FOLDER.parents[2] / "experiments" / "pretrain_t5_nano" / "results" / "log.json"
    log = json.loads(record.read_text())
    assert log["curve"][-1]["step"] == log["steps"]
    assert log["curve"][-1]["loss"] < log["curve"][0]["loss"] / 1.5
