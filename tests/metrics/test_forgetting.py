"""The forgetting matrix and sequences of trainings: by hand, against loops, limits."""

import math

import numpy as np
import pytest

from triune.errors import InputError
from triune.metrics.forgetting import (
    average_forgetting,
    backward_transfer,
    forgetting,
    sequence_scores,
)
from triune.metrics.intervals import Measure, paired_difference

LOSS = Measure("nll", "lower", "nats/token", "none")
SCORE = Measure("right", "higher", "%", "rule", scale=100.0)
BEFORE = {"a": [2.0, 4.0], "b": [1.0, 1.0, 4.0]}
AFTER = {
    "a": {"a": [1.0, 3.0], "b": [2.0, 1.0, 6.0]},  # a: −1; b: +1
    "b": {"a": [2.5, 4.5], "b": [0.0, 1.0, 2.0]},  # a: +0.5; b: −1
}


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_loss_by_hand() -> None:
    found = forgetting(LOSS, BEFORE, AFTER, rng=rng())
    assert (found.trained, found.axes) == (("a", "b"), ("a", "b"))
    assert [[cell.value for cell in row] for row in found.cells] == [[-1.0, 1.0], [0.5, -1.0]]
    assert [[cell.n for cell in row] for row in found.cells] == [[2, 3], [2, 3]]
    cell = found.cells[0][1]
    assert (cell.name, cell.better, cell.unit) == ("forgetting:nll", "lower", "nats/token")
    assert cell.low <= 1.0 <= cell.high
    assert found.off_diagonal is not None
    assert found.gain is not None
    assert (found.off_diagonal.value, found.off_diagonal.better, found.off_diagonal.n) == (0.75, "lower", 5)
    assert (found.gain.value, found.gain.better, found.gain.name) == (1.0, "higher", "gain:nll")
    assert (found.worst, found.worst_at) == (cell, ("a", "b"))


def test_a_score_has_the_other_sign() -> None:
    before = {"a": [1, 1, 0, 1], "b": [1, 0, 1, 1]}
    after = {"a": {"a": [1, 1, 1, 1], "b": [0, 0, 1, 1]}}
    found = forgetting(SCORE, before, after, rng=rng())
    assert [cell.value for cell in found.cells[0]] == [-25.0, 25.0]
    assert found.gain is not None
    assert found.gain.value == 25.0
    assert found.off_diagonal is not None
    assert (found.off_diagonal.value, found.off_diagonal.unit) == (25.0, "%")
    assert found.off_diagonal.low <= 25.0 <= found.off_diagonal.high


def random_values(seed: int, n_axes: int = 3) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    own = np.random.default_rng(seed)
    names = [f"axis {i}" for i in range(n_axes)]
    before = {name: own.normal(size=5 + 7 * i) for i, name in enumerate(names)}
    after = {t: {a: before[a] + own.normal(size=len(before[a])) + (t != a) for a in names} for t in [*names, "mix"]}
    return before, after


def test_against_loops() -> None:
    before, after = random_values(0)
    found = forgetting(LOSS, before, after, rng=rng())
    slow = {
        (t, a): math.fsum(float(y) - float(x) for x, y in zip(before[a], after[t][a], strict=True)) / len(before[a])
        for t in after
        for a in before
    }
    for i, t in enumerate(after):
        for j, a in enumerate(before):
            assert found.cells[i][j].value == pytest.approx(slow[t, a], rel=1e-12)
    others = {place: value for place, value in slow.items() if place[0] != place[1]}
    assert found.off_diagonal is not None
    assert found.off_diagonal.value == pytest.approx(math.fsum(others.values()) / len(others), rel=1e-12)
    assert found.gain is not None
    assert found.gain.value == pytest.approx(-math.fsum(slow[a, a] for a in before) / 3, rel=1e-12)
    assert found.worst_at == max(others, key=lambda place: others[place])
    assert found.off_diagonal.low < found.off_diagonal.value < found.off_diagonal.high


def test_intervals_are_paired_and_by_prompt() -> None:
    own = np.random.default_rng(1)
    hard = np.repeat(own.normal(size=10) * 5, 4)
    shift = np.repeat(own.normal(size=10), 4)
    prompts = [i // 4 for i in range(40)]
    before, after = {"a": hard, "b": hard}, {"a": {"a": hard + shift, "b": hard + shift}}
    clustered = forgetting(LOSS, before, after, rng=rng(), clusters={"a": prompts, "b": prompts}).cells[0][1]
    plain = forgetting(LOSS, before, after, rng=rng()).cells[0][1]
    assert clustered.value == plain.value
    assert clustered.high - clustered.low > 1.5 * (plain.high - plain.low)
    assert plain.high - plain.low < 2.0  # the prompts' own difficulty, of spread 5, is out


def test_the_mean_takes_samples_together() -> None:
    # Two trainings that do the same to each sample say no more than one does.
    before, after = random_values(2, 2)
    twice = {"axis 0": after["axis 0"], "same": after["axis 0"]}
    found = forgetting(
        LOSS, {"axis 1": before["axis 1"]}, {t: {"axis 1": v["axis 1"]} for t, v in twice.items()}, rng=rng()
    )
    alone = paired_difference(LOSS, after["axis 0"]["axis 1"], before["axis 1"], rng=rng())
    assert found.off_diagonal is not None
    assert found.off_diagonal.value == pytest.approx(alone.value)
    assert found.off_diagonal.high - found.off_diagonal.low == pytest.approx(alone.high - alone.low, rel=0.15)
    assert found.gain is None


def test_undecided_and_empty() -> None:
    found = forgetting(SCORE, {"a": [1, None, 0], "b": []}, {"a": {"a": [1, 1, None], "b": []}}, rng=rng())
    own, other = found.cells[0]
    assert (own.value, own.n, own.abstained) == (0.0, 1, 2)
    assert (other.n, math.isnan(other.value)) == (0, True)
    assert (found.worst, found.worst_at) == (None, None)
    assert found.off_diagonal is not None
    assert found.off_diagonal.n == 0
    assert math.isnan(found.off_diagonal.value)
    nothing = forgetting(LOSS, BEFORE, {}, rng=rng())
    assert (nothing.cells, nothing.off_diagonal, nothing.gain, nothing.worst) == ((), None, None, None)


def test_no_change_is_zero_and_still_has_a_width_for_shares() -> None:
    right = [1, 0, 1, 1] * 5
    cell = forgetting(SCORE, {"a": right}, {"b": {"a": right}}, rng=rng()).cells[0][0]
    assert cell.value == 0.0
    assert cell.low < -5
    assert cell.high > 5


def test_refused() -> None:
    with pytest.raises(InputError, match="drift is better neither way"):
        forgetting(Measure("drift", "neither", "", ""), BEFORE, AFTER, rng=rng())
    with pytest.raises(InputError, match=r"training on 'a' are of \['a'\], those before of \['a', 'b'\]"):
        forgetting(LOSS, BEFORE, {"a": {"a": [1.0, 2.0]}}, rng=rng())
    with pytest.raises(InputError, match="1 values on 'a' after training on 'a', 2 before"):
        forgetting(LOSS, BEFORE, {"a": {"a": [1.0], "b": [1.0, 1.0, 1.0]}}, rng=rng())


# Three steps on three axes; the first axis was best after step 2 and the second after its own.
RESULTS = np.array([[0.8, 0.1, 0.2], [0.9, 0.7, 0.1], [0.5, 0.4, 0.6]])


def test_sequences_by_hand() -> None:
    # (0.9 − 0.5 + 0.7 − 0.4)/2 and (0.5 − 0.8 + 0.4 − 0.7)/2.
    assert average_forgetting(RESULTS) == pytest.approx(0.35)
    assert backward_transfer(RESULTS) == pytest.approx(-0.3)
    better = np.array([[0.2, 0.0], [0.6, 0.9]])
    assert average_forgetting(better) == pytest.approx(-0.4)
    assert backward_transfer(better) == pytest.approx(0.4)


def test_sequences_against_loops() -> None:
    results = np.random.default_rng(3).random((5, 5))
    lost = [max(results[t][j] for t in range(4)) - results[4][j] for j in range(4)]
    assert average_forgetting(results) == pytest.approx(math.fsum(lost) / 4, rel=1e-12)
    won = [results[4][j] - results[j][j] for j in range(4)]
    assert backward_transfer(results) == pytest.approx(math.fsum(won) / 4, rel=1e-12)


def test_sequences_at_the_limits() -> None:
    assert math.isnan(average_forgetting(np.array([[0.5]])))
    assert math.isnan(backward_transfer(np.array([[0.5]])))
    assert math.isnan(average_forgetting(np.array([[np.nan, 0.1], [0.2, 0.3]])))
    assert average_forgetting(np.full((3, 3), 0.4)) == backward_transfer(np.full((3, 3), 0.4)) == 0.0
    for function in (average_forgetting, backward_transfer):
        for wrong in (np.zeros((2, 3)), np.zeros((0, 0))):
            with pytest.raises(InputError, match="wanted a step for each axis"):
                function(wrong)


def samples(seed: int = 0, n: int = 40) -> list[dict[str, np.ndarray]]:
    """0/1 answers whose means are about those of RESULTS."""
    own = np.random.default_rng(seed)
    return [{axis: (own.random(n) < p).astype(float) for axis, p in zip("abc", row, strict=True)} for row in RESULTS]


def test_scores_of_a_sequence_are_the_formulas() -> None:
    steps = samples()
    found = sequence_scores(SCORE, steps, rng=rng())
    means = np.array([[step[axis].mean() for axis in "abc"] for step in steps])
    np.testing.assert_allclose(found.results, 100 * means)
    assert found.axes == ("a", "b", "c")
    for score, value, better in (
        (found.forgetting, average_forgetting(means), "lower"),
        (found.transfer, backward_transfer(means), "higher"),
    ):
        assert score.value == pytest.approx(100 * value)
        assert (score.better, score.n, score.unit) == (better, 80, "%")
        assert score.low < score.value < score.high
    assert found.forgetting.name == "average forgetting:right"


def test_a_loss_reads_like_an_accuracy() -> None:
    steps = samples()
    losses = [{axis: 1 - own for axis, own in step.items()} for step in steps]
    found = sequence_scores(Measure("loss", "lower", "%", "", scale=100.0), losses, rng=rng())
    expected = sequence_scores(SCORE, steps, rng=rng())
    assert found.forgetting.value == pytest.approx(expected.forgetting.value)
    assert found.transfer.value == pytest.approx(expected.transfer.value)
    assert found.results[0][0] == pytest.approx(100 - expected.results[0][0])


def test_sequences_leave_out_what_any_step_left_undecided() -> None:
    steps: list[dict[str, list[float | None]]] = [
        {"a": [1, 1, None, 0], "b": [0, 1]},
        {"a": [0, 1, 1, 0], "b": [1, 1]},
    ]
    found = sequence_scores(SCORE, steps, rng=rng(), clusters={"a": [1, 2, 3, 4], "b": [1, 2]})
    assert found.forgetting.value == pytest.approx(100 / 3)
    assert found.forgetting.n == 3
    assert found.results[0][0] == pytest.approx(200 / 3)
    one = sequence_scores(SCORE, [{"a": [1, 0]}], rng=rng())
    assert one.forgetting.n == one.transfer.n == 0
    assert math.isnan(one.forgetting.value)


def test_sequences_refused() -> None:
    with pytest.raises(InputError, match="0 steps on 0 axes"):
        sequence_scores(SCORE, [], rng=rng())
    with pytest.raises(InputError, match="1 steps on 2 axes"):
        sequence_scores(SCORE, [{"a": [1], "b": [1]}], rng=rng())
    with pytest.raises(InputError, match="training on 'step 2' are of"):
        sequence_scores(SCORE, [{"a": [1], "b": [1]}, {"a": [1]}], rng=rng())
