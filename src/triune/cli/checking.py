"""The command check: whether experts can be fused, before anything is computed."""

from pathlib import Path
from typing import Annotated

import typer

from triune.cli.options import (
    AllowNegated,
    Attention,
    BaseFolder,
    Overrides,
    SvdError,
    WeightedExperts,
    fuse_overrides,
    out_console,
    weighted_pairs,
)


def check(
    base: BaseFolder,
    expert: WeightedExperts,
    overrides: Overrides = None,
    attention: Attention = "",
    svd_error: SvdError = None,
    allow_negated: AllowNegated = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
    scan: Annotated[bool, typer.Option("--scan/--no-scan", help="Read every weight: NaN, hashes, norms.")] = True,
) -> None:
    """Whether these experts can be fused with this base, and what it will cost; computes nothing, writes nothing.

    Exit code 0 where they can, 2 where they cannot.
    """
    from triune import pipeline
    from triune.recipe import Fuse
    from triune.recipe_file import settings_from
    from triune.report.check_page import json_text, render

    folders, weights = weighted_pairs(expert)
    own = fuse_overrides(overrides, attention, svd_error, weights, allow_negated=allow_negated)
    settings = settings_from(Fuse, own)
    experts = {name: Path(place) for name, place in folders.items()}
    found = pipeline.check(base, experts, settings, scan=scan)
    if as_json:
        typer.echo(json_text(found))
    else:
        out_console.print(render(found))
    if not found.fusable:
        raise SystemExit(2)
