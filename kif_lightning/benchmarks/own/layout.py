"""From a record of named columns to a row: prompt and answer templates, label words, choices."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import Formatter, ascii_uppercase
from typing import Any, Literal

from kif_lightning.benchmarks.files import Record, named
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Row
from kif_lightning.metrics.text import dialogue_state

AnswerAs = Literal["letter", "text"]
MOST_CHOICES = len(ascii_uppercase)


@dataclass(frozen=True)
class Template:
    """Text with the names of columns in braces; ``{{`` stands for a brace itself.

    Args:
        text: of the template.
        where: how messages call it.

    Raises:
        UserError: a brace that is not closed, or more than a name within braces.
    """

    text: str
    where: str

    def __post_init__(self) -> None:
        try:
            parts = list(Formatter().parse(self.text))
        except ValueError as error:
            raise UserError(f"{self.where}={self.text!r:.80} is no template: {error}.") from error
        for _, name, form, conversion in parts:
            if name is not None and (form or conversion or not name or set(name) & set(".[]")):
                raise UserError(
                    f"{self.where}={self.text!r:.80}: expected a column's name alone in each pair "
                    f"of braces, got {{{name}}}; write {{{{ and }}}} for braces in the text."
                )

    @cached_property
    def _parts(self) -> list[tuple[str, str | None]]:
        """Text, and the column that follows it; format() would take a column 0 for a position."""
        return [(text, name) for text, name, _, _ in Formatter().parse(self.text)]

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns that it names, in the order of their first use."""
        return tuple(dict.fromkeys(name for _, name in self._parts if name))

    def filled(self, values: Mapping[str, str]) -> str:
        """The text with each column's value."""
        return "".join(text + (values[name] if name else "") for text, name in self._parts)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the records of a task become rows; a callable for ``read_split``.

    Args:
        task: its name, the first part of ids that no column gives.
        prompt: of the input; ``{choices}``: the choices, one a line, lettered.
        answer: of the output; spaces around a column's value do not count.
        words: value of an answer's column -> the word that stands for it.
        choices: columns that hold one choice each, or the one that holds a list of them.
        answer_as: with choices: answer with the letter of the right one or with its text.
        id: the column of ids; None: rows are numbered by their lines.
        states: whether answers must be dialogue states.
    """

    task: str
    prompt: Template
    answer: Template
    words: Mapping[str, str]
    choices: Sequence[str] = ()
    answer_as: AnswerAs = "letter"
    id: str | None = None
    states: bool = False

    def __call__(self, record: Record, number: int) -> Row:
        """The row of a record.

        Raises:
            UserError: a column is missing or empty, or holds no text; a value has no word.
        """
        choices = self._choices(record) if self.choices else []
        prompt = self._prompt_of(record, choices)
        answered = self._values(record, self.answer, {})
        if choices:
            (column,) = answered
            output = self._chosen(choices, answered[column].strip(), record[column])
        else:
            answered = {name: self._word(name, v.strip()) for name, v in answered.items()}
            output = self.answer.filled(answered)
        if self.states and dialogue_state(output) is None:
            raise UserError(
                f"the answer {output!r:.60} is no dialogue state; expected 'slot=value; "
                "slot=value', each slot once, or 'none'."
            )
        return Row(
            id=f"{self.task}-{number}" if self.id is None else text_of(record, self.id, "id"),
            input=prompt,
            output=output,
        )

    @property
    def asks_for(self) -> tuple[str, ...]:
        """The columns that a prompt is made of."""
        asked = (name for name in self.prompt.columns if name != "choices" or not self.choices)
        return tuple(dict.fromkeys([*asked, *self.choices]))

    def prompt_of(self, record: Record) -> str:
        """The prompt of a record, which need not have an answer.

        Raises:
            UserError: a column is missing or empty, or holds no text.
        """
        return self._prompt_of(record, self._choices(record) if self.choices else [])

    def _prompt_of(self, record: Record, choices: Sequence[str]) -> str:
        listed = "\n".join(
            f"{letter}: {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False)
        )
        asked = self._values(record, self.prompt, {"choices": listed} if choices else {})
        if asked and not any(value.strip() for value in asked.values()):
            raise UserError(f"nothing stands in {named(asked)}; expected something to ask about.")
        return self.prompt.filled(asked)

    def _values(
        self, record: Record, template: Template, given: Mapping[str, str]
    ) -> dict[str, str]:
        return {
            name: given[name] if name in given else text_of(record, name, template.where)
            for name in template.columns
        }

    def _word(self, name: str, value: str) -> str:
        if not self.words:
            return value
        if value not in self.words:
            raise UserError(
                f"'{name}' is {value!r:.40}, for which words has no word; it knows "
                f"{named(self.words)}."
            )
        return self.words[value]

    def _choices(self, record: Record) -> list[str]:
        if len(self.choices) > 1:
            return [text_of(record, column, "choices").strip() for column in self.choices]
        column = self.choices[0]
        found = _present(record, column, "choices")
        # Public sets hold {"text": [...], "label": [...]} as well as plain lists.
        found = found.get("text", found) if isinstance(found, dict) else found
        if not isinstance(found, list) or not 2 <= len(found) <= MOST_CHOICES:
            hint = " (CSV holds no lists: name a column for each choice, or use JSON lines)"
            raise UserError(
                f"'{column}' must hold a list of 2 to {MOST_CHOICES} choices, got {found!r:.60}"
                f"{hint if isinstance(found, str) else ''}."
            )
        return [text_of({column: choice}, column, "choices").strip() for choice in found]

    def _chosen(self, choices: list[str], value: str, given: Any) -> str:
        """The right choice, which the data name by letter, by number from 0, or by its text."""
        letters = ascii_uppercase[: len(choices)]
        readings = {
            *(index for index, letter in enumerate(letters) if letter == value.upper()),
            *(index for index in range(len(choices)) if str(index) == value),
        }
        if isinstance(given, str):  # a number is no text
            readings |= {choices.index(value)} if value in choices else set()
        if len(readings) == 1:
            (index,) = readings
            return letters[index] if self.answer_as == "letter" else choices[index]
        if readings:
            raise UserError(
                f"the answer {value!r:.40} is the text of one choice and the letter or number of "
                "another: name all answers by letters or, where choices are letters, by numbers."
            )
        raise UserError(
            f"the answer {value!r:.40} is none of the choices: expected {letters[0]} to "
            f"{letters[-1]}, 0 to {len(choices) - 1}, or the text of one."
        )


def layout_of(plain: Mapping[str, Any]) -> Layout:
    """The layout of which ``dataclasses.asdict`` gave the plain values."""
    templates = {key: Template(**plain[key]) for key in ("prompt", "answer")}
    return Layout(**{**plain, **templates})


def _present(record: Record, column: str, key: str) -> Any:
    if column not in record:
        raise UserError(f"'{key}' names the column '{column}'; there is only {named(record)}.")
    return record[column]


def text_of(record: Record, column: str, key: str) -> str:
    """The text of the column that the description's key names.

    Raises:
        UserError: the column is missing, or holds nothing, a list, an object or no number.
    """
    value = _present(record, column, key)
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    what = "nothing" if value is None else f"{type(value).__name__} {value!r:.40}"
    raise UserError(f"'{column}' must hold a text or a number, got {what}.")
