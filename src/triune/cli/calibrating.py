"""The command that calibrates a fused model's routing."""

from pathlib import Path
from typing import Annotated

import typer

from triune.cli.options import FORMAT, Data, Format, Out, Overrides, Seed, examples, say, terminal


def calibrate(
    fused: Annotated[Path, typer.Argument(help="A fused model.")],
    data: Data,
    out: Out,
    overrides: Overrides = None,
    format: Format = FORMAT,
    seed: Seed = 0,
) -> None:
    """Fit the temperature (and biases) of a fused model's routing to held-out data (never to what tests it)."""
    from triune import pipeline
    from triune.recipe import Calibrate
    from triune.recipe_file import settings_from

    settings = settings_from(Calibrate, overrides or [])
    context = pipeline.context_of(fused, seed, terminal())
    say(pipeline.calibrate(context, fused, examples(data, format), out, settings))
