"""The commands of diagnose: what is wrong with experts. Each is a function here and a row of COMMANDS."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triune.cli.options import (
    FORMAT,
    LENGTH,
    TEMPLATE,
    Format,
    Length,
    Out,
    Overrides,
    Seed,
    Template,
    context_from,
    examples,
    out_console,
    pairs,
    terminal,
)
from triune.errors import InputError

if TYPE_CHECKING:
    from triune.pipeline import Context
    from triune.pipeline.diagnosing import Suspects

app = typer.Typer(help="Find out what is wrong with experts, on held-out rows.", no_args_is_help=True)


def collapse(
    out: Out,
    overrides: Overrides = None,
    base: Annotated[str, typer.Option("--base", help="Base model: a local folder or a hub name.")] = "",
    expert: Annotated[
        list[str] | None, typer.Option("--expert", help="AXIS=FOLDER of an adapter or a model of that base; repeat.")
    ] = None,
    fused: Annotated[Path | None, typer.Option("--fused", help="A fused model, whose routing is looked at.")] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="AXIS=SOURCE of that axis's held-out examples; repeat.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="A finished run's folder, in place of --base, --expert and --data.")
    ] = None,
    format: Format = FORMAT,
    template: Template = TEMPLATE,
    max_length: Length = LENGTH,
    seed: Seed = 0,
) -> None:
    """Axis collapse: forgetting, disjoint features and unreliable routing, on one page (collapse.html)."""
    from triune import pipeline
    from triune.method_settings import DiagnoseCollapse
    from triune.pipeline import diagnosing
    from triune.recipe_file import settings_from

    settings = settings_from(DiagnoseCollapse, overrides or [])
    given = {"--base": base, "--expert": expert, "--data": data}
    if run is None:
        _need(given)
        context = context_from(base, template, max_length, seed)
        suspects = _suspects(context, expert or [], fused, data or [], format)
    else:
        how = {"--format": format != FORMAT, "--template": template != TEMPLATE, "--max-length": max_length != LENGTH}
        _refuse({**given, **how, "--seed": seed})
        context, suspects = diagnosing.collapse_of_run(run, fused, terminal())
    _show(pipeline.diagnose_collapse(context, suspects, out, settings))


def _show(folder: Path) -> None:
    """The closing table, whose rows they were, and where the page is."""
    from triune.report.collapse_account import load_collapse
    from triune.report.collapse_files import PAGE, render_collapse_terminal

    found = load_collapse(folder)
    out_console.print(render_collapse_terminal(found))
    out_console.print(f"The rows: {found.held_out}.", highlight=False, markup=False)
    page = (folder / PAGE).resolve().as_uri()
    out_console.print(f"The whole story: {page}", highlight=False, soft_wrap=True)


def _refuse(given: Mapping[str, object]) -> None:
    twice = [option for option, value in given.items() if value]
    if twice:
        raise InputError(f"--run says what {', '.join(twice)} would; give one or the other")


def _need(given: Mapping[str, object]) -> None:
    missing = [option for option, value in given.items() if not value]
    if missing:
        raise InputError(
            f"{', '.join(missing)} missing; give --base BASE, --expert AXIS=FOLDER and --data AXIS=SOURCE of two axes "
            "or more, or --run RUN"
        )


def _suspects(context: "Context", expert: list[str], fused: Path | None, data: list[str], format: str) -> "Suspects":
    from triune.pipeline.diagnosing import Suspects

    experts = {name: Path(place) for name, place in pairs(expert, "--expert").items()}
    about = f"experts of {Path(str(context.base.path)).name}"
    return Suspects(about, experts, examples(data, format), fused)


COMMANDS = (collapse,)
for command in COMMANDS:
    app.command()(command)
