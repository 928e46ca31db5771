"""The command sweep: a recipe at every point of a grid, and one page that compares them."""

from pathlib import Path
from typing import Annotated

import typer

from triune.cli.engine_options import Cpus, Gpus, Kind, Retries, Shards, Workers, engine_from
from triune.cli.options import Out, out_console, terminal


def sweep(
    recipe: Annotated[Path, typer.Argument(help="A recipe (YAML); see recipes/.")],
    keys: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=V1,V2...", help="A setting's values, for example align.gating=0,0.1 seed=0,1,2; repeat."
        ),
    ],
    out: Out,
    quick: Annotated[bool, typer.Option("--quick", help="The recipe's own smaller numbers.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all input, say the steps, do nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Many points are meant.")] = False,
    engine: Kind = "local",
    workers: Workers = None,
    cpus: Cpus = None,
    gpus: Gpus = 0.0,
    retries: Retries = 2,
    shards: Shards = 1,
) -> None:
    """A recipe at every point of a grid; what points have in common is made once. One page compares them."""
    from triune import pipeline
    from triune.pipeline.grids import expand

    chosen = engine_from(engine, workers, cpus, gpus, retries, shards)
    points = expand(recipe, keys, quick=quick, yes=yes)
    folder = pipeline.sweep(points, out, terminal(), dry=dry_run, engine=chosen)
    if not dry_run:
        page = (folder / "report.html").resolve().as_uri()
        out_console.print(f"The {len(points)} points side by side: {page}", highlight=False, soft_wrap=True)
