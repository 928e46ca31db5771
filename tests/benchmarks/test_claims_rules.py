"""From numbers to a verdict: every rule by hand, and how numbers are found in a result file."""

import math
from typing import Any

import claims_rules as rules
import pytest
from claims_asked import EACH, LEAST, MOST, Best, Claim, Claimed, Comparison, Costs, Sum, at, less, mean_of, models

from triune.errors import InputError
from triune.metrics.across import across

POINTS = 2.0  # the band of scores


def compared(claimed: Claimed, kind: str = "points") -> Comparison:
    return Comparison("mean", "made.json", at("models", "a", "mean"), at("models", "b", "mean"), claimed, kind)


def held(**means: list[float | None]) -> dict[str, Any]:
    return {"made.json": {"models": {name: {"mean": values} for name, values in means.items()}}}


# The interval of three values x̄ − s, x̄, x̄ + s is x̄ ∓ 4.303 s/√3 = x̄ ∓ 2.484 s.
@pytest.mark.parametrize(
    ("claimed", "middle", "spread", "outcome"),
    [
        ("above", 10, 1, "claimed"),
        ("above", -10, 1, "opposite"),
        ("above", 1, 1, "undecided"),  # −1.5 to 3.5
        ("above", 0.2, 0.5, "negligible"),  # −1.0 to 1.4
        ("above", 1, 0.2, "claimed"),  # 0.5 to 1.5: on its side, though small
        ("above", -1, 0.2, "opposite"),
        ("below", -10, 1, "claimed"),
        ("below", 10, 1, "opposite"),
        ("below", -0.2, 0.5, "negligible"),
        ("apart", 10, 1, "claimed"),
        ("apart", -10, 1, "claimed"),
        ("apart", 0.1, 0.5, "negligible"),
        ("apart", 1, 1, "undecided"),
        ("little", 1, 0.2, "claimed"),
        ("little", 5, 1, "opposite"),  # 2.5 to 7.5
        ("little", -5, 1, "opposite"),
        ("little", 2, 1, "undecided"),
        ("no worse", 0, 0.5, "claimed"),
        ("no worse", 10, 1, "claimed"),
        ("no worse", -10, 1, "opposite"),
        ("no worse", -1, 1, "undecided"),  # −3.5 to 1.5
    ],
)
def test_the_side_of_an_interval(claimed: Claimed, middle: float, spread: float, outcome: str) -> None:
    assert rules.KINDS["points"].band == POINTS
    found = across([middle - spread, middle, middle + spread])
    assert rules.outcome_of(compared(claimed), found) == outcome


@pytest.mark.parametrize("claimed", ["above", "below", "apart", "little", "no worse"])
@pytest.mark.parametrize("values", [[5.0, 5.0, 5.0], [0.0, 0.0], [3.0], [], [math.nan, 1.0]])
def test_without_a_width_nothing_is_decided(claimed: Claimed, values: list[float]) -> None:
    assert rules.outcome_of(compared(claimed), across(values)) == "undecided"


@pytest.mark.parametrize(
    ("claimed", "values", "outcome"),
    [
        ("below", [-50.7, -44.5, -7.1], "claimed"),
        ("below", [-50.7, -44.5, -3.0], "undecided"),  # within the noise of repeats, 5 %
        ("below", [-50.7, 3.0], "undecided"),
        ("below", [0.0, 0.6], "negligible"),
        ("below", [6.0, 50.0], "opposite"),
        ("above", [6.0, 50.0], "claimed"),
        ("little", [-4.0, 4.9], "claimed"),
        ("little", [-4.0, 6.0], "undecided"),
        ("little", [6.0, 8.0], "opposite"),
    ],
)
def test_costs_without_seeds(claimed: Claimed, values: list[float], outcome: str) -> None:
    asked = Costs("time", "made.json", (), "ours", "theirs", claimed)
    assert rules.outcome_of_works(asked, values) == outcome


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        (["claimed"], rules.HOLDS),
        (["claimed", "claimed"], rules.HOLDS),
        (["claimed", "undecided"], rules.UNSEEN),
        (["claimed", "opposite"], rules.FAILS),
        (["undecided", "negligible"], rules.FAILS),
        (["undecided"], rules.UNSEEN),
        (["no room"], rules.UNSEEN),
        (["claimed", "no room"], rules.UNSEEN),
        (["negligible", "no room"], rules.FAILS),
        (["claimed", "not yet run"], rules.NOT_RUN),
        (["opposite", "not yet run"], rules.NOT_RUN),
    ],
)
def test_the_verdict_of_several(outcomes: list[rules.Outcome], verdict: str) -> None:
    claim = Claim("c", "w", "m", decides=(compared("above"),))
    assert rules.verdict_of(claim, [rules.Found(compared("above"), outcome) for outcome in outcomes]) == verdict


def test_a_claim_that_nothing_decides_cannot_be_tested() -> None:
    assert rules.verdict_of(Claim("c", "w", "m", untestable="why"), []) == rules.UNTESTABLE


@pytest.mark.parametrize(
    ("claimed", "ours", "theirs", "outcome"),
    [
        ("above", [98.2, 98.4, 98.6], [98.3, 98.5, 98.4], "no room"),
        ("above", [97.2, 97.4, 97.6], [97.3, 97.5, 97.4], "negligible"),
        ("above", [99.9, 99.8, 99.7], [98.3, 98.2, 98.4], "claimed"),  # it is there: room or not
        ("above", [90, 91, 92], [98.3, 98.5, 98.4], "opposite"),
        ("below", [0.2, 0.4, 0.6], [0.3, 0.5, 0.4], "no room"),
        ("below", [5.2, 5.4, 5.6], [5.3, 5.5, 5.4], "negligible"),
        ("little", [99.2, 99.4, 99.6], [99.3, 99.5, 99.4], "claimed"),
    ],
)
def test_where_nothing_can_gain_nothing_is_refuted(
    claimed: Claimed, ours: list[float | None], theirs: list[float | None], outcome: str
) -> None:
    (found,) = rules.look(compared(claimed), held(a=ours, b=theirs))
    assert found.outcome == outcome


def test_a_difference_by_hand() -> None:
    (found,) = rules.look(compared("above"), held(a=[90, 91, 92], b=[80, 82, 81]))
    assert found.difference is not None
    assert found.difference.value == pytest.approx(10, rel=1e-12)
    # t = 4.30265 for two degrees of freedom, s = 1, n = 3
    assert found.difference.low == pytest.approx(10 - 4.302652729911275 / math.sqrt(3), rel=1e-9)
    assert found.relative is not None
    assert found.relative.value == pytest.approx(100 * (90 / 80 + 91 / 82 + 92 / 81 - 3) / 3, rel=1e-12)
    assert (found.outcome, found.small) == ("claimed", False)


def test_a_small_difference_is_marked() -> None:
    (found,) = rules.look(compared("above"), held(a=[50.9, 51.0, 51.1], b=[50, 50, 50]))
    assert (found.outcome, found.small) == ("claimed", True)


def test_a_relative_kind_decides_by_the_ratio() -> None:
    (found,) = rules.look(compared("below", "relative"), held(a=[8.0, 9.0, 8.5], b=[10, 10, 10]))
    assert found.difference is not None
    assert found.difference.value == pytest.approx(-15, rel=1e-12)


def test_a_seed_without_a_value_is_missing() -> None:
    (found,) = rules.look(compared("above"), held(a=[90, None, 92], b=[80, 82, 81]))
    assert found.difference is not None
    assert (found.difference.n, found.difference.missing) == (2, 1)


def test_no_ratio_to_nothing() -> None:
    (found,) = rules.look(compared("above"), held(a=[90, 91], b=[0, 82]))
    assert found.relative is None
    with pytest.raises(InputError, match="0 or below"):
        rules.look(compared("above", "relative"), held(a=[90, 91], b=[0, 82]))


def test_without_the_file_nothing_was_run() -> None:
    assert [found.outcome for found in rules.look(compared("above"), {})] == ["not yet run"]


def test_the_strongest_rival_is_taken() -> None:
    best = Best((("models", "b", "mean"), ("models", "c", "mean")))
    content = held(b=[10, 10], c=[5, 25])["made.json"]
    assert rules.values_of(best, content, "made.json") == ("c, best of 2", [5, 25])


def test_sums_by_hand() -> None:
    content = held(a=[10, 20], b=[1, 3])["made.json"]
    a, b = ("models", "a", "mean"), ("models", "b", "mean")
    assert rules.values_of(mean_of("m", a, b), content, "f")[1] == [5.5, 11.5]
    assert rules.values_of(less("l", a, b), content, "f")[1] == [9, 17]
    assert rules.values_of(Sum(((-1.0, a),), "u", 100.0), content, "f")[1] == [90, 80]


def test_keys_by_number_and_by_size() -> None:
    assert rules.ordered({"1": {}, "0.25": {}, "0": {}}) == ["0", "0.25", "1"]
    assert rules.ordered({"large": {"parameters": 9}, "small": {"parameters": 2}}) == ["small", "large"]


def test_least_most_and_each() -> None:
    content = {"sharing": {"1": {"a": {"mean": [3, 4]}}, "0": {"a": {"mean": [1, 2]}}}}
    assert rules.values_of(at("sharing", LEAST, "a", "mean"), content, "f")[1] == [1, 2]
    assert rules.values_of(at("sharing", MOST, "a", "mean"), content, "f")[1] == [3, 4]
    found = rules.look(Comparison("mean", "f", at("sharing", EACH, "a", "mean")), {"f": content})
    assert [(f.asked.number, f.difference and f.difference.value) for f in found] == [
        ("mean (0)", 1.5),
        ("mean (1)", 3.5),
    ]


def test_a_number_that_is_not_there_is_an_error() -> None:
    with pytest.raises(InputError, match=r"made.json has no models / b; there is a"):
        rules.look(compared("above"), held(a=[1, 2]))
    with pytest.raises(InputError, match="2 seeds, b 3"):
        rules.look(compared("above"), held(a=[1, 2], b=[1, 2, 3]))


def test_costs_are_ratios() -> None:
    asked = Costs("m", "f", (("w", ("x", "a"), ("x", "b")), ("r", ("y", 0, "c"), None)), "a", "b")
    (found,) = rules.look(asked, {"f": {"x": {"a": 60, "b": 100}, "y": [{"c": 0.5}]}})
    assert found.works == (("w", pytest.approx(-40)), ("r", pytest.approx(-50)))
    assert found.outcome == "claimed"


def test_a_percentage_ends_at_a_hundred() -> None:
    (found,) = rules.look(models("made.json", "mean", "a", "b"), held(a=[100, 90, 100], b=[50, 51, 52]))
    assert found.ours is not None
    assert found.ours[1].high == 100
