"""Groups of prompts: what is held out in each, and that none of them is known."""

import random

import pytest

from triune.data.miniature import names
from triune.data.miniature.axes import AXES, axis_examples
from triune.data.miniature.phrasings import OPENERS
from triune.data.miniature.shifted import prompt_groups
from triune.data.miniature.vocabulary import vocabulary
from triune.data.miniature.world import World, build_world
from triune.types import Example

Groups = dict[str, dict[str, list[Example]]]


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(0)


@pytest.fixture(scope="module")
def known(world: World) -> frozenset[str]:
    return frozenset(row.prompt for axis in AXES for row in axis_examples(world, axis, 380, random.Random(1)))


@pytest.fixture(scope="module")
def groups(world: World, known: frozenset[str]) -> Groups:
    return prompt_groups(world, AXES, known, 100)


def is_new(world: World, prompt: str) -> bool:
    """Whether a prompt is asked in a held-out phrasing."""
    bare = next(prompt.removeprefix(o).strip() for o in reversed(OPENERS) if prompt.startswith(o))
    heads = [p.text.split("{")[0] for p in world.phrasings if p.held_out and not p.text.startswith("{")]
    return " has which " in bare or any(bare.startswith(head) for head in heads)


def test_groups_and_sizes(groups: Groups) -> None:
    assert list(groups) == ["seen", "new names", "new phrasings", "both", "foreign"]
    sizes = {group: {axis: len(rows) for axis, rows in own.items()} for group, own in groups.items()}
    # Of 15 hazards in 7 phrasings after 4 openers, 380 are known.
    assert sizes.pop("seen") == {"helpful": 100, "harmless": 40, "honest": 100}
    assert sizes.pop("foreign") == {"helpful": 100, "honest": 100}
    assert all(own == dict.fromkeys(AXES, 100) for own in sizes.values())


def test_rows_are_prompts_alone_and_new(groups: Groups, known: frozenset[str]) -> None:
    for group, own in groups.items():
        prompts = [row.prompt for rows in own.values() for row in rows]
        assert len(set(prompts)) == len(prompts)
        assert not known & set(prompts)
        assert {(row.axis, row.response, row.source) for rows in own.values() for row in rows} == {
            (axis, "", group) for axis in own
        }


@pytest.mark.parametrize(
    ("group", "new_names", "new_phrasings"),
    [("seen", 0, 0), ("new names", 1, 0), ("new phrasings", 0, 1), ("both", 1, 1)],
)
def test_what_is_held_out(world: World, groups: Groups, group: str, new_names: int, new_phrasings: int) -> None:
    for rows in groups[group].values():
        for row in rows:
            assert bool(world.held_out & set(row.prompt.split())) == bool(new_names), row
            assert is_new(world, row.prompt) == bool(new_phrasings), row


def test_foreign_words_are_of_another_sort_and_in_the_vocabulary(world: World, groups: Groups) -> None:
    words = set(vocabulary(world))
    for rows in groups["foreign"].values():
        assert all(set(row.prompt.split()) <= words and not is_new(world, row.prompt) for row in rows)
    helpful, honest = groups["foreign"]["helpful"], groups["foreign"]["honest"]
    used = {word for row in helpful for word in row.prompt.split()}
    assert not used & {*names.STONES, *names.HAZARDS, *names.TEAS, *names.GLOSSARY}
    assert all(used & set(sort) for sort in (names.CREATURES, names.PEOPLE, names.TOWNS, names.OLD_TONGUE))
    assert {row.kind for row in helpful} == {
        f"task/{k}" for k in ("copy", "reverse", "list", "count", "first", "last")
    }
    for row in honest:
        own = set(row.prompt.split())
        bearers = names.CREATURES if row.kind == "eating/food" else names.PEOPLE
        assert not own & {*bearers, *names.HAZARDS, *names.TEAS, *names.KNOWABLE}
        assert bool(own & set(names.UNKNOWABLE)) == (row.kind == "attribute/attribute")
    assert {row.kind for row in honest} == {"eating/food", "attribute/attribute"}


def test_the_same_world_the_same_groups(world: World, groups: Groups, known: frozenset[str]) -> None:
    assert prompt_groups(world, AXES, known, 100) == groups
    other = prompt_groups(build_world(1), AXES, known, 100)
    assert other["both"] != groups["both"]


def test_an_axis_that_has_no_more(world: World) -> None:
    everything = [row.prompt for row in axis_examples(world, "harmless", 420, random.Random(0))]
    found = prompt_groups(world, ["harmless"], everything, 10)
    assert found["seen"] == {"harmless": []}
    assert found["foreign"] == {}
    assert len(found["new names"]["harmless"]) == 10
