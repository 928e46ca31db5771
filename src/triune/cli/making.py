"""Commands that make models: train, fuse, align, merge."""

from pathlib import Path
from typing import Annotated

import typer

from triune.cli.options import (
    FORMAT,
    LENGTH,
    TEMPLATE,
    AllowNegated,
    Attention,
    BaseFolder,
    Buffer,
    Data,
    Experts,
    Format,
    Length,
    Out,
    Overrides,
    Seed,
    SvdError,
    Template,
    WeightedExperts,
    context_from,
    examples,
    fuse_overrides,
    pairs,
    say,
    terminal,
    training_rows,
    weighted_pairs,
)
from triune.errors import InputError
from triune.merges.table import MERGES


def train(
    base: BaseFolder,
    data: Data,
    out: Out,
    overrides: Overrides = None,
    format: Format = FORMAT,
    stream: Buffer = None,
    template: Template = TEMPLATE,
    max_length: Length = LENGTH,
    seed: Seed = 0,
) -> None:
    """One expert (a PEFT adapter) from a base and one axis's data."""
    from triune import pipeline
    from triune.recipe import Train
    from triune.recipe_file import settings_from

    settings = settings_from(Train, overrides or [])
    context = context_from(base, template, max_length, seed)
    say(pipeline.train(context, training_rows(data, format, stream, seed), out, settings))


def fuse(
    base: BaseFolder,
    expert: WeightedExperts,
    out: Out,
    overrides: Overrides = None,
    attention: Attention = "",
    svd_error: SvdError = None,
    allow_negated: AllowNegated = False,
    data: Annotated[list[str] | None, typer.Option("--data", help="AXIS=SOURCE to start the routers from.")] = None,
    format: Format = FORMAT,
    template: Template = TEMPLATE,
    max_length: Length = LENGTH,
    seed: Seed = 0,
) -> None:
    """Two or more experts of one base into one model."""
    from triune import pipeline
    from triune.recipe import Fuse
    from triune.recipe_file import settings_from

    folders, weights = weighted_pairs(expert)
    own = fuse_overrides(overrides, attention, svd_error, weights, allow_negated=allow_negated)
    settings = settings_from(Fuse, own)
    context = context_from(base, template, max_length, seed)
    experts = {name: Path(place) for name, place in folders.items()}
    say(pipeline.fuse(context, experts, out, settings, examples(data or [], format)))


def align(
    fused: Annotated[Path, typer.Argument(help="A fused model.")],
    data: Data,
    out: Out,
    overrides: Overrides = None,
    format: Format = FORMAT,
    stream: Buffer = None,
    seed: Seed = 0,
) -> None:
    """Tune a fused model (routers, experts, attention) on the axes' data together."""
    from triune import pipeline
    from triune.recipe import Align
    from triune.recipe_file import settings_from

    settings = settings_from(Align, overrides or [])
    context = pipeline.context_of(fused, seed, terminal())
    say(pipeline.align(context, fused, training_rows(data, format, stream, seed), out, settings))


def merge(
    how: Annotated[str, typer.Argument(help=f"One of {', '.join(MERGES)}.")],
    base: BaseFolder,
    expert: Experts,
    out: Out,
    overrides: Overrides = None,
    dense: Annotated[bool, typer.Option("--dense", help="A whole model also where an adapter is exact.")] = False,
    seed: Seed = 0,
) -> None:
    """Two or more experts of one base into one dense model, without training (a baseline)."""
    from triune import pipeline
    from triune.baseline_settings import Merges
    from triune.recipe_file import settings_from

    own = getattr(Merges(), how, None)
    if own is None and overrides:
        raise InputError(f"{how} has no settings, got {overrides}; leave them out")
    settings = None if own is None else settings_from(type(own), overrides or [])
    context = context_from(base, TEMPLATE, LENGTH, seed)
    experts = {name: Path(place) for name, place in pairs(expert, "--expert").items()}
    say(pipeline.merge(context, experts, out, how, settings, dense=dense))
