"""Draw the figures of further worlds anew from their result files: python docs/draw_worlds.py

conflict.svg from docs/results/conflict.json (benchmarks/conflict.py), sizes.svg from docs/results/sizes.json
(benchmarks/sizes.py), into docs/figures. A result file that is not there is left out, and said so.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from draw_h3fusion import row
from drawing import (
    FOLDER,
    UNKNOWN,
    Line,
    Panel,
    alone,
    described,
    difference,
    draw_lines,
    headed,
    legend,
    mean,
    percentages,
    save,
)

from triune.metrics.across import Across
from triune.report.theme import Mark

Result = Mapping[str, Any]
RESULTS = Path(__file__).with_name("results")
MODELS = {
    "fused": ("fused", Mark("fused", "*")),
    "mixture": ("one LoRA on the mixture", Mark("mixture", "P")),
    "average": ("average", Mark("average", "v")),
    "sum": ("sum", Mark("sum", "X")),
    "task_arithmetic": ("task arithmetic", Mark("other", ">")),
    "ties": ("TIES", Mark("spare", "<")),
}
PAIRS = {
    ("fused", "average"): ("fused − average", Mark("average", "v")),
    ("fused", "sum"): ("fused − sum", Mark("sum", "X")),
    ("fused", "mixture"): ("fused − one LoRA", Mark("mixture", "P")),
    ("fused", "best expert"): ("fused − best expert", Mark("first", "^")),
    ("scarce:fused", "scarce:mixture"): ("scarce: fused − one LoRA", Mark("third", "D")),
    ("scarce:fused", "scarce:longer"): ("scarce: fused − one LoRA, longer", Mark("spare", "<")),
}
TIMED = {
    "fused": MODELS["fused"],
    "mixture": MODELS["mixture"],
    "base": ("base", Mark("base", "o")),
}
FREE = (0.0, math.inf)


def draw_conflict(result: Result) -> str:
    """Mean score, over-refusal and paired differences against the shared part of the templates."""
    tables = result["sharing"]
    places, at = tuple(tables), tuple(float(own) for own in tables)
    shown = {m: own for m, own in MODELS.items() if any(m in table for table in tables.values())}

    def lines(value: Callable[[Any, str], Across]) -> tuple[Line, ...]:
        return tuple(Line(*shown[m], tuple(value(table, m) for table in tables.values())) for m in shown)

    score = lines(lambda table, model: mean(table, model, "mean"))
    refusal = lines(lambda table, model: mean(table, model, "over_refusal"))
    apart = lines(lambda table, model: difference(table, "fused", model))
    less = tuple(line for model, line in zip(shown, apart, strict=True) if model != "fused")
    x = "shared part of the templates"
    panels = (
        Panel("Mean of the axes", x, "mean score, %", places, score, at, percentages(score)),
        Panel("Over-refusal", x, "benign requests refused, %", places, refusal, at, percentages(refusal)),
        Panel("Fused less the other", x, "mean score, points", places, less, at, zero=True),
    )
    most = max((len(own) for own in result["runs"].values()), default=0)
    return _drawn("conflict", f"Conflict of the axes: templates shared by them (up to {most} seeds each)", panels)


def draw_sizes(result: Result) -> str:
    """Paired differences and costs against the base's parameters."""
    sizes = result["sizes"]
    places = tuple(f"{name}\n{millions(own['parameters'])}" for name, own in sizes.items())
    at = tuple(math.log10(own["parameters"]) for own in sizes.values())
    tables = [own["models"] for own in sizes.values()]
    apart = tuple(Line(*look, tuple(difference(table, *pair) for table in tables)) for pair, look in PAIRS.items())
    spent = (Line("processor time", Mark("other", ">"), tuple(minutes(own) for own in sizes.values())),)
    latency = tuple(Line(*look, tuple(mean(t, m, "latency", FREE) for t in tables)) for m, look in TIMED.items())
    x = "parameters of the base (logarithmic)"
    panels = (
        Panel("Differences of the mean score", x, "points", places, apart, at, zero=True),
        Panel("Cost of a seed's whole run", x, "processor minutes", places, spent, at),
        Panel("Latency", x, "ratio to the base", places, latency, at),
    )
    counts = ", ".join(f"{name}: {len(own['runs'])}" for name, own in sizes.items())
    return _drawn("sizes", f"Differences and cost against size (seeds of {counts})", panels)


def minutes(size: Mapping[str, Any]) -> Across:
    """Processor time of one seed's whole run; it has no interval, unknown where it was not recorded."""
    spent, n = size["cpu_seconds"], len(size["runs"])
    if spent is None or not n:
        return UNKNOWN
    value = spent / n / 60
    return Across(value, math.nan, math.nan, value, value, n)


def millions(parameters: int) -> str:
    """A number of parameters, "0.7 M"."""
    return f"{parameters / 1e6:.1f} M"


def _drawn(name: str, title: str, panels: tuple[Panel, ...]) -> str:
    with row(len(panels), 370) as (figure, grid):
        for axes, panel in zip(grid, panels, strict=True):
            draw_lines(axes, panel)
        headed(figure, f"{title}; bars: 95 % t intervals")
        legend(figure, [line for panel in panels for line in panel.lines], 4)
        return alone(figure, name, title, described(panels, 2))


DRAWINGS: dict[str, Callable[[Result], str]] = {"conflict": draw_conflict, "sizes": draw_sizes}


def main() -> None:
    """The command line: folders of results and of figures may be named, else those of the documentation."""
    results, folder = (*map(Path, sys.argv[1:]), *(RESULTS, FOLDER)[len(sys.argv) - 1 :])
    for name, draw in DRAWINGS.items():
        source = results / f"{name}.json"
        if source.is_file():
            save({name: draw(json.loads(source.read_text(encoding="utf-8")))}, folder)
        else:
            print(f"{source} is not there: {name}.svg is not drawn")


if __name__ == "__main__":
    main()
