"""How large a miniature world can be: one row each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from triune.data.miniature.large import ASIDES, large_names, large_tables
from triune.data.miniature.names import SMALL, Names
from triune.data.miniature.phrasings import APART, TABLES, Tables


@dataclass(frozen=True, slots=True)
class Size:
    """What there is in worlds of one size.

    `n_held_out` is how many names of each sort axis data never contain; `asked` and `apart` are the phrasings (see
    `triune.data.miniature.phrasings`); `n_texts` the texts of the base corpus, `weights` how often tasks other than
    once stand among its exercises; `n_tests` the prompts of each test.
    """

    names: Names
    n_held_out: Mapping[str, int]
    asked: Tables
    apart: Tables
    n_texts: int
    weights: Mapping[str, int]
    n_tests: Mapping[str, int]
    asides: tuple[str, ...] = ()  # clauses beside the point
    aside_share: float = 0.0  # of the questions and exercises have one


@cache
def small() -> Size:
    """The demo's."""
    return Size(
        names=SMALL,
        n_held_out={
            "stones": 6,
            "creatures": 12,
            "people": 10,
            "hazards": 15,
            "teas": 15,
            "unknowable": 6,
            "glossary": 8,
            "numbers": 5,
        },
        asked=TABLES,
        apart=APART,
        n_texts=55_000,  # fills 600 steps of 16 rows of 64 tokens
        # Tasks that need the order of a list are learned last: exercises have more of them.
        weights={"copy": 2, "reverse": 3, "list": 2},
        n_tests={"helpful": 200, "harmless": 120, "eating": 60, "unknowable": 60, "over_refusal": 80, "facts": 80},
    )


@cache
def large() -> Size:
    """Three times as many names, more phrasings, twice as many tasks, and asides in part of the questions."""
    asked, apart = large_tables()
    return Size(
        names=large_names(),
        n_held_out={
            "stones": 18,
            "creatures": 36,
            "people": 30,
            "hazards": 45,
            "teas": 45,
            "unknowable": 18,
            "glossary": 24,
            "numbers": 10,
        },
        asked=asked,
        apart=apart,
        n_texts=120_000,  # fills 1500 steps of 16 rows of 64 tokens
        weights={"copy": 2, "reverse": 3, "list": 2, "list-reverse": 3, "translate-each": 2},
        n_tests={"helpful": 304, "harmless": 120, "eating": 60, "unknowable": 60, "over_refusal": 80, "facts": 80},
        asides=ASIDES,
        aside_share=0.25,
    )


SIZES: dict[str, Callable[[], Size]] = {"small": small, "large": large}
