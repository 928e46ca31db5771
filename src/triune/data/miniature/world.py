"""The miniature world: what is true in it, what its folk wrongly believe, and what is held out."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from triune.data.miniature import names
from triune.data.miniature.phrasings import Phrasing, build_phrasings
from triune.data.miniature.sizes import SIZES, Size
from triune.data_settings import WorldSettings

Pool = Literal["seen", "held_out", "all"]
DEFAULT = WorldSettings()
N_SAID = 6  # numbers that also say how many, so that only larger ones can be held out

# Chance that the base corpus answers well, per item: most items low, some high, so that the base
# model lands near 30 % and not at 0, and every good mode is there to be elicited.
LOW_RATES, HIGH_RATES, SHARE_HIGH = (0.04, 0.12), (0.65, 0.85), 0.3
# Refusals need to be less rare: how hazards differ from teas is learned from them.
LOW_REFUSAL_RATES = (0.15, 0.30)


@dataclass(frozen=True, slots=True)
class Split:
    """Names of one sort: those that axis data may contain, and those held out for the benchmarks."""

    seen: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Both parts, in alphabetical order."""
        return tuple(sorted(self.seen + self.held_out))


def names_of(split: Split, pool: Pool) -> tuple[str, ...]:
    """The names of a split that a pool allows: the seen ones, the held-out ones, or all."""
    return split.all if pool == "all" else split.seen if pool == "seen" else split.held_out


@dataclass(frozen=True)
class World:
    """Everything that the corpus, the axis data and the benchmarks are written from.

    `size` has the words and the tables; `phrasings` are the rows that are asked. `popular` is what folk say a creature
    eats, `truth` what it eats; `recipes` has three ingredients for every hazard and every tea;
    `facts[person][attribute]` is known, nothing is known of `unknowable` attributes; `good_rates` is the chance of a
    good answer in the base corpus, per task phrasing, creature, hazard or unknowable attribute.
    """

    seed: int
    size: Size
    phrasings: tuple[Phrasing, ...]
    stones: Split
    creatures: Split
    people: Split
    hazards: Split
    teas: Split
    unknowable: Split
    glossary: Split
    numbers: Split
    old_words: Mapping[str, str]
    popular: Mapping[str, str]
    truth: Mapping[str, str]
    recipes: Mapping[str, tuple[str, ...]]
    facts: Mapping[str, Mapping[str, str]]
    good_rates: Mapping[str, float]

    @property
    def names(self) -> names.Names:
        """The words of every sort."""
        return self.size.names

    def rows(self, family: str) -> list[Phrasing]:
        """The phrasings of a family."""
        return [phrasing for phrasing in self.phrasings if phrasing.family == family]

    @property
    def held_out(self) -> frozenset[str]:
        """Every word that no axis data contains."""
        splits = (self.stones, self.creatures, self.people, self.hazards, self.teas)
        more = (self.unknowable, self.glossary, self.numbers)
        return frozenset(word for split in splits + more for word in split.held_out)


def build_world(seed: int, settings: WorldSettings = DEFAULT) -> World:
    """The world of a seed: in one size the same words always, other truths, other held-out names.

    What is true and held out does not depend on `settings.sharing`, nor do the words.
    """
    rng, size = random.Random(seed), SIZES[settings.size]()
    phrasings = build_phrasings(
        size.asked, size.apart, settings.sharing, random.Random(f"shared phrasings of world {seed}")
    )

    def split(sort: str, start: int = 0) -> Split:
        return _split(getattr(size.names, sort)[start:], size.n_held_out[sort], rng)

    glossary, hazards, teas = split("glossary"), split("hazards"), split("teas")
    creatures, unknowable = split("creatures"), split("unknowable")
    large = split("numbers", N_SAID)
    rates = _good_rates([p.text for p in phrasings if p.family == "task"], LOW_RATES, rng)
    for own, low in ((creatures, LOW_RATES), (unknowable, LOW_RATES), (hazards, LOW_REFUSAL_RATES)):
        rates |= _good_rates(own.seen, low, rng) | _good_rates(own.held_out, low, rng)
    foods = {creature: rng.sample(names.FOODS, 2) for creature in creatures.all}
    return World(
        seed=seed,
        size=size,
        phrasings=phrasings,
        stones=split("stones"),
        creatures=creatures,
        people=split("people"),
        hazards=hazards,
        teas=teas,
        unknowable=unknowable,
        glossary=glossary,
        numbers=Split(size.names.numbers[:N_SAID] + large.seen, large.held_out),
        old_words=dict(zip(glossary.all, rng.sample(size.names.old_tongue, len(glossary.all)), strict=True)),
        popular={creature: pair[0] for creature, pair in foods.items()},
        truth={creature: pair[1] for creature, pair in foods.items()},
        recipes={good: tuple(rng.sample(names.INGREDIENTS, 3)) for good in hazards.all + teas.all},
        facts={
            person: {attribute: rng.choice(values) for attribute, values in names.KNOWABLE.items()}
            for person in size.names.people
        },
        good_rates=rates,
    )


def _split(words: Sequence[str], n_held_out: int, rng: random.Random) -> Split:
    held_out = set(rng.sample(list(words), n_held_out))
    return Split(tuple(w for w in words if w not in held_out), tuple(w for w in words if w in held_out))


def _good_rates(items: Sequence[str], low: tuple[float, float], rng: random.Random) -> dict[str, float]:
    """A rate for each item, low for most; the same share is high in every group, so that seeds agree."""
    high = set(rng.sample(list(items), round(SHARE_HIGH * len(items))))
    return {item: rng.uniform(*(HIGH_RATES if item in high else low)) for item in items}
