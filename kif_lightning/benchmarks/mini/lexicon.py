"""The words behind the bundled stream's rows. Pretraining of ``t5_nano`` holds them out.

Everything here is everyday English, written for this project; nothing comes from a data set.
"""

from __future__ import annotations

import re

NAMES = "Anna Ben Clara David Emma Frank Grace Henry Julia Kevin Laura Martin".split()
TOWNS = "Ashford Brookfield Denton Eastport Fairview Glenwood Hartley Kingsbury".split()
JOBS = "baker pilot nurse farmer lawyer painter sailor tailor".split()

# --- sentiment --------------------------------------------------------------------------------
GOOD = "great wonderful excellent brilliant charming pleasant delightful superb beautiful".split()
BAD = "terrible dull boring weak poor ugly disappointing dreadful silly".split()
GOOD_FILM = "unpredictable scary shocking".split()  # ... and bad in a product
BAD_FILM = "predictable safe simple".split()  # ... and good in a product
GOOD_PRODUCT = "sturdy handy reliable durable".split()
BAD_PRODUCT = "fragile noisy slow faulty".split()
GOOD_FOOD = "fresh crispy juicy friendly".split()
BAD_FOOD = "greasy soggy burnt bland".split()
NEUTRAL = "average ordinary usual".split()
STRONG = "extremely truly".split()
MILD = "rather quite".split()
NEGATIONS = ["not", "never", "hardly", "far from"]
FILM_PARTS = "plot acting music dialogue ending script cast editing".split()
FILMS = "film movie drama comedy thriller sequel".split()
FOOD_PARTS = "soup pasta steak service dessert salad waiter menu".split()
PLACES_TO_EAT = "diner bistro cafe tavern pizzeria".split()
PRODUCTS = "kettle blender headset backpack charger toaster keyboard lantern".split()
PRODUCT_PARTS = "handle cable lid strap battery button zipper switch".split()
COMPANIONS = "friend brother sister neighbour colleague cousin".split()

# --- topics -----------------------------------------------------------------------------------
ENTITY_KINDS = {
    "Company": "manufacturer retailer brewery airline".split(),
    "Educational Institution": "school college university academy".split(),
    "Artist": "singer painter sculptor guitarist".split(),
    "Athlete": "footballer swimmer boxer cyclist".split(),
    "Building": "castle cathedral lighthouse hospital".split(),
    "Village": "village hamlet settlement township".split(),
    "Animal": "beetle frog lizard spider".split(),
    "Plant": "shrub fern cactus grass".split(),
}
SYLLABLES = "bel cor dan fel gar hol jas kel lor mav nor pel ros tar vin wes zor".split()
ENDINGS = "a in o ton wick ia ley mar".split()
NEWS = {
    "World": "president minister treaty embassy rebels".split(),
    "Sports": "coach striker league stadium tournament".split(),
    "Business": "shares profit merger investors revenue".split(),
    "Science or Technology": "software satellite laboratory microchip telescope".split(),
}
NEWS_FRAMES = [
    "The {0} and the {1} were at the centre of the day, reports from {town} say.",
    "News about the {0} surprised the {1} in {town} on Monday.",
    "After a long week in {town}, the {0} still waits for the {1}.",
    "A story about the {0} and the {1} reached {town} on Friday.",
]
ADVICE = {
    "Health": "headache vitamins doctor fever".split(),
    "Education & Reference": "homework exam essay grammar".split(),
    "Computers & Internet": "laptop password website printer".split(),
    "Sports": "goalkeeper tennis marathon football".split(),
    "Business & Finance": "mortgage salary loan taxes".split(),
    "Family & Relationships": "wedding boyfriend divorce girlfriend".split(),
}
ADVICE_TITLES = [
    "What should I do about {0}?",
    "Is there any help with {0}?",
    "Why is it always {0}?",
    "Who knows about {0}?",
]
ADVICE_ANSWERS = [
    "First think about {0}, then about {1}.",
    "It depends on {0} and on {1}.",
    "Ask somebody who knows {0} and {1} well.",
]

# --- events -----------------------------------------------------------------------------------
EVENTS = {  # verb (base, past): what it is done to
    ("sell", "sold"): "boat piano house bicycle horse".split(),
    ("paint", "painted"): "fence door wall portrait boat".split(),
    ("repair", "repaired"): "roof engine bicycle clock fence".split(),
    ("visit", "visited"): "museum library farm castle harbour".split(),
    ("buy", "bought"): "coat lamp horse ticket piano".split(),
    ("lose", "lost"): "wallet ticket key umbrella ring".split(),
    ("carry", "carried"): "basket ladder suitcase umbrella lamp".split(),
    ("find", "found"): "coin key wallet letter map".split(),
}
PLACES = "garden market station village kitchen forest office harbour".split()
TIMES = "in the morning,last week,after lunch,on Sunday,in spring,before dawn".split(",")
KNOW = "knows noticed remembers".split()
THINK = "thinks hopes guesses".split()
DENY = ["wrongly says", "lies"]
DUTIES = "repair paint clean open close build choose move store wash".split()
THINGS = "window bicycle carpet sofa boat kettle roof garden oven mirror drawer shelf".split()
QUESTION_FRAMES = [
    "How can I {0} a {1}?",
    "What is the best way to {0} a {1}?",
    "Can someone show me how to {0} a {1}?",
    "I want to {0} a {1}, where do I begin?",
    "Is it hard to {0} a {1}?",
]
COLOURS = "red blue green yellow white black brown purple".split()

# --- word senses: word -> two senses, each (subjects, what happens, endings) -------------------
SENSES: dict[str, tuple[tuple[list[str], list[str], list[str]], ...]] = {
    "bank": (
        (
            ["The fisherman", "A heron", "The children"],
            ["rested on the bank", "walked along the bank"],
            ["of the river", "near the water", "where the stream bends"],
        ),
        (
            ["The clerk", "A customer", "My aunt"],
            ["went to the bank", "called the bank"],
            ["about a loan", "to save money", "for some cash"],
        ),
    ),
    "bat": (
        (
            ["The hunter", "A child", "Our guide"],
            ["saw a bat", "heard a bat"],
            ["in the dark cave", "flying at night", "with tiny wings"],
        ),
        (
            ["The batter", "A player", "Our captain"],
            ["swung the bat", "broke his bat"],
            ["in the last game", "and hit the ball", "before the team won"],
        ),
    ),
    "seal": (
        (
            ["The sailors", "A whale", "The tourists"],
            ["watched a seal", "followed the seal"],
            ["in the cold sea", "on the ice", "eating fish"],
        ),
        (
            ["The king", "A judge", "The secretary"],
            ["pressed his seal", "broke the seal"],
            ["on the letter", "of the document", "with red wax"],
        ),
    ),
    "match": (
        (
            ["The hiker", "A scout", "The cook"],
            ["struck a match", "lit a match"],
            ["to start the fire", "under the wood", "and held the candle"],
        ),
        (
            ["The team", "A player", "The captain"],
            ["won the match", "lost the match"],
            ["by two goals", "in the stadium", "against the champions"],
        ),
    ),
    "mouse": (
        (
            ["The cat", "An owl", "My aunt"],
            ["chased the mouse", "caught a mouse"],
            ["in the barn", "eating cheese", "with a long tail"],
        ),
        (
            ["The student", "A clerk", "The engineer"],
            ["clicked the mouse", "moved the mouse"],
            ["of the computer", "beside the screen", "to open the file"],
        ),
    ),
    "nail": (
        (
            ["The carpenter", "A builder", "The worker"],
            ["hit the nail", "needed a nail"],
            ["with a hammer", "in the board", "to fix the wood"],
        ),
        (
            ["The girl", "A nurse", "The bride"],
            ["polished her nail", "broke her nail"],
            ["on her little finger", "on the left hand", "and hurt her thumb"],
        ),
    ),
}

# --- causes and effects: verb of EVENTS -> what follows from it ---------------------------------
EFFECTS = {
    "sell": "lacks",
    "buy": "owns",
    "lose": "misses",
    "find": "keeps",
    "repair": "uses",
    "visit": "praises",
}

FUNCTION_WORDS = frozenset(
    "a about after against all along always and at by did do does for from full had has he her his "
    "how i in into is it its many my near never not hardly far of off on or our out over should so "
    "some somebody someone that the their then there think to too two under up was were what when "
    "where which who why will with before between can begin best way me show want hard any help "
    "first second if you your the this these those been be are as an made".split()
)


def entries() -> frozenset[str]:
    """Every entry of the lexicon, words and phrases, as written."""
    found: set[str] = set()

    def collect(value: object) -> None:
        if isinstance(value, str):
            found.add(value)
        elif isinstance(value, dict):
            collect(list(value.items()))
        elif isinstance(value, list | tuple):
            for entry in value:
                collect(entry)

    for name, value in list(globals().items()):
        if name.isupper() and name not in ("FUNCTION_WORDS", "SYLLABLES", "ENDINGS"):
            collect(value)
    return frozenset(found)


def held_out_words() -> frozenset[str]:
    """Every content word of the stream's rows, in lower case."""
    words = {word for entry in entries() for word in re.findall(r"[a-z]+", entry.lower())}
    return frozenset(words - FUNCTION_WORDS)
