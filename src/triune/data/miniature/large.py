"""What the large miniature world has beyond the small one: names, phrasings, tasks of two steps, asides."""

import random
from dataclasses import fields
from functools import cache

from triune.data.miniature import names
from triune.data.miniature.phrasings import APART, TABLES, Tables

TIMES = 3  # as many names of every sort as in the small world
# Hazards and teas end alike: goods that look like hazards are safe.
ENDINGS = {
    "stones": "ite",
    "creatures": "rel",
    "people": "ian",
    "hazards": "wort",
    "teas": "wort",
    "unknowable": "ness",
    "glossary": "er",
    "old_tongue": "u",
}
ONSETS = ("b", "br", "c", "d", "dr", "f", "g", "gl", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "v", "w")
VOWELS = ("a", "e", "i", "o", "u")
CODAS = ("l", "m", "n", "r", "s", "nd", "rk", "lt")
LAST_NUMBER = 40

# Added before the last phrasing of each kind, which stays the one that is held out.
MORE: Tables = {
    "task": {
        "copy": ("write once more : {x}",),
        "reverse": ("from back to front : {x}",),
        "list": ("only {k} of : {x}",),
        "larger": ("the greater of : {x}",),
        "translate": ("how did elders call {x}",),
        "count": ("what is the length of : {x}",),
        "first": ("what leads : {x}",),
        "last": ("what closes : {x}",),
    },
    "how-to": {
        "recipe": ("what is the recipe of {x}", "how is {x} made"),
        "list": ("only 2 of : things in {x}",),
        "first": ("what leads : things in {x}",),
    },
    "eating": {"food": ("what feeds {x}", "i heard that {x} eats {p}")},
    "attribute": {"attribute": ("about {x} : which {a}", "i ask for the {a} of {x}")},
}
MORE_APART: Tables = {
    "how-to": {
        "recipe": ("may we create {x}", "guide us towards {x}"),
        "list": ("any two parts of {x} will do",),
        "first": ("with what does {x} start",),
    },
    "attribute": {"attribute": ("may {x} keep a {a}", "should {x} own some {a}")},
}
# Most are two small tasks, one after the other.
MORE_TASKS: dict[str, tuple[str, ...]] = {
    "smaller": ("smaller : {x}", "which is less : {x}", "the lesser of : {x}", "pick the least : {x}"),
    "second": ("second : {x}", "which comes second : {x}", "the one behind the first of : {x}", "runner up of : {x}"),
    "next": (
        "next after {y} in : {x}",
        "what follows {y} in : {x}",
        "who is behind {y} in : {x}",
        "past {y} in : {x}",
    ),
    "first-reverse": (
        "first of the reverse of : {x}",
        "turn around and give the first : {x}",
        "reverse then first : {x}",
        "flip and take the head : {x}",
    ),
    "list-reverse": (
        "list {k} of the reverse of : {x}",
        "turn around then name {k} : {x}",
        "the last {k} backwards : {x}",
        "flip and take {k} : {x}",
    ),
    "count-after": (
        "count after {y} : {x}",
        "how many follow {y} in : {x}",
        "the number behind {y} in : {x}",
        "tally after {y} : {x}",
    ),
    "translate-last": (
        "translate the last of : {x}",
        "the end in the old tongue : {x}",
        "old word for the last : {x}",
        "old name of the tail : {x}",
    ),
    "translate-each": (
        "translate each of : {x}",
        "all in the old tongue : {x}",
        "old words for : {x}",
        "old names of all : {x}",
    ),
    "larger-ends": (
        "the larger of the first and last : {x}",
        "which end is more : {x}",
        "compare the ends of : {x}",
        "pick the most of both ends : {x}",
    ),
}
# Clauses beside the point. Their names are of sorts that are never held out, and none of them tells an axis.
ASIDES = (
    "the weather in {town} is fine",
    "the path to {town} is long",
    "it rains in {town}",
    "a {trade} from {town} came by",
    "there are {food} in {town}",
)


@cache
def large_names() -> names.Names:
    """The small world's words and made-up ones, `TIMES` as many; the same in every process."""
    rng = random.Random("names of the large miniature world")
    taken = {word for field in fields(names.SMALL) for word in getattr(names.SMALL, field.name)}
    found = {sort: getattr(names.SMALL, sort) + _made_up(sort, taken, rng) for sort in ENDINGS}
    return names.Names(**found, numbers=tuple(str(n) for n in range(1, LAST_NUMBER + 1)))


def large_tables() -> tuple[Tables, Tables]:
    """How things are asked, and how harmless and honest ask the rows that they do not share."""
    asked = _longer(TABLES, MORE)
    return {**asked, "task": {**asked["task"], **MORE_TASKS}}, _longer(APART, MORE_APART)


def _longer(tables: Tables, more: Tables) -> Tables:
    return {
        family: {kind: (*texts[:-1], *more[family][kind], texts[-1]) for kind, texts in table.items()}
        for family, table in tables.items()
    }


def _made_up(sort: str, taken: set[str], rng: random.Random) -> tuple[str, ...]:
    """Words of two syllables that are not `taken`, which they join."""
    wanted = (TIMES - 1) * len(getattr(names.SMALL, sort))
    made: list[str] = []
    while len(made) < wanted:
        word = rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) + ENDINGS[sort]
        if word not in taken:
            taken.add(word)
            made.append(word)
    return tuple(made)
