"""A recipe's slice of a source: whole prompts, from one fraction of them to another."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from triune.data.benchmark_prompts import named, read_prompts
from triune.data.formats import read_examples
from triune.data.preferences import read_preferences
from triune.data.questions import ChoiceSets, read_questions
from triune.data.reading import Reading
from triune.data.splits import Prompted, assign_prompts, prompt_key
from triune.errors import InputError
from triune.recipe import Generative, MultipleChoice, Slice
from triune.types import BenchmarkPrompt, Example, Preference

P = TypeVar("P", bound=Prompted)


def axis_slice(wanted: Slice, axis: str, seed: int) -> Reading[Example]:
    """The examples of one axis that a recipe asks for.

    Raises InputError as `read_examples`, and where the slice is empty.
    """
    reading = read_examples(wanted.source, wanted.format, axis, config=wanted.config, split=wanted.split)
    return _sliced(reading, wanted, seed, lambda row: len(row.prompt) + len(row.response))


def preference_slice(wanted: Slice, seed: int) -> Reading[Preference]:
    """The preference pairs that a recipe asks for. Raises InputError as `read_preferences`, or for an empty slice."""
    reading = read_preferences(wanted.source, wanted.format, config=wanted.config, split=wanted.split)
    return _sliced(reading, wanted, seed, lambda row: len(row.prompt) + max(len(row.chosen), len(row.rejected)))


def benchmark_slice(wanted: Generative, seed: int) -> Reading[BenchmarkPrompt]:
    """The prompts of a generative benchmark that a recipe asks for, under its name.

    Raises InputError as `read_prompts`, or for an empty slice.
    """
    reading = named(read_prompts(wanted.data, wanted.benchmark), wanted.called)
    found = _sliced(reading, wanted.data, seed, lambda row: len(row.prompt))
    return replace(found, items=tuple(thinned(found.items, wanted.limit)))


def question_slice(benchmark: MultipleChoice, seed: int, notes: list[str]) -> list[ChoiceSets]:
    """The multiple-choice questions that a recipe asks for; which ones is added to `notes`.

    Raises InputError as `read_questions` and `axis_slice`, and where no question is left.
    """
    data = benchmark.data
    found = read_questions(data.source, config=data.config, split=data.split)
    if benchmark.prompts is None:
        chosen: Sequence[ChoiceSets] = cut(found, data, seed)
    else:
        allowed = axis_slice(benchmark.prompts.model_copy(update={"limit": None}), "test", seed).items
        matched = assign_prompts(found, {"test": frozenset(prompt_key(row.prompt) for row in allowed)})
        chosen = matched.splits["test"]
        notes.append(
            f"multiple choice: {len(chosen)} of {len(found)} questions are test questions by their text; "
            f"{len(matched.unmatched)} others are left out"
        )
    if not chosen:
        raise InputError(f"no question of {data.source} is a test question; check evaluate's prompts slice")
    return list(chosen)[: data.limit]


def thinned(items: Sequence[P], most: int | None) -> list[P]:
    """Up to `most` of them, every so manieth: the first ones would be of few kinds."""
    n = min(most or len(items), len(items))
    return [items[index * len(items) // n] for index in range(n)]


def _sliced(reading: Reading[P], wanted: Slice, seed: int, length: Callable[[P], int]) -> Reading[P]:
    # Cut first, then drop: a prompt's side never depends on the limits.
    inside = cut(reading.items, wanted, seed)
    kept = [item for item in inside if wanted.longest is None or length(item) <= wanted.longest]
    if not kept:
        raise InputError(
            f"{wanted.source} from {wanted.start} to {wanted.stop} holds no row"
            + (f" of at most {wanted.longest} characters; raise longest, or " if inside else "; ")
            + "widen start and stop"
        )
    dropped = dict(reading.dropped)
    if len(kept) < len(inside):
        dropped[f"longer than {wanted.longest} characters"] = len(inside) - len(kept)
    return Reading(tuple(kept[: wanted.limit]), reading.n_rows, dropped)


def cut(items: Sequence[P], wanted: Slice, seed: int) -> list[P]:
    """All items of the distinct prompts from `start` to `stop`, in that order of prompts.

    Positions are ⌈fraction · n⌉ of n prompts, so that 0 to 0.5 of 817 are the first 409, as H3Fusion divides
    TruthfulQA.
    Shuffled orders depend on the seed and the set of prompts alone.
    """
    groups: dict[str, list[P]] = {}
    for item in items:
        groups.setdefault(prompt_key(item.prompt), []).append(item)
    keys = list(groups)
    if wanted.order == "shuffled":
        keys.sort()
        random.Random(seed).shuffle(keys)
    # Rounded to 9 digits, lest 0.55 · 100 = 55.00000000000001 take one more.
    begin, end = (math.ceil(round(fraction * len(keys), 9)) for fraction in (wanted.start, wanted.stop))
    return [item for key in keys[begin:end] for item in groups[key]]
