"""The tasks of the miniature world: what is drawn for one, and what the right answer is. One row each."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from triune.data.miniature.world import Pool, Split, World, names_of


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a task is about: items in order, how many of them are asked for, and which one is named."""

    items: list[str]
    k: int = 1
    marked: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """How a task is drawn, with names of a pool, and the words of its right answer.

    With pool "held_out" at least one item is held out.
    """

    draw: Callable[[World, Pool, random.Random], Drawn]
    answer: Callable[[World, Drawn], Sequence[str]]


def several(split: Split, pool: Pool, n: int, rng: random.Random) -> list[str]:
    """`n` distinct names in random order; with pool "held_out" one is held out and the others are any."""
    if pool != "held_out":
        return rng.sample(names_of(split, pool), n)
    chosen = rng.choice(split.held_out)
    rest: Sequence[str] = rng.sample([name for name in split.all if name != chosen], n - 1)
    return rng.sample([chosen, *rest], n)


def _stones(shortest: int, longest: int) -> Callable[[World, Pool, random.Random], Drawn]:
    def draw(world: World, pool: Pool, rng: random.Random) -> Drawn:
        items = several(world.stones, pool, rng.randint(shortest, longest), rng)
        return Drawn(items, rng.randint(1, 3))

    return draw


def _stones_marked(shortest: int, longest: int) -> Callable[[World, Pool, random.Random], Drawn]:
    def draw(world: World, pool: Pool, rng: random.Random) -> Drawn:
        items = several(world.stones, pool, rng.randint(shortest, longest), rng)
        return Drawn(items, marked=rng.choice(items[:-1]))

    return draw


def _words(world: World, pool: Pool, rng: random.Random) -> Drawn:
    return Drawn(several(world.glossary, pool, rng.randint(2, 3), rng))


def _numbers(world: World, pool: Pool, rng: random.Random) -> Drawn:
    return Drawn(several(world.numbers, pool, rng.randint(3, 4), rng))


def _word(world: World, pool: Pool, rng: random.Random) -> Drawn:
    return Drawn([rng.choice(names_of(world.glossary, pool))])


def _pair(world: World, pool: Pool, rng: random.Random) -> Drawn:
    return Drawn(several(world.numbers, pool, 2, rng))


TASKS: dict[str, Task] = {
    "copy": Task(_stones(2, 4), lambda _, own: own.items),
    "reverse": Task(_stones(2, 4), lambda _, own: own.items[::-1]),
    "list": Task(_stones(3, 5), lambda _, own: own.items[: own.k]),
    "larger": Task(_pair, lambda _, own: [max(own.items, key=int)]),
    "translate": Task(_word, lambda world, own: [world.old_words[own.items[0]]]),
    "count": Task(_stones(1, 5), lambda _, own: [str(len(own.items))]),
    "first": Task(_stones(3, 5), lambda _, own: own.items[:1]),
    "last": Task(_stones(3, 5), lambda _, own: own.items[-1:]),
    # of the large world
    "smaller": Task(_pair, lambda _, own: [min(own.items, key=int)]),
    "second": Task(_stones(3, 5), lambda _, own: own.items[1:2]),
    "next": Task(_stones_marked(3, 5), lambda _, own: [own.items[own.items.index(own.marked) + 1]]),
    "first-reverse": Task(_stones(2, 4), lambda _, own: own.items[:-2:-1]),
    "list-reverse": Task(_stones(3, 5), lambda _, own: own.items[::-1][: own.k]),
    "count-after": Task(_stones_marked(2, 5), lambda _, own: [str(len(own.items) - 1 - own.items.index(own.marked))]),
    "translate-last": Task(_words, lambda world, own: [world.old_words[own.items[-1]]]),
    "translate-each": Task(_words, lambda world, own: [world.old_words[word] for word in own.items]),
    "larger-ends": Task(_numbers, lambda _, own: [max(own.items[0], own.items[-1], key=int)]),
}
