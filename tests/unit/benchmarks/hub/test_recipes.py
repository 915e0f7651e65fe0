"""Every task's prompt and answer, written by hand after the published rows, contents invented."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from kif_lightning.benchmarks.hub import hub_tasks
from kif_lightning.benchmarks.hub.recipes import COLLECTIONS, LONG_SEQUENCE, SUPERNI
from kif_lightning.paths import conf_dir
from tests.helpers.mirrors import save_csv_set, save_json_lines, save_parquet_set

Record = dict[str, Any]
STARS = (
    "What is the sentiment of the following paragraph? Choose one from the option. "
    "Option: very negative, negative, neutral, positive, very positive.\n"
)
RELATION = (
    'What is the logical relationship between the "sentence 1" and the "sentence 2"? '
    "Choose one from the option. Option: "
)

# Task -> repository, config, the two splits, the label column, one record for each class with the
# answer expected of it, and the prompt expected of the first.
Case = tuple[str, str | None, str, str, list[tuple[Record, str]], str]


def classes(record: Record, label: str, words: Mapping[int, str]) -> list[tuple[Record, str]]:
    """The record once for each class, its texts told apart; of the first class as it is."""
    return [
        (
            {key: f"{text}{'!' * index}" for key, text in record.items()} | {label: number},
            word,
        )
        for index, (number, word) in enumerate(words.items())
    ]


CASES: dict[str, Case] = {
    "yelp": (
        "Yelp/yelp_review_full",
        "yelp_review_full",
        "train",
        "test",
        classes(
            {"text": 'They \\"fixed\\" it.\\n\\nNever  again.'},
            "label",
            {
                0: "very negative",
                1: "negative",
                2: "neutral",
                3: "positive",
                4: "very positive",
            },
        ),
        STARS + 'Text: They \\"fixed\\" it.\\n\\nNever  again.\n\nAnswer:',
    ),
    "amazon": (
        "yassiracharki/Amazon_Reviews_for_Sentiment_Analysis_fine_grained_5_classes",
        None,
        "train",
        "test",
        classes(
            {"review_title": 'A "lamp", of sorts', "review_text": "It broke, twice."},
            "class_index",
            {
                1: "very negative",
                2: "negative",
                3: "neutral",
                4: "positive",
                5: "very positive",
            },
        ),
        STARS + 'Title: A "lamp", of sorts\nText: It broke, twice.\n\nAnswer:',
    ),
    "agnews": (
        "sh0416/ag_news",
        None,
        "train",
        "test",
        classes(
            {"title": "Lake found", "description": " A lake\\was found. "},
            "label",
            {1: "World", 2: "Sports", 3: "Business", 4: "Science or Technology"},
        ),
        "What is the topic of the following paragraph? Choose one from the option. "
        "Option: World, Sports, Business, Science or Technology.\n"
        "Title: Lake found\nText:  A lake\\was found. \n\nAnswer:",
    ),
    "dbpedia": (
        "fancyzhx/dbpedia_14",
        "dbpedia_14",
        "train",
        "test",
        classes(
            {"title": "Blauer Bote", "content": " Blauer Bote is a company."},
            "label",
            {
                0: "Company",
                1: "Educational Institution",
                2: "Artist",
                3: "Athlete",
                4: "Office Holder",
                5: "Mean of Transportation",
                6: "Building",
                7: "Natural Place",
                8: "Village",
                9: "Animal",
                10: "Plant",
                11: "Album",
                12: "Film",
                13: "Written Work",
            },
        ),
        "What is the topic of the following paragraph? Choose one from the option. "
        "Option: Company, Educational Institution, Artist, Athlete, Office Holder, "
        "Mean of Transportation, Building, Natural Place, Village, Animal, Plant, Album, Film, "
        "Written Work.\nTitle: Blauer Bote\nText:  Blauer Bote is a company.\n\nAnswer:",
    ),
    "yahoo": (
        "community-datasets/yahoo_answers_topics",
        "yahoo_answers_topics",
        "train",
        "test",
        classes(
            {
                "question_title": "Why rain?",
                "question_content": "It rains.",
                "best_answer": "Clouds.\\nMany.",
            },
            "topic",
            {
                0: "Society & Culture",
                1: "Science & Mathematics",
                2: "Health",
                3: "Education & Reference",
                4: "Computers & Internet",
                5: "Sports",
                6: "Business & Finance",
                7: "Entertainment & Music",
                8: "Family & Relationships",
                9: "Politics & Government",
            },
        ),
        "What is the topic of the following paragraph? Choose one from the option. "
        "Option: Society & Culture, Science & Mathematics, Health, Education & Reference, "
        "Computers & Internet, Sports, Business & Finance, Entertainment & Music, "
        "Family & Relationships, Politics & Government.\n"
        "Title: Why rain?\nQuestion: It rains.\nAnswer: Clouds.\\nMany.\n\nAnswer:",
    ),
    "imdb": (
        "stanfordnlp/imdb",
        "plain_text",
        "train",
        "test",
        classes({"text": "Dull.<br /><br />Very dull."}, "label", {0: "Bad", 1: "Good"}),
        "What is the sentiment of the following paragraph? Choose one from the option. "
        "Option: Good, Bad.\nDull.<br /><br />Very dull.\nAnswer:",
    ),
    "sst2": (
        "nyu-mll/glue",
        "sst2",
        "train",
        "validation",
        classes({"sentence": "a leaden parade "}, "label", {0: "Bad", 1: "Good"}),
        "What is the sentiment of the following paragraph? Choose one from the option. "
        "Option: Good, Bad.\nText: a leaden parade \nAnswer:",
    ),
    "mnli": (
        "nyu-mll/glue",
        "mnli",
        "train",
        "validation_matched",
        classes(
            {"premise": "It is late .", "hypothesis": "It is not early. "},
            "label",
            {0: "entailment", 1: "neutral", 2: "contradiction"},
        ),
        RELATION + "neutral, entailment, contradiction.\n"
        "sentence 1: It is late .\nsentence 2: It is not early. \nAnswer:",
    ),
    "qqp": (
        "nyu-mll/glue",
        "qqp",
        "train",
        "validation",
        classes(
            {"question1": "How deep is it?", "question2": 'How "deep" is a well?'},
            "label",
            {0: "False", 1: "True"},
        ),
        'Whether the "first sentence" and the "second sentence" have the same meaning? Choose one '
        "from the option. Option: False, True.\n"
        'first sentence: How deep is it?\nsecond sentence: How "deep" is a well?\nAnswer:',
    ),
    "rte": (
        "nyu-mll/glue",
        "rte",
        "train",
        "validation",
        classes(
            {"sentence1": "A bridge fell.", "sentence2": "Something fell."},
            "label",
            {0: "entailment", 1: "contradiction"},
        ),
        RELATION + "contradiction, entailment.\n"
        "sentence 1: A bridge fell.\nsentence 2: Something fell.\nAnswer:",
    ),
    "cb": (
        "aps/super_glue",
        "cb",
        "train",
        "validation",
        classes(
            {"premise": "B: Well, I know it rained.", "hypothesis": "it rained"},
            "label",
            {0: "entailment", 1: "contradiction", 2: "neutral"},
        ),
        RELATION + "entailment, contradiction, neutral.\n"
        "sentence 1: B: Well, I know it rained.\nsentence 2: it rained\nAnswer:",
    ),
    "copa": (
        "aps/super_glue",
        "copa",
        "train",
        "validation",
        [
            (
                {
                    "premise": "The pond froze.",
                    "choice1": "It was cold.",
                    "choice2": "It was warm.",
                    "question": "cause",
                    "label": 0,
                },
                "A",
            ),
            (
                {
                    "premise": "The pond froze.",
                    "choice1": "Fish flew.",
                    "choice2": "Children skated.",
                    "question": "effect",
                    "label": 1,
                },
                "B",
            ),
        ],
        "According to the following passage, is the question true or false? Choose one from the "
        'option. Option: A, B.\nWhich sentence is the cause of "The pond froze."? '
        "Choose one between A and B.\nA: It was cold.\nB: It was warm.\nAnswer:",
    ),
    "boolqa": (
        "aps/super_glue",
        "boolq",
        "train",
        "validation",
        classes(
            {"question": "is tar black", "passage": "Tar -- Tar is black."},
            "label",
            {0: "False", 1: "True"},
        ),
        "According to the following passage, is the question true or false? Choose one from the "
        "option. Option: True, False.\n"
        "question: is tar black\npassage: Tar -- Tar is black.\nAnswer:",
    ),
    "multirc": (
        "aps/super_glue",
        "multirc",
        "train",
        "validation",
        classes(
            {"paragraph": "Ida left at two. ", "question": "When did Ida go?", "answer": "At two"},
            "label",
            {0: "False", 1: "True"},
        ),
        "According to the following passage and question, is the candidate answer true or false? "
        "Choose one from the option. Option: False, True.\n"
        "paragraph: Ida left at two. \nquestion: When did Ida go?\n"
        "candidate answer: At two\nAnswer:",
    ),
    "wic": (
        "aps/super_glue",
        "wic",
        "train",
        "validation",
        classes(
            {"word": "bank", "sentence1": "The bank closed.", "sentence2": "The bank was muddy."},
            "label",
            {0: "False", 1: "True"},
        ),
        "Given a word and two sentences, whether the word is used with the same sense in both "
        "sentence? Choose one from the option. Option: True, False.\n"
        "word: bank\nThe bank closed.\nThe bank was muddy.\nAnswer:",
    ),
}


def save(mirror: Path, task: str, train: list[Record], test: list[Record]) -> None:
    """The data set of a task in the form its repository has."""
    repository, config, train_split, test_split, *_ = CASES[task]
    if task == "amazon":
        save_csv_set(mirror / repository, {"train": train, "test": test})
    elif task == "agnews":
        save_json_lines(mirror / repository / "train.jsonl", train)
        save_json_lines(mirror / repository / "test.jsonl", test)
    else:
        splits = {train_split: train, test_split: test}
        save_parquet_set(mirror / repository, {config or "default": splits})


def elsewhere(record: Record) -> Record:
    """Another record of the same class."""
    kept = ("question",) if "choice1" in record else ()
    return {
        key: f"Elsewhere: {value}" if isinstance(value, str) and key not in kept else value
        for key, value in record.items()
    }


def rows_of(mirror: Path, tmp_path: Path, task: str, split: str = "train") -> dict[str, str]:
    """Input -> output, as the task's published small size gives them."""
    (made,) = hub_tasks(
        "long_sequence" if task in LONG_SEQUENCE else "superni",
        [task],
        size="1000_per_task",
        draw_seed=0,
        mirror=str(mirror),
        cache=tmp_path / "cache",
    )
    return {row.input: row.output for row in made.splits[split].rows}


@pytest.mark.parametrize("task", CASES)
def test_long_sequence_rows_are_as_published(tmp_path: Path, task: str) -> None:
    *_, cases, prompt = CASES[task]
    train = [record for record, _ in cases]
    save(tmp_path / "mirror", task, train, [elsewhere(record) for record in train])
    rows = rows_of(tmp_path / "mirror", tmp_path, task)
    assert rows[prompt] == cases[0][1]
    assert sorted(rows.values()) == sorted(answer for _, answer in cases)
    # The answer follows the class, not the place among the rows.
    told_apart = {text: answer for text, answer in rows.items() if text != prompt}
    if task == "copa":
        assert told_apart == {
            prompt.replace("cause of", "effect of")
            .replace("It was cold.", "Fish flew.")
            .replace("It was warm.", "Children skated."): "B"
        }
    else:
        marks = {text.split("\nAnswer:")[0].rstrip().count("!"): a for text, a in rows.items()}
        assert [marks[key] for key in sorted(marks)] == [answer for _, answer in cases]


def test_every_published_task_has_a_case() -> None:
    for name, collection in COLLECTIONS.items():
        published = yaml.safe_load((Path(conf_dir()) / "benchmark" / f"{name}.yaml").read_text())
        assert set(published["orders"]["order1"]) == set(collection)
    assert set(CASES) == set(LONG_SEQUENCE)


def test_a_yahoo_question_without_content_is_its_title(tmp_path: Path) -> None:
    *_, cases, _ = CASES["yahoo"]
    train = [record for record, _ in cases]
    bare = {"question_title": "And snow?", "question_content": "", "best_answer": "", "topic": 2}
    nothing = {"question_title": " ", "question_content": "", "best_answer": "Yes.", "topic": 2}
    save(tmp_path / "mirror", "yahoo", [*train, bare, nothing], [elsewhere(r) for r in train])
    rows = rows_of(tmp_path / "mirror", tmp_path, "yahoo")
    (prompt,) = [text for text in rows if "And snow?" in text]
    assert prompt.endswith("Government.\nQuestion: And snow?\nAnswer: \n\nAnswer:")
    assert rows[prompt] == "Health"
    assert len(rows) == len(train) + 1


FULL_NAMES = {
    "task002": "task002_quoref_answer_generation",
    "task073": "task073_commonsenseqa_answer_generation",
    "task181": "task181_outcome_extraction",
    "task363": "task363_sst2_polarity_classification",
    "task511": "task511_reddit_tifu_long_text_summarization",
    "task591": "task591_sciq_answer_generation",
    "task639": "task639_multi_woz_user_utterance_generation",
    "task748": "task748_glucose_reverse_cause_event_detection",
    "task875": "task875_emotion_classification",
    "task1290": "task1290_xsum_summarization",
    "task1510": "task1510_evalution_relation_extraction",
    "task1572": "task1572_samsum_summary",
    "task1590": "task1590_diplomacy_text_generation",
    "task1687": "task1687_sentiment140_classification",
    "task1729": "task1729_personachat_generate_next",
}
DEFINITION = "Name the colour. Answer in one word. "


def save_on_hub(mirror: Path, task: str) -> None:
    """A line for each output."""
    name = FULL_NAMES[task]
    folder = "test" if task == "task181" else "train"
    lines = [
        {"task_name": name, "id": f"{task}-a", "definition": DEFINITION, "inputs": i, "targets": t}
        for i, t in INSTANCES
    ]
    repository = mirror / "Muennighoff" / "natural-instructions"
    save_json_lines(repository / folder / f"{name}_{folder}.jsonl", lines)
    save_json_lines(repository / "train" / "task9_other_train.jsonl", [{**lines[0], "inputs": "?"}])


def save_clone(mirror: Path, task: str) -> None:
    """One object with all instances, each with its outputs."""
    outputs: dict[str, list[str]] = {}
    for text, output in INSTANCES:
        outputs.setdefault(text, []).append(output)
    whole = {
        "Definition": [DEFINITION],
        "Positive Examples": [],
        "Instances": [{"id": f"{task}-a", "input": i, "output": o} for i, o in outputs.items()],
    }
    save_json_lines(mirror / "tasks" / f"{FULL_NAMES[task]}.json", [whole])


INSTANCES = [
    *((f" Snow {number} \nis?", f" white{number} ") for number in range(20)),
    (" Snow 0 \nis?", "a second output"),
    ("A sky without an answer", ""),
]


@pytest.mark.parametrize("task", SUPERNI)
@pytest.mark.parametrize("save_copy", [save_on_hub, save_clone])
def test_superni_rows_are_as_published(
    tmp_path: Path, task: str, save_copy: Callable[[Path, str], None]
) -> None:
    mirror = tmp_path / "mirror"
    save_copy(mirror, task)
    rows: dict[str, str] = {}
    for split, number in (("train", 16), ("dev", 2), ("test", 2)):
        some = rows_of(mirror, tmp_path, task, split)
        assert len(some) == number
        rows |= some
    prompt = "[INS] Name the colour. Answer in one word. \n [IN]  Snow 0 \nis?\n [OUT] "
    assert rows[prompt] == " white0 "
    assert len(rows) == 20


def test_superni_kinds_and_metrics_are_the_configs(tmp_path: Path) -> None:
    told = yaml.safe_load((Path(conf_dir()) / "benchmark" / "superni.yaml").read_text())
    for task, recipe in SUPERNI.items():
        expected = told["tasks"].get(task, told["default_task"])
        assert {"kind": recipe.kind, "metric": recipe.metric} == expected
