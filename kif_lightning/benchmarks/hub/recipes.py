"""How each task's rows are made of its public data set: all of it data.

Prompts and label words are those of the published rows (TaSL's files, which O-LoRA's and SAPT's
agree with): fields of real rows of all 30 tasks, put through these templates, give the same rows
text for text, white space included. What may still differ from them, and why:

========= =========================================================================================
task      difference
========= =========================================================================================
all       which rows are drawn, their ids and their order; train, dev and test share no input here
agnews    none: ``fancyzhx/ag_news`` joins title and text, so sh0416's copy, which does not, is used
amazon    no copy by the authors is on the hub: a user's upload of the original CSV files is read
yahoo     500 test rows a class, where the published files that could be had hold 500 in all
mnli      test is ``validation_matched``; whether the published rows are from it is not known
rte       read from GLUE; SuperGLUE's is the same set in other columns
SuperNI   of an instance with several outputs the first; tweets and dialogues keep their edge spaces
========= =========================================================================================

GLUE and SuperGLUE keep the labels of their test splits to themselves: ``validation`` is the test.
Repositories, configs, splits, columns and class orders are as their cards and public code have
them, and a revision is pinned where one is known; none was downloaded when this was written. Where
a data set names its classes, :mod:`~kif_lightning.benchmarks.hub.source` checks them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from string import Formatter

from kif_lightning.interfaces import TaskKind


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One task.

    Attributes:
        repository: ``owner/name`` on the hub, and below a mirror folder.
        config: of the data set.
        revision: the commit; None: the newest.
        data_files: a pattern of the files to read; None: the config's.
        train: hub split of train and dev rows.
        test: hub split of test rows; None: they are a share of ``train``.
        prompts: templates of ``{column}``; the first whose columns are all filled is the row's.
        may_be_blank: columns that count as filled when nothing stands in them.
        answer: the column of the answer.
        words: the answers, in the order of the data set's classes; empty: the column's text.
        classes: what the data set calls its classes, in the same order; empty: it has no names.
        first_class: the number of the first class.
        part: how many rows of ``train`` and of ``test`` are enough, as the set is too large to be
            read whole; None: all.
        kind: of the task.
        metric: of the task.
    """

    repository: str
    config: str | None = None
    revision: str | None = None
    data_files: str | None = None
    train: str = "train"
    test: str | None = "test"
    prompts: Sequence[str]
    may_be_blank: Sequence[str] = ()
    answer: str = "label"
    words: Sequence[str] = ()
    classes: Sequence[str] = ()
    first_class: int = 0
    part: int | None = None
    kind: TaskKind = "classification"
    metric: str = "exact_match"

    @cached_property
    def columns(self) -> tuple[tuple[str, ...], ...]:
        """Those of each prompt."""
        parse = Formatter().parse
        return tuple(tuple(name for _, name, _, _ in parse(p) if name) for p in self.prompts)

    @cached_property
    def word_of(self) -> dict[object, str]:
        """Class number -> answer."""
        return dict(enumerate(self.words, start=self.first_class))


def _question(question: str, options: Sequence[str], rest: str) -> str:
    return f"{question} Choose one from the option. Option: {', '.join(options)}.\n{rest}Answer:"


_TOPIC = "What is the topic of the following paragraph?"
_SENTIMENT = "What is the sentiment of the following paragraph?"
_RELATION = 'What is the logical relationship between the "sentence 1" and the "sentence 2"?'
_PASSAGE = "According to the following passage, is the question true or false?"

_STARS = ("very negative", "negative", "neutral", "positive", "very positive")
_NEWS = ("World", "Sports", "Business", "Science or Technology")
_ONTOLOGY = (
    "Company",
    "Educational Institution",
    "Artist",
    "Athlete",
    "Office Holder",
    "Mean of Transportation",
    "Building",
    "Natural Place",
    "Village",
    "Animal",
    "Plant",
    "Album",
    "Film",
    "Written Work",
)
_FORUM = (
    "Society & Culture",
    "Science & Mathematics",
    "Health",
    "Education & Reference",
    "Computers & Internet",
    "Sports",
    "Business & Finance",
    "Entertainment & Music",
    "Family & Relationships",
    "Politics & Government",
)
_FALSE_TRUE = ("False", "True")

_GLUE = Recipe(
    repository="nyu-mll/glue",
    revision="bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
    test="validation",
    prompts=(),
)
_SUPER_GLUE = replace(
    _GLUE,
    repository="aps/super_glue",
    revision="3de24cf8022e94f4ee4b9d55a6f539891524d646",
    words=_FALSE_TRUE,
    classes=_FALSE_TRUE,
)

LONG_SEQUENCE: Mapping[str, Recipe] = {
    "yelp": Recipe(
        repository="Yelp/yelp_review_full",
        config="yelp_review_full",
        revision="c1f9ee939b7d05667af864ee1cb066393154bf85",
        prompts=(_question(_SENTIMENT, _STARS, "Text: {text}\n\n"),),
        words=_STARS,
        classes=("1 star", "2 star", "3 stars", "4 stars", "5 stars"),
        part=30_000,
    ),
    # CSV files, which can only be read from their start: a larger part, as neighbours in it review
    # the same product. Classes from 1.
    "amazon": Recipe(
        repository="yassiracharki/Amazon_Reviews_for_Sentiment_Analysis_fine_grained_5_classes",
        prompts=(_question(_SENTIMENT, _STARS, "Title: {review_title}\nText: {review_text}\n\n"),),
        answer="class_index",
        words=_STARS,
        first_class=1,
        part=200_000,
    ),
    # JSON lines of the original CSV files. Classes from 1.
    "agnews": Recipe(
        repository="sh0416/ag_news",
        revision="70e3fa1915be9a8daebec5e840f20df9a8e18793",
        prompts=(_question(_TOPIC, _NEWS, "Title: {title}\nText: {description}\n\n"),),
        words=_NEWS,
        first_class=1,
    ),
    # Sorted by class, so read whole. Its texts begin with a space, as in the published rows.
    "dbpedia": Recipe(
        repository="fancyzhx/dbpedia_14",
        config="dbpedia_14",
        revision="9abd46cf7fc8b4c64290f26993c540b92aa145ac",
        prompts=(_question(_TOPIC, _ONTOLOGY, "Title: {title}\nText: {content}\n\n"),),
        words=_ONTOLOGY,
        classes=tuple(word.title().replace(" ", "") for word in _ONTOLOGY),
    ),
    # Many questions have no further content: then the title is the question.
    "yahoo": Recipe(
        repository="community-datasets/yahoo_answers_topics",
        config="yahoo_answers_topics",
        revision="6652a1e7c94f7260a0bfd0c9092dd48e2d536ea1",
        prompts=tuple(
            _question(_TOPIC, _FORUM, f"{asked}\nAnswer: {{best_answer}}\n\n")
            for asked in (
                "Title: {question_title}\nQuestion: {question_content}",
                "Question: {question_title}",
            )
        ),
        may_be_blank=("best_answer",),
        answer="topic",
        words=_FORUM,
        classes=_FORUM,
        part=30_000,
    ),
    "imdb": Recipe(
        repository="stanfordnlp/imdb",
        config="plain_text",
        revision="e6281661ce1c48d982bc483cf8a173c1bbeb5d31",
        prompts=(_question(_SENTIMENT, ("Good", "Bad"), "{text}\n"),),
        words=("Bad", "Good"),
        classes=("neg", "pos"),
    ),
    "sst2": replace(
        _GLUE,
        config="sst2",
        prompts=(_question(_SENTIMENT, ("Good", "Bad"), "Text: {sentence}\n"),),
        words=("Bad", "Good"),
        classes=("negative", "positive"),
    ),
    "mnli": replace(
        _GLUE,
        config="mnli",
        test="validation_matched",
        prompts=(
            _question(
                _RELATION,
                ("neutral", "entailment", "contradiction"),
                "sentence 1: {premise}\nsentence 2: {hypothesis}\n",
            ),
        ),
        words=("entailment", "neutral", "contradiction"),
        classes=("entailment", "neutral", "contradiction"),
    ),
    "qqp": replace(
        _GLUE,
        config="qqp",
        prompts=(
            _question(
                'Whether the "first sentence" and the "second sentence" have the same meaning?',
                _FALSE_TRUE,
                "first sentence: {question1}\nsecond sentence: {question2}\n",
            ),
        ),
        words=_FALSE_TRUE,
        classes=("not_duplicate", "duplicate"),
    ),
    "rte": replace(
        _GLUE,
        config="rte",
        prompts=(
            _question(
                _RELATION,
                ("contradiction", "entailment"),
                "sentence 1: {sentence1}\nsentence 2: {sentence2}\n",
            ),
        ),
        words=("entailment", "contradiction"),
        classes=("entailment", "not_entailment"),
    ),
    "cb": replace(
        _SUPER_GLUE,
        config="cb",
        prompts=(
            _question(
                _RELATION,
                ("entailment", "contradiction", "neutral"),
                "sentence 1: {premise}\nsentence 2: {hypothesis}\n",
            ),
        ),
        words=("entailment", "contradiction", "neutral"),
        classes=("entailment", "contradiction", "neutral"),
    ),
    # The question about a passage is the published one, though there is no passage.
    "copa": replace(
        _SUPER_GLUE,
        config="copa",
        prompts=(
            _question(
                _PASSAGE,
                ("A", "B"),
                'Which sentence is the {question} of "{premise}"? Choose one between A and B.\n'
                "A: {choice1}\nB: {choice2}\n",
            ),
        ),
        words=("A", "B"),
        classes=("choice1", "choice2"),
    ),
    "boolqa": replace(
        _SUPER_GLUE,
        config="boolq",
        prompts=(
            _question(_PASSAGE, ("True", "False"), "question: {question}\npassage: {passage}\n"),
        ),
    ),
    "multirc": replace(
        _SUPER_GLUE,
        config="multirc",
        prompts=(
            _question(
                "According to the following passage and question, is the candidate answer true or "
                "false?",
                _FALSE_TRUE,
                "paragraph: {paragraph}\nquestion: {question}\ncandidate answer: {answer}\n",
            ),
        ),
    ),
    "wic": replace(
        _SUPER_GLUE,
        config="wic",
        prompts=(
            _question(
                "Given a word and two sentences, whether the word is used with the same sense in "
                "both sentence?",
                ("True", "False"),
                "word: {word}\n{sentence1}\n{sentence2}\n",
            ),
        ),
    ),
}

_INSTRUCTIONS = (
    "task002_quoref_answer_generation",
    "task073_commonsenseqa_answer_generation",
    "task181_outcome_extraction",
    "task363_sst2_polarity_classification",
    "task511_reddit_tifu_long_text_summarization",
    "task591_sciq_answer_generation",
    "task639_multi_woz_user_utterance_generation",
    "task748_glucose_reverse_cause_event_detection",
    "task875_emotion_classification",
    "task1290_xsum_summarization",
    "task1510_evalution_relation_extraction",
    "task1572_samsum_summary",
    "task1590_diplomacy_text_generation",
    "task1687_sentiment140_classification",
    "task1729_personachat_generate_next",
)
_WITH_LABELS = ("task073", "task363", "task875", "task1687")

# A file for each task, train/<task>_train.jsonl or test/<task>_test.jsonl, whichever split of
# theirs the task is in; an instance with several outputs is several lines.
SUPERNI: Mapping[str, Recipe] = {
    full_name.split("_")[0]: Recipe(
        repository="Muennighoff/natural-instructions",
        revision="a29a9757125f4bb1c26445ad0d2ef7d9b2cc9c4c",
        data_files=f"*/{full_name}_*.jsonl",
        test=None,
        prompts=("[INS] {definition}\n [IN] {inputs}\n [OUT] ",),
        answer="targets",
        kind="classification" if full_name.startswith(_WITH_LABELS) else "generation",
        metric="exact_match" if full_name.startswith(_WITH_LABELS) else "rouge_l",
    )
    for full_name in _INSTRUCTIONS
}

COLLECTIONS: Mapping[str, Mapping[str, Recipe]] = {
    "long_sequence": LONG_SEQUENCE,
    "superni": SUPERNI,
}
