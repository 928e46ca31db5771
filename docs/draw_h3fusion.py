"""Draw H3Fusion's figures anew from docs/results/h3fusion.json alone: python docs/draw_h3fusion.py

That file is written by benchmarks/h3fusion_ablation.py. The pictures are put into docs/figures; conflict.svg and
sizes.svg, of further worlds, are drawn by draw_worlds.py.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drawing import (
    AXES,
    AXIS_MARKS,
    FOLDER,
    PERCENT,
    SHAPES,
    SHARE,
    Line,
    Panel,
    Style,
    Values,
    alone,
    described,
    difference,
    draw_lines,
    headed,
    legend,
    mean,
    number,
    percentages,
    save,
    seeds_text,
)

from triune.metrics.across import Across, across
from triune.report.figures import INK, MUTED, RULE, SMALL, TEXT, canvas, quiet
from triune.report.theme import THEME, Mark

Result = Mapping[str, Any]
RESULT = Path(__file__).with_name("results") / "h3fusion.json"
WIDE = 860
MEAN = Mark("fused", "*")
SIDE = {"over_refusal": ("over-refusal ↓", Mark("mixture", "P")), "facts": ("facts kept ↑", Mark("average", "v"))}
ROUTED = {
    "fused:gating-0": "without gating loss (λ = 0)",
    "fused": "gating loss, λ = 0.01",
    "fused:drift-1e-2": "λ = 0.01, drift held, γ = 0.01",
    "fused:drift-1": "λ = 0.01, drift held, γ = 1",
}
MAPPED = {
    "base": "base",
    **{f"expert:{axis}": f"{axis} expert" for axis in AXES},
    "fused": "fused",
    "fused:drift-1e-2": "fused, γ = 0.01",
    "fused:drift-1": "fused, γ = 1",
}
TRAINED: dict[str, tuple[str, Mark, Style]] = {
    "fused": ("fused, experts trained before", MEAN, "-"),
    "mixture": ("one LoRA, stage 2's 120 steps", Mark("average", "v"), "--"),
    "long mixture": ("one LoRA, all 300 steps", Mark("mixture", "P"), ":"),
}


@contextmanager
def row(n_panels: int, height: int = 300, n_rows: int = 1) -> Iterator[tuple[Any, list[Any]]]:
    """A figure of panels side by side, and its axes from the top left."""
    with canvas(WIDE, height) as figure:
        yield figure, list(figure.subplots(n_rows, n_panels, squeeze=False).flat)


def in_a_row(name: str, title: str, panels: Sequence[Panel], n_rows: int = 1) -> str:
    """Panels of lines, with one legend."""
    with row(len(panels) // n_rows, 60 + 270 * n_rows, n_rows) as (figure, grid):
        for axes, panel in zip(grid, panels, strict=True):
            draw_lines(axes, panel)
        headed(figure, title)
        legend(figure, [line for panel in panels for line in panel.lines])
        return alone(figure, name, title, described(panels, 2))


def score_panels(result: Result, sweep: str) -> tuple[Panel, Panel]:
    """The axes' scores and their mean, and what else was asked, against a setting."""
    table, own = result["models"], result["sweeps"][sweep]
    places, models = tuple(own["models"]), own["models"].values()
    marks = {**AXIS_MARKS, "mean": MEAN}
    scores = tuple(Line(n, mark, tuple(mean(table, m, n) for m in models)) for n, mark in marks.items())
    side = tuple(Line(label, mark, tuple(mean(table, m, n) for m in models)) for n, (label, mark) in SIDE.items())
    return (
        Panel("Scores", own["symbol"], "good answers, %", places, scores, limits=percentages(scores)),
        Panel("Beside them", own["symbol"], "%", places, side, limits=PERCENT),
    )


def draw_steps(result: Result) -> str:
    first, second = score_panels(result, "steps")
    title = f"Score against steps of fusing ({seeds_text(len(result['runs']))})"
    return in_a_row("steps", title, (first, second))


def draw_top_k(result: Result) -> str:
    title = f"Score against k, experts a token ({seeds_text(len(result['runs']))})"
    return in_a_row("top_k", title, score_panels(result, "top_k"))


def draw_gating(result: Result) -> str:
    """Scores, over-refusal, and how routing follows the axis, against λ."""
    own = result["sweeps"]["gating"]["models"]

    def right(model: str, axis: str) -> Across:
        return share_of(result, model, lambda shares: shares[axis][axis])

    lines = tuple(Line(axis, AXIS_MARKS[axis], tuple(right(model, axis) for model in own.values())) for axis in AXES)
    panel = Panel("Routing to the row's own expert", "λ", "mean weight", tuple(own), lines, limits=SHARE)
    title = f"Sensitivity to the gating loss's weight λ ({seeds_text(len(result['runs']))})"
    return in_a_row("gating", title, (*score_panels(result, "gating"), panel))


def share_of(result: Result, model: str, pick: Callable[[Any], Values]) -> Across:
    """The mean over seeds of what `pick` takes of a model's routing weights."""
    shares = result["routing"].get(model)
    return across(pick(shares) if shares else [], bounds=SHARE)


def overall(shares: Mapping[str, Mapping[str, Values]], expert: str) -> Values:
    """A seed's mean weight of an expert, all axes' rows counting alike."""
    columns = zip(*(own[expert] for own in shares.values()), strict=True)
    return [None if None in values else sum(v for v in values if v is not None) / len(values) for values in columns]


def draw_drift(result: Result) -> str:
    """What γ of one axis does to that axis and its expert, and γ of all three together."""
    sweeps, table = result["sweeps"], result["models"]
    alone_at, together = sweeps["drift helpful"]["models"], list(sweeps["drift"]["models"].items())[1:]
    places = (*(f"{float(g):g}" for g in alone_at), *(f"all\n{g}" for g, _ in together))
    at = (*map(float, range(len(alone_at))), *(len(alone_at) + 0.4 + n for n in range(len(together))))

    def lines(value: Callable[[str, str], Any]) -> tuple[Line, ...]:
        models = {axis: [*sweeps[f"drift {axis}"]["models"].values(), *(m for _, m in together)] for axis in AXES}
        return tuple(Line(a, AXIS_MARKS[a], tuple(value(m, a) for m in models[a])) for a in AXES)

    n = len(together)
    score = lines(lambda model, axis: mean(table, model, axis))
    weight = lines(lambda model, axis: share_of(result, model, lambda shares: overall(shares, axis)))
    moved = lines(lambda model, axis: mean(result["moved"], model, axis, (0.0, math.inf)))
    panels = (
        Panel("Score of the axis", "γ of the axis", "good answers, %", places, score, at, apart=n),
        Panel("Its expert's part in routing", "γ of the axis", "mean weight, all rows", places, weight, at, apart=n),
        Panel("How far its expert moved", "γ of the axis", "‖W − W(0)‖, mean of layers", places, moved, at, apart=n),
    )
    return in_a_row("drift", f"Sensitivity to drift regularisation γ ({seeds_text(len(result['runs']))})", panels)


def draw_scarce(result: Result) -> str:
    """Few joint rows: the fused model, whose experts had rows of their own, and one LoRA on the joint rows alone."""
    table, ranks = result["models"], result["scarce"]
    above, below = [], []
    for rank, own in ranks.items():
        places = tuple(own["fused"])
        lines = tuple(
            Line(label, mark, tuple(mean(table, own[name].get(n, ""), "mean") for n in places), style)
            for name, (label, mark, style) in TRAINED.items()
        )
        apart = tuple(
            Line(label, mark, tuple(difference(table, own["fused"][n], own[name].get(n, "")) for n in places), style)
            for name, (label, mark, style) in list(TRAINED.items())[1:]
        )
        x, title = "joint rows an axis", f"Experts and LoRA of rank {rank}"
        above.append(Panel(title, x, "mean score, %", places, lines, limits=percentages(lines)))
        below.append(Panel(f"Fused less one LoRA, rank {rank}", x, "difference, points", places, apart, zero=True))
    title = f"Scarce joint data ({seeds_text(len(result['runs']))})"
    return in_a_row("scarce", title, (*above, *below), 2)


def draw_routing(result: Result) -> str:
    """H3Fusion's figure: the mean weight of every expert on every axis' rows."""
    words = []
    with row(2, 600, 2) as (figure, grid):
        for axes, (model, label) in zip(grid, ROUTED.items(), strict=True):
            words.append(f"{label}: {_bars(axes, result['routing'].get(model, {}), label)}.")
        title = f"Mean routing weight by expert and data set ({seeds_text(len(result['runs']))})"
        headed(figure, title)
        legend(figure, [Line(f"{axis} expert", AXIS_MARKS[axis], (), "") for axis in AXES])
        return alone(figure, "routing", title, " ".join(words))


def _bars(axes: Any, shares: Mapping[str, Mapping[str, Values]], label: str) -> str:
    """Three bars a data set, with their numbers; returns them in words."""
    quiet(axes, grid="y")
    told = []
    for place, expert in enumerate(AXES):
        for group, axis in enumerate(AXES):
            value = across(shares[axis][expert] if axis in shares else [], bounds=SHARE)
            told.append(f"{expert} expert on {axis} rows {number(value, 3)}")
            if math.isnan(value.value):
                continue
            x = group + 0.29 * (place - 1)
            axes.bar(x, value.value, width=0.26, color=AXIS_MARKS[expert].colour, alpha=0.85)
            axes.plot(x, -0.035, AXIS_MARKS[expert].shape, color=AXIS_MARKS[expert].colour, markersize=5)
            top = value.value if math.isnan(value.high) else value.high
            if not math.isnan(value.low):
                axes.plot((x, x), (value.low, top), color=INK, linewidth=1.2)
            axes.text(x, top + 0.02, f"{value.value:.2f}", ha="center", va="bottom", fontsize=SMALL, color=INK)
    axes.set_ylim(-0.07, 1.15)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xlim(-0.55, len(AXES) - 0.45)
    axes.set_xticks(range(len(AXES)), [f"{axis} rows" for axis in AXES])
    axes.set_ylabel("mean weight", fontsize=SMALL, color=MUTED)
    axes.set_title(label, loc="left", fontsize=TEXT, fontweight="bold")
    return "; ".join(told)


def draw_map(result: Result) -> str:
    """One panel a model, all on one plane: rows by axis over the base's in grey; below it the mean L2 drift."""
    points = result["map"]
    models = {model: label for model, label in MAPPED.items() if model in points["models"]}
    words = []
    with row(4, 560, math.ceil((len(models) + 1) / 4)) as (figure, grid):
        for axes, (model, label) in zip(grid, models.items(), strict=False):
            words.append(f"{label}: {_cloud(axes, points, model)}, {_distances(axes, result, model)}.")
            axes.set_title(label, loc="left", fontsize=TEXT, fontweight="bold")
        for axes in grid[len(models) :]:
            axes.set_axis_off()
        legend(figure, [Line(f"{axis} rows", AXIS_MARKS[axis], (), "") for axis in AXES])
        title = f"{points['method']} of mean last hidden states ({points['run']}), and mean L2 drift from the base"
        headed(figure, title)
        note = "the numbers: mean L2\ndistance to the base by\naxis, over seeds; grey:\nthe base's states"
        grid[-1].text(0, 0.9, note, va="top", fontsize=SMALL, color=MUTED)
        return alone(figure, "map", title, " ".join(words))


def _cloud(axes: Any, points: Mapping[str, Any], model: str) -> str:
    spread = [point[side] for point in points["models"].values() for side in ("x", "y")]
    reach = 1.06 * max(abs(value) for values in spread for value in values)
    own, start = points["models"][model], points["models"]["base"]
    if model != "base":
        axes.plot(start["x"], start["y"], "o", color=THEME["base"][0], markersize=1.8, markeredgecolor="none")
    counts = []
    for axis in AXES:
        rows = [place for place, name in enumerate(points["rows"]) if name == axis]
        xs, ys = ([own[side][place] for place in rows] for side in ("x", "y"))
        mark = AXIS_MARKS[axis]
        axes.plot(xs, ys, mark.shape, color=mark.colour, markersize=3.4, markeredgecolor="none", alpha=0.85)
        counts.append(f"{len(rows)} {axis} rows")
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal", facecolor="none")
    axes.spines[:].set_color(RULE)
    return ", ".join(counts)


def _distances(axes: Any, result: Result, model: str) -> str:
    found = {axis: mean(result["drift"], model, axis, (0.0, math.inf)) for axis in AXES}
    known = {axis: value for axis, value in found.items() if not math.isnan(value.value)}
    axes.set_xlabel(
        "   ".join(f"{SHAPES[AXIS_MARKS[axis].shape]} {value.value:.2f}" for axis, value in known.items()) or "L2 0",
        fontsize=SMALL,
    )
    told = [f"{axis} {number(value, 2)}" for axis, value in known.items()]
    return f"mean L2 distance to the base {', '.join(told) or '0'}"


DRAWINGS: dict[str, Callable[[Result], str]] = {
    "routing": draw_routing,
    "steps": draw_steps,
    "top_k": draw_top_k,
    "gating": draw_gating,
    "drift": draw_drift,
    "map": draw_map,
    "scarce": draw_scarce,
}


def drawn(result: Result) -> dict[str, str]:
    """Every picture by its name."""
    return {name: draw(result) for name, draw in DRAWINGS.items()}


def main() -> None:
    """The command line: a result file and a folder may be named, else those of the documentation."""
    source, folder = (*map(Path, sys.argv[1:]), *(RESULT, FOLDER)[len(sys.argv) - 1 :])
    save(drawn(json.loads(source.read_text(encoding="utf-8"))), folder)


if __name__ == "__main__":
    main()
