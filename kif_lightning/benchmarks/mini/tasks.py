"""The grammars of the bundled stream: each draws the body of a prompt for a given label.

No single word and no single position decides a task (the tests bound how far each gets): clauses
contrast, negations flip, other topics' words stand by, questions ask whether two things agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from kif_lightning.benchmarks.mini import lexicon as words

MOODS = ("Happy", "Unhappy")
YES_NO = ("Yes", "No")
LEVELS = ("devastated", "unhappy", "neutral", "happy", "overjoyed")
NLI = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True, kw_only=True)
class MiniTask:
    """One task: ``draw(random, label)`` gives the text between instruction and answer."""

    name: str
    instruction: str
    labels: tuple[str, ...]
    draw: Callable[[Random, str], str]

    def prompt(self, random: Random, label: str) -> str:
        """The whole input of a row whose output is ``label``."""
        options = ", ".join(self.labels)
        return f"{self.instruction} Choose one: {options}.\n{self.draw(random, label)}\nAnswer:"


# --- sentiment --------------------------------------------------------------------------------
def _good_bad(random: Random, label: str, extra: tuple[list[str], list[str]]) -> tuple[str, str]:
    """(an adjective of the label, one of the opposite)."""
    pools = ([*words.GOOD, *extra[0]], [*words.BAD, *extra[1]])
    own = MOODS.index(label)
    return random.choice(pools[own]), random.choice(pools[1 - own])


_FILM_WORDS = (words.GOOD_FILM, words.BAD_FILM)


def _imdb(random: Random, label: str) -> str:
    first, second = random.sample(words.FILM_PARTS, 2)
    (own, opposite), (again, _) = (_good_bad(random, label, _FILM_WORDS) for _ in range(2))
    kinds = {"agree": 50, "but": 12, "although": 12, "though": 12, "negated": 14}
    (kind,) = random.choices(list(kinds), list(kinds.values()))
    opinion = {
        "agree": f"The {first} was {own} and the {second} was {again}.",
        "but": f"The {first} was {opposite}, but the {second} was {own}.",
        "although": f"Although the {first} was {opposite}, the {second} was {own}.",
        "though": f"The {first} was {own}, though the {second} was {opposite}.",
        "negated": f"The {first} was {random.choice(words.NEGATIONS)} {opposite}.",
    }[kind]
    film, who = random.choice(words.FILMS), random.choice(words.COMPANIONS)
    return f"I watched this {film} with my {who}. {opinion}"


def _sst2(random: Random, label: str) -> str:
    film = random.choice(words.FILMS)
    part = random.choice(words.FILM_PARTS)
    (own, opposite), (again, _) = (_good_bad(random, label, _FILM_WORDS) for _ in range(2))
    kind = random.choices(("agree", "turn", "negated"), (55, 25, 20))[0]
    text = {
        "agree": f"a {own} {film} with {again} {part}",
        "turn": f"a {opposite} {film}, yet the {part} makes it {own}",
        "negated": f"a {film} whose {part} is {random.choice(words.NEGATIONS)} {opposite}",
    }[kind]
    return f"Text: {text}"


def _degree(random: Random, level: str, good: Sequence[str], bad: Sequence[str]) -> str:
    """'truly fresh' for overjoyed, 'rather fresh' for happy, 'average' for neutral."""
    if level == "neutral":
        return random.choice(words.NEUTRAL)
    place = LEVELS.index(level)
    degree = random.choice(words.STRONG if place in (0, 4) else words.MILD)
    return f"{degree} {random.choice(good if place > 2 else bad)}"


def _two_voices(random: Random, level: str, part: str, good: list[str], bad: list[str]) -> str:
    """The writer's opinion counts; somebody else's may stand before or after it."""
    mine = f"I found the {part} {_degree(random, level, good, bad)}."
    if random.random() < 0.5:
        return mine
    other_level = random.choice([other for other in LEVELS if other != level])
    who = random.choice(words.COMPANIONS)
    other = f"My {who} called it {_degree(random, other_level, good, bad)}."
    return f"{mine} {other}" if random.random() < 0.5 else f"{other} {mine}"


def _yelp(random: Random, label: str) -> str:
    good, bad = [*words.GOOD, *words.GOOD_FOOD], [*words.BAD, *words.BAD_FOOD]
    place, part = random.choice(words.PLACES_TO_EAT), random.choice(words.FOOD_PARTS)
    town = random.choice(words.TOWNS)
    return f"Text: We ate at the {place} in {town}. {_two_voices(random, label, part, good, bad)}"


def _amazon(random: Random, label: str) -> str:
    good = [*words.GOOD, *words.GOOD_PRODUCT, *words.BAD_FILM]
    bad = [*words.BAD, *words.BAD_PRODUCT, *words.GOOD_FILM]
    product, part = random.choice(words.PRODUCTS), random.choice(words.PRODUCT_PARTS)
    return f"Title: {product}\nText: {_two_voices(random, label, part, good, bad)}"


# --- topics -----------------------------------------------------------------------------------
def _invented_name(random: Random) -> str:
    return (
        random.choice(words.SYLLABLES)
        + random.choice(words.SYLLABLES)
        + random.choice(words.ENDINGS)
    ).capitalize()


def _dbpedia(random: Random, label: str) -> str:
    name, town = _invented_name(random), random.choice(words.TOWNS)
    kind = random.choice(words.ENTITY_KINDS[label])
    other_label = random.choice([other for other in words.ENTITY_KINDS if other != label])
    other = random.choice(words.ENTITY_KINDS[other_label])
    text = random.choice(
        (
            f"{name} is a {kind} near the {other} of {town}.",
            f"Not far from a {other} in {town}, {name} is a well known {kind}.",
            f"{name} is a {kind} in {town}. It should not be confused with the {other}.",
            f"The {other} of {town} shares its name with {name}, which is a {kind}.",
        )
    )
    return f"Title: {name}\nText: {text}"


def _topic_words(random: Random, label: str, pools: dict[str, list[str]]) -> list[str]:
    """Three words in any order: two of the label's topic and, four times in five, a foreign one."""
    own = random.sample(pools[label], 3)
    if random.random() < 0.2:
        return own
    other_label = random.choice([other for other in pools if other != label])
    foreign = [word for word in pools[other_label] if word not in pools[label]]
    mixed = [*own[:2], random.choice(foreign)]
    random.shuffle(mixed)
    return mixed


def _agnews(random: Random, label: str) -> str:
    first, second, third = _topic_words(random, label, words.NEWS)
    town = random.choice(words.TOWNS)
    text = random.choice(words.NEWS_FRAMES).format(second, third, town=town)
    return f"Title: The {first}\nText: {text}"


def _yahoo(random: Random, label: str) -> str:
    first, second, third = _topic_words(random, label, words.ADVICE)
    title = random.choice(words.ADVICE_TITLES).format(first)
    text = random.choice(words.ADVICE_ANSWERS).format(second, third)
    return f"Title: {title}\nAnswer: {text}"


# --- inference --------------------------------------------------------------------------------
def _event(random: Random) -> tuple[str, str, str]:
    """(verb, its past, its object)."""
    (base, past), things = random.choice(list(words.EVENTS.items()))
    return base, past, random.choice(things)


def _other(random: Random, pool: Sequence[str], *taken: str) -> str:
    return random.choice([word for word in pool if word not in taken])


def _clause(name: str, base: str, past: str, thing: str, negated: bool) -> str:
    return f"{name} did not {base} the {thing}" if negated else f"{name} {past} the {thing}"


def _sentences(first: str, second: str) -> str:
    return f"sentence 1: {first}\nsentence 2: {second}"


def _mnli(random: Random, label: str) -> str:
    """What happened with a detail happened; what did not happen did not happen with a detail."""
    name = random.choice(words.NAMES)
    base, past, thing = _event(random)
    negated = random.random() < 0.5
    detail, another = _detail(random), _detail(random)
    first_end = f" {detail}" if not negated and random.random() < 0.7 else ""
    first = f"{_clause(name, base, past, thing, negated)}{first_end}."
    if label != "neutral":
        negated_then = negated == (label == "entailment")
        second_end = f" {detail}" if negated else first_end
        second_end = second_end if random.random() < 0.5 else ""
    elif negated or random.random() < 0.6:  # of another person the first sentence tells nothing
        name, negated_then = _other(random, words.NAMES, name), random.random() < 0.5
        second_end = f" {another}" if random.random() < 0.5 else ""
    else:  # nor of another detail
        negated_then = negated
        second_end = f" {another}" if another != detail else f" {another} {_detail(random)}"
    return _sentences(first, f"{_clause(name, base, past, thing, negated_then)}{second_end}.")


def _detail(random: Random) -> str:
    return random.choice([f"in the {random.choice(words.PLACES)}", random.choice(words.TIMES)])


def _cb(random: Random, label: str) -> str:
    speaker, name = random.sample(words.NAMES, 2)
    base, past, thing = _event(random)
    negated = random.random() < 0.5
    if label == "neutral":
        verb, flipped = random.choice(words.THINK), random.random() < 0.5
    elif random.random() < 0.8:
        verb, flipped = random.choice(words.KNOW), negated == (label == "entailment")
    else:
        verb, flipped = random.choice(words.DENY), negated != (label == "entailment")
    first = f"{speaker} {verb} that {_clause(name, base, past, thing, negated)}."
    return _sentences(first, f"{_clause(name, base, past, thing, flipped)}.")


def _rte(random: Random, label: str) -> str:
    name, witness = random.sample(words.NAMES, 2)
    town, job = random.choice(words.TOWNS), random.choice(words.JOBS)
    base, past, thing = _event(random)
    first = random.choice(
        (
            f"{name}, a {job} from {town}, {past} the {thing}, as {witness} says.",
            f"{witness} says that {name}, a {job} from {town}, {past} the {thing}.",
        )
    )
    told = {"job": job, "thing": thing}
    asked = random.choice(("job", "thing", "thing"))
    if label == "contradiction":
        pool = words.JOBS if asked == "job" else words.EVENTS[base, past]
        told[asked] = _other(random, pool, told[asked])
    second = {
        "thing": f"{name} {past} the {told['thing']}.",
        "job": f"{name} is a {told['job']}.",
    }[asked]
    return _sentences(first, second)


def _qqp(random: Random, label: str) -> str:
    duty, thing = random.choice(words.DUTIES), random.choice(words.THINGS)
    frames = random.sample(words.QUESTION_FRAMES, 2)
    second = (duty, thing)
    if label == "False":
        second = random.choice(
            (
                (_other(random, words.DUTIES, duty), thing),
                (duty, _other(random, words.THINGS, thing)),
            )
        )
    return (
        f"first sentence: {frames[0].format(duty, thing)}\n"
        f"second sentence: {frames[1].format(*second)}"
    )


def _wic(random: Random, label: str) -> str:
    word, senses = random.choice(list(words.SENSES.items()))
    first = random.randrange(2)
    second = first if label == "Yes" else 1 - first
    texts: list[str] = []
    for sense in (first, second):
        while True:
            text = " ".join(random.choice(part) for part in senses[sense]) + "."
            if text not in texts:
                texts.append(text)
                break
    return f"word: {word}\n" + "\n".join(texts)


def _copa(random: Random, label: str) -> str:
    """A deed and what follows; the wrong answer has another object, or what another deed does."""
    name = random.choice(words.NAMES)
    verb, other_verb = random.sample(list(words.EFFECTS), 2)
    ((past, things),) = [(p, t) for (base, p), t in words.EVENTS.items() if base == verb]
    thing = random.choice(things)
    other_past = next(p for base, p in words.EVENTS if base == other_verb)
    wrong_thing = random.random() < 0.5
    its_thing = _other(random, things, thing) if wrong_thing else thing
    deed, effect = f"{name} {past} the {thing}", f"{name} {words.EFFECTS[verb]} the {thing}"
    if random.random() < 0.5:
        kind, given, right = "effect", deed, effect
        wrong = f"{name} {words.EFFECTS[verb if wrong_thing else other_verb]} the {its_thing}"
    else:
        kind, given, right = "cause", effect, deed
        wrong = f"{name} {past if wrong_thing else other_past} the {its_thing}"
    pair = (right, wrong) if label == "One" else (wrong, right)
    return f'Which is the {kind} of "{given}."?\none: {pair[0]}.\ntwo: {pair[1]}.'


def _boolqa(random: Random, label: str) -> str:
    things = random.sample(words.THINGS, 3)
    colours = random.sample(words.COLOURS, 3)
    asked = random.randrange(3)
    colour = colours[asked] if label == "Yes" else _other(random, colours, colours[asked])
    facts = [f"The {t} is {c}." for t, c in zip(things, colours, strict=True)]
    return f"question: is the {things[asked]} {colour}\npassage: {' '.join(facts)}"


def _multirc(random: Random, label: str) -> str:
    names = random.sample(words.NAMES, 3)
    events = [_event(random) for _ in names]
    while len({event[0] for event in events}) < len(events):
        events = [_event(random) for _ in names]
    asked = random.randrange(3)
    answer = names[asked] if label == "Yes" else _other(random, names, names[asked])
    facts = [
        f"{name} {past} the {thing}." for name, (_, past, thing) in zip(names, events, strict=True)
    ]
    _, past, thing = events[asked]
    return (
        f"paragraph: {' '.join(facts)}\n"
        f"question: Who {past} the {thing}?\ncandidate answer: {answer}"
    )


_SENTIMENT = "What is the sentiment of the following paragraph?"
_TOPIC = "What is the topic of the following paragraph?"
_LOGIC = "What is the logical relationship between sentence 1 and sentence 2?"
TASKS: tuple[MiniTask, ...] = (
    MiniTask(name="mini_mnli", instruction=_LOGIC, labels=NLI, draw=_mnli),
    MiniTask(
        name="mini_cb",
        instruction=_LOGIC,
        labels=("entailment", "contradiction", "neutral"),
        draw=_cb,
    ),
    MiniTask(
        name="mini_wic",
        instruction="Given a word and two sentences, is the word used with the same sense in both?",
        labels=YES_NO,
        draw=_wic,
    ),
    MiniTask(
        name="mini_copa",
        instruction="Which of the two sentences fits?",
        labels=("One", "Two"),
        draw=_copa,
    ),
    MiniTask(
        name="mini_qqp",
        instruction="Have the first sentence and the second sentence the same meaning?",
        labels=("False", "True"),
        draw=_qqp,
    ),
    MiniTask(
        name="mini_boolqa",
        instruction="According to the following passage, is the answer to the question yes or no?",
        labels=YES_NO,
        draw=_boolqa,
    ),
    MiniTask(
        name="mini_rte", instruction=_LOGIC, labels=("contradiction", "entailment"), draw=_rte
    ),
    MiniTask(name="mini_imdb", instruction=_SENTIMENT, labels=MOODS, draw=_imdb),
    MiniTask(name="mini_yelp", instruction=_SENTIMENT, labels=LEVELS, draw=_yelp),
    MiniTask(name="mini_amazon", instruction=_SENTIMENT, labels=LEVELS, draw=_amazon),
    MiniTask(name="mini_sst2", instruction=_SENTIMENT, labels=MOODS, draw=_sst2),
    MiniTask(
        name="mini_dbpedia", instruction=_TOPIC, labels=tuple(words.ENTITY_KINDS), draw=_dbpedia
    ),
    MiniTask(name="mini_agnews", instruction=_TOPIC, labels=tuple(words.NEWS), draw=_agnews),
    MiniTask(
        name="mini_multirc",
        instruction="According to the paragraph and question, is the candidate answer right?",
        labels=("No", "Yes"),
        draw=_multirc,
    ),
    MiniTask(name="mini_yahoo", instruction=_TOPIC, labels=tuple(words.ADVICE), draw=_yahoo),
)
