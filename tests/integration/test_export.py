"""What is exported answers in plain peft and transformers as it does here, row for row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from hydra import compose, initialize_config_dir
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from kif_lightning.backbones import bundled_folder
from kif_lightning.cli import app
from kif_lightning.errors import UserError
from kif_lightning.exporting.card import Told
from kif_lightning.exporting.writing import export
from kif_lightning.interfaces import Row
from kif_lightning.learnt_model import load
from kif_lightning.paths import conf_dir
from tests.helpers.plain_use import job, plain_answers
from tests.helpers.streams import run_stream, tiny_config
from tests.helpers.tiny import save_toy_tasks

QUICK = ("optim.lr=2e-2", "optim.epochs=2")
"""Enough for answers that differ from the untrained model's and from each other."""


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """A run, the folder of its base model, and by task the test prompts and the run's answers."""

    run: Path
    base: Path
    prompts: Mapping[str, Sequence[str]]
    answers: Mapping[str, Sequence[str]]

    @property
    def overrides(self) -> tuple[str, ...]:
        return () if self.base == bundled_folder("t5_nano") else (f"backbone.path={self.base}",)


def learnt(run: Path, base: Path) -> Learnt:
    """What a run left of its last evaluation."""
    prompts, answers = {}, {}
    for path in sorted((run / "test_rows").iterdir()):
        name, place = path.stem[3:], path.stem[:2]
        prompts[name] = [row["input"] for row in _lines(path)]
        (said,) = (run / "predictions").glob(f"after_02_*__on_{place}_{name}.jsonl")
        answers[name] = [row["prediction"] for row in _lines(said)]
    return Learnt(run=run, base=base, prompts=prompts, answers=answers)


def _lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    """The bundled model after two tasks, each asked for 100 rows."""
    run = tmp_path_factory.mktemp("nano") / "run"
    settings = (
        *("+experiment=long_seq_t5", "benchmark.order=[mini_imdb,mini_mnli]"),
        *("benchmark.train_rows=64", "benchmark.test_rows=100", "optim.lr=5e-3"),
        *("evaluation.matrix=final_row", f"run_dir={run}", "report=false"),
    )
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("config", overrides=list(settings))
    run_stream(config)
    return learnt(run, bundled_folder("t5_nano"))


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long answers: a random model's differ more often."""
    labels = ("good red flat word", "round bad green")
    return save_toy_tasks(tmp_path_factory.mktemp("toys"), test=100, labels=labels)


@pytest.fixture(scope="module")
def llama(tiny_llama: Path, toys: Path, tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    """The tiny decoder; its prompts are cut in the middle."""
    run = tmp_path_factory.mktemp("llama") / "run"
    limits = ("backbone.max_source_tokens=24", "evaluation.matrix=final_row")
    run_stream(tiny_config(tiny_llama, toys, run, *QUICK, *limits))
    return learnt(run, tiny_llama)


@pytest.fixture(scope="module")
def told_apart(tiny_llama: Path, toys: Path, tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    """A LoRA for each task."""
    run = tmp_path_factory.mktemp("own") / "run"
    settings = ("method=per_task", "benchmark.test_rows=20")
    run_stream(tiny_config(tiny_llama, toys, run, *QUICK, *settings))
    return learnt(run, tiny_llama)


@pytest.fixture(scope="module")
def prompted(tiny_t5: Path, toys: Path, tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    """A soft prompt for each task."""
    run = tmp_path_factory.mktemp("prompted") / "run"
    settings = ("method=prog_prompt", "optim.lr=1", "benchmark.test_rows=20")
    run_stream(tiny_config(tiny_t5, toys, run, *settings))
    return learnt(run, tiny_t5)


def test_plain_peft_and_transformers_give_every_answer_of_the_run(
    nano: Learnt, llama: Learnt, told_apart: Learnt, prompted: Learnt, tmp_path: Path
) -> None:
    jobs, expected = [], []
    exports = {
        "nano": (nano, None, False),
        "nano_merged": (nano, None, True),
        "llama": (llama, None, False),
        "own": (told_apart, None, False),
        "own_shape": (told_apart, "shape", False),
        "own_merged": (told_apart, "colour", True),
        "prompted": (prompted, None, False),
    }
    for name, (source, task, merged) in exports.items():
        folder = tmp_path / name
        export(source.run, folder, task=task, merged=merged, overrides=source.overrides)
        for asked, prompts in source.prompts.items():
            if task in (None, asked):
                jobs.append(job(folder, source.base, asked, prompts))
                expected.append((name, asked, list(source.answers[asked])))
    # In 16 bits plain peft answers as this package does with the same weights, batch for batch.
    in_16_bits = (*llama.overrides, "backbone.dtype=bfloat16")
    export(llama.run, tmp_path / "llama_16", overrides=in_16_bits)
    here = load(llama.run, overrides=in_16_bits, device="cpu")
    for asked, prompts in llama.prompts.items():
        jobs.append(job(tmp_path / "llama_16", llama.base, asked, prompts[:20]))
        answers = here.predict(prompts[:20], task=asked)
        expected.append(("llama_16", asked, answers))
    found = plain_answers(jobs, tmp_path)
    for answers, (name, asked, ours) in zip(found, expected, strict=True):
        wrong = [i for i, (a, b) in enumerate(zip(answers, ours, strict=True)) if a != b]
        assert wrong == [], f"{name}, {asked}: {len(wrong)} of {len(ours)} answers differ"
    for source in (nano, llama):
        assert sum(map(len, source.answers.values())) == 200
        assert len({text for texts in source.answers.values() for text in texts}) > 2


def test_the_answers_would_differ_without_what_was_learnt(llama: Learnt) -> None:
    backbone = load(llama.run, overrides=llama.overrides).backbone
    rows = [Row(id="", input=prompt, output="") for prompt in llama.prompts["colour"][:20]]
    batch = backbone.generation_batch(backbone.encode_rows(rows))
    untrained = backbone.generate(backbone.load_model().eval(), batch, 8)
    assert untrained != llama.answers["colour"][:20]


def test_merged_weights_give_the_same_logits(
    llama: Learnt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A GPU is left alone: the model might not fit, and nothing is computed.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    export(llama.run, tmp_path / "merged", merged=True, overrides=llama.overrides)
    monkeypatch.undo()
    ours = load(llama.run, overrides=llama.overrides)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    rows = [Row(id="", input=prompt, output="good") for prompt in llama.prompts["shape"][:8]]
    batch = ours.backbone.training_batch(ours.backbone.encode_rows(rows))
    with torch.no_grad():
        found, _ = ours.backbone.answer_logits(model, batch)
        expected, _ = ours.backbone.answer_logits(ours.model, batch)
        base, _ = ours.backbone.answer_logits(ours.backbone.load_model().eval(), batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (base - expected).abs().max() > 0.1
    settings = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == ours.backbone.tokenizer.eos_token_id
    assert not settings.keys() & {"temperature", "top_p", "repetition_penalty"}


def test_card_and_tools_file_tell_the_truth_and_no_path(nano: Learnt, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    export(nano.run, folder, told=Told(licence="apache-2.0", languages=("en",), author="Nobody"))
    card = ModelCard.load(folder / "README.md")
    results = json.loads((nano.run / "results.json").read_text())
    last = dict(zip(nano.prompts, results["score_matrix"][-1], strict=True))
    measured = {r.dataset_config: r.metric_value for r in card.data.eval_results}
    assert measured == {name: round(score, 2) for name, score in last.items()}
    for result in card.data.eval_results:
        assert "stand-in data" in result.dataset_name
        assert "stand-in model" in result.metric_name
    assert (card.data.license, card.data.language) == ("apache-2.0", "en")
    assert (card.data.library_name, card.data.base_model) == ("peft", "kif-lightning/t5_nano")
    assert card.text.index("stand-in data and stand-in model") < card.text.index("## Tasks")
    assert "not evaluated" in card.text  # the run judged its last row alone
    tools = json.loads((folder / "kif.json").read_text())
    assert {task["name"]: task["labels"] for task in tools["tasks"]}["mini_imdb"] == [
        "Happy",
        "Unhappy",
    ]
    assert tools["prompt"]["mask_token"] == "<extra_id_0>"  # noqa: S105
    texts = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    for rows in nano.prompts.values():
        assert not any(rows[0].encode() in text for text in texts), "a row of data"
    for place in (nano.run.parent, bundled_folder("t5_nano"), tmp_path):
        assert not any(str(place).encode() in text for text in texts), "a path of the machine"


def test_a_run_s_own_adapter_has_the_same_card_but_for_the_tokenizer(
    nano: Learnt, tmp_path: Path
) -> None:
    export(nano.run, tmp_path / "export")
    card, own = (
        (folder / "README.md").read_text().splitlines()
        for folder in (tmp_path / "export", nano.run / "adapter")
    )
    differing = [line for line in own if line not in card]
    assert differing == ["tokenizer = AutoTokenizer.from_pretrained(BASE)"]


def test_full_fine_tuning_is_a_whole_model(
    tiny_t5: Path, toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_stream(tiny_config(tiny_t5, toys, tmp_path / "run", "method=seq_full", "optim.epochs=1"))
    capsys.readouterr()
    where = (f"backbone.path={tiny_t5}",)
    export(tmp_path / "run", tmp_path / "plain", overrides=where)
    export(tmp_path / "run", tmp_path / "merged", merged=True, overrides=where)
    for folder in (tmp_path / "plain", tmp_path / "merged"):
        assert (folder / "model.safetensors").is_file()
        assert (folder / "tokenizer.json").is_file()
        card = ModelCard.load(folder / "README.md")
        assert card.data.library_name == "transformers"
        assert "were merged" not in card.text
        assert json.loads((folder / "kif.json").read_text())["merged"] is False
        texts = [p.read_bytes() for p in folder.iterdir()]
        assert not any(str(tiny_t5).encode() in text for text in texts), "a path of the machine"
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "merged")]
    assert weights[0] == weights[1]
    assert "Writing model shards" not in capsys.readouterr().err


def test_a_pool_says_that_others_cannot_load_it(tiny_t5: Path, toys: Path, tmp_path: Path) -> None:
    run_stream(tiny_config(tiny_t5, toys, tmp_path / "run", "method=l2p"))
    where = (f"backbone.path={tiny_t5}",)
    with pytest.raises(UserError, match="Prompts are an input"):
        export(tmp_path / "run", tmp_path / "merged", merged=True, overrides=where)
    export(tmp_path / "run", tmp_path / "pool", overrides=where)
    card = (tmp_path / "pool" / "README.md").read_text()
    assert "peft has no form for it" in card
    assert "from peft" not in card
    assert json.loads((tmp_path / "pool" / "kif.json").read_text())["form"] == "pool"


def test_refusals_are_one_sentence_and_write_nothing(
    llama: Learnt, told_apart: Learnt, tmp_path: Path
) -> None:
    def refused(source: Learnt, *options: str) -> str:
        to = tmp_path / "export"
        done = CliRunner().invoke(
            app, ["export", str(source.run), *options, "--to", str(to), *source.overrides]
        )
        assert done.exit_code == 2
        assert not list(tmp_path.iterdir())
        return done.stderr

    assert "one adapter answers all tasks" in refused(llama, "--task", "colour")
    assert "did you mean 'shape'" in refused(told_apart, "--task", "shap")
    assert "add --task NAME" in refused(told_apart, "--merged")
    assert "add --push OWNER/NAME" in refused(llama, "--private")
    assert "settings as KEY=VALUE, got junk" in refused(llama, "junk")
    assert "--push must be OWNER/NAME" in refused(llama, "--push", "name")
    (tmp_path / "export").mkdir()
    with pytest.raises(UserError, match="which exists: name another one"):
        export(llama.run, tmp_path / "export")
