"""A learnt model answers: as the run's own evaluation did, in Python and by ``kif predict``."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from typer.testing import CliRunner, Result

import kif_lightning
from kif_lightning.cli import app
from kif_lightning.errors import UserError
from kif_lightning.learnt_model import LearntModel
from kif_lightning.paths import conf_dir
from kif_lightning.predicting import answers as answers_module
from tests.helpers.streams import run_stream, tiny_config
from tests.helpers.tiny import save_toy_tasks
from tests.integration.test_own_tasks import config_of as own_config
from tests.integration.test_own_tasks import write_tasks

TASKS = ("colour", "shape")
LEARNING = ("optim.lr=2e-2", "optim.epochs=3", "evaluation.max_new_tokens=6")
DECODER = (
    *("method=seq_full", "benchmark.order=[colour]"),
    *("optim.lr=1e-1", "optim.epochs=12", "optim.batch_size=4"),
)


def copy_of_base(run: Path) -> str:
    """The setting that names the folder of the run's base model, which a state does not hold."""
    return f"backbone.path={OmegaConf.load(run / 'config.yaml').backbone.path}"


def kif(run: Path, *words: object, stdin: str | bytes | None = None) -> Result:
    arguments = [run, *words, copy_of_base(run), "--device=cpu"]
    return CliRunner().invoke(app, ["predict", *map(str, arguments)], input=stdin)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def predictions(run: Path, after: str, on: str) -> list[str]:
    """What the run answered to the test rows."""
    (file,) = (run / "predictions").glob(f"after_*_{after}__on_*_{on}.jsonl")
    return [record["prediction"] for record in lines(file.read_text())]


def rows_of(run: Path, task: str) -> Path:
    (file,) = (run / "test_rows").glob(f"*_{task}.jsonl")
    return file


def prompts_of(run: Path, task: str) -> list[str]:
    return [record["input"] for record in lines(rows_of(run, task).read_text())]


def load(run: Path, **options: Any) -> LearntModel:
    return kif_lightning.load(run, device="cpu", overrides=[copy_of_base(run)], **options)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_tasks(tmp_path_factory.mktemp("data"), TASKS, test=21)


@pytest.fixture(scope="module")
def t5_run(tiny_t5: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("t5") / "run"
    options = ("method=seq_lora", "evaluation.batch_size=4", "keep_states=true", *LEARNING)
    run_stream(tiny_config(tiny_t5, data, run, *options))
    return run


@pytest.fixture(scope="module")
def t5_model(t5_run: Path) -> LearntModel:
    """Whoever changes it loads another."""
    return load(t5_run)


@pytest.fixture(scope="module")
def own_run(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    run_stream(own_config(write_tasks(folder), tiny_t5, folder / "run"))
    return folder / "run"


def varied(texts: list[str]) -> bool:
    """Equal answers to all rows would show little."""
    return len(set(texts)) > 1


def test_answers_are_those_of_the_runs_evaluation(t5_run: Path, t5_model: LearntModel) -> None:
    model = t5_model
    for task in TASKS:
        expected = predictions(t5_run, "shape", task)
        assert varied(expected)
        prompts = prompts_of(t5_run, task)
        assert model.predict(prompts, task=task) == expected
        assert model.predict(prompts, task=task, batch_size=5, batch_tokens=200) == expected
    first = load(t5_run, after="colour")
    found = first.predict(prompts_of(t5_run, "colour"), task="colour")
    assert found == predictions(t5_run, "colour", "colour")
    assert found != predictions(t5_run, "shape", "colour")


def test_a_decoder_answers_as_its_run_did(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("evaluation.batch_size=4", "evaluation.max_new_tokens=6")
    run_stream(tiny_config(tiny_llama, data, run, *options, *DECODER))
    model = load(run)
    expected = predictions(run, "colour", "colour")
    assert varied(expected)
    assert model.predict(prompts_of(run, "colour"), task="colour", batch_size=9) == expected


def test_labels_are_ranked_and_weights_cast_as_in_the_run(
    tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = ("evaluation.decode=rank_labels", "evaluation.precision=bf16-mixed")
    run_stream(tiny_config(tiny_llama, data, run, *options, *DECODER))
    model, prompts = load(run), prompts_of(run, "colour")
    # In bfloat16 rounding is coarse: the batches must be the run's.
    found = model.predict(prompts, task="colour", batch_size=128)
    assert found == predictions(run, "colour", "colour")
    assert set(found) == {"good", "bad"}
    # Of which task's labels is not guessed, and nothing else is done silently.
    with pytest.raises(UserError, match="chooses from the labels of a task, got no task"):
        model.predict(prompts)
    assert len(model.predict(prompts[:1], decode="generate")) == 1


@pytest.mark.parametrize(
    ("setting", "stored", "computed"),
    [
        ("trainer.precision=32-true", torch.float32, torch.float32),
        ("trainer.precision=bf16", torch.float32, torch.bfloat16),
        ("trainer.precision=bf16-true", torch.bfloat16, torch.bfloat16),
        ("method.fixes.precision=bf16-mixed", torch.float32, torch.bfloat16),
    ],
)
def test_the_precision_is_the_runs(
    t5_run: Path, setting: str, stored: torch.dtype, computed: torch.dtype
) -> None:
    model = load(t5_run)
    model.config.merge_with_dotlist([setting])
    layer = model.model.get_submodule("base_model.model.lm_head")
    seen: set[torch.dtype] = set()
    layer.register_forward_hook(lambda _layer, _inputs, logits: seen.add(logits.dtype))
    model.predict(["Is it red ?"], max_new_tokens=1)
    assert {parameter.dtype for parameter in model.model.parameters()} == {stored}
    assert seen == {computed}
    assert torch.get_default_dtype() == torch.float32


def test_weights_are_cast_for_the_answers_alone(t5_run: Path) -> None:
    model = load(t5_run)
    model.config.evaluation.precision = "bf16-mixed"
    classes = [type(module) for module in model.model.modules()]
    answers = model.predict_each(prompts_of(t5_run, "shape"), task="shape", batch_size=1)
    next(answers)
    assert [type(module) for module in model.model.modules()] != classes
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")
    answers.close()
    assert [type(module) for module in model.model.modules()] == classes


def test_a_model_of_a_lora_each_is_told_the_task(tiny_t5: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    mini = ("benchmark=long_sequence_mini", "benchmark.order=[mini_imdb,mini_cb]")
    few = ("benchmark.train_rows=16", "benchmark.test_rows=3", "optim.epochs=1")
    where = ("backbone=t5_base", f"backbone.path={tiny_t5}", f"run_dir={run}", "report=false")
    settings = [*mini, *few, *where, "method=per_task", "trainer.accelerator=cpu", *LEARNING[::2]]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        run_stream(compose("config", overrides=settings))
    model = load(run)
    expected = [predictions(run, "mini_cb", task) for task in model.tasks]
    prompts = [prompts_of(run, task) for task in model.tasks]
    assert expected[0] != model.predict(prompts[0], task="mini_cb")
    # Side by side: each batch is answered by its own task's weights.
    pairs = [
        model.predict_each(asked, task=task, batch_size=1)
        for asked, task in zip(prompts, model.tasks, strict=True)
    ]
    assert [list(found) for found in zip(*zip(*pairs, strict=True), strict=True)] == expected
    with pytest.raises(UserError, match=r"must be told which one.*mini_imdb, mini_cb"):
        model.predict(prompts[0])
    # What only stood for real rows is said beside each answer.
    done = kif(run, rows_of(run, "mini_cb"), "--task=mini_cb")
    assert "on stand-in data" in done.stderr
    assert {tuple(record["stand_ins"]) for record in lines(done.stdout)} == {("stand-in data",)}


def test_prompts_are_answered_a_chunk_at_a_time(
    t5_run: Path, t5_model: LearntModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers_module, "CHUNK_PROMPTS", 4)
    model, prompts = t5_model, prompts_of(t5_run, "shape")
    assert model.predict(prompts, task="shape") == predictions(t5_run, "shape", "shape")
    read: list[str] = []
    endless = (read.append(text) or text for text in itertools.cycle(prompts))
    some = itertools.islice(model.predict_each(endless, task="shape"), 6)
    assert list(some) == predictions(t5_run, "shape", "shape")[:6]
    assert len(read) == 8


def test_labels_are_ranked_where_asked(t5_run: Path, t5_model: LearntModel) -> None:
    model, prompts = t5_model, prompts_of(t5_run, "shape")
    generated = model.predict(prompts, task="shape", decode="generate")
    assert not set(generated) <= {"good", "bad"}
    assert set(model.predict(prompts, task="shape", decode="rank_labels")) <= {"good", "bad"}


def test_the_answers_cap_and_the_cut_prompts(t5_run: Path, t5_model: LearntModel) -> None:
    model = t5_model
    (short,) = model.predict(["Is it red ?"], max_new_tokens=1)
    (long,) = model.predict(["Is it red ?"])
    assert len(short) < len(long)
    # 511 tokens and the end token fill the limit, one more is cut.
    tokenizer: Any = model.backbone
    texts = ["a" * 511, "a" * 512, "a" * 600]
    assert [len(tokenizer.tokenizer(text)["input_ids"]) for text in texts] == [512, 513, 601]
    with pytest.warns(UserWarning, match="2 of 3 prompts were longer than 512 tokens"):
        model.predict(texts, max_new_tokens=1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"prompts": "one text"}, "a list of prompts, got one text"),
        ({"prompts": ["good", " "]}, "Prompt 2 must be a text that is not blank, got ' '"),
        ({"prompts": ["good", 3]}, "Prompt 2 must be a text that is not blank, got 3"),
        ({"prompts": ["a"], "task": "color"}, "got color: did you mean 'colour'"),
        ({"prompts": ["a"], "batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"prompts": ["a"], "decode": "rank_labels"}, "labels of a task, got no task"),
        ({"prompts": ["a"], "decode": "beam"}, "decode must be 'generate' or 'rank_labels'"),
    ],
)
def test_mistakes_in_python(t5_model: LearntModel, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        t5_model.predict(**arguments)


def test_a_device_that_is_not_there(t5_run: Path) -> None:
    with pytest.raises(UserError, match="There is no device 'gpu' here"):
        kif_lightning.load(t5_run, device="gpu")


def test_the_command_gives_the_runs_predictions(t5_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "answers.jsonl"
    rows = rows_of(t5_run, "colour")
    done = kif(t5_run, rows, "--task=colour", "--out", out, "--batch-size=3")
    assert (done.exit_code, done.stdout) == (0, "")
    expected = [
        {"id": row["id"], "prediction": answer}
        for row, answer in zip(
            lines(rows.read_text()), predictions(t5_run, "shape", "colour"), strict=True
        )
    ]
    assert lines(out.read_text()) == expected
    again = kif(t5_run, rows, "--task=colour", "--out", out)
    assert again.exit_code == 2
    assert "which exists" in again.stderr
    # The same rows by standard input, to standard output.
    piped = kif(t5_run, "-", "--task=colour", stdin=rows.read_text())
    assert lines(piped.stdout) == expected


def test_plain_lines_are_prompts(
    t5_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file, unlike a pipe, is not copied.
    monkeypatch.delattr("kif_lightning.predicting.prompt_file.shutil")
    texts = ["Is it red ?", "{not} an object", "round  "]
    (tmp_path / "prompts").write_text("\r\n".join(texts), encoding="utf-8-sig")
    done = kif(t5_run, tmp_path / "prompts")
    expected = load(t5_run).predict(texts)
    found = [{"id": str(i), "prediction": text} for i, text in enumerate(expected, start=1)]
    assert lines(done.stdout) == found


@pytest.mark.parametrize(
    ("stdin", "told"),
    [
        ("", "There is no prompt in standard input"),
        ("one\n\ntwo\n", "standard input, line 2: the line is blank"),
        (b"one\n\xff\n", "standard input, line 2: must be UTF-8"),
        ('{"input": "a"}\n{"input": " "}', "standard input, line 2: expected the whole prompt"),
        ('{"input": "a"}\n{"text": "b"}', "in 'input', got text."),
        ('{"input": "a"}\ntwo', "standard input, line 2: expected one JSON object"),
        (
            '\ufeff[\n  {"input": "a"}\n]',
            "standard input begins as a JSON array: expected JSON lines",
        ),
        ('{"input": "a", "id": []}', "'id' must hold a text or a number, got list"),
    ],
)
def test_what_is_wrong_with_a_prompt_is_told_first(
    t5_run: Path, stdin: str | bytes, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("kif_lightning.predicting.command.learnt_model")
    done = kif(t5_run, stdin=stdin)
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["none.jsonl"], "none.jsonl cannot be read (No such file or directory)"),
        (["a", "b"], "Expected one file of prompts, got a, b"),
        (["-", "--task=color"], "got color: did you mean 'colour'"),
        (["-", "--tasks=tasks.yaml"], "add --task=NAME"),
        (["-", "--after=3"], "--after must be the number (1 to 2)"),
        (["-", "--device=gpu"], "There is no device 'gpu' here"),
        (["-", "--out=.", "--force"], "--out must be a file, got the folder ."),
        (["-", f"benchmark.order=[{'colour,' * 99}]"], "would make another model"),
        (["-", "method.adapter.config.lora_alpha=9"], "lora_alpha=9 would make another model"),
        (["-", "backbone.max_source_tokens=2"], "backbone.max_source_tokens=2 would make"),
        (["-", "evaluation.decode=beam"], "evaluation.decode must be 'generate' or 'rank_labels'"),
        (["-", "evaluation.precision=8"], "evaluation.precision must be None or '32-true' or"),
        (["x" * 300], "cannot be read (File name too long)"),
    ],
)
def test_mistakes_on_the_command_line(t5_run: Path, words: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["predict", str(t5_run), *words], input="a")
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr


def test_own_tasks_are_asked_by_their_columns(own_run: Path, tmp_path: Path) -> None:
    """The state knows the prompts' templates; the answer's column may be absent."""
    given = {
        "colour": ("text,id\nred 3,a\ngreen,b", ["Is this red 3 ?", "Is this green ?"]),
        "shape": ("text,first,second\nit,round,flat", ["What is it ?\nA: round\nB: flat\nAnswer:"]),
    }
    model = load(own_run)
    for task, (table, prompts) in given.items():
        file = tmp_path / f"{task}.csv"
        file.write_text(table)
        done = kif(own_run, file, f"--task={task}")
        expected = model.predict(prompts, task=task)
        assert [record["prediction"] for record in lines(done.stdout)] == expected
        described = kif(own_run, file, f"--task={task}", "--tasks", own_run.parent / "tasks.yaml")
        assert described.stdout == done.stdout
    done = kif(own_run, tmp_path / "colour.csv", "--task=colour")
    assert [record["id"] for record in lines(done.stdout)] == ["a", "b"]
    # A prompt that is whole stays as it is.
    done = kif(own_run, rows_of(own_run, "colour"), "--task=colour")
    found = [record["prediction"] for record in lines(done.stdout)]
    assert found == predictions(own_run, "talk", "colour")


def test_own_tasks_columns_want_the_task(own_run: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,x\nred,1\n")
    done = kif(own_run, tmp_path / "rows.csv")
    assert done.exit_code == 2
    assert "rows.csv, line 2: expected the whole prompt in 'input', got text, x" in done.stderr
    assert "--task builds it of columns, for colour or shape or talk" in done.stderr
    done = kif(own_run, tmp_path / "rows.csv", "--task=shape")
    assert "'choices' names the column 'first'; there is only text, x" in done.stderr
    done = kif(own_run, "-", "--task=shape", "--tasks", own_run.parent / "none.yaml", stdin="a")
    assert "Expected a yaml file that describes tasks" in done.stderr


def test_a_reader_that_wants_no_more_ends_it_quietly(
    t5_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # More than a pipe holds.
    rows = [{"id": f"{number:01000}", "input": f"Is it {number} ?"} for number in range(100)]
    prompts = "".join(f"{json.dumps(row)}\n" for row in rows)
    reading, writing = os.pipe()
    first: list[str] = []

    def read_one() -> None:
        with os.fdopen(reading) as file:
            first.append(file.readline())

    reader = threading.Thread(target=read_one)
    reader.start()
    arguments = [str(t5_run), copy_of_base(t5_run), "--device=cpu", "--max-new-tokens=1"]
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(prompts.encode())))
        patched.setattr(sys, "stdout", os.fdopen(writing, "w"))
        with pytest.raises(SystemExit, match="1"):
            app(["predict", *arguments])
    reader.join()
    assert json.loads(first[0])["id"] == rows[0]["id"]
    assert capsys.readouterr().err == "100 prompts from standard input, answered on cpu.\n"


def test_importing_the_package_brings_nothing_heavy() -> None:
    code = (
        "import sys, kif_lightning; assert 'load' in dir(kif_lightning); "
        "print(sorted({'torch', 'hydra', 'transformers', 'lightning'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        kif_lightning.lode  # noqa: B018
