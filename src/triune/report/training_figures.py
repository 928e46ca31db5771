"""Loss curves as small multiples: one panel for every named part of every model's loss."""

import math

from triune.report.figures import MUTED, SMALL, canvas, quiet, to_svg
from triune.report.labels import cut
from triune.report.run import Curve
from triune.report.theme import Mark

WIDTH, HEIGHT = 230, 150
# What trainers log beside the losses.
NOT_LOSSES = ("pass", "lr", "learning_rate", "tokens", "epoch", "grad_norm")


def curve_panels(name: str, curve: Curve, mark: Mark) -> tuple[str, ...]:
    """The curves of one model, the total loss first; `name` is unique on the page."""
    parts = sorted((part for part in curve.parts if part not in NOT_LOSSES), key=lambda part: part != "loss")
    return tuple(draw_curve(f"{name}p{place}", part, curve, mark) for place, part in enumerate(parts))


def draw_curve(name: str, part: str, curve: Curve, mark: Mark) -> str:
    """One part against the step, as logged: nothing is smoothed. A single logged step is a dot."""
    logged = [
        (step, value) for step, value in zip(curve.steps, curve.parts[part], strict=True) if not math.isnan(value)
    ]
    steps, values = [step for step, _ in logged], [value for _, value in logged]
    with canvas(WIDTH, HEIGHT) as figure:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        quiet(axes, grid="y")
        axes.plot(steps, values, "-" if len(logged) > 1 else "o", color=mark.colour, linewidth=1.5, markersize=5)
        axes.set_title(cut(part, 32), loc="left", fontsize=SMALL, color=MUTED)
        axes.set_xlabel("step", fontsize=SMALL, labelpad=1)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        spoken = f"from {values[0]:.4g} at step {steps[0]} to {values[-1]:.4g} at step {steps[-1]}"
        lowest = f"lowest {min(values):.4g}"
        return to_svg(figure, name, f"Curve of {part} over {len(logged)} logged steps: {spoken}, {lowest}.")
