"""Prompts of the miniature world that a router should send to their axis though they are unlike its training data.

Only their axis matters, so they have no answer. In one world, held out are names and phrasings; the groups take each
alone, both, and neither. `foreign` has the phrasings of the axis data and words that no prompt has in such a place.

The words of all worlds are the same and the vocabulary is closed, so foreign words are words of another sort:
people, creatures, towns and old words in the tasks over stones; stones, people, towns and old words where a creature's
food is asked; stones, creatures, towns and old words where a person's unknowable attribute is. Whoever bears the name,
the template (of an attribute: the attribute's word) alone decides the axis, as it does in the axis data. Stones and
creatures are harder than the others: the axis data have them on the other axis.
Left out is what such a word would leave without a true axis: how-to questions, where only the name tells a hazard
(harmless) from a tea (helpful), and with them the whole harmless axis; facts, which are known of people only;
translations and numbers, which other words do not have; the phrasings that press a popular error, which is a
creature's.
Left out, too, are words outside the vocabulary. The tokenizer makes all of them one token, which no text of the corpus
has: its embedding is as it was drawn, and every such group would measure that one random vector.
"""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from triune.data.miniature import names
from triune.data.miniature.axes import SEEN, Asking, axis_question, draw_rows
from triune.data.miniature.phrasings import UNKNOWN
from triune.data.miniature.questions import Question, ask_task
from triune.data.miniature.world import Split, World
from triune.types import Example

GROUPS: Mapping[str, Asking] = {
    "seen": SEEN,  # in distribution: what the others are held against
    "new names": Asking("held_out"),
    "new phrasings": Asking("seen", new_phrasing=True),
    "both": Asking("held_out", new_phrasing=True),
}
FOREIGN = "foreign"
COMMON_SORTS = (names.PEOPLE, names.TOWNS, names.OLD_TONGUE)
TASK_SORTS = (names.CREATURES, *COMMON_SORTS)
EATING_SORTS = (names.STONES, *COMMON_SORTS)
BEARER_SORTS = (names.STONES, names.CREATURES, names.TOWNS, names.OLD_TONGUE)  # people are the attributes' own
STONE_TASKS = ("copy", "reverse", "list", "count", "first", "last")


def prompt_groups(
    world: World, axes: Sequence[str], known: Collection[str], most: int
) -> dict[str, dict[str, list[Example]]]:
    """group -> axis -> up to `most` rows with distinct prompts, none of them `known` (what the axes were trained on).

    The same for the same world and `known`. An axis has fewer rows where the world has no more (the harmless axis has
    some 400 prompts of seen names and phrasings), none where it is not in the group.
    """

    def drawn(group: str, axis: str, ask: Callable[[random.Random], Question]) -> list[Example]:
        rng = random.Random(f"{group} prompts of {axis} in world {world.seed}")
        rows = draw_rows(world, axis, most, ask, rng, known)
        return [replace(row, response="", source=group) for row in rows]

    found = {
        group: {axis: drawn(group, axis, partial(axis_question, world, axis, asking)) for axis in axes}
        for group, asking in GROUPS.items()
    }
    found[FOREIGN] = {
        axis: drawn(FOREIGN, axis, partial(ask, world)) for axis, ask in _FOREIGN.items() if axis in axes
    }
    return found


def _foreign_task(world: World, rng: random.Random) -> Question:
    phrasing = rng.choice([own for own in SEEN.phrasings(world, "task") if own.kind in STONE_TASKS])
    return ask_task(replace(world, stones=Split(rng.choice(TASK_SORTS), ())), phrasing, "seen", rng)


def _foreign_bearer(world: World, rng: random.Random) -> Question:
    """What something eats that is no creature; what nobody can know of something that is no person."""
    if rng.random() < 0.5:
        phrasing = rng.choice([own for own in SEEN.phrasings(world, "eating") if "{p}" not in own.text])
        text = phrasing.text.format(x=(word := rng.choice(rng.choice(EATING_SORTS))))
    else:
        phrasing = rng.choice(SEEN.phrasings(world, "attribute"))
        word, attribute = rng.choice(rng.choice(BEARER_SORTS)), rng.choice(world.unknowable.seen)
        text = phrasing.other.format(x=word, a=attribute)
    return Question(text, (UNKNOWN,), phrasing, word)


_FOREIGN = {"helpful": _foreign_task, "honest": _foreign_bearer}
