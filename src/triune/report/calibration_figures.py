"""Reliability diagrams: how often the choice is right against how sure it was, with the number of samples below."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from triune.metrics.bins import Bin
from triune.report.figures import INK, MUTED, SMALL, TEXT, canvas, quiet, to_svg
from triune.report.labels import cut
from triune.report.numerals import count_text
from triune.report.theme import MODEL_MARKS

WIDTH, HEIGHT = 340, 400
COLOUR = MODEL_MARKS["fused"].colour
# Counts are printed over the bins where every bin has this width at least; on its side where a number is longer.
ROOM, SHORT = 0.08, 3
AIR = 0.02


@dataclass(frozen=True, slots=True)
class Reliability:
    """One diagram: its title ("before calibration"), the bins from the lowest up, and the ECE in words."""

    title: str
    bins: tuple[Bin, ...]
    ece: str


def reliability_figures(name: str, diagrams: Sequence[Reliability]) -> tuple[str, ...]:
    """One SVG each, of one size and on one scale, to stand side by side; `name` is unique on the page."""
    return tuple(draw_reliability(f"{name}{place}", diagram) for place, diagram in enumerate(diagrams))


def draw_reliability(name: str, diagram: Reliability) -> str:
    """Accuracy of each bin with its 95 % interval at the bin's mean confidence; dashed, where the two are equal."""
    with canvas(WIDTH, HEIGHT) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
        quiet(top)
        quiet(bottom, grid="")
        title = cut(diagram.title, 40)
        top.set_title(title, loc="left", fontsize=TEXT, fontweight="bold", pad=20, parse_math=False)
        top.text(0, 1.02, diagram.ece, transform=top.transAxes, fontsize=SMALL, color=INK, parse_math=False)
        top.plot((0, 1), (0, 1), linestyle=(0, (4, 3)), color=MUTED, linewidth=1)
        for row in _filled(diagram):
            ends = (row.accuracy_low, row.accuracy_high)
            top.plot((row.confidence,) * 2, ends, color=COLOUR, linewidth=2, solid_capstyle="butt")
            top.plot(row.confidence, row.accuracy, "o", color=COLOUR, markersize=6, clip_on=False)
        if not _filled(diagram):
            top.text(0.7, 0.2, "no samples", ha="center", fontsize=SMALL, color=MUTED)
        top.set_ylim(-AIR, 1 + AIR)
        top.set_yticks([0, 0.25, 0.5, 0.75, 1])
        top.set_ylabel("accuracy", fontsize=SMALL, color=MUTED)
        top.tick_params(labelbottom=False)
        _draw_counts(bottom, diagram)
        bottom.set_xlim(-AIR, 1 + AIR)
        bottom.set_xticks([0, 0.25, 0.5, 0.75, 1])
        bottom.set_xlabel("confidence", fontsize=SMALL, color=MUTED)
        return to_svg(figure, name, describe_reliability(diagram))


def _filled(diagram: Reliability) -> list[Bin]:
    return [row for row in diagram.bins if row.n]


def _draw_counts(axes: Any, diagram: Reliability) -> None:
    """A bar a bin; the number on it where there is room, otherwise the smallest and the largest in words."""
    filled = _filled(diagram)
    most = max((row.n for row in filled), default=0)
    # A bin of equal mass may be as narrow as one confidence, and a bar must still be seen.
    widths = [max(row.high - row.low, 0.004) for row in filled]
    middles = [(row.low + row.high) / 2 for row in filled]
    axes.bar(middles, [row.n for row in filled], width=[0.92 * width for width in widths], color=COLOUR, alpha=0.45)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylabel("samples", fontsize=SMALL, color=MUTED)
    roomy, upright = all(width >= ROOM for width in widths), most >= 10**SHORT
    axes.set_ylim(0, max(1, most) * (1.05 if not roomy else 2.6 if upright else 1.6))
    if not roomy:
        least = min(row.n for row in filled)
        words = count_text(most) if least == most else f"{count_text(least)} to {count_text(most)}"
        axes.set_title(f"{words} a bin", loc="right", fontsize=SMALL, color=MUTED, pad=3)
        return
    for row, middle in zip(filled, middles, strict=True):
        axes.annotate(
            count_text(row.n),
            (middle, row.n),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            rotation=90 if upright else 0,
            fontsize=SMALL,
            color=MUTED,
        )


def describe_reliability(diagram: Reliability) -> str:
    """The diagram in words: each bin's confidence, accuracy, interval and count."""
    rows = "; ".join(
        f"confidence {row.confidence:.2f}: accuracy {row.accuracy:.2f} "
        f"[{row.accuracy_low:.2f}, {row.accuracy_high:.2f}], {count_text(row.n)} samples"
        for row in _filled(diagram)
    )
    return f"Reliability, {diagram.title}, {diagram.ece}: {rows or 'no samples'}."
