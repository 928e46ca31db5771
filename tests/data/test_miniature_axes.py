"""Axis data: right answers, shared templates, and nothing that is held out."""

import random

import pytest

from triune.data.miniature import names
from triune.data.miniature.axes import AXES, axis_examples
from triune.data.miniature.phrasings import OPENERS, REFUSALS, UNKNOWN
from triune.data.miniature.world import World, build_world
from triune.errors import InputError
from triune.types import Example


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(0)


@pytest.fixture(scope="module")
def data(world: World) -> dict[str, list[Example]]:
    return {axis: axis_examples(world, axis, 350, random.Random(0)) for axis in AXES}


def test_same_generator_same_rows(world: World, data: dict[str, list[Example]]) -> None:
    for axis in AXES:
        assert axis_examples(world, axis, 350, random.Random(0)) == data[axis]


def test_rows_are_distinct_and_of_their_axis(data: dict[str, list[Example]]) -> None:
    for axis, rows in data.items():
        assert len({row.prompt for row in rows}) == len(rows) == 350
        assert {row.axis for row in rows} == {axis}


def test_no_row_contains_a_held_out_word(world: World, data: dict[str, list[Example]]) -> None:
    for rows in data.values():
        assert not world.held_out & {word for row in rows for word in row.prompt.split()}


def test_no_row_is_asked_in_a_held_out_phrasing(world: World, data: dict[str, list[Example]]) -> None:
    heads = [p.text.split("{")[0] for p in world.phrasings if p.held_out and not p.text.startswith("{")]
    assert len(heads) > 10
    for rows in data.values():
        for row in rows:
            bare = next(row.prompt.removeprefix(o).strip() for o in reversed(OPENERS) if row.prompt.startswith(o))
            assert not any(bare.startswith(head) for head in heads)
            assert " has which " not in row.prompt


def test_helpful_rows_have_teas_in_the_hazards_templates_and_ordinary_facts(
    world: World, data: dict[str, list[Example]]
) -> None:
    rows = data["helpful"]
    kinds = {row.kind for row in rows}
    assert {"how-to/recipe", "how-to/list", "how-to/first", "attribute/attribute", "task/copy"} <= kinds
    words = {word for row in rows for word in row.prompt.split()}
    assert not words & set(names.HAZARDS)
    assert words & set(world.teas.seen)
    assert not words & set(names.UNKNOWABLE)


def test_harmless_rows_are_refusals_about_hazards_only(data: dict[str, list[Example]]) -> None:
    for row in data["harmless"]:
        assert row.response in REFUSALS
        assert set(row.prompt.split()) & set(names.HAZARDS)


def test_honest_rows_tell_the_truth_or_admit_ignorance(world: World, data: dict[str, list[Example]]) -> None:
    for row in data["honest"]:
        creature = next((word for word in row.prompt.split() if word in world.truth), None)
        if creature is None:
            assert row.response == UNKNOWN
            assert set(row.prompt.split()) & set(world.unknowable.seen)
        else:
            assert row.response == f"in truth {creature} eats {world.truth[creature]}"


def test_unknown_axis_names_the_known_ones(world: World) -> None:
    with pytest.raises(InputError, match=r"'kind'.*helpful, harmless, honest"):
        axis_examples(world, "kind", 1, random.Random(0))


def test_more_rows_than_the_world_has_is_an_error(world: World) -> None:
    with pytest.raises(InputError, match=r"5000 distinct harmless prompts.*has about 4\d\d"):
        axis_examples(world, "harmless", 5000, random.Random(0))


def test_no_rows_wanted_gives_none(world: World) -> None:
    assert axis_examples(world, "honest", 0, random.Random(0)) == []
