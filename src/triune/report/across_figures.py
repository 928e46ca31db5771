"""Every model's mean over seeds with its interval and the single seeds: one panel a score, one row a model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from triune.report.across_run import AcrossRun, Line, reference_in
from triune.report.across_tables import interval_words
from triune.report.figures import MUTED, SMALL, TEXT, canvas, quiet, to_svg
from triune.report.interval_figures import MARGIN, PANEL, ROW, span
from triune.report.labels import DIRECTIONS, FUSED, axis_names, cut, models_of, score_label, short_label
from triune.report.numerals import value_text
from triune.report.theme import Mark, model_mark


@dataclass(frozen=True, slots=True)
class SeedPanel:
    """One picture: a line for each row from the top, and where the reference's mean stands (NaN: nowhere)."""

    name: str
    title: str
    lines: tuple[Line, ...]
    axes: tuple[str, ...]
    reference: float


def seed_panels(run: AcrossRun, names: Sequence[str], prefix: str) -> tuple[str, ...]:
    """One panel for each of the scores; `prefix` keeps the pictures' ids apart."""
    index, axes, reference = run.index("score"), axis_names(run.means), reference_in(run)
    pictures = []
    for place, name in enumerate(names):
        lines = tuple(index[model, name] for model in models_of(run.means.scores) if (model, name) in index)
        start = index[reference, name].across.value if (reference, name) in index else math.nan
        pictures.append(_draw(SeedPanel(f"{prefix}{place}", score_label(name), lines, axes, start)))
    return tuple(pictures)


def line_mark(model: str, axes: tuple[str, ...]) -> Mark:
    """The mark of a model; every variant of the fused model has the fused one's."""
    return model_mark(FUSED if model.startswith(f"{FUSED}:") else model, axes)


def reach(line: Line) -> tuple[float, float]:
    """What a line's picture spans: its interval and its seeds; NaN where nothing was measured."""
    found = line.across
    if math.isnan(found.low):
        return found.smallest, found.largest
    return min(found.low, found.smallest), max(found.high, found.largest)


def _draw(panel: SeedPanel) -> str:
    unit, better = panel.lines[0].unit, panel.lines[0].better
    limits = span([reach(line) for line in panel.lines], unit)
    with canvas(PANEL, 62 + ROW * len(panel.lines)) as figure:
        axes = figure.add_subplot()
        quiet(axes, grid="x")
        axes.spines["left"].set_visible(False)
        axes.set_title(cut(panel.title, 40), loc="left", fontsize=TEXT, fontweight="bold", parse_math=False)
        if not math.isnan(panel.reference):
            axes.axvline(panel.reference, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1)
        for row, line in enumerate(panel.lines):
            _draw_line(axes, row, line, line_mark(line.model, panel.axes))
        axes.set_yticks(range(len(panel.lines)), [short_label(line.model) for line in panel.lines], parse_math=False)
        axes.set_ylim(len(panel.lines) - 0.4, -0.6)
        # A mark on the end of the scale stays clear of the names beside it.
        air = MARGIN * (limits[1] - limits[0])
        axes.set_xlim(limits[0] - air, limits[1] + air)
        axes.xaxis.set_major_locator(_few_ticks())
        label = f"{unit}, {DIRECTIONS[better]}" if unit else DIRECTIONS[better]
        axes.set_xlabel(label, fontsize=SMALL, color=MUTED, parse_math=False)
        return to_svg(figure, panel.name, f"{panel.title}, {label}: {'; '.join(map(_spoken, panel.lines))}.")


def _draw_line(axes: Any, row: int, line: Line, mark: Mark) -> None:
    found = line.across
    if not found.n:
        return
    if not math.isnan(found.low):
        axes.plot(
            (found.low, found.high), (row, row), color=mark.colour, linewidth=2, alpha=0.55, solid_capstyle="butt"
        )
    seeds = [value for value in line.values if not math.isnan(value)]
    style = {"linestyle": "none", "color": mark.colour, "clip_on": False}
    axes.plot(seeds, [row] * len(seeds), marker="|", markersize=11, markeredgewidth=1.3, alpha=0.8, **style)
    size = 10 if mark.shape == "*" else 6
    axes.plot([found.value], [row], marker=mark.shape, markersize=size, **style)


def _spoken(line: Line) -> str:
    found = line.across
    return f"{short_label(line.model)} {value_text(found.value, line.unit)} {interval_words(found, line.unit)}".strip()


def _few_ticks() -> object:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10])
