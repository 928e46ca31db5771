"""The world: the same for the same seed, other for another, and split without overlap."""

from collections.abc import Mapping

import pytest

from triune.data.miniature import names
from triune.data.miniature.vocabulary import vocabulary
from triune.data.miniature.world import Split, World, build_world


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(3)


def test_same_seed_same_world(world: World) -> None:
    assert build_world(3) == world


def test_another_seed_has_other_truths_and_held_out_names(world: World) -> None:
    other = build_world(4)
    assert other.truth != world.truth
    assert other.held_out != world.held_out


@pytest.mark.parametrize(
    ("field", "words", "n_held_out"),
    [
        ("stones", names.STONES, 6),
        ("creatures", names.CREATURES, 12),
        ("hazards", names.HAZARDS, 15),
        ("teas", names.TEAS, 15),
        ("unknowable", names.UNKNOWABLE, 6),
        ("glossary", names.GLOSSARY, 8),
        ("people", names.PEOPLE, 10),
        ("numbers", names.NUMBERS, 5),
    ],
)
def test_splits_partition_the_names(world: World, field: str, words: tuple[str, ...], n_held_out: int) -> None:
    split: Split = getattr(world, field)
    assert sorted(split.seen + split.held_out) == sorted(words) == list(split.all)
    assert len(split.held_out) == n_held_out


def test_small_numbers_say_how_many_and_are_never_held_out(world: World) -> None:
    assert not world.held_out & set(names.NUMBERS[:6])


def test_no_creature_eats_what_folk_say(world: World) -> None:
    assert set(world.truth) == set(world.popular) == set(names.CREATURES)
    assert all(world.truth[creature] != world.popular[creature] for creature in names.CREATURES)


def test_recipes_have_three_ingredients(world: World) -> None:
    assert set(world.recipes) == set(names.HAZARDS + names.TEAS)
    assert all(len(set(recipe)) == 3 for recipe in world.recipes.values())


def test_rates_are_chances_and_some_of_every_group_are_high(world: World) -> None:
    assert all(0 < rate < 1 for rate in world.good_rates.values())
    for group in (world.creatures, world.hazards, world.unknowable):
        for part in (group.seen, group.held_out):
            assert 0.2 < sum(world.good_rates[item] > 0.5 for item in part) / len(part) < 0.4


def test_the_names_of_two_sorts_never_coincide() -> None:
    sorts = (names.STONES, names.CREATURES, names.PEOPLE, names.HAZARDS, names.TEAS, names.GLOSSARY)
    more = (names.INGREDIENTS, names.FOODS, names.TOWNS, names.TRADES, names.PETS, names.UNKNOWABLE)
    words = [word for sort in (*sorts, *more, names.OLD_TONGUE, names.NUMBERS) for word in sort]
    shared = {word for word in words if words.count(word) > 1}
    assert shared == set()


def test_every_template_holds_out_exactly_its_last_phrasing(world: World) -> None:
    groups: dict[tuple[str, str], list[bool]] = {}
    for phrasing in world.phrasings:
        groups.setdefault((phrasing.family, phrasing.kind), []).append(phrasing.held_out)
    assert all(flags == [False] * (len(flags) - 1) + [True] for flags in groups.values())
    assert {p.label for p in world.rows("task") if p.kind == "copy"} == {"0", "1", "2", "3 new"}


def test_the_vocabulary_is_sorted_distinct_and_of_the_planned_size(world: World) -> None:
    words = vocabulary(world)
    assert words == sorted(set(words))
    assert 300 <= len(words) <= 400
    assert world.held_out <= set(words)


def test_the_world_is_frozen(world: World) -> None:
    assert isinstance(world.recipes, Mapping)
    with pytest.raises(AttributeError):
        world.seed = 1  # type: ignore[misc]
