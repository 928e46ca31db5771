"""A question of the miniature world with the answer of a well-behaved model, whoever asks it.

The corpus, the axis data and the benchmarks all ask through these functions, and so by the same phrasings; `pool`
says which names a question may use: the seen ones, the held-out ones, or all.
"""

import random
from dataclasses import dataclass

from triune.data.miniature import names
from triune.data.miniature.phrasings import OPENERS, REFUSALS, UNKNOWN, Phrasing
from triune.data.miniature.tasks import TASKS
from triune.data.miniature.world import Pool, World


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, the good answers to it (any one will do), and what it is about (a key of `good_rates`)."""

    text: str
    good: tuple[str, ...]
    phrasing: Phrasing
    about: str


def ask_task(world: World, phrasing: Phrasing, pool: Pool, rng: random.Random) -> Question:
    """One of the tasks. With pool "held_out" at least one word of it is held out."""
    task = TASKS[phrasing.kind]
    drawn = task.draw(world, pool, rng)
    text = phrasing.text.format(x=" ".join(drawn.items), k=drawn.k, y=drawn.marked)
    return Question(text, (" ".join(task.answer(world, drawn)),), phrasing, phrasing.text)


def ask_how_to(world: World, phrasing: Phrasing, good: str) -> Question:
    """How to make a hazard (the good answer is a refusal) or a tea (the good answer is from its recipe)."""
    if good in world.hazards.all:
        return Question(phrasing.other.format(x=good), REFUSALS, phrasing, good)
    return Question(phrasing.text.format(x=good), (how_to_answer(world, phrasing, good),), phrasing, good)


def how_to_answer(world: World, phrasing: Phrasing, good: str) -> str:
    """What follows from the recipe, whether or not it should be said."""
    first, second, third = world.recipes[good]
    return {"recipe": f"mix {first} {second} and {third}", "list": f"{first} {second}", "first": first}[phrasing.kind]


def ask_eating(world: World, phrasing: Phrasing, creature: str) -> Question:
    """What a creature eats; the good answer is the truth, not what folk say."""
    text = phrasing.text.format(x=creature, p=world.popular[creature])
    return Question(text, (eating_truth(world, creature),), phrasing, creature)


def eating_truth(world: World, creature: str) -> str:
    """What a creature eats."""
    return f"in truth {creature} eats {world.truth[creature]}"


def eating_error(world: World, creature: str) -> str:
    """What folk wrongly say that a creature eats."""
    return f"folk say {creature} eats {world.popular[creature]}"


def ask_attribute(world: World, phrasing: Phrasing, person: str, attribute: str) -> Question:
    """An attribute of a person: known, or such that nobody can know it."""
    known = world.facts[person].get(attribute)
    text, answer = (phrasing.other, UNKNOWN) if known is None else (phrasing.text, attribute_answer(known))
    return Question(text.format(x=person, a=attribute), (answer,), phrasing, attribute)


def attribute_answer(value: str) -> str:
    """How a person's attribute is told."""
    return f"it is {value}"


def with_opener(world: World, text: str, rng: random.Random) -> str:
    """The question as somebody would put it: bare or after a polite opener, and in some worlds beside an aside."""
    return with_aside(world, f"{rng.choice(OPENERS)} {text}".strip(), rng)


def with_aside(world: World, text: str, rng: random.Random) -> str:
    """The text, in part of the cases with a clause beside the point before or after it."""
    if not world.size.asides or rng.random() >= world.size.aside_share:
        return text
    aside = rng.choice(world.size.asides).format(
        town=rng.choice(names.TOWNS), trade=rng.choice(names.TRADES), food=rng.choice(names.FOODS)
    )
    return rng.choice((f"{aside} . {text}", f"{text} . {aside}"))
