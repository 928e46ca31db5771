"""A sweep's pictures: a score against the one swept key, or a heat map over two."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from triune.report.figures import MUTED, SMALL, TEXT, canvas, quiet, to_svg
from triune.report.interval_figures import PANEL, span
from triune.report.labels import BASE, DIRECTIONS, cut, score_label
from triune.report.numerals import value_text
from triune.report.routing_figures import print_colour
from triune.report.sweep_run import Found, SweepRun
from triune.report.sweep_words import interval, short_keys, value_name
from triune.report.theme import RAMP, model_mark

HEIGHT, COLUMN, LINE = 210, 84, 34


@dataclass(frozen=True, slots=True)
class Curve:
    """One score over the values of one key; a missing point is None, `base` is the base's at each."""

    name: str
    title: str
    key: str
    labels: tuple[str, ...]
    found: tuple[Found | None, ...]
    base: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Heat:
    """One score over the values of two keys, by (row, column)."""

    name: str
    title: str
    keys: tuple[str, str]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], Found]


def sweep_pictures(run: SweepRun) -> tuple[str, ...]:
    """One picture a score of the table; none where no key, or more than two, are swept beside the seed."""
    draw = {1: _curve, 2: _heat}.get(len(run.keys))
    return () if draw is None else tuple(draw(run, place, name) for place, name in enumerate(run.headlines))


def _curve(run: SweepRun, place: int, name: str) -> str:
    labels = tuple(value_name(value) for setting in run.settings for value in setting.values.values())
    base = tuple(row[BASE, name].value if (BASE, name) in row else math.nan for row in run.found)
    found = tuple(row.get((run.subject, name)) for row in run.found)
    return draw_curve(
        run, Curve(f"sweep{place}", score_label(name), short_keys(run.keys)[run.keys[0]], labels, found, base)
    )


def draw_curve(run: SweepRun, curve: Curve) -> str:
    """The values side by side at equal distances, in the grid's order, with their intervals; the base dashed."""
    known = [(place, found) for place, found in enumerate(curve.found) if found and not math.isnan(found.value)]
    unit = next((found.unit for found in curve.found if found), "")
    better = DIRECTIONS[next((found.better for found in curve.found if found), "neither")]
    ends = [(found.value, found.value) if math.isnan(found.low) else (found.low, found.high) for _, found in known]
    limits = span([*ends, *((value, value) for value in curve.base)], unit)
    mark = model_mark(run.subject, ())
    with canvas(PANEL, HEIGHT) as figure:
        axes = figure.add_subplot()
        quiet(axes, grid="y")
        axes.set_title(cut(curve.title, 40), loc="left", fontsize=TEXT, fontweight="bold", parse_math=False)
        axes.plot(range(len(curve.base)), curve.base, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
        axes.plot([place for place, _ in known], [found.value for _, found in known], color=mark.colour, linewidth=1.2)
        for place, found in known:
            if not math.isnan(found.low):
                axes.plot((place, place), (found.low, found.high), color=mark.colour, linewidth=2, alpha=0.55)
            axes.plot(place, found.value, mark.shape, color=mark.colour, markersize=9, clip_on=False)
        axes.set_xticks(range(len(curve.labels)), [cut(label, 14) for label in curve.labels], parse_math=False)
        axes.set_xlim(-0.4, len(curve.labels) - 0.6)
        axes.set_ylim(limits)
        axes.set_xlabel(cut(curve.key, 40), fontsize=SMALL, color=MUTED, parse_math=False)
        axes.set_ylabel(f"{unit}, {better}".lstrip(", "), fontsize=SMALL, color=MUTED, parse_math=False)
        told = "; ".join(f"{curve.labels[place]} {_spoken(found)}" for place, found in known)
        return to_svg(figure, curve.name, f"{curve.title} against {curve.key}, {better}: {told}.")


def _heat(run: SweepRun, place: int, name: str) -> str:
    first, second = run.keys
    named = [tuple(value_name(setting.values[key]) for key in run.keys) for setting in run.settings]
    cells = {
        (row, column): found[run.subject, name]
        for (row, column), found in zip(named, run.found, strict=True)
        if (run.subject, name) in found
    }
    rows, columns = (tuple(dict.fromkeys(pair[side] for pair in named)) for side in (0, 1))
    short = short_keys(run.keys)
    return draw_heat(Heat(f"sweep{place}", score_label(name), (short[first], short[second]), rows, columns, cells))


def draw_heat(heat: Heat) -> str:
    """Rows and columns in the grid's order, the better the darker, with the numbers printed."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    ramp = LinearSegmentedColormap.from_list("ramp", RAMP)
    shares = _shares(list(heat.cells.values()))
    with canvas(max(PANEL, 90 + COLUMN * len(heat.columns)), 84 + LINE * len(heat.rows)) as figure:
        axes = figure.add_subplot()
        axes.set_title(cut(heat.title, 40), loc="left", fontsize=TEXT, fontweight="bold", parse_math=False)
        for (row, column), share in zip(heat.cells, shares, strict=True):
            x, y, found = heat.columns.index(column), heat.rows.index(row), heat.cells[row, column]
            colour = ramp(share)
            axes.add_patch(Rectangle((x, y), 0.97, 0.95, facecolor=colour, edgecolor="none"))
            axes.text(
                *(x + 0.485, y + 0.475, value_text(found.value, found.unit)),
                ha="center",
                va="center_baseline",
                fontsize=SMALL,
                color=print_colour(colour[:3]),
            )
        axes.set_xlim(0, len(heat.columns))
        axes.set_ylim(len(heat.rows), 0)
        axes.set_xticks(
            [i + 0.485 for i in range(len(heat.columns))], [cut(c, 11) for c in heat.columns], parse_math=False
        )
        axes.set_yticks([i + 0.475 for i in range(len(heat.rows))], [cut(r, 14) for r in heat.rows], parse_math=False)
        axes.tick_params(length=0, labelsize=SMALL, pad=4)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(cut(heat.keys[1], 40), fontsize=SMALL, color=MUTED, parse_math=False)
        axes.set_ylabel(cut(heat.keys[0], 30), fontsize=SMALL, color=MUTED, parse_math=False)
        told = "; ".join(f"{row}, {column}: {_spoken(found)}" for (row, column), found in heat.cells.items())
        return to_svg(figure, heat.name, f"{heat.title} by {heat.keys[0]} and {heat.keys[1]}. {told}.")


def _shares(found: Sequence[Found]) -> list[float]:
    """Where each value lies between the worst, 0, and the best, 1; 0 where nothing was measured."""
    values = [-row.value if row.better == "lower" else row.value for row in found]
    known = [value for value in values if not math.isnan(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    return [0.0 if math.isnan(value) or high == low else (value - low) / (high - low) for value in values]


def _spoken(found: Found) -> str:
    return f"{value_text(found.value, found.unit)} {interval(found)}".strip()
