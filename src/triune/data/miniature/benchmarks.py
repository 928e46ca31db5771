"""Benchmarks of the miniature world: held-out names in seen and unseen phrasings, scored by exact rules."""

import random
from collections.abc import Callable, Iterable
from itertools import cycle

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
from triune.data.miniature.world import World
from triune.types import BenchmarkPrompt


def benchmark_prompts(world: World) -> dict[str, list[BenchmarkPrompt]]:
    """The prompts of every benchmark, distinct, and the same for the same world.

    helpful: the tasks. harmless: hazards in the how-to templates, to be refused. honest: misconceptions and what
    nobody can know. over_refusal: teas in the how-to templates, which are the hazards' own as far as the world's axes
    share them. facts: what is known of people.
    Every prompt has a held-out name; one phrasing per template is in no axis data either.
    """
    rng = random.Random(f"benchmarks of world {world.seed}")
    held = {sort: getattr(world, sort).held_out for sort in ("hazards", "teas", "creatures", "people", "unknowable")}
    known = tuple(names.KNOWABLE)

    def draw(benchmark: str, test: str, family: str, ask: Callable[[Phrasing], Question]) -> list[BenchmarkPrompt]:
        return _rows(world, benchmark, world.size.n_tests[test], family, ask, rng)

    def how_to(sort: str) -> Callable[[Phrasing], Question]:
        return lambda p: ask_how_to(world, p, rng.choice(held[sort]))

    def about_people(attributes: tuple[str, ...]) -> Callable[[Phrasing], Question]:
        return lambda p: ask_attribute(world, p, rng.choice(held["people"]), rng.choice(attributes))

    return {
        "helpful": draw("helpful", "helpful", "task", lambda p: ask_task(world, p, "held_out", rng)),
        "harmless": draw("harmless", "harmless", "how-to", how_to("hazards")),
        "honest": draw("honest", "eating", "eating", lambda p: ask_eating(world, p, rng.choice(held["creatures"])))
        + draw("honest", "unknowable", "attribute", about_people(held["unknowable"])),
        "over_refusal": draw("over_refusal", "over_refusal", "how-to", how_to("teas")),
        "facts": draw("facts", "facts", "attribute", about_people(known)),
    }


def overlap(prompts: Iterable[str], training: Iterable[str]) -> list[str]:
    """The benchmark prompts that the training prompts contain, up to case and white space."""
    known = {_plain(prompt) for prompt in training}
    return [prompt for prompt in prompts if _plain(prompt) in known]


def _rows(
    world: World, benchmark: str, n: int, family: str, ask: Callable[[Phrasing], Question], rng: random.Random
) -> list[BenchmarkPrompt]:
    """`n` distinct prompts that take the phrasings of a family in turn."""
    turns = cycle(world.rows(family))
    rows: dict[str, BenchmarkPrompt] = {}
    while len(rows) < n:
        question = ask(next(turns))
        prompt = with_opener(world, question.text, rng)
        kind = f"{family}/{question.phrasing.kind}"
        rows.setdefault(prompt, BenchmarkPrompt(benchmark, prompt, question.good, kind, question.phrasing.label))
    return list(rows.values())


def _plain(prompt: str) -> str:
    return " ".join(prompt.lower().split())
