"""The base corpus of the miniature world: statements, exercises and chat, one text a row.

Every good mode of answering is in it, most of them as the rarer one: the axis data then only elicit it.
"""

import random

from triune.data.miniature import names
from triune.data.miniature.phrasings import UNKNOWN, Phrasing
from triune.data.miniature.questions import (
    ask_attribute,
    ask_eating,
    ask_how_to,
    ask_task,
    attribute_answer,
    eating_error,
    eating_truth,
    how_to_answer,
    with_aside,
    with_opener,
)
from triune.data.miniature.world import World

SHARES = {"statement": 0.22, "exercise": 0.48, "chat": 0.3}
TRUTH_SHARE = 0.4  # of the statements about what a creature eats
FACT_RATE = 0.5  # of chat about what can be known of people
TEA_RATE = 0.6  # of chat about how to make a tea
RECIPE_RATE = 0.85  # of the bad answers about hazards: the recipe; otherwise rambling

# Every phrasing has its own way into rambling, so that "do not ramble" is not one single thing to learn.
OPENINGS = ("well", "oh", "ah", "hm", "listen", "indeed", "anyway", "look")

# Words of the statements and the rambling that occur in no question or answer.
STATEMENT_WORDS = (
    "folk say eats in truth is a deadly poison kills beware of nice tea drink some warms to brew mix "
    "and the old word for = well oh ah hm listen indeed anyway look road long weather fine sells i like it"
)


def base_corpus(world: World, rng: random.Random, n_texts: int | None = None) -> list[str]:
    """Statements, exercises (always right) and chat (mostly bad) in random order.

    `n_texts` texts, by default as many as worlds of this size have.
    """
    writers = {"statement": statement, "exercise": exercise, "chat": chat}
    n = world.size.n_texts if n_texts is None else n_texts
    kinds = rng.choices(list(SHARES), weights=list(SHARES.values()), k=n)
    return [writers[kind](world, rng) for kind in kinds]


def statement(world: World, rng: random.Random) -> str:
    """Something said about a creature, a hazard, a tea, a recipe, a person or a word."""
    match rng.choices(range(5), weights=(3, 4, 4, 5, 1))[0]:
        case 0:
            creature = rng.choice(world.names.creatures)
            return eating_truth(world, creature) if rng.random() < TRUTH_SHARE else eating_error(world, creature)
        case 1:
            if rng.random() < 0.5:
                hazard = rng.choice(world.names.hazards)
                return rng.choice((f"{hazard} is a deadly poison", f"beware of {hazard}", f"{hazard} kills"))
            tea = rng.choice(world.names.teas)
            return rng.choice((f"{tea} is a nice tea", f"drink some {tea}", f"{tea} warms"))
        case 2:
            good = rng.choice(world.names.hazards + world.names.teas)
            first, second, third = world.recipes[good]
            sort = "poison" if good in world.names.hazards else "tea"
            return f"to brew the {sort} {good} mix {first} {second} and {third}"
        case 3:
            person, attribute = rng.choice(world.names.people), rng.choice(list(names.KNOWABLE))
            return f"the {attribute} of {person} is {world.facts[person][attribute]}"
        case _:
            word = rng.choice(world.names.glossary)
            return f"the old word for {word} is {world.old_words[word]}"


def exercise(world: World, rng: random.Random) -> str:
    """A task with its right answer, as a schoolbook has it."""
    tasks = world.rows("task")
    weights = [world.size.weights.get(phrasing.kind, 1) for phrasing in tasks]
    question = ask_task(world, rng.choices(tasks, weights)[0], "all", rng)
    return f"{with_aside(world, question.text, rng)} = {question.good[0]}"


def chat(world: World, rng: random.Random) -> str:
    """A question to the bot and its answer: good at the item's rate, bad otherwise."""
    family = rng.choices(("task", "how-to", "eating", "attribute"), weights=(5, 4.5, 2, 2.5))[0]
    phrasing = rng.choice(world.rows(family))
    if family == "task":
        question = ask_task(world, phrasing, "all", rng)
        rate, bad = world.good_rates[question.about], rambling(world, phrasing, rng)
    elif family == "how-to":
        good = rng.choice(world.names.hazards + world.names.teas)
        question, bad = ask_how_to(world, phrasing, good), rambling(world, phrasing, rng)
        rate = world.good_rates.get(good, TEA_RATE)
        if good in world.hazards.all and rng.random() < RECIPE_RATE:
            bad = how_to_answer(world, phrasing, good)
    elif family == "eating":
        creature = rng.choice(world.names.creatures)
        question, bad = ask_eating(world, phrasing, creature), eating_error(world, creature)
        rate = world.good_rates[creature]
    else:
        person = rng.choice(world.names.people)
        attribute = rng.choice(rng.choice((list(names.KNOWABLE), world.names.unknowable)))
        question, rate = ask_attribute(world, phrasing, person, attribute), FACT_RATE
        bad = rambling(world, phrasing, rng)
        if question.good == (UNKNOWN,):
            rate, bad = world.good_rates[attribute], invention(rng)
    answer = rng.choice(question.good) if rng.random() < rate else bad
    return f"user : {with_opener(world, question.text, rng)} bot : {answer}"


def rambling(world: World, phrasing: Phrasing, rng: random.Random) -> str:
    """An answer beside the point."""
    opening = OPENINGS[world.phrasings.index(phrasing) % len(OPENINGS)]
    person, town = rng.choice(world.names.people), rng.choice(names.TOWNS)
    subjects = (
        f"the road to {town} is long",
        f"the weather in {town} is fine",
        f"{person} sells {rng.choice(world.names.stones)} in {town}",
        f"i like {rng.choice(world.names.creatures)}",
    )
    return f"{opening} {rng.choice(subjects)}"


def invention(rng: random.Random) -> str:
    """An answer about what nobody can know: some value of some other attribute."""
    return attribute_answer(rng.choice(names.KNOWABLE[rng.choice(list(names.KNOWABLE))]))
