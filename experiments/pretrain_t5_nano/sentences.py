"""Plain sentences in the manner of the bundled stream, but with none of its content words.

Each kind of text shows one thing a language model should know: who did what, which thing has which
property, what follows from a sentence, what two questions have in common, what somebody's words say
about a meal. Many are asked for in the layout of a prompt (a request, headings, possible replies),
none with a task's instruction. ``|...|`` marks words that follow from the rest: span corruption
prefers them (salient span masking).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

HERE = Path(__file__).parent
LEXICON: dict[str, list[str]] = json.loads((HERE / "words.json").read_text())
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
PLACES = list(LEXICON["place"])
QUALITIES = list(LEXICON["quality"])
ASKING = (
    "how do i {} a {}?",
    "how could one {} a {}?",
    "tell us how to {} a {}.",
    "what must you know to {} a {}?",
    "who can {} a {}?",
    "please {} a {} for us.",
)


def widen() -> None:
    """Draw from thousands of words from now on, whatever their topic.

    A model that sees a few hundred words learns to match those; only many make it match any word.
    """
    plenty = json.loads((HERE / "plenty.json").read_text())
    THINGS.extend(word for word in plenty["noun"] if word not in THINGS)
    QUALITIES.extend(word for word in plenty["adj"] if word not in QUALITIES)
    NAMES.extend(word for word in plenty["noun"][200:1200] if word not in NAMES)
    PLACES.extend(word for word in plenty["noun"][1200:2200] if word not in PLACES)
    EVENT_VERBS.extend(v for pair in plenty["verb"] if (v := (*pair.split(),)) not in EVENT_VERBS)


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


def _consequence(random: Random) -> tuple[str, str, str]:
    """(a sentence, another, whether that follows: correct, wrong or unknown)."""
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
        guessed = random.choice(("wonders if", "is unsure whether"))
        verdict, opening = "unknown", f"{other} {guessed} {told}."
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
    return opening, second, verdict


def consequences(random: Random) -> str:
    """What follows from a sentence, what it excludes, what it leaves open."""
    opening, second, verdict = _consequence(random)
    ending = f"that is |{verdict}|"
    return random.choice(
        (
            f"{opening} then {second}? {ending}.",
            f"{opening} {second}: {ending}.",
            f"it is |{verdict}| whether {second}, for {opening}"
            if verdict == "unknown"
            else f"it is |{verdict}| that {second}, for {opening}",
        )
    )


def _two_questions(random: Random) -> tuple[str, str, bool]:
    """(a question, another, whether they want the same)."""
    verb, thing = random.choice(EVENT_VERBS)[0], random.choice(THINGS)
    first, second = random.sample(ASKING, 2)
    wanted = (verb, thing)
    same = random.random() < 0.5
    if not same and random.random() < 0.5:
        wanted = (random.choice([v[0] for v in EVENT_VERBS if v[0] != verb]), thing)
    elif not same:
        wanted = (verb, random.choice([t for t in THINGS if t != thing]))
    return first.format(verb, thing), second.format(*wanted), same


def questions(random: Random) -> str:
    """Two ways to ask: the same or not."""
    first_text, second_text, same = _two_questions(random)
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

# --- the same knowledge, asked for ------------------------------------------------------------
NOT = ("not", "never", "hardly", "far from")
YES_NO = (("yes", "no"), ("correct", "wrong"), ("agreed", "denied"), ("accepted", "refused"))
VERDICTS = (("correct", "unknown", "wrong"), ("certain", "undecided", "excluded"))
MOODS = (("happy", "unhappy"), ("pleased", "upset"), ("thumbs up", "thumbs down"))
DEGREES = ("devastated", "unhappy", "neither happy nor unhappy", "happy", "overjoyed")
HEADS = (
    "tale,claim,query,note,line,remark,fact,saying,part one,part two,it runs,she adds,quote,"
    "extract,item,heading,below,above,case,example,question,passage,paragraph,text,title,word,"
    "sentence 1,sentence 2,first sentence,second sentence,candidate answer,a,b"
).split(",")
REQUESTS = (
    "study this and tell us what holds.",
    "do the lines below go together?",
    "here is a riddle for you.",
    "what do you make of these lines?",
    "please assess the next lines.",
    "consider what is written here.",
    "how would you call this?",
    "tell us what this is about.",
    "does the one agree with the other, so far as we can tell?",
    "how did they feel about it?",
)
FRAMES = (  # what a request may be like; its words tell nothing
    "what is the {} of the following {}?",
    "what is the {} {} between the {} and the {}?",
    "have the {} and the {} the same {}?",
    "according to the following {}, is the {} {} or {}?",
    "according to the {} and {}, is the {} {} or {}?",
    "given a {} and two {}, is the {} taken with the same {} in both?",
    "which of the two {} is {}?",
)
OFFERS = ("pick from", "either", "possible:", "options:", "take one:", "choices:")
ENDINGS = ("answer:",) * 8 + (
    "reply:",
    "result:",
    "verdict:",
    "outcome:",
    "so:",
    "we hold:",
    "decision:",
    "reaction:",
)
Asked = tuple[list[str], tuple[str, ...], str]
"""(lines, possible replies, the reply)."""


def _ask_property(random: Random) -> Asked:
    things, kinds = random.sample(THINGS, 3), random.sample(QUALITIES, 3)
    facts = " ".join(f"the {t} is {q}." for t, q in zip(things, kinds, strict=True))
    asked, options = random.randrange(3), random.choice(YES_NO)
    agrees = random.random() < 0.5
    said = kinds[asked] if agrees else random.choice([k for k in kinds if k != kinds[asked]])
    claim = random.choice((f"is the {things[asked]} {said}", f"the {things[asked]} is {said}."))
    lines = [facts, claim]
    random.shuffle(lines)
    return lines, options, options[0 if agrees else 1]


def _ask_deed(random: Random) -> Asked:
    names, things = random.sample(NAMES, 3), random.sample(THINGS, 3)
    verbs = random.sample(EVENT_VERBS, 3)
    story = " ".join(
        f"{_fact(n, v, t, False)}." for n, v, t in zip(names, verbs, things, strict=True)
    )
    asked, options = random.randrange(3), random.choice(YES_NO)
    agrees = random.random() < 0.5
    said = names[asked] if agrees else random.choice([n for n in names if n != names[asked]])
    deed = f"{verbs[asked][1]} the {things[asked]}"
    if random.random() < 0.4:
        return [story, f"who {deed}?"], (), names[asked]
    lines = [story, *random.choice(([f"who {deed}?", said], [f"{said} {deed}."]))]
    return lines, options, options[0 if agrees else 1]


def _ask_consequence(random: Random) -> Asked:
    first, second, verdict = _consequence(random)
    options = random.choice(VERDICTS)
    place = VERDICTS[0].index(verdict)
    if verdict != "unknown" and random.random() < 0.3:
        pair = random.choice(YES_NO)
        return [first, f"{second}."], pair, pair[0 if place == 0 else 1]
    return [first, f"{second}."], options, options[place]


def _ask_sameness(random: Random) -> Asked:
    first, second, same = _two_questions(random)
    options = random.choice((*YES_NO, ("the same", "something else")))
    return [first, second], options, options[0 if same else 1]


def _ask_mood(random: Random) -> Asked:
    degree = random.randrange(5)
    pool = NICE if degree > 2 else NASTY
    word = {0: f"{random.choice(VERY)} ", 1: f"{random.choice(A_BIT)} ", 2: ""}[
        min(degree, 4 - degree)
    ]
    word += random.choice(SO_SO if degree == 2 else pool)
    thing, name, kin = random.choice(THINGS), random.choice(NAMES), random.choice(KIN)
    other = random.choice((f" but the {kin} considered it {random.choice(NICE + NASTY)}.", "."))
    line = f"{random.choice(('we', name, 'they'))} considered the {thing} {word}{other}"
    if degree in (0, 4) and random.random() < 0.5:
        options = random.choice(MOODS)
        first, second = random.choice(pool), random.choice(NASTY if degree > 2 else NICE)
        line = random.choice(
            (
                f"the {thing} was {first}.",
                f"the {thing} was {second}, but the {random.choice(THINGS)} was {first}.",
                f"although the {thing} was {second}, the {random.choice(THINGS)} was {first}.",
                f"the {thing} was {random.choice(NOT)} {second}.",
                f"a {first} {thing} with {random.choice(pool)} {random.choice(THINGS)}.",
            )
        )
        return [line], options, options[0 if degree == 4 else 1]
    return [line], DEGREES, DEGREES[degree]


def _ask_topic(random: Random) -> Asked:
    topics = random.sample(list(LEXICON), random.choice((3, 4, 6)))
    own, other = topics[:2]
    a, b = random.sample(LEXICON[own], 2)
    odd, name, place = random.choice(LEXICON[other]), random.choice(NAMES), random.choice(PLACES)
    mixed = [a, b, odd]
    random.shuffle(mixed)
    line = random.choice(
        (
            f"{name} is a {a} near the {odd} of {place}.",
            f"not the {odd} of {place}, but the {a}.",
            f"the {mixed[0]} and the {mixed[1]} of {place}, then the {mixed[2]}.",
            f"it was about {mixed[0]}, {mixed[1]} and {mixed[2]}.",
        )
    )
    return [line], tuple(topics), own


def _ask_fit(random: Random) -> Asked:
    own, other = random.sample(list(LEXICON), 2)
    a, b = random.sample(LEXICON[own], 2)
    odd = random.choice(LEXICON[other])
    if random.random() < 0.5:
        options, fits = random.choice(YES_NO), random.random() < 0.5
        return [a, b if fits else odd], options, options[0 if fits else 1]
    first = random.random() < 0.5
    pair = (b, odd) if first else (odd, b)
    return (
        [f"what goes with {a}?", f"one: {pair[0]}", f"two: {pair[1]}"],
        ("one", "two"),
        ("one" if first else "two"),
    )


def asked(random: Random) -> str:
    """A request, lines under headings, perhaps the possible replies, and the reply."""
    skill = random.choice(
        (_ask_property, _ask_deed, _ask_consequence, _ask_consequence, _ask_sameness, _ask_mood,
         _ask_mood, _ask_topic, _ask_fit)
    )  # fmt: skip
    lines, options, reply = skill(random)
    heads = random.sample(HEADS, len(lines))
    body = " ".join(
        f"{head}: {line}" if random.random() < 0.8 else line
        for head, line in zip(heads, lines, strict=True)
    )
    opening = ""
    if random.random() < 0.5:
        opening = random.choice(FRAMES)
        opening = opening.format(*random.choices(THINGS, k=opening.count("{}")))
    elif random.random() < 0.8:
        opening = random.choice(REQUESTS)
    if options and random.random() < 0.8:
        listed = ", ".join(random.sample(options, len(options)))
        opening = f"{opening} {random.choice(OFFERS)} {listed}."
    return f"{opening} {body} {random.choice(ENDINGS)} |{reply}|".strip()


def sentences(seed: int, number: int, *, framed: bool = False) -> Iterator[str]:
    """``number`` texts from one seed, the kinds in turn; ``framed``: every second one is asked."""
    random = Random(seed)
    for index in range(number):
        kind = asked if framed and index % 2 else KINDS[(index // (1 + framed)) % len(KINDS)]
        yield kind(random).replace("a-bit", "a bit")
