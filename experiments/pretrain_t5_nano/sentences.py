"""Plain sentences in the manner of the bundled stream, but with none of its content words.

Each kind of text shows one thing a language model should know: who did what, which thing has which
property, what follows from a sentence, what two questions have in common, what somebody's words say
about a meal. None has the form of a task's prompt. ``|...|`` marks words that follow from the rest:
span corruption prefers them (salient span masking).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

LEXICON: dict[str, list[str]] = json.loads(Path(__file__).with_name("words.json").read_text())
NAMES = (
    "tom mary peter susan paul jane george alice robert helen simon nora oscar ruth walter lucy "
    "philip sarah victor rose edward marie arthur ellen jack kate"
).split()
VERBS = (
    "bring brought,cut cut,drop dropped,hide hid,kick kicked,"
    "push pushed,remove removed,send sent,take took,throw threw,"
    "want wanted,borrow borrowed,burn burned,check checked,collect collected,"
    "deliver delivered,destroy destroyed,examine examined,measure measured,mix mixed,pack packed,"
    "protect protected,rent rented,return returned,share shared,test tested,trade traded,"
    "grab grabbed,inspect inspected,make made,admire admired,design designed"
)
NICE = (
    "good nice lovely fine fantastic marvelous terrific gorgeous magnificent outstanding exquisite "
    "fabulous glorious elegant admirable tasty delicious comfortable worthy refined"
).split()
NASTY = (
    "awful horrible nasty lousy dismal grim ghastly rotten shabby miserable hideous sloppy filthy "
    "gloomy rude worthless crude harsh bleak annoying"
).split()
SO_SO = "acceptable tolerable passable normal regular moderate".split()
VERY = "really so deeply terribly".split()
A_BIT = "slightly mildly partly a-bit".split()
KIN = "mother father uncle wife husband boss".split()
OCCASIONS = "trip meal party show journey stay".split()
EVENT_VERBS = [tuple(pair.split()) for pair in VERBS.split(",")]
THINGS = LEXICON["thing"] + LEXICON["food"]
PLACES = LEXICON["place"]
QUALITIES = LEXICON["quality"]


def _fact(who: str, verb: tuple[str, ...], what: str, negated: bool) -> str:
    return f"{who} did not {verb[0]} the {what}" if negated else f"{who} {verb[1]} the {what}"


def properties(random: Random) -> str:
    """Which thing has which property."""
    number = random.choice((2, 3, 3, 4))
    things, kinds = random.sample(THINGS, number), random.sample(QUALITIES, number)
    facts = " ".join(f"the {t} is {q}." for t, q in zip(things, kinds, strict=True))
    asked = random.randrange(number)
    agrees = random.random() < 0.5
    said = kinds[asked] if agrees else random.choice([k for k in kinds if k != kinds[asked]])
    thing, answer = things[asked], "yes" if agrees else "no"
    return random.choice(
        (
            f"{facts} so the {thing} is |{kinds[asked]}|.",
            f"{facts} so the |{thing}| is {kinds[asked]}.",
            f"{facts} is the {thing} {said}? |{answer}|.",
            f"is the {thing} {said}? {facts} |{answer}|, the {thing} is |{kinds[asked]}|.",
            f"is the {thing} {said}? look: {facts} so |{answer}|.",
            f"{facts} it is |{'correct' if agrees else 'wrong'}| that the {thing} is {said}.",
            f"it is |{'correct' if agrees else 'wrong'}| that the {thing} is {said}, as {facts}",
        )
    )


def deeds(random: Random) -> str:
    """Who did what."""
    number = random.choice((2, 3, 3))
    names, things = random.sample(NAMES, number), random.sample(THINGS, number)
    verbs = random.sample(EVENT_VERBS, number)
    facts = [_fact(n, v, t, False) for n, v, t in zip(names, verbs, things, strict=True)]
    story = " ".join(f"{fact}." for fact in facts)
    asked = random.randrange(number)
    who, verb, what = names[asked], verbs[asked], things[asked]
    agrees = random.random() < 0.5
    said = who if agrees else random.choice([name for name in names if name != who])
    answer = "yes" if agrees else "no"
    return random.choice(
        (
            f"{story} who {verb[1]} the {what}? |{who}| did.",
            f"{story} what did {who} {verb[0]}? the |{what}|.",
            f"{story} who {verb[1]} the {what}? was it {said}? |{answer}|, it was |{who}|.",
            f"{story} did {said} {verb[0]} the {what}? |{answer}|.",
            f"{story} {said} |{'did' if agrees else 'did not'}| {verb[0]} the {what}.",
            f"{story} it is |{'correct' if agrees else 'wrong'}| that {said} {verb[1]} the {what}.",
        )
    )


def consequences(random: Random) -> str:
    """What follows from a sentence, what it excludes, what it leaves open."""
    who, other = random.sample(NAMES, 2)
    verb, (what, another) = random.choice(EVENT_VERBS), random.sample(THINGS, 2)
    place, far = random.sample(PLACES, 2)
    person, job = random.sample(LEXICON["person"], 2)
    negated = random.random() < 0.4
    detail = random.choice((f" in the {place}", f" with {other}", ""))
    told = _fact(who, verb, what, negated)
    told_more = told if negated else told + detail
    verdict = random.choice(("correct", "wrong", "unknown"))
    if verdict == "unknown":
        second = random.choice(
            (_fact(other, verb, what, negated), _fact(who, verb, another, random.random() < 0.5))
        )
        if not negated and not detail and random.random() < 0.4:
            second = f"{told} in the {far}"
    else:
        second = _fact(who, verb, what, negated == (verdict == "correct"))
        if negated:
            second += detail
    opening = random.choice(
        (
            f"{told_more}.",
            f"{told_more}.",
            f"{other} is sure that {told}.",
            f"{who} is a {person} from {place}. {told_more}.",
        )
    )
    if random.random() < 0.3:
        verdict, opening = (
            "unknown",
            f"{other} {random.choice(('wonders if', 'is unsure whether'))} {told}.",
        )
        second = _fact(who, verb, what, random.random() < 0.5)
    elif random.random() < 0.15 and verdict != "unknown":
        verdict = "wrong" if verdict == "correct" else "correct"
        opening = f"{other} was mistaken that {told}."
    elif random.random() < 0.25:
        verdict = random.choice(("correct", "wrong"))
        agrees = verdict == "correct"
        opening = f"{who}, a {person} from {place}, {verb[1]} the {what}."
        second = random.choice(
            (
                f"{who} is a {person if agrees else job}",
                f"{who} comes from {place if agrees else far}",
                f"{who} {verb[1]} the {what if agrees else another}",
                f"{who if agrees else other} {verb[1]} the {what}",
            )
        )
    ending = {
        "correct": "that is |correct|",
        "wrong": "that is |wrong|",
        "unknown": "that is |unknown|",
    }
    return random.choice(
        (
            f"{opening} then {second}? {ending[verdict]}.",
            f"{opening} {second}: {ending[verdict]}.",
            f"it is |{verdict}| whether {second}, for {opening}"
            if verdict == "unknown"
            else f"it is |{verdict}| that {second}, for {opening}",
        )
    )


def questions(random: Random) -> str:
    """Two ways to ask: the same or not."""
    verb, thing = random.choice(EVENT_VERBS)[0], random.choice(THINGS)
    asks = random.sample(
        (
            "how do i {} a {}?",
            "how could one {} a {}?",
            "tell us how to {} a {}.",
            "what must you know to {} a {}?",
            "who can {} a {}?",
            "please {} a {} for us.",
        ),
        2,
    )
    second = (verb, thing)
    same = random.random() < 0.5
    if not same:
        changed = random.random() < 0.5
        second = (
            (random.choice([v[0] for v in EVENT_VERBS if v[0] != verb]), thing)
            if changed
            else (verb, random.choice([t for t in THINGS if t != thing]))
        )
    first_text, second_text = asks[0].format(verb, thing), asks[1].format(*second)
    verdict = "the same" if same else "something else"
    return random.choice(
        (
            f"{first_text} {second_text} they want |{verdict}|.",
            f"she said: {first_text} he said: {second_text} he wanted |{verdict}|.",
            f"they want |{verdict}|: {first_text} {second_text}",
        )
    )


def feelings(random: Random) -> str:
    """What words say about an occasion, and how people felt."""
    good = random.random() < 0.5
    own, opposite = (NICE, NASTY) if good else (NASTY, NICE)
    first, second = random.sample(THINGS, 2)
    mood = "happy" if good else "unhappy"
    occasion = random.choice(OCCASIONS)
    kind = random.randrange(7)
    if kind < 3:
        level = random.choice(("strong", "mild", "none"))
        word = {
            "strong": f"{random.choice(VERY)} {random.choice(own)}",
            "mild": f"{random.choice(A_BIT)} {random.choice(own)}",
            "none": random.choice(SO_SO),
        }[level]
        felt = {
            "strong": "overjoyed" if good else "devastated",
            "mild": mood,
            "none": "neither happy nor unhappy",
        }[level]
        kin, name = random.choice(KIN), random.choice(NAMES)
        other_good = random.random() < 0.5
        other = random.choice(NICE if other_good else NASTY)
        other_felt = "happy" if other_good else "unhappy"
        one, two = f"for {name} the {first} was {word}.", f"for the {kin} it was {other}."
        if random.random() < 0.5:
            return f"the {occasion}: {one} so {name} was |{felt}|."
        if random.random() < 0.5:
            one, two = two, one
        return random.choice(
            (
                f"the {occasion}: {one} {two} so {name} was |{felt}|.",
                f"the {occasion}: {one} {two} so the {kin} was |{other_felt}|.",
            )
        )
    mine, again, not_mine = random.choice(own), random.choice(own), random.choice(opposite)
    no = random.choice(("not", "never", "hardly", "far from"))
    opinion = (
        f"the {first} was {mine} and the {second} was {again}",
        f"the {first} was {not_mine}, but the {second} was {mine}",
        f"although the {first} was {not_mine}, the {second} was {mine}",
        f"the {first} was {no} {not_mine}",
    )[kind - 3]
    return random.choice(
        (
            f"we remember the {occasion}. {opinion}. so we were |{mood}|.",
            f"the {occasion}: {opinion}. overall it was |{again}|.",
            f"we were |{mood}| about the {occasion}, as {opinion}.",
        )
    )


def groups(random: Random) -> str:
    """What kind of thing something is, and of which kind most are."""
    topic, other = random.sample(list(LEXICON), 2)
    a, b, c = random.sample(LEXICON[topic], 3)
    odd = random.choice(LEXICON[other])
    mixed = [a, b, odd]
    random.shuffle(mixed)
    listed = f"{mixed[0]}, {mixed[1]} and {mixed[2]}"
    name, place = random.choice(NAMES), random.choice(PLACES)
    return random.choice(
        (
            f"{a}, {b} and {c} belong to one group: |{topic}|.",
            f"the word {a} names a |{topic}|, the word {odd} a |{other}|.",
            f"{listed}: most of them belong to the group |{topic}|.",
            f"{listed}: the odd one is |{odd}|.",
            f"{name} met {a} near the {odd} of {place}. that is a |{topic}| near a |{other}|.",
            f"do {a} and {b} belong together? |yes|.",
            f"do {a} and {odd} belong together? |no|.",
        )
    )


def echoes(random: Random) -> str:
    """The same words again: copying is the root of all matching."""
    said = random.sample(THINGS + QUALITIES + PLACES, random.choice((3, 4, 5)))
    hidden = [f"|{word}|" if random.random() < 0.5 else word for word in said]
    again = random.choice(("again:", "once more:", "the same words:"))
    return f"{' '.join(said)}. {again} {' '.join(hidden)}."


KINDS = (echoes, properties, deeds, consequences, questions, feelings, groups)


def sentences(seed: int, number: int) -> Iterator[str]:
    """``number`` texts, the kinds in turn, from one seed."""
    random = Random(seed)
    for index in range(number):
        yield KINDS[index % len(KINDS)](random).replace("a-bit", "a bit")
