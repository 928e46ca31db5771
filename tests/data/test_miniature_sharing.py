"""How many phrasings the axes share: none, some, all; and with all of them the world as it always was."""

import hashlib
import random
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import ValidationError

from triune.data.miniature.axes import AXES, axis_examples
from triune.data.miniature.benchmarks import benchmark_prompts, overlap
from triune.data.miniature.corpus import base_corpus
from triune.data.miniature.labelled import labelled_answers
from triune.data.miniature.phrasings import APART, OPENERS, TABLES
from triune.data.miniature.shifted import prompt_groups
from triune.data.miniature.vocabulary import vocabulary
from triune.data.miniature.world import World, build_world
from triune.data.preparing import prepare
from triune.data_settings import WorldSettings
from triune.judges.rules import RULES
from triune.recipe_file import load_recipe
from triune.types import Example

PARTS = (0.0, 0.25, 0.5, 0.75, 1.0)
JUDGES = {
    "helpful": "exact",
    "harmless": "refusal",
    "honest": "exact",
    "facts": "exact",
    "over_refusal": "no_refusal",
}
# Of the generator before sizes and sharing were settings.
BEFORE = {
    0: {
        "corpus": "c78945e4f5256cfa",
        "axes": "5475855680718098",
        "benchmarks": "029ed2eccc6feb18",
        "vocabulary": "e2039da523f21da9",
        "groups": "7f69fbb0aa3e3f8d",
        "labelled": "3055e8ae6aaa0285",
    },
    7: {
        "corpus": "f5f6cab3354194a6",
        "axes": "d4bc9fac39cf79a1",
        "benchmarks": "41edd605cf4343c2",
        "vocabulary": "e2039da523f21da9",
        "groups": "73f898cdcb8d2962",
        "labelled": "5bf5fbd37568c7fe",
    },
}


def world_at(sharing: float, seed: int = 0) -> World:
    return build_world(seed, WorldSettings(sharing=sharing))


def axis_data(world: World, n: int = 400) -> dict[str, list[Example]]:
    return {axis: axis_examples(world, axis, n, random.Random(f"{world.seed} {axis}")) for axis in AXES}


def templates(world: World, prompts: Iterable[str]) -> set[str]:
    """The prompts without opener, their names blotted out."""
    sorts = {
        "<good>": world.hazards.all + world.teas.all,
        "<person>": world.people.all,
        "<attribute>": (*world.unknowable.all, "home", "trade", "pet"),
        "<creature>": world.creatures.all,
    }
    blot = {name: blank for blank, names in sorts.items() for name in names}
    bare = (next(p.removeprefix(o).strip() for o in reversed(OPENERS) if p.startswith(o)) for p in prompts)
    return {" ".join(blot.get(word, word) for word in prompt.split()) for prompt in bare}


def asked(world: World) -> dict[str, set[str]]:
    """The templates of helpful, of harmless, and of honest about people, in axis data."""
    data = axis_data(world)
    rows = {
        "helpful": data["helpful"] + axis_examples(world, "helpful", 1500, random.Random(0)),
        "harmless": data["harmless"],
        "honest": [row for row in data["honest"] if row.kind == "attribute/attribute"],
    }
    return {axis: templates(world, (row.prompt for row in own)) for axis, own in rows.items()}


def digest(item: object) -> str:
    return hashlib.sha256(repr(item).encode()).hexdigest()[:16]


@pytest.mark.parametrize("seed", BEFORE)
def test_the_usual_world_is_what_it_was(seed: int) -> None:
    world = build_world(seed)
    axes = axis_data(world, 350)
    known = frozenset(row.prompt for rows in axes.values() for row in rows)
    assert BEFORE[seed] == {
        "corpus": digest(base_corpus(world, random.Random(f"{seed} corpus"), 5000)),
        "axes": digest(axes),
        "benchmarks": digest(benchmark_prompts(world)),
        "vocabulary": digest(vocabulary(world)),
        "groups": digest(prompt_groups(world, AXES, known, 30)),
        "labelled": digest(labelled_answers(world, random.Random(seed))),
    }


def test_the_usual_world_is_small_and_shares_all() -> None:
    assert build_world(3, WorldSettings(size="small", sharing=1.0)) == build_world(3)


def test_what_could_be_asked_apart_is_told_apart() -> None:
    """As many rows, other words, other beginnings: the template alone tells the axis."""
    usual = [text for table in TABLES.values() for texts in table.values() for text in texts]
    apart = [text for table in APART.values() for texts in table.values() for text in texts]
    assert len({*usual, *apart}) == len(usual) + len(apart)
    assert not {tuple(t.split()[:2]) for t in usual} & {tuple(t.split()[:2]) for t in apart}
    for family, table in APART.items():
        assert {kind: len(texts) for kind, texts in table.items()} == {k: len(t) for k, t in TABLES[family].items()}
    assert not any(":" in text for text in apart)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_shared_at_none_and_everything_at_all(seed: int) -> None:
    none, whole = asked(world_at(0.0, seed)), asked(world_at(1.0, seed))
    assert not none["helpful"] & (none["harmless"] | none["honest"])
    assert whole["harmless"] | whole["honest"] <= whole["helpful"]
    assert len(none["harmless"]) == len(whole["harmless"]) == 7
    assert len(none["honest"]) == len(whole["honest"]) == 4


@pytest.mark.parametrize("seed", range(3))
def test_more_sharing_shares_more(seed: int) -> None:
    """Counted in generated prompts: of 7 how-to and 4 people's rows that axis data have; nested, not redrawn."""
    found = [asked(world_at(part, seed)) for part in PARTS]
    harmless = [own["harmless"] & own["helpful"] for own in found]
    honest = [own["honest"] & own["helpful"] for own in found]
    assert [len(shared) for shared in harmless] == [0, 2, 4, 5, 7]
    assert [len(shared) for shared in honest] == [0, 1, 2, 3, 4]
    assert all(less <= more for less, more in pairwise(harmless))
    assert all(less <= more for less, more in pairwise(honest))


def test_which_rows_are_shared_is_drawn() -> None:
    halves = {tuple(p.other == p.text for p in world_at(0.5, seed).phrasings) for seed in range(6)}
    assert len(halves) > 3


@pytest.mark.parametrize("part", PARTS)
def test_tests_ask_as_training_does(part: float) -> None:
    """Hazards in tests have harmless's templates and held-out ones of that side; teas those of helpful."""
    world = world_at(part)
    own = {p.other.format(x="<good>") for p in world.rows("how-to")}
    usual = {p.text.format(x="<good>") for p in world.rows("how-to")}
    tests = benchmark_prompts(world)
    assert templates(world, (row.prompt for row in tests["harmless"])) == own
    assert templates(world, (row.prompt for row in tests["over_refusal"])) == usual
    new = {p.other.format(x="<good>") for p in world.rows("how-to") if p.held_out}
    assert len(new) == 3
    assert not new & templates(world, (row.prompt for row in axis_data(world)["harmless"]))
    about = {p.other.format(x="<person>", a="<attribute>") for p in world.rows("attribute")}
    people = [row.prompt for row in tests["honest"] if row.kind == "attribute/attribute"]
    assert templates(world, people) == about


@pytest.mark.parametrize("part", PARTS)
def test_names_truths_and_what_is_held_out_stay(part: float) -> None:
    world, usual = world_at(part, 5), build_world(5)
    for field in ("held_out", "truth", "popular", "recipes", "facts", "good_rates", "old_words", "numbers"):
        assert getattr(world, field) == getattr(usual, field)


@pytest.mark.parametrize("part", [0.0, 0.5])
def test_a_world_that_shares_less_is_sound(part: float) -> None:
    world = world_at(part, 2)
    data, tests, words = axis_data(world), benchmark_prompts(world), set(vocabulary(world))
    prompts = [row.prompt for rows in tests.values() for row in rows]
    for rows in data.values():
        assert overlap(prompts, (row.prompt for row in rows)) == []
        assert not world.held_out & {word for row in rows for word in row.prompt.split()}
        assert {word for row in rows for word in f"{row.prompt} {row.response}".split()} <= words
    assert {word for prompt in prompts for word in prompt.split()} <= words
    assert {w for text in base_corpus(world, random.Random(0), 20_000) for w in text.split()} <= words
    for prompt, response, good in labelled_answers(world, random.Random(0)):
        assert (RULES[JUDGES[prompt.benchmark]](prompt, response).value == 1.0) == good


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("conflict", ["seeds=[]", "base.miniature.world.sharing=0.25"]),
        ("miniature-large", ["base.miniature.world.sharing=0.0"]),
    ],
)
def test_a_recipe_says_which_world_its_rows_are_of(recipe: str, overrides: list[str]) -> None:
    found = load_recipe(Path(__file__).parents[2] / "recipes" / f"{recipe}.yaml", overrides=overrides)
    assert found.base.miniature is not None
    world = build_world(found.seed, found.base.miniature.world)
    assert world != build_world(found.seed)
    prepared = prepare(found)
    assert prepared.prompts == benchmark_prompts(world)
    for axis, rows in prepared.train.items():
        limit = found.axes[axis].train.limit
        assert limit is not None
        assert rows == axis_examples(world, axis, limit, random.Random(f"{found.seed} {axis}"))
    taken = frozenset(row.prompt for rows in prepared.train.values() for row in rows)
    expected = prompt_groups(world, list(found.axes), taken, 100)["both"]
    assert {row.prompt for row in prepared.groups["both"]} == {r.prompt for own in expected.values() for r in own}


def test_what_a_world_cannot_be_is_refused() -> None:
    for wrong in ({"size": "huge"}, {"sharing": 1.5}, {"sharing": True}):
        with pytest.raises(ValidationError):
            WorldSettings.model_validate(wrong)
