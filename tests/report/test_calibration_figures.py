"""Reliability diagrams: every number is said, they share one scale, and no input breaks the picture."""

import math
import re

import pytest

from triune.metrics.bins import Bin
from triune.metrics.calibration import reliability
from triune.report.calibration_figures import (
    HEIGHT,
    WIDTH,
    Reliability,
    describe_reliability,
    draw_reliability,
    reliability_figures,
)

EMPTY = Bin(0.0, 0.5, 0, math.nan, math.nan, math.nan, math.nan)
FULL = Bin(0.5, 1.0, 1234, 0.8, 0.75, 0.725, 0.7734)
DIAGRAM = Reliability("before calibration", (EMPTY, FULL), "ECE 0.050 [0.021, 0.082]")


def points(svg: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', svg)]


def test_every_number_is_read_aloud() -> None:
    assert describe_reliability(DIAGRAM) == (
        "Reliability, before calibration, ECE 0.050 [0.021, 0.082]: "
        "confidence 0.80: accuracy 0.75 [0.72, 0.77], 1\u202f234 samples."
    )
    svg = draw_reliability("r", DIAGRAM)
    assert 'role="img" aria-label="Reliability, before calibration, ECE 0.050' in svg
    for text in ("before calibration", "ECE 0.050 [0.021, 0.082]", "confidence", "accuracy", "samples", "1\u202f234"):
        assert f">{text}<" in svg


def test_before_and_after_share_size_and_scale_and_no_id() -> None:
    after = Reliability(
        "after calibration", (EMPTY, Bin(0.5, 1.0, 7, 0.7, 0.75, 0.4, 0.9)), "ECE 0.010 [0.000, 0.040]"
    )
    before_svg, after_svg = reliability_figures("routing", (DIAGRAM, after))
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    assert box in before_svg
    assert box in after_svg
    ids = [set(re.findall(r'\bid="([^"]*)"', svg)) for svg in (before_svg, after_svg)]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert all(name.startswith("routing0-") for name in ids[0])
    # One accuracy is one height on both; the confidences differ by 0.1.
    (left,), (right,) = points(before_svg), points(after_svg)
    assert left[1] == right[1]
    assert left[0] > right[0]


def test_accuracy_rises_and_confidence_goes_right() -> None:
    bins = reliability([0.05, 0.05, 0.55, 0.55, 0.95], [0, 0, 1, 0, 1])
    svg = draw_reliability("r", Reliability("t", bins, "ECE"))
    places = points(svg)
    assert len(places) == 3  # one a bin that has samples
    # Each interval goes through its point.
    ends = re.findall(r'"M ([\d.]+) ([\d.]+) \nL ([\d.]+) ([\d.]+) \n"[^>]*stroke: var\(--fused\)', svg)
    intervals = [[float(end) for end in row] for row in ends]
    assert [(row[0], row[2]) for row in intervals] == [(x, x) for x, _ in places]
    assert all(row[1] >= y >= row[3] for row, (_, y) in zip(intervals, places, strict=True))
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)


@pytest.mark.parametrize(("n", "rotated"), [(999, False), (1000, True)])
def test_long_counts_stand_upright(n: int, rotated: bool) -> None:
    bins = tuple(Bin(b / 10, (b + 1) / 10, n, b / 10 + 0.05, 0.5, 0.4, 0.6) for b in range(10))
    svg = draw_reliability("r", Reliability("t", bins, "ECE"))
    shown = f"{n:,}".replace(",", "\u202f")
    assert svg.count(f">{shown}<") == 10
    assert (len(re.findall(rf"rotate\(-90[^>]*>{shown}<", svg)) == 10) == rotated


def test_bins_of_equal_mass_name_their_sizes_once() -> None:
    narrow = tuple(Bin(0.9 + b / 100, 0.91 + b / 100, 30 + b % 2, 0.905 + b / 100, 0.9, 0.8, 0.95) for b in range(10))
    assert ">30 to 31 a bin<" in draw_reliability("r", Reliability("t", narrow, "ECE"))
    constant = reliability([0.7] * 12, [1, 0] * 6, bins="mass")
    svg = draw_reliability("r", Reliability("t", constant, "ECE"))
    assert ">12 a bin<" in svg
    assert len(points(svg)) == 1


def test_nothing_measured_is_said() -> None:
    for bins in ((), (EMPTY,), reliability([], [], bins="mass")):
        svg = draw_reliability("r", Reliability("t", bins, "ECE n/a"))
        assert ">no samples<" in svg
        assert "Reliability, t, ECE n/a: no samples." in svg


def test_titles_are_text_and_are_cut() -> None:
    svg = draw_reliability("r", Reliability("$x$ <b> " + "long " * 30, (FULL,), "$\\frac{$ & more"))
    assert "$x$ &lt;b&gt; long" in svg
    assert "…<" in svg
    assert "$\\frac{$ &amp; more" in svg


def test_colours_come_from_the_page() -> None:
    svg = draw_reliability("r", DIAGRAM)
    assert "var(--fused)" in svg
    assert "var(--muted)" in svg
    assert not re.search(r"DejaVu|http|#[0-9a-f]{6}\b", svg)
    assert svg == draw_reliability("r", DIAGRAM)
