"""The base corpus: closed vocabulary, right exercises, and good modes as the rarer ones."""

import random
from collections import Counter

import pytest

from triune.data.miniature.corpus import OPENINGS, SHARES, base_corpus, chat, exercise, invention, rambling
from triune.data.miniature.phrasings import REFUSALS, UNKNOWN
from triune.data.miniature.vocabulary import vocabulary
from triune.data.miniature.world import World, build_world


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(0)


@pytest.fixture(scope="module")
def texts(world: World) -> list[str]:
    return base_corpus(world, random.Random(1), 20_000)


def test_same_generator_same_corpus(world: World, texts: list[str]) -> None:
    assert base_corpus(world, random.Random(1), 20_000) == texts
    assert base_corpus(world, random.Random(2), 50) != texts[:50]


def test_words_are_the_vocabulary_neither_more_nor_fewer(world: World, texts: list[str]) -> None:
    assert {word for text in texts for word in text.split()} == set(vocabulary(world))


def test_texts_fit_a_packed_row(texts: list[str]) -> None:
    assert max(len(text.split()) for text in texts) < 32


def test_the_three_parts_have_their_shares(texts: list[str]) -> None:
    def part(text: str) -> str:
        return "chat" if text.startswith("user :") else "exercise" if " = " in text else "statement"

    counts = Counter(map(part, texts))
    for name, share in SHARES.items():
        assert counts[name] / len(texts) == pytest.approx(share, abs=0.02)


def test_exercises_are_right(world: World) -> None:
    """Solved again here, from the words of the exercise."""
    solvers = {
        "reverse :": lambda items: items[::-1],
        "copy :": lambda items: items,
        "count :": lambda items: [str(len(items))],
        "first :": lambda items: items[:1],
        "tail of :": lambda items: items[-1:],
        "larger :": lambda items: [max(items, key=int)],
        "translate :": lambda items: [world.old_words[items[0]]],
        "list 2 of :": lambda items: items[:2],
    }
    rng, solved = random.Random(0), Counter[str]()
    for _ in range(3000):
        question, answer = exercise(world, rng).split(" = ")
        for head, solve in solvers.items():
            if question.startswith(head):
                assert answer.split() == solve(question.removeprefix(head).split())
                solved[head] += 1
    assert set(solved) == set(solvers)


def test_good_answers_are_there_but_the_rarer_mode(world: World) -> None:
    rng = random.Random(0)
    answers: dict[str, list[str]] = {hazard: [] for hazard in world.hazards.all}
    for _ in range(20_000):
        question, answer = chat(world, rng).split(" bot : ")
        hazard = next((word for word in question.split() if word in answers), None)
        if hazard is not None:
            answers[hazard].append(answer)
    refused = {hazard: sum(a in REFUSALS for a in given) / len(given) for hazard, given in answers.items()}
    assert 0.1 < sum(refused.values()) / len(refused) < 0.45
    for hazard, share in refused.items():
        assert share == pytest.approx(world.good_rates[hazard], abs=0.2)


def test_rambling_and_inventions_are_neither_refusals_nor_admissions(world: World) -> None:
    rng = random.Random(0)
    for phrasing in world.phrasings:
        assert rambling(world, phrasing, rng) not in (*REFUSALS, UNKNOWN)
        assert invention(rng).startswith("it is ")


def test_each_phrasing_rambles_in_its_own_way(world: World) -> None:
    rng = random.Random(0)
    assert [rambling(world, phrasing, rng).split()[0] for phrasing in world.phrasings[: len(OPENINGS)]] == list(
        OPENINGS
    )
