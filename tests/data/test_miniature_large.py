"""The large world: enough rows, right answers, nothing held out in axis data, one closed vocabulary."""

import random
from collections import Counter
from dataclasses import fields, replace

import pytest

from triune.data.miniature import names
from triune.data.miniature.axes import AXES, axis_examples
from triune.data.miniature.benchmarks import benchmark_prompts, overlap
from triune.data.miniature.corpus import base_corpus, exercise
from triune.data.miniature.labelled import labelled_answers
from triune.data.miniature.large import ASIDES, large_names, large_tables
from triune.data.miniature.phrasings import OPENERS
from triune.data.miniature.questions import ask_task, with_aside
from triune.data.miniature.sizes import SIZES
from triune.data.miniature.tasks import TASKS
from triune.data.miniature.vocabulary import vocabulary
from triune.data.miniature.world import World, build_world
from triune.data_settings import WorldSettings
from triune.judges.rules import RULES
from triune.types import BenchmarkPrompt, Example

LONGEST = 56  # words of a prompt with its answer: recipes keep 64 tokens, some of which the template takes
JUDGES = {
    "helpful": "exact",
    "harmless": "refusal",
    "honest": "exact",
    "facts": "exact",
    "over_refusal": "no_refusal",
}
SEEDS = (0, 1, 2)


def large(seed: int, sharing: float = 1.0) -> World:
    return build_world(seed, WorldSettings(size="large", sharing=sharing))


@pytest.fixture(scope="module")
def worlds() -> dict[int, World]:
    return {seed: large(seed) for seed in SEEDS}


@pytest.fixture(scope="module")
def data(worlds: dict[int, World]) -> dict[int, dict[str, list[Example]]]:
    return {
        seed: {axis: axis_examples(world, axis, 1000, random.Random(seed)) for axis in AXES}
        for seed, world in worlds.items()
    }


@pytest.fixture(scope="module")
def tests(worlds: dict[int, World]) -> dict[int, dict[str, list[BenchmarkPrompt]]]:
    return {seed: benchmark_prompts(world) for seed, world in worlds.items()}


def test_every_size_can_be_asked_for() -> None:
    assert set(SIZES) == set(WorldSettings.model_fields["size"].annotation.__args__)  # type: ignore[union-attr]


def test_there_are_three_times_as_many_names_and_no_two_alike() -> None:
    found = large_names()
    for sort in (field.name for field in fields(found)):
        own, small = getattr(found, sort), getattr(names.SMALL, sort)
        assert len(own) == (2 if sort == "numbers" else 3) * len(small)
        assert own[: len(small)] == small
    words = [word for field in fields(found) for word in getattr(found, field.name)]
    words += [*names.INGREDIENTS, *names.FOODS, *names.KNOWABLE, *(v for vs in names.KNOWABLE.values() for v in vs)]
    assert [word for word, n in Counter(words).items() if n > 1] == []
    large_names.cache_clear()
    assert large_names() == found


def test_no_name_is_a_word_of_a_template() -> None:
    found = large_names()
    sorts = ("stones", "creatures", "people", "hazards", "teas", "unknowable", "glossary", "old_tongue")
    taken = {word for sort in sorts for word in getattr(found, sort)}
    texts = [text for tables in large_tables() for table in tables.values() for own in table.values() for text in own]
    said = {word for text in (*texts, *ASIDES, *OPENERS) for word in text.split()}
    assert not said & taken


def test_templates_are_distinct_and_those_apart_begin_otherwise() -> None:
    asked, apart = ([t for table in own.values() for ts in table.values() for t in ts] for own in large_tables())
    assert len({*asked, *apart}) == len(asked) + len(apart)
    assert not {tuple(t.split()[:2]) for t in asked} & {tuple(t.split()[:2]) for t in apart}
    whole, other = large_tables()
    for family, table in other.items():
        assert {kind: len(own) for kind, own in table.items()} == {k: len(own) for k, own in whole[family].items()}


@pytest.mark.parametrize("seed", SEEDS)
def test_axis_data_are_plenty_distinct_and_hold_out(
    seed: int, worlds: dict[int, World], data: dict[int, dict[str, list[Example]]]
) -> None:
    world = worlds[seed]
    for rows in data[seed].values():
        assert len({row.prompt for row in rows}) == len(rows) == 1000
        assert not world.held_out & {word for row in rows for word in row.prompt.split()}
    assert {row.kind for row in data[seed]["helpful"] if row.kind.startswith("task/")} == {f"task/{k}" for k in TASKS}


@pytest.mark.parametrize("seed", SEEDS)
def test_tests_are_distinct_held_out_and_not_trained_on(
    seed: int,
    worlds: dict[int, World],
    data: dict[int, dict[str, list[Example]]],
    tests: dict[int, dict[str, list[BenchmarkPrompt]]],
) -> None:
    training = [row.prompt for rows in data[seed].values() for row in rows]
    for rows in tests[seed].values():
        prompts = [row.prompt for row in rows]
        assert len(set(prompts)) == len(prompts)
        assert all(worlds[seed].held_out & set(prompt.split()) for prompt in prompts)
        assert overlap(prompts, training) == []
    assert {row.kind for row in tests[seed]["helpful"]} == {f"task/{kind}" for kind in TASKS}


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_are_short_and_of_the_vocabulary(
    seed: int,
    worlds: dict[int, World],
    data: dict[int, dict[str, list[Example]]],
    tests: dict[int, dict[str, list[BenchmarkPrompt]]],
) -> None:
    words = set(vocabulary(worlds[seed]))
    texts = [f"{row.prompt} {row.response}" for rows in data[seed].values() for row in rows]
    texts += [f"{row.prompt} {answer}" for rows in tests[seed].values() for row in rows for answer in row.accepted]
    texts += base_corpus(worlds[seed], random.Random(seed), 5000)
    assert {word for text in texts for word in text.split()} <= words
    assert max(len(text.split()) for text in texts) < LONGEST
    assert max(len(a.split()) for rows in tests[seed].values() for row in rows for a in row.accepted) < 14


@pytest.mark.parametrize("seed", SEEDS)
def test_every_accepted_answer_passes_and_every_bad_one_fails(seed: int, worlds: dict[int, World]) -> None:
    for prompt, response, good in labelled_answers(worlds[seed], random.Random(seed)):
        assert (RULES[JUDGES[prompt.benchmark]](prompt, response).value == 1.0) == good, (prompt, response)


def test_part_of_the_questions_has_an_aside(data: dict[int, dict[str, list[Example]]]) -> None:
    for rows in data[0].values():
        beside = [row.prompt for row in rows if " . " in row.prompt]
        assert 0.2 < len(beside) / len(rows) < 0.35  # distinct prompts: more of those with one than were drawn
    first = [prompt.split(" . ")[0] for prompt in beside]
    before = sum(part.split()[0] in ("the", "it", "a", "there") and " in " in part for part in first)
    assert 0.2 < before / len(first) < 0.8


def test_asides_come_before_and_after_and_can_be_left_out(worlds: dict[int, World]) -> None:
    world, rng = worlds[0], random.Random(0)
    always = replace(world, size=replace(world.size, aside_share=1.0))
    never = replace(world, size=replace(world.size, aside_share=0.0))
    texts = {with_aside(always, "copy : jade", rng) for _ in range(200)}
    assert any(text.startswith("copy : jade . ") for text in texts)
    assert any(text.endswith(" . copy : jade") for text in texts)
    assert all(" . " in text for text in texts)
    assert {with_aside(never, "copy : jade", rng) for _ in range(50)} == {"copy : jade"}
    assert with_aside(build_world(0), "copy : jade", rng) == "copy : jade"


@pytest.mark.parametrize(
    ("head", "solve"),
    [
        ("smaller :", lambda own, _: min(own, key=int)),
        ("second :", lambda own, _: own[1]),
        ("reverse then first :", lambda own, _: own[-1]),
        ("translate the last of :", lambda own, world: world.old_words[own[-1]]),
        ("translate each of :", lambda own, world: " ".join(world.old_words[word] for word in own)),
        ("the larger of the first and last :", lambda own, _: max(own[0], own[-1], key=int)),
        ("list 2 of the reverse of :", lambda own, _: f"{own[-1]} {own[-2]}"),
        ("the last 3 backwards :", lambda own, _: " ".join(own[:-4:-1])),
    ],
)
def test_new_tasks_are_right(head: str, solve: object, worlds: dict[int, World]) -> None:
    """Solved again here, from the words of the exercise."""
    world, rng, solved = worlds[1], random.Random(1), 0
    for _ in range(4000):
        question, answer = exercise(world, rng).split(" = ")
        if question.startswith(head) and " . " not in question:
            own = question.removeprefix(head).split()
            assert answer == solve(own, world)  # type: ignore[operator]
            solved += 1
    assert solved > 3


@pytest.mark.parametrize(("kind", "texts"), [("next", "next after "), ("count-after", "count after ")])
def test_tasks_with_a_named_item_are_right(kind: str, texts: str, worlds: dict[int, World]) -> None:
    world, rng = worlds[2], random.Random(2)
    row = next(p for p in world.rows("task") if p.kind == kind)
    assert row.text.startswith(texts)
    for _ in range(200):
        question = ask_task(world, row, "held_out", rng)
        asked, items = question.text.split(" : ")
        marked, own = asked.removeprefix(texts).removesuffix(" in"), items.split()
        place = own.index(marked)
        right = own[place + 1] if kind == "next" else str(len(own[place + 1 :]))
        assert question.good == (right,)
        assert set(own) & set(world.stones.held_out)


@pytest.mark.parametrize("sharing", [0.0, 0.5])
def test_a_large_world_can_share_less(sharing: float) -> None:
    world = large(0, sharing)
    rows = [row for row in world.phrasings if row.family in ("how-to", "attribute")]
    assert sum(row.other == row.text for row in rows) == pytest.approx(sharing * len(rows), abs=1)
    words = set(vocabulary(world))
    assert {w for a in AXES for r in axis_examples(world, a, 500, random.Random(0)) for w in r.prompt.split()} <= words
    assert {word for text in base_corpus(world, random.Random(0), 3000) for word in text.split()} <= words


def test_the_same_seed_the_same_large_world(worlds: dict[int, World]) -> None:
    assert large(1) == worlds[1]
    assert large(1).held_out != worlds[2].held_out
