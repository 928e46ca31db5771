"""What the drawings of the documentation share: lines with intervals over seeds, and pictures that stand alone.

Everything is drawn with the report's style (`triune.report.figures`) in its light colours on a light ground, so that a
picture can be read on pages of either mode and in programs that know no style variables.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from triune.metrics.across import Across, across, across_difference
from triune.report.figures import INK, MUTED, SMALL, TEXT, quiet, to_svg
from triune.report.html import escape
from triune.report.interval_figures import span
from triune.report.theme import THEME, Mark

Values = Sequence[float | None]
Table = Mapping[str, Mapping[str, Values]]  # by model and number: one value a seed
FOLDER = Path(__file__).with_name("figures")
Style = Literal["-", "--", ":", ""]
PERCENT, SHARE = (0.0, 100.0), (0.0, 1.0)
UNKNOWN = Across(math.nan, math.nan, math.nan, math.nan, math.nan, 0)
AXES = ("helpful", "harmless", "honest")
AXIS_MARKS = {"helpful": Mark("first", "^"), "harmless": Mark("second", "s"), "honest": Mark("third", "D")}
SHAPES = {"^": "▲", "s": "■", "D": "◆"}


@dataclass(frozen=True, slots=True)
class Line:
    """One mean with its interval at each place of the horizontal axis; unknown ones are left out."""

    label: str
    mark: Mark
    values: tuple[Across, ...]
    style: Style = "-"


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture of lines: `places` are the marks of the horizontal axis, at `at` or side by side."""

    title: str
    x_label: str
    y_label: str
    places: tuple[str, ...]
    lines: tuple[Line, ...]
    at: tuple[float, ...] = ()
    limits: tuple[float, float] | None = None
    zero: bool = False  # draw a rule at 0, of differences
    apart: int = 0  # so many places at the end are of another kind: no line leads there


def mean(table: Table, model: str, number: str, bounds: tuple[float, float] = PERCENT) -> Across:
    """The mean over seeds of a model's number with its 95 % interval; unknown where the model has none."""
    values = table.get(model, {}).get(number)
    return across(values, bounds=bounds) if values else UNKNOWN


def difference(table: Table, ours: str, theirs: str, number: str = "mean") -> Across:
    """The mean of the paired differences ours − theirs; unknown where either has none."""
    both = [table.get(model, {}).get(number) for model in (ours, theirs)]
    return across_difference(both[0], both[1]) if both[0] and both[1] else UNKNOWN


def draw_lines(axes: Any, panel: Panel) -> None:
    """The panel on matplotlib's `axes`. Lines stand a little beside each other, so that no interval hides another."""
    quiet(axes)
    at = panel.at or tuple(float(place) for place in range(len(panel.places)))
    room = min((b - a for a, b in pairwise(at)), default=1.0)
    if panel.zero:
        axes.axhline(0, color=MUTED, linewidth=1)
    for place, line in enumerate(panel.lines):
        shift = 0.4 * room * ((place + 0.5) / len(panel.lines) - 0.5)
        known = [(x + shift, v) for x, v in zip(at, line.values, strict=True) if not math.isnan(v.value)]
        size = 10 if line.mark.shape == "*" else 6
        look = {"color": line.mark.colour, "clip_on": False}
        end = at[-panel.apart] + shift if panel.apart else math.inf
        parts = [p for p in known if p[0] < end], [p for p in known if p[0] >= end]
        for part in filter(None, parts):  # an empty line would spoil the layout
            xs, ys = [x for x, _ in part], [v.value for _, v in part]
            axes.plot(xs, ys, line.style, linewidth=1.2, alpha=0.75, **look)
            axes.plot(xs, ys, line.mark.shape, markersize=size, **look)
        for x, v in known:
            if not math.isnan(v.low):
                axes.plot((x, x), (v.low, v.high), color=line.mark.colour, linewidth=1.6, solid_capstyle="butt")
    axes.set_xticks(at, panel.places)
    axes.set_xlim(at[0] - 0.45 * room, at[-1] + 0.45 * room)
    if panel.limits:
        air = 0.03 * (panel.limits[1] - panel.limits[0])
        axes.set_ylim(panel.limits[0] - air, panel.limits[1] + air)
    axes.set_title(panel.title, loc="left", fontsize=TEXT, fontweight="bold")
    axes.set_xlabel(panel.x_label, fontsize=SMALL, color=MUTED)
    axes.set_ylabel(panel.y_label, fontsize=SMALL, color=MUTED)


def legend(figure: Any, lines: Iterable[Line], columns: int = 6) -> None:
    """One legend below all panels, each label once."""
    from matplotlib.lines import Line2D

    named = {line.label: line for line in lines}
    handles = [
        Line2D(
            [],
            [],
            color=line.mark.colour,
            marker=line.mark.shape,
            linestyle=line.style,
            markersize=6,
            label=line.label,
        )
        for line in named.values()
    ]
    figure.legend(
        handles=handles, loc="outside lower left", ncols=min(columns, len(handles)), frameon=False, fontsize=SMALL
    )


def percentages(lines: Iterable[Line]) -> tuple[float, float]:
    """What an axis of percentages must show: whole tens, or 0 to 100."""
    known = [v for line in lines for v in line.values if not math.isnan(v.value)]
    return span([(v.value, v.value) if math.isnan(v.low) else (v.low, v.high) for v in known], "%")


def headed(figure: Any, title: str) -> None:
    """The figure's title, above all panels, and air between these."""
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    figure.suptitle(title, x=0.01, ha="left", fontsize=TEXT + 2, fontweight="bold", color=INK)


def described(panels: Iterable[Panel], digits: int = 1) -> str:
    """The panels in words: every mean with its interval."""
    return " ".join(
        f"{panel.title} ({panel.y_label}), by {panel.x_label}: "
        + "; ".join(f"{line.label}: {spoken(panel.places, line.values, digits)}" for line in panel.lines)
        + "."
        for panel in panels
    )


def spoken(places: Sequence[str], values: Sequence[Across], digits: int = 1) -> str:
    """Places and their means with intervals, "15 71.2 [69.0, 73.4], 30 n/a"."""
    return ", ".join(f"{place} {number(value, digits)}" for place, value in zip(places, values, strict=True))


def number(value: Across, digits: int = 1) -> str:
    """Mean and interval; the mean alone of a single seed."""
    if math.isnan(value.value):
        return "n/a"
    told = f"{value.value:.{digits}f}"
    return told if math.isnan(value.low) else f"{told} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def seeds_text(n: int) -> str:
    """What the bars are."""
    return f"{n} seeds; bars: 95 % t intervals over seeds" if n > 1 else "one seed, no intervals"


def alone(figure: Any, name: str, title: str, description: str) -> str:
    """The figure as an SVG file of its own, with a title and a description for who cannot see it."""
    svg = to_svg(figure, name, title)
    # In a page the colours follow the reader's mode; a picture alone is drawn in the light ones, on paper.
    svg = re.sub(r"var\(--([a-z]+)\)", lambda found: THEME.get(found[1], ("sans-serif",))[0], svg)
    width, height = (72 * side for side in figure.get_size_inches())
    words = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    svg = re.sub(r"(<svg[^>]*>)", lambda found: found[1] + words + ground, svg, count=1)
    size = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
    return svg.replace("<svg ", size, 1) + "\n"


def save(drawn: Mapping[str, str], folder: Path) -> None:
    """Write each picture as <name>.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, svg in drawn.items():
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
