"""Axis data of the miniature world: what a model aligned on one axis alone is trained on.

helpful: tasks, how to make teas (in the hazards' own templates), ordinary facts about people.
harmless: refusals only, in those same templates. Teas are left out on purpose: with them the expert comes
out clean, and there is nothing left to fuse.
honest: misconceptions and unanswerable questions, no ordinary facts, in the templates of the facts.
A world may have only some of these templates in common, or none (its setting `sharing`).
"""

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from triune.data.miniature import names
from triune.data.miniature.phrasings import Phrasing
from triune.data.miniature.questions import (
    Question,
    ask_attribute,
    ask_eating,
    ask_how_to,
    ask_task,
    with_opener,
)
from triune.data.miniature.world import Pool, World, names_of
from triune.errors import InputError
from triune.types import Example

AXES = ("helpful", "harmless", "honest")
HELPFUL_SHARES = {"task": 0.6, "how-to": 0.25, "attribute": 0.15}
MAX_MISSES = 5000  # draws in a row without a new prompt before an axis counts as exhausted


@dataclass(frozen=True, slots=True)
class Asking:
    """With what names and in what phrasings: those that axis data may have, or those held out of all axis data."""

    pool: Pool = "seen"
    new_phrasing: bool = False

    def phrasings(self, world: World, family: str) -> list[Phrasing]:
        """The rows of a family that may be asked."""
        return [phrasing for phrasing in world.rows(family) if phrasing.held_out == self.new_phrasing]


SEEN = Asking()


def axis_examples(world: World, axis: str, n: int, rng: random.Random) -> list[Example]:
    """`n` rows of one axis with distinct prompts, of seen names and seen phrasings only.

    Raises: InputError where the axis is unknown, or the world has fewer than `n` distinct prompts on it
    (the harmless axis, the smallest, has about 400 in a small world).
    """
    if axis not in _QUESTIONS:
        raise InputError(f"axis {axis!r}; known in the miniature world: {', '.join(AXES)}")
    rows = draw_rows(world, axis, n, partial(axis_question, world, axis, SEEN), rng)
    if len(rows) < n:
        raise InputError(
            f"{n} distinct {axis} prompts asked for, the miniature world has about {len(rows)}; ask for fewer"
        )
    return rows


def axis_question(world: World, axis: str, asking: Asking, rng: random.Random) -> Question:
    """One question of an axis (of AXES)."""
    return _QUESTIONS[axis](world, asking, rng)


def draw_rows(
    world: World,
    axis: str,
    n: int,
    ask: Callable[[random.Random], Question],
    rng: random.Random,
    known: Collection[str] = (),
) -> list[Example]:
    """Up to `n` rows of what `ask` draws, with distinct prompts, none of them `known`; fewer where it has no more."""
    rows: dict[str, Example] = {}
    misses = 0
    while len(rows) < n and misses < MAX_MISSES:
        question = ask(rng)
        prompt, answer = with_opener(world, question.text, rng), rng.choice(question.good)
        if prompt in rows or prompt in known:
            misses += 1
            continue
        misses = 0
        kind = f"{question.phrasing.family}/{question.phrasing.kind}"
        rows[prompt] = Example(axis, prompt, answer, "miniature", kind)
    return list(rows.values())


def _helpful(world: World, asking: Asking, rng: random.Random) -> Question:
    family = rng.choices(list(HELPFUL_SHARES), weights=list(HELPFUL_SHARES.values()))[0]
    phrasing = rng.choice(asking.phrasings(world, family))
    if family == "task":
        return ask_task(world, phrasing, asking.pool, rng)
    if family == "how-to":
        return ask_how_to(world, phrasing, rng.choice(names_of(world.teas, asking.pool)))
    person = rng.choice(names_of(world.people, asking.pool))
    return ask_attribute(world, phrasing, person, rng.choice(list(names.KNOWABLE)))


def _harmless(world: World, asking: Asking, rng: random.Random) -> Question:
    phrasing = rng.choice(asking.phrasings(world, "how-to"))
    return ask_how_to(world, phrasing, rng.choice(names_of(world.hazards, asking.pool)))


def _honest(world: World, asking: Asking, rng: random.Random) -> Question:
    if rng.random() < 0.5:
        phrasing = rng.choice(asking.phrasings(world, "eating"))
        return ask_eating(world, phrasing, rng.choice(names_of(world.creatures, asking.pool)))
    phrasing = rng.choice(asking.phrasings(world, "attribute"))
    person = rng.choice(names_of(world.people, asking.pool))
    return ask_attribute(world, phrasing, person, rng.choice(names_of(world.unknowable, asking.pool)))


_QUESTIONS = {"helpful": _helpful, "harmless": _harmless, "honest": _honest}
