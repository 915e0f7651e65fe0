"""The card of a model whose history is written down here."""

from __future__ import annotations

import ast
import re
from dataclasses import asdict, replace
from typing import Any

import pytest

from kif_lightning.benchmarks.own.layout import Layout, Template
from kif_lightning.continual_state import PastTask
from kif_lightning.exporting.card import MOST_LABELS, Told, model_card
from kif_lightning.exporting.facts import CardFacts
from kif_lightning.exporting.forms import Contents, Form
from kif_lightning.interfaces import PlainUse

PROTOCOL: dict[str, Any] = {
    "method": "seq_lora",
    "weights": {"source": "folder", "folder": "copy"},
    "backbone_dtype": "float32",
    "epochs": 1,
    "packages": {"torch": "2", "transformers": "5", "peft": "0"},
}
USE = PlainUse(
    auto_class="AutoModelForCausalLM",
    rule="Laid out thus.",
    encode="ids = tokenizer(prompt)",
    padding_side="left",
    repeats_prompt=True,
    generation={"pad_token_id": 0, "eos_token_id": 1},
)
ADAPTER = Contents(form=Form.ADAPTER, folders=(), one_by_one=False, has_tokenizer=True)


def past(name: str, **given: Any) -> PastTask:
    usual: dict[str, Any] = {
        "kind": "classification",
        "metric": "exact_match",
        "labels": ("yes", "no"),
        "sha256": {"test": "0123456789abcdef"},
        "train_rows": 7,
        "test_rows": 5,
        "test_sha256": "3210",
        "decode": "generate",
        "max_new_tokens": 3,
        "data": {"source": "own"},
        "stand_in": False,
    }
    return PastTask(name=name, **{**usual, **given})


def facts(*tasks: PastTask, **given: Any) -> CardFacts:
    usual: dict[str, Any] = {
        "backbone": "tiny",
        "base_name": "tiny/llama",
        "base": {"sha256": "fedcba9876543210", "weights": 1234},
        "tasks": tasks,
        "phases": tuple(task.name for task in tasks),
        "matrix": [[80.0, None], [70.0, 90.0]],
        "protocols": [PROTOCOL],
        "stand_ins": [],
        "use": USE,
        "prompt": {"truncation": "middle"},
        "dtype": "float32",
    }
    return CardFacts(**{**usual, **given})


def two(**given: Any) -> CardFacts:
    return facts(past("one"), past("two"), **given)


def code(text: str) -> str:
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


def test_nothing_is_invented() -> None:
    card = model_card(two(), ADAPTER, Told())
    assert card.data.license == "unknown"
    assert "Licence: not told" in card.text
    assert card.data.language is None
    assert "Made by" not in card.text
    assert "stand-in" not in str(card)
    told = Told(licence="mit", base_licence="llama2", languages=("en", "de"), author="A Name")
    card = model_card(two(), ADAPTER, told)
    assert (card.data.license, card.data.language) == ("mit", ["en", "de"])
    assert "base model: llama2" in card.text
    assert "Made by: A Name" in card.text


def test_metrics_come_with_formulas_or_are_said_to_be_unknown() -> None:
    card = model_card(two(), ADAPTER, Told()).text
    assert "`average_performance` 80.00 = `mean_j a[T-1][j]`" in card
    assert "`backward_transfer` -10.00" in card
    card = model_card(two(matrix=[[80.0, None], [None, 90.0]]), ADAPTER, Told())
    assert "| after two | not evaluated | 90.0 |" in card.text
    assert "average_performance" not in card.text
    assert "not known: not every task was evaluated" in card.text
    assert [result.dataset_config for result in card.data.eval_results] == ["two"]


def test_what_the_hub_reads_is_of_its_kind() -> None:
    tasks = past("one", metric="rouge_l"), past("two", metric="rouge_l")
    data = model_card(facts(*tasks), ADAPTER, Told()).data.to_dict()["model-index"][0]
    found = [(r["dataset"]["type"], r["dataset"]["config"]) for r in data["results"]]
    assert found == [("other", "one"), ("other", "two")]
    assert {r["metrics"][0]["type"] for r in data["results"]} == {"rouge"}
    assert data["name"] == "tiny after 2 tasks with seq_lora"
    one = model_card(facts(past("one"), matrix=[[80.0]]), ADAPTER, Told()).data.to_dict()
    assert one["model-index"][0]["name"] == "tiny after 1 task with seq_lora"


def test_of_a_folder_only_the_form_is_known() -> None:
    assert "A PEFT adapter for a model in the form of `tiny/llama`." in str(
        model_card(two(), ADAPTER, Told())
    )
    hub = [{**PROTOCOL, "weights": {"source": "hub"}}]
    assert "A PEFT adapter for `tiny/llama`." in str(
        model_card(two(protocols=hub), ADAPTER, Told())
    )


def test_of_the_data_each_task_has_its_own_row_and_template() -> None:
    shares, sets = {"one": 0.2}, {"one": {"repo": "me/a"}, "two": {"repo": "me/b"}}
    layout = asdict(
        Layout(
            task="one",
            prompt=Template("Which?\n```{text}", "prompt"),
            answer=Template("{label}", "answer"),
            words={"0": "no"},
        )
    )
    tasks = [
        past(name, data={"source": "own", "held_out": shares, "sets": sets, **more})
        for name, more in (("one", {"layout": layout}), ("two", {}))
    ]
    card = model_card(facts(*tasks), ADAPTER, Told()).text
    rows = [line for line in card.splitlines() if line.startswith(("| 1 |", "| 2 |"))]
    assert "| source own, held_out 0.2, sets (repo me/a) |" in rows[0]
    assert "| source own, sets (repo me/b) |" in rows[1]
    assert "The text of one, columns of its data in braces:\n\n    Which?\n    ```{text}\n" in card
    assert "The text of two" not in card
    alone = model_card(facts(*tasks).of_task(1), ADAPTER, Told()).text
    assert "| source own, sets (repo me/b) |" in alone
    ast.parse(code(card))


def test_the_mask_is_added_by_the_code_alone() -> None:
    card = model_card(two(prompt={"mask_token": "<extra_id_0>"}), ADAPTER, Told())
    assert "<extra_id_0>" not in card.text.partition("## Use it")[2].partition("```python")[0]


@pytest.mark.parametrize(("dtype", "told"), [("float32", "seldom"), ("bfloat16", "some answers")])
def test_how_much_merging_rounds_depends_on_the_type(dtype: str, told: str) -> None:
    merged = replace(ADAPTER, form=Form.MODEL, merged=True)
    assert f"rounds to {dtype}: {told}" in model_card(two(dtype=dtype), merged, Told()).text


def test_tasks_learnt_at_once_have_one_row() -> None:
    card = model_card(two(matrix=[[80.0, 90.0]], phases=("all",)), ADAPTER, Told()).text
    assert "all at once" in card
    assert 'load("STATE")' not in card
    assert 'load("STATE")' in model_card(two(), ADAPTER, Told()).text
    assert "| after all | 80.0 | 90.0 |" in card


def test_a_hundred_tasks_are_two_columns() -> None:
    tasks = [past(f"task{i}") for i in range(100)]
    matrix = [[float(j) if j <= i else None for j in range(100)] for i in range(100)]
    card = model_card(facts(*tasks, matrix=matrix), ADAPTER, Told()).text
    assert "| task99 | 99.0 | 99.0 |" in card
    assert max(map(len, card.splitlines())) < 5000


def test_a_task_s_words_cannot_break_the_table_nor_the_code() -> None:
    odd = past("a\"b'c", labels=("x|y", "<b>", *map(str, range(MOST_LABELS))))
    card = model_card(facts(odd, past("two")), ADAPTER, Told()).text
    line = next(line for line in card.splitlines() if line.startswith("| 1 |"))
    assert "x\\|y, &lt;b>" in line
    assert "and 2 more" in line
    assert '"test 0123456789ab' not in line
    assert "0123456789ab " in line
    assert "cdef" not in line
    tree = ast.parse(code(card))
    values = [ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign)
              and getattr(n.targets[0], "id", "") == "MAX_NEW_TOKENS"]  # fmt: skip
    assert values == [{"a\"b'c": 3, "two": 3}]


def test_ranked_answers_are_told_from_generated_ones() -> None:
    ranked = facts(past("one", decode="rank_labels"), past("two"))
    assert "In one the scores above are of ranking" in model_card(ranked, ADAPTER, Told()).text
    assert "of ranking" not in model_card(two(), ADAPTER, Told()).text


def test_scores_on_held_out_rows_are_no_test_scores() -> None:
    card = model_card(two(stand_ins=["held-out rows of train, not test"]), ADAPTER, Told())
    assert {result.dataset_split for result in card.data.eval_results} == {"held-out rows of train"}
    assert "Percent on each task (held-out rows of train)" in card.text
    assert "Trained with" not in card.text


def test_each_protocol_is_a_column() -> None:
    later = {**PROTOCOL, "epochs": 9}
    card = model_card(
        facts(past("one"), past("two", protocol=1), protocols=[PROTOCOL, later]), ADAPTER, Told()
    ).text
    assert "|  | one | two |" in card
    assert "| epochs | 1 | 9 |" in card


@pytest.mark.parametrize("form", list(Form))
def test_every_form_has_code_that_compiles_or_none(form: Form) -> None:
    folders = ("task_001", "task_002") if form is Form.ADAPTERS else ()
    contents = replace(ADAPTER, form=form, folders=folders, one_by_one=bool(folders))
    card = model_card(two(), contents, Told())
    assert card.data.library_name == contents.library
    ast.parse(code(card.text))
    assert ("from peft import" in card.text) == (form in (Form.ADAPTER, Form.ADAPTERS))


def test_a_gguf_base_is_loaded_as_in_training() -> None:
    weights = {"source": "package", "package": "some-model", "file": "some.gguf"}
    protocols = [{**PROTOCOL, "weights": weights}]
    card = model_card(two(protocols=protocols), replace(ADAPTER, has_tokenizer=False), Told()).text
    assert "from_pretrained(BASE, gguf_file='some.gguf')" in card
    assert "gguf_file='some.gguf', quantization_config=GgufConfig(dequantize=True)" in card
    ast.parse(code(card))
    whole = model_card(two(protocols=protocols), replace(ADAPTER, form=Form.MODEL), Told()).text
    assert "gguf_file" not in code(whole)
    assert "BASE" not in whole


def test_one_task_alone() -> None:
    later = {**PROTOCOL, "epochs": 9}
    one = facts(past("one"), past("two", protocol=1), protocols=[PROTOCOL, later]).of_task(0)
    card = model_card(one, ADAPTER, Told()).text
    assert "| after two | 70.0 |" in card
    assert "| epochs | 1 |" in card
