"""The whole job in one command: demo and run."""

from pathlib import Path
from typing import Annotated

import typer

from triune.cli.engine_options import Cpus, Gpus, Kind, Retries, Shards, Workers, engine_from
from triune.cli.options import Out, Overrides, Seed, close, terminal
from triune.errors import InputError


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Smaller numbers, under a minute.")] = False,
    seed: Seed = 0,
    out: Out = Path("demo"),
) -> None:
    """The whole job on a built-in miniature world, offline, in about three minutes."""
    from triune import pipeline

    close(pipeline.demo(out, quick=quick, seed=seed, progress=terminal()))


def run(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe (YAML); see recipes/.")] = None,
    overrides: Overrides = None,
    quick: Annotated[bool, typer.Option("--quick", help="The recipe's own smaller numbers.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all input, say the steps, do nothing.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipes and stop.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder; runs/<recipe> (or -quick) by default.")] = None,
    engine: Kind = "local",
    workers: Workers = None,
    cpus: Cpus = None,
    gpus: Gpus = 0.0,
    retries: Retries = 2,
    shards: Shards = 1,
) -> None:
    """Everything that a recipe says; a second run skips what is finished."""
    from triune.recipe_file import load_recipe, recipe_schema

    if schema:
        typer.echo(recipe_schema())
        return
    if recipe is None:
        raise InputError("no recipe given; see recipes/ for examples, or `triune run --schema`")
    chosen = engine_from(engine, workers, cpus, gpus, retries, shards)
    loaded = load_recipe(recipe, quick=quick, overrides=overrides or [])
    from triune import pipeline

    # The quick numbers must not push the real ones aside.
    out = out or Path("runs") / (recipe.stem + ("-quick" if quick else ""))
    folder = pipeline.run(loaded, out, terminal(), dry=dry_run, engine=chosen)
    if not dry_run:
        close(folder)
