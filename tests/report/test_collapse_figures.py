"""Pictures of axis collapse: every number is printed or read aloud, 0 is the middle, no input breaks them."""

import copy
import math
import re
from typing import Any

import pytest

from triune.errors import InputError
from triune.report.collapse_figures import (
    ALL,
    BASE,
    DIVERGING,
    OWN,
    angle_figures,
    describe_forgetting,
    draw_forgetting,
    draw_likeness,
    separation_figures,
)
from triune.report.collapse_parts import CollapseView, ForgettingMap, Reading, parse_collapse
from triune.report.routing_figures import luminance, print_colour


def score(value: float | None, name: str = "s", unit: str = "", n: int = 10) -> dict[str, Any]:
    ends = (None, None) if value is None else (value - 0.1, value + 0.1)
    return {"name": name, "value": value, "low": ends[0], "high": ends[1], "n": n, "unit": unit, "better": "lower"}


def forgetting(values: list[list[float | None]], unit: str = "nats/token") -> dict[str, Any]:
    cells = [[score(value, "forgetting:nll", unit) for value in row] for row in values]
    return {"trained": ["kind", "mix"], "axes": ["kind", "safe"], "cells": cells}


def content() -> dict[str, Any]:
    """Two axes, three experts, two layers."""
    models = [BASE, "kind", "safe", "mix"]
    pairs = [(one, other) for i, one in enumerate(models) for other in models[i + 1 :]]
    return {
        "axes": ["kind", "safe"],
        "experts": models[1:],
        "n_layers": 2,
        "loss": forgetting([[-1.25, 2.5], [0.0, None]]),
        "score": None,
        "likeness": [
            {"one": one, "other": other, "rows": rows, "layer": layer, "cka": score(0.8 + layer / 20)}
            for one, other in pairs
            for rows in (ALL, "kind")
            for layer in (1, 2)
        ],
        "angles": [
            {
                "one": "kind",
                "other": "safe",
                "states": states,
                "layer": layer,
                "angle": math.pi / 6,
                "chance": math.pi / 3,
                "halves": None if layer == 1 else math.pi / 18,
            }
            for states in (BASE, OWN)
            for layer in (1, 2)
        ],
        "separation": [
            {"states": states, "layer": layer, "metric": metric, "silhouette": score(0.25), "ratio": score(1.5)}
            for states in (BASE, OWN)
            for layer in (1, 2)
            for metric in ("euclidean", "cosine")
        ],
    }


@pytest.fixture
def view() -> CollapseView:
    return parse_collapse(content(), "collapse.json")


def fills(svg: str) -> list[str]:
    return re.findall(r'style="fill: (#[0-9a-f]{6})', svg)


def test_the_matrix_says_every_number(view: CollapseView) -> None:
    svg = draw_forgetting("f", view.loss)
    for text in (
        "−1.25",
        "[−1.35, −1.15]",
        "+2.50",
        "[2.40, 2.60]",
        "0.00",
        "n/a",
        "kind",
        "safe",
        "mix",
        "trained on",
    ):
        assert f">{text}<" in svg
    assert ">Forgetting: nll, nats/token (+ is worse)<" in svg
    assert describe_forgetting(view.loss) == (
        "Forgetting: nll, nats/token (+ is worse). trained on kind: kind −1.25 [−1.35, −1.15], "
        "safe +2.50 [2.40, 2.60]; trained on mix: kind 0.00 [−0.10, 0.10], safe n/a."
    )
    assert 'aria-label="Forgetting: nll' in svg
    assert not re.search(r"http|<style|DejaVu", svg)


def test_colours_diverge_from_nothing(view: CollapseView) -> None:
    gain, worst, nothing, unknown = fills(draw_forgetting("f", view.loss))[:4]
    assert worst == DIVERGING[-1]
    assert nothing == unknown
    assert luminance(rgb(nothing)) > 0.8
    assert rgb(gain)[2] > rgb(gain)[0]  # blue, and half way: the scale is the same on both sides
    assert luminance(rgb(DIVERGING[0])) < luminance(rgb(gain)) < luminance(rgb(nothing))


def rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def test_print_reaches_aa_on_every_colour() -> None:
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    ramp = LinearSegmentedColormap.from_list("diverging", DIVERGING)
    for step in range(101):
        colour = ramp(step / 100)[:3]
        light, dark = sorted((luminance(to_rgb(print_colour(colour))), luminance(colour)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5
    sizes = [luminance(ramp(step / 100)[:3]) for step in range(101)]
    assert sizes[:51] == sorted(sizes[:51])
    assert sizes[50:] == sorted(sizes[50:], reverse=True)


def test_own_axes_are_framed(view: CollapseView) -> None:
    framed = draw_forgetting("f", view.loss)
    other = ForgettingMap("nll", "", ("x",), ("y",), ((Reading(1.0, 0.5, 1.5, 3),),))
    assert framed.count("stroke-width: 1.6") == 1
    assert "stroke-width: 1.6" not in draw_forgetting("f", other)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_matrix_without_size(value: float) -> None:
    cells = ((Reading(value, math.nan, math.nan, 1),),)
    svg = draw_forgetting("f", ForgettingMap("right", "%", ("a",), ("b",), cells))
    assert fills(svg)[0] == DIVERGING[3]
    assert (">n/a<" if math.isnan(value) else ">0.0<") in svg
    assert (">no interval<" in svg) == (not math.isnan(value))


def test_likeness_has_a_line_a_pair(view: CollapseView) -> None:
    svg = draw_likeness("l", view)
    for label in ("base – kind", "base – mix", "kind – safe", "safe – mix"):
        assert f">{label}<" in svg
        assert f"{label}: 0.850 [0.750, 0.950], 0.900 [0.800, 1.000]" in svg
    assert "CKA of models on all rows" in svg
    assert "CKA of models on kind rows" in draw_likeness("k", view, "kind")
    assert "Nothing was measured" in draw_likeness("k", view, "safe")
    assert "var(--mixture)" in svg
    assert "var(--first)" in svg


def test_angles_are_in_degrees_beside_what_they_compare_with(view: CollapseView) -> None:
    (svg,) = angle_figures("a", view)
    assert "Angle of kind – safe features, degrees" in svg
    for line in (
        "under their own experts: 30.0, 30.0",
        "under the base: 30.0, 30.0",
        "unrelated directions: 60.0, 60.0",
        "two halves of one axis: n/a, 10.0",
    ):
        assert line in svg


def test_separation_has_a_panel_a_distance(view: CollapseView) -> None:
    panels = separation_figures("s", view)
    assert len(panels) == 2
    for metric, svg in zip(("euclidean", "cosine"), panels, strict=True):
        assert f"Silhouette of the axes, {metric}" in svg
        assert "under the base: 0.25 [0.15, 0.35], 0.25 [0.15, 0.35]" in svg
    ids = [set(re.findall(r'\bid="([^"]*)"', svg)) for svg in panels]
    assert not ids[0] & ids[1]


def test_one_layer_and_gaps(view: CollapseView) -> None:
    one = content() | {"n_layers": 1}
    for name in ("likeness", "angles", "separation"):
        one[name] = [row for row in one[name] if row["layer"] == 1]
    one["separation"] = [row | {"silhouette": score(None, n=0)} for row in one["separation"]]
    small = parse_collapse(one, "collapse.json")
    assert "under the base: n/a" in separation_figures("s", small)[0]
    assert "kind – safe: 0.850" in draw_likeness("l", small)
    assert len(angle_figures("a", small)) == 1
    empty = parse_collapse(one | {"likeness": [], "angles": [], "separation": []}, "collapse.json")
    assert ">nothing was measured<" in draw_likeness("l", empty)
    assert angle_figures("a", empty) == separation_figures("s", empty) == ()


def test_names_are_text(view: CollapseView) -> None:
    odd = content()
    odd["loss"]["trained"][0] = "$<b>$ a very long name indeed"
    svg = draw_forgetting("f", parse_collapse(odd, "c").loss)
    assert ">$&lt;b&gt;$ a very…<" in svg


def test_a_judged_score_is_parsed() -> None:
    both = content() | {"score": forgetting([[1.0, -1.0], [0.5, 0.5]], "%")}
    parsed = parse_collapse(both, "c").score
    assert parsed is not None
    assert (parsed.quantity, parsed.unit, parsed.cells[0][1].value) == ("nll", "%", -1.0)
    assert ">Forgetting: nll, % (+ is worse)<" in draw_forgetting("f", parsed)


WRONG = {
    "no_layers": (lambda c: c.pop("n_layers"), "has no field 'n_layers'"),
    "layer": (lambda c: c["likeness"][0].update(layer=3), "layer in c likeness row 0 is 3; allowed: 1 to 2"),
    "angle": (lambda c: c["angles"][1].update(angle=2.0), "allowed: an angle from 0 to π/2"),
    "row": (lambda c: c["loss"]["cells"].pop(), "allowed: 2 rows of 2 cells"),
    "value": (lambda c: c["separation"][0]["ratio"].update(value="x"), "value in ratio in c separation row 0 is 'x'"),
    "cells": (lambda c: c["loss"].pop("cells"), "cells in loss in c is None; allowed: a list"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_a_wrong_file_is_refused(case: str) -> None:
    change, message = WRONG[case]
    broken = copy.deepcopy(content())
    change(broken)
    with pytest.raises(InputError, match=re.escape(message)):
        parse_collapse(broken, "c")
