"""The bundled model: what is in the folder, and that it is a model."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, T5ForConditionalGeneration

from kif_lightning.backbones import Seq2SeqBackbone, bundled_folder
from kif_lightning.benchmarks.mini.benchmark import draw_rows
from kif_lightning.benchmarks.mini.tasks import TASKS
from kif_lightning.interfaces import Row
from kif_lightning.metrics import ExactMatch

FOLDER = bundled_folder("t5_nano")
PRETRAINING = Path(__file__).parents[3] / "experiments" / "pretrain_t5_nano"


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
    # The cloze that it was trained for: what follows from the sentences, whatever the words.
    backbone = Seq2SeqBackbone(
        name="t5_nano",
        hub_name="kif-lightning/t5_nano",
        source="bundled",
        mask_token="<extra_id_0>",  # noqa: S106
    )
    model = backbone.load_model()
    words = json.loads((PRETRAINING / "words.json").read_text())
    random = Random(0)
    rows = []
    for _ in range(60):
        things, kinds = random.sample(words["thing"], 3), random.sample(words["quality"], 3)
        facts = " ".join(f"the {t} is {k}." for t, k in zip(things, kinds, strict=True))
        asked, agrees = random.randrange(3), random.random() < 0.5
        said = kinds[asked] if agrees else kinds[asked - 1]
        text = f"tell us what this is about. pick from yes, no. note: {facts} claim: is the "
        text += f"{things[asked]} {said} reply:"
        rows.append(Row(id="", input=text, output="yes" if agrees else "no"))
    batch = backbone.generation_batch([backbone.encode(row) for row in rows])
    with torch.no_grad():
        answers = backbone.generate(model, batch, 4)
    right = sum(said == row.output for said, row in zip(answers, rows, strict=True))
    assert right >= 54, f"{right} of 60; guessing gives about 30"


def test_its_making_is_on_record() -> None:
    log = json.loads((PRETRAINING / "results" / "log.json").read_text())
    assert log["curve"][-1]["step"] == log["steps"]
    assert log["curve"][-1]["loss"] < log["curve"][0]["loss"] / 1.5
