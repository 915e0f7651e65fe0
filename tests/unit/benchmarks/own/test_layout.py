"""From records to rows: templates, words, choices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kif_lightning.benchmarks.own.layout import Layout, Template
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Row


def layout(prompt: str = "Q: {text}", answer: str = "{label}", **settings: Any) -> Layout:
    given: dict[str, Any] = {"task": "toy", "words": {}, **settings}
    return Layout(prompt=Template(prompt, "prompt"), answer=Template(answer, "answer"), **given)


def refusal(of: Layout, record: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        of(record, 1)
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 400
    return message


@pytest.mark.parametrize(
    "text", ["{", "a } b", "{text", "{a.b}", "{a[0]}", "{a!r}", "{a:>5}", "{}"]
)
def test_what_is_no_template_is_told(text: str) -> None:
    with pytest.raises(UserError, match="prompt=") as error:
        Template(text, "prompt")
    assert text in str(error.value)


def test_a_template_names_columns_and_keeps_braces() -> None:
    template = Template('{a} {{"x": 1}} {b c}{a}', "prompt")
    assert template.columns == ("a", "b c")
    # What a column holds is text, even if it looks like a template.
    assert template.filled({"a": "{b}", "b c": "{"}) == '{b} {"x": 1} {{b}'


def test_columns_may_be_named_by_numbers() -> None:
    record = {"0": "x", "1": "a", "-1": "b"}
    made = layout("Q: {0} {{0}} {-1}", "{1}")(record, 1)
    assert (made.input, made.output) == ("Q: x {0} b", "a")


def test_columns_fill_prompt_and_answer_and_number_the_row() -> None:
    made = layout("{a}|{b}\n", "{label}: {b}")(
        {"a": " x ", "b": "y", "label": "ü", "more": None}, 7
    )
    assert made == Row(id="toy-7", input=" x |y\n", output="ü: y")


def test_ids_may_come_from_a_column() -> None:
    assert layout(id="key")({"text": "x", "label": "a", "key": 12}, 1).id == "12"
    assert "'id' names the column 'key'" in refusal(layout(id="key"), {"text": "x", "label": "a"})


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (-1.5, "-1.5"), (1.0, "1.0"), (True, "true"), ("", ""), ("01", "01")],
)
def test_numbers_and_truth_are_texts_as_json_writes_them(value: Any, text: str) -> None:
    assert layout()({"text": "x", "label": value}, 1).output == text


@pytest.mark.parametrize(
    ("value", "part"),
    [(None, "nothing"), (["a"], "list ['a']"), ({}, "dict {}"), (float("nan"), "float nan"),
     (float("inf"), "float inf"), ([["x\n" * 9999]], "list")],
)  # fmt: skip
def test_other_values_are_refused(value: Any, part: str) -> None:
    told = refusal(layout(), {"text": "x", "label": value})
    assert "'label' must hold a text or a number, got" in told
    assert part in told


def test_a_column_that_is_not_there_is_told_with_the_key_that_names_it() -> None:
    record = {"text": "x", "lab\nel": "a"}
    assert "'answer' names the column 'label'; there is only text, 'lab\\nel'" in refusal(
        layout(), record
    )
    assert "'prompt' names the column 'txt'" in refusal(layout("{txt}"), record)
    assert "'choices' names the column 'b'" in refusal(layout(choices=["text", "b"]), record)


@pytest.mark.parametrize("blank", ["", "  ", "\n\t"])
def test_a_row_with_nothing_to_ask_about_is_refused(blank: str) -> None:
    told = refusal(layout("{a}: {b}"), {"a": blank, "b": blank, "label": "x"})
    assert "nothing stands in a, b" in told
    assert layout("{a}: {b}")({"a": blank, "b": "x", "label": "x"}, 1).output == "x"


def test_spaces_around_an_answer_do_not_count() -> None:
    assert layout(answer="{label}!")({"text": "x", "label": " a b \n"}, 1).output == "a b!"
    assert layout(words={"1": "yes"})({"text": "x", "label": " 1"}, 1).output == "yes"


@pytest.mark.parametrize("value", ["1", 1])
def test_words_stand_for_values(value: Any) -> None:
    words = {"0": "no", "1": "yes"}
    assert layout(answer="{label}.", words=words)({"text": "x", "label": value}, 1).output == "yes."
    # The prompt keeps what stands there.
    assert layout("{label}", words=words)({"label": value}, 1) == Row(
        id="toy-1", input="1", output="yes"
    )


def test_a_value_without_a_word_is_refused() -> None:
    told = refusal(layout(words={"0": "no", "1": "yes"}), {"text": "x", "label": 2})
    assert told == "'label' is '2', for which words has no word; it knows 0, 1."


# Multiple choice

COLUMNS = ["a", "b", "c"]
RECORD = {"text": "x", "a": "red", "b": "green", "c": "blue"}


def chosen(label: Any, record: dict[str, Any] = RECORD, **settings: Any) -> str:
    given: dict[str, Any] = {"choices": COLUMNS, **settings}
    return layout(**given)({**record, "label": label}, 1).output


@pytest.mark.parametrize("label", ["B", "b", " B ", "1", 1, "green", "green "])
def test_the_right_choice_is_named_by_letter_number_or_text(label: Any) -> None:
    assert chosen(label) == "B"
    assert chosen(label, answer_as="text") == "green"


@pytest.mark.parametrize(
    "choices",
    [["red", "green", "blue"], {"text": ["red", "green", "blue"], "label": ["A", "B", "C"]}],
)
def test_a_column_may_hold_all_choices(choices: Any) -> None:
    record = {"text": "x", "options": choices, "label": 2}
    made = layout("{text}\n{choices}\nAnswer:", choices=["options"])(record, 1)
    assert made.input == "x\nA: red\nB: green\nC: blue\nAnswer:"
    assert made.output == "C"


@pytest.mark.parametrize("label", ["D", "3", 3, -1, "", "AB", "red, green", "RED", "½", "²"])
def test_an_answer_that_is_no_choice_is_refused(label: Any) -> None:
    told = refusal(layout(choices=COLUMNS), {**RECORD, "label": label})
    assert "is none of the choices: expected A to C, 0 to 2, or the text of one" in told


@pytest.mark.parametrize("choices", [None, "red", ["red"], [], {"text": "red"}, ["x"] * 27])
def test_what_is_no_list_of_choices_is_refused(choices: Any) -> None:
    told = refusal(layout(choices=["options"]), {"text": "x", "options": choices, "label": "A"})
    assert "'options' must hold a list of 2 to 26 choices" in told


def test_an_answer_of_two_meanings_is_refused() -> None:
    # The text of the third, or the number of the second?
    numbers = {"text": "1 + 0", "a": "0", "b": "2", "c": "1"}
    assert "is the text of one choice and the letter or number" in refusal(
        layout(choices=COLUMNS), {**numbers, "label": "1"}
    )
    # A number is never a text; letters have one meaning here; the same choice twice over has one.
    assert chosen(1, numbers) == chosen("B", numbers) == "B"
    assert chosen("0", numbers) == "A"
    letters = {"text": "x", "a": "B", "b": "A", "c": "C"}
    assert "is the text of one choice" in refusal(
        layout(choices=COLUMNS), {**letters, "label": "A"}
    )
    assert chosen(0, letters) == chosen("0", letters) == "A"


def test_the_settings_of_two_layouts_differ_in_their_dataclass() -> None:
    # What the cache of large files goes by.
    assert layout() == layout()
    assert layout() != replace(layout(), id="key")


def test_dialogue_states_are_checked_where_they_are_read() -> None:
    of = layout(states=True)
    for good in ("food=thai; area=centre", "none", "area = north"):
        assert of({"text": "Where?", "label": good}, 1).output == good
    for bad in ("thai", "food=thai; food=greek"):
        assert "dialogue state" in refusal(of, {"text": "Where?", "label": bad})
    assert layout()({"text": "Where?", "label": "thai"}, 1).output == "thai"
