"""Axis collapse in pictures: the forgetting matrix, and layer by layer CKA, subspace angles and separation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from triune.report.collapse_parts import AngleRow, CollapseView, ForgettingMap, Reading, SeparationRow
from triune.report.figures import INK, MUTED, SMALL, TEXT, canvas, quiet, to_svg
from triune.report.labels import cut, score_label
from triune.report.numerals import value_text
from triune.report.routing_figures import print_colour
from triune.report.theme import Mark, axis_mark

# Better, nothing, worse: the same in both modes, as the numbers printed on them bring their own contrast.
DIVERGING = ("#174a78", "#3f83ad", "#a8cbd6", "#f4f1ea", "#e9b7a0", "#c9694c", "#8a2415")
CELL, CELL_HEIGHT = 104, 46
WIDTH, HEIGHT = 420, 250
LINE_HEIGHT = 17  # of the legend
BASE, OWN, ALL = "base", "own experts", "all axes"
PAIR_TOKENS = ("mixture", "average", "sum", "fused", "other", "spare")
PAIR_SHAPES = ("o", "P", "X", "v", "d", "p")
WORDS = {BASE: "under the base", OWN: "under their own experts"}


@dataclass(frozen=True, slots=True)
class Line:
    """One line over the layers; NaN leaves a gap. `dashes` is matplotlib's line style."""

    label: str
    mark: Mark
    readings: tuple[Reading, ...]
    dashes: Any = "-"


@dataclass(frozen=True, slots=True)
class LayerPanel:
    """One picture: lines over layers 1 … n, on a scale from `limits`; `decimals` of the numbers read aloud."""

    name: str
    title: str
    unit: str
    limits: tuple[float, float]
    lines: tuple[Line, ...]
    decimals: int = 2


def draw_forgetting(name: str, found: ForgettingMap) -> str:
    """The matrix as a heat map, the trained axis in rows; values and intervals printed, own axes framed."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    ramp = LinearSegmentedColormap.from_list("diverging", DIVERGING, N=257)  # odd: 0 is the middle colour itself
    bound = _bound(found)
    n_rows, n_columns = len(found.trained), len(found.axes)
    with canvas(120 + CELL * n_columns, 78 + CELL_HEIGHT * n_rows) as figure:
        axes = figure.add_subplot()
        axes.set_title(cut(_title(found), 60), loc="left", fontsize=TEXT, fontweight="bold", pad=24)
        for row, cells in enumerate(found.cells):
            for column, cell in enumerate(cells):
                colour = ramp(0.5 if math.isnan(cell.value) else 0.5 + cell.value / bound / 2)
                framed = found.trained[row] == found.axes[column]
                edge = {"edgecolor": INK, "linewidth": 1.6} if framed else {"edgecolor": "none"}
                axes.add_patch(Rectangle((column, row), 0.97, 0.95, facecolor=colour, clip_on=False, **edge))
                style = {"ha": "center", "color": print_colour(colour[:3]), "parse_math": False}
                axes.text(column + 0.485, row + 0.33, _signed(cell, found.unit), va="center", fontsize=TEXT, **style)
                axes.text(
                    column + 0.485, row + 0.68, _interval(cell, found.unit), va="center", fontsize=SMALL, **style
                )
        axes.set_xlim(-0.03, n_columns)
        axes.set_ylim(n_rows, -0.05)
        axes.set_xticks([i + 0.485 for i in range(n_columns)], [cut(axis, 14) for axis in found.axes])
        axes.set_yticks([i + 0.475 for i in range(n_rows)], [cut(own, 14) for own in found.trained])
        axes.set_ylabel("trained on", fontsize=SMALL, color=MUTED)
        axes.tick_params(length=0, labelsize=SMALL, labeltop=True, labelbottom=False, pad=4)
        axes.spines[:].set_visible(False)
        return to_svg(figure, name, describe_forgetting(found))


def _bound(found: ForgettingMap) -> float:
    """The value at the ramp's ends: the largest size, so that 0 is the middle."""
    return max((abs(c.value) for row in found.cells for c in row if not math.isnan(c.value)), default=0.0) or 1.0


def _title(found: ForgettingMap) -> str:
    unit = f", {found.unit}" if found.unit else ""
    return f"Forgetting: {score_label(found.quantity)}{unit} (+ is worse)"


def _signed(cell: Reading, unit: str) -> str:
    text = value_text(cell.value, unit)
    return f"+{text}" if cell.value > 0 and float(text) else text


def _interval(cell: Reading, unit: str) -> str:
    if math.isnan(cell.value):
        return ""
    if math.isnan(cell.low):
        return "no interval"
    return f"[{value_text(cell.low, unit)}, {value_text(cell.high, unit)}]"


def describe_forgetting(found: ForgettingMap) -> str:
    """The matrix in words."""
    rows = "; ".join(
        f"trained on {trained}: "
        + ", ".join(
            f"{axis} {_signed(c, found.unit)} {_interval(c, found.unit)}".strip()
            for axis, c in zip(found.axes, cells, strict=True)
        )
        for trained, cells in zip(found.trained, found.cells, strict=True)
    )
    return f"{_title(found)}. {rows}."


def draw_likeness(name: str, found: CollapseView, rows: str = ALL) -> str:
    """CKA over the layers on the rows of one axis or of all: every pair of models, those with the base dashed."""
    pairs = list(dict.fromkeys((row.one, row.other) for row in found.likeness if row.rows == rows))
    lines: list[Line] = []
    for one, other in pairs:
        table = {r.layer: r.cka for r in found.likeness if (r.one, r.other, r.rows) == (one, other, rows)}
        with_base = one == BASE
        mark = axis_mark(other, found.experts) if with_base else _pair_mark(len([p for p in lines if p.dashes == "-"]))
        readings = _by_layer(table, found.n_layers)
        lines.append(Line(_pair_label(one, other), mark, readings, (0, (4, 2)) if with_base else "-"))
    ends = [end for line in lines for r in line.readings for end in (r.value, r.low) if not math.isnan(end)]
    low = math.floor(10 * min([*ends, 0.9])) / 10
    title = "CKA of models on all rows" if rows == ALL else f"CKA of models on {rows} rows"
    return draw_layers(LayerPanel(name, title, "CKA", (low, 1.0), tuple(lines), 3))


def _pair_mark(place: int) -> Mark:
    return Mark(PAIR_TOKENS[place % len(PAIR_TOKENS)], PAIR_SHAPES[place % len(PAIR_SHAPES)])


def _pair_label(one: str, other: str) -> str:
    return f"{cut(one, 16)} – {cut(other, 16)}"


def _by_layer(table: dict[int, Reading], n_layers: int) -> tuple[Reading, ...]:
    empty = Reading(math.nan, math.nan, math.nan, 0)
    return tuple(table.get(layer + 1, empty) for layer in range(n_layers))


def angle_figures(name: str, found: CollapseView) -> tuple[str, ...]:
    """One panel for each pair of axes: the angle under the own experts and the base, by chance, and of halves."""
    pairs = [pair for pair in combinations(found.axes, 2) if any((r.one, r.other) == pair for r in found.angles)]
    return tuple(_draw_angles(f"{name}{place}", found, pair) for place, pair in enumerate(pairs))


def _draw_angles(name: str, found: CollapseView, pair: tuple[str, str]) -> str:
    rows = [row for row in found.angles if (row.one, row.other) == pair]
    own, base = ([row for row in rows if row.states == states] for states in (OWN, BASE))
    lines = (
        Line(WORDS[OWN], Mark("fused", "o"), _degrees(own, "angle", found.n_layers)),
        Line(WORDS[BASE], Mark("base", "s"), _degrees(base, "angle", found.n_layers), (0, (4, 2))),
        Line("unrelated directions", Mark("muted", "_"), _degrees(own, "chance", found.n_layers), (0, (1, 2))),
        Line(
            "two halves of one axis", Mark("second", "_"), _degrees(own, "halves", found.n_layers), (0, (6, 2, 1, 2))
        ),
    )
    title = f"Angle of {_pair_label(*pair)} features"
    return draw_layers(LayerPanel(name, title, "degrees", (0.0, 90.0), lines, 1))


def _degrees(rows: Sequence[AngleRow], what: str, n_layers: int) -> tuple[Reading, ...]:
    nan = math.nan
    return _by_layer({r.layer: Reading(math.degrees(getattr(r, what)), nan, nan, 0) for r in rows}, n_layers)


def separation_figures(name: str, found: CollapseView) -> tuple[str, ...]:
    """One panel for each distance: the silhouette of the axes' features under the base and under their own experts."""
    metrics = dict.fromkeys(row.metric for row in found.separation)
    return tuple(_draw_separation(f"{name}{place}", found, metric) for place, metric in enumerate(metrics))


def _draw_separation(name: str, found: CollapseView, metric: str) -> str:
    def line(states: str, mark: Mark, dashes: Any) -> Line:
        rows: list[SeparationRow] = [r for r in found.separation if (r.states, r.metric) == (states, metric)]
        readings = _by_layer({r.layer: r.silhouette for r in rows}, found.n_layers)
        return Line(WORDS[states], mark, readings, dashes)

    lines = (line(OWN, Mark("fused", "o"), "-"), line(BASE, Mark("base", "s"), (0, (4, 2))))
    ends = [end for one in lines for r in one.readings for end in (r.value, r.low) if not math.isnan(end)]
    low = min(0.0, math.floor(10 * min([*ends, 0.0])) / 10)
    return draw_layers(LayerPanel(name, f"Silhouette of the axes, {metric}", "silhouette", (low, 1.0), lines))


def draw_layers(panel: LayerPanel) -> str:
    """The panel as SVG: intervals as bars, a legend below, all numbers read aloud."""
    from matplotlib.ticker import MaxNLocator

    layers = range(1, 1 + max((len(line.readings) for line in panel.lines), default=0))
    with canvas(WIDTH, HEIGHT + LINE_HEIGHT * len(panel.lines)) as figure:
        axes = figure.add_subplot()
        quiet(axes, grid="y")
        axes.set_title(cut(panel.title, 56), loc="left", fontsize=TEXT, fontweight="bold")
        for line in panel.lines:
            style = {"color": line.mark.colour, "clip_on": False}
            values = [r.value for r in line.readings]
            for layer, r in zip(layers, line.readings, strict=True):
                if not math.isnan(r.low):
                    axes.plot((layer, layer), (r.low, r.high), linewidth=2, alpha=0.5, solid_capstyle="butt", **style)
            axes.plot(
                layers, values, linestyle=line.dashes, marker=line.mark.shape, markersize=5, label=line.label, **style
            )
        if not panel.lines:
            axes.text(0.5, 0.5, "nothing was measured", transform=axes.transAxes, ha="center", color=MUTED)
        else:
            figure.legend(loc="outside lower left", frameon=False, fontsize=SMALL, handlelength=3.2)
        axes.set_ylim(*panel.limits)
        axes.set_xlim(0.7, len(layers) + 0.3)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel("layer", fontsize=SMALL, color=MUTED)
        axes.set_ylabel(panel.unit, fontsize=SMALL, color=MUTED)
        return to_svg(figure, panel.name, describe_layers(panel))


def describe_layers(panel: LayerPanel) -> str:
    """The lines in words, layer by layer."""

    def said(r: Reading) -> str:
        if math.isnan(r.value):
            return "n/a"
        ends = "" if math.isnan(r.low) else f" [{r.low:.{panel.decimals}f}, {r.high:.{panel.decimals}f}]"
        return f"{r.value:.{panel.decimals}f}{ends}"

    told = "; ".join(f"{line.label}: {', '.join(map(said, line.readings))}" for line in panel.lines)
    return f"{panel.title}, {panel.unit}, from the first layer to the last. {told or 'Nothing was measured'}."
