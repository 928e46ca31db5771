"""What several commands share: common options, and how text becomes input and output."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from triune.data.formats import FORMATS
from triune.data.templates import TEMPLATES
from triune.errors import InputError
from triune.recipe import Base, Slice

if TYPE_CHECKING:
    from triune.data.streaming import Rows
    from triune.pipeline import Context
    from triune.progress import Progress
    from triune.types import Example

out_console, err_console = Console(), Console(stderr=True)
TEMPLATE, LENGTH = (Base.model_fields[name].default for name in ("template", "max_length"))
FORMAT = Slice.model_fields["format"].default
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_:-]*")  # folders are named after it
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

Out = Annotated[Path, typer.Option("--out", help="Folder to write; a finished one is skipped.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random draw.")]
BaseFolder = Annotated[str, typer.Option("--base", help="Base model: a local folder or a hub name.")]
Template = Annotated[str, typer.Option("--template", help=f"How prompts are rendered: {', '.join(TEMPLATES)}.")]
Length = Annotated[int, typer.Option("--max-length", help="Tokens of prompt and answer together.")]
Data = Annotated[list[str], typer.Option("--data", help="AXIS=SOURCE of that axis's examples; repeat.")]
Format = Annotated[str, typer.Option("--format", help=f"How --data's rows are read: {', '.join(FORMATS)}.")]
Buffer = Annotated[
    int | None,
    typer.Option(
        "--stream",
        min=1,
        help="Stream --data's rows (a file, folder or glob), shuffled so many at a time; fit.steps must be set.",
    ),
]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value settings, for example fit.steps=100.")]

Experts = Annotated[
    list[str], typer.Option("--expert", help="NAME=FOLDER of a PEFT adapter or of a full fine-tune; repeat.")
]
WeightedExperts = Annotated[
    list[str],
    typer.Option(
        "--expert",
        help="NAME=FOLDER of a PEFT adapter or of a full fine-tune; repeat. NAME=NUMBER beside it is its weight, the "
        "same as weights.NAME=NUMBER; -1.0 subtracts it. (A folder of such a name is ./-1.0.)",
    ),
]
AllowNegated = Annotated[
    bool, typer.Option("--allow-negated", help="Needed where an expert's weight is negative: it is subtracted.")
]
Attention = Annotated[
    str,
    typer.Option(
        "--attention",
        help="What becomes of changes outside the feed-forward blocks: base (discard), average, ties, or an expert's "
        "name; refused by default. The same as shared=...",
    ),
]
SvdError = Annotated[
    float | None,
    typer.Option("--svd-error", help="Largest relative error of a full fine-tune's low-rank form; 0 keeps it whole."),
]


def pairs(values: list[str], option: str) -> dict[str, str]:
    """NAME=VALUE options as a mapping. Raises InputError for another form, strange names, and one given twice."""
    named: dict[str, str] = {}
    for value in values:
        name, found, rest = value.partition("=")
        if not found or not name or not rest:
            raise InputError(f"{option} {value!r} is not NAME=VALUE, for example {option} helpful=path")
        if not NAME.fullmatch(name):
            raise InputError(f"{option} names {name!r}; a name is letters, digits, '_', ':' and '-'")
        if name in named:
            raise InputError(f"{option} names {name!r} twice; give each once")
        named[name] = rest
    return named


def weighted_pairs(values: list[str]) -> tuple[dict[str, str], list[str]]:
    """--expert options as folders by name, and the weights among them as settings of `fuse`.

    A value that reads as a finite number is a weight. Raises InputError as `pairs`, for an expert with two weights,
    and for a weight without a folder.
    """
    numbers = [value for value in values if _is_number(value.partition("=")[2])]
    folders = pairs([value for value in values if value not in numbers], "--expert")
    weights = pairs(numbers, "--expert")
    homeless = [name for name in weights if name not in folders]
    if homeless:
        name = homeless[0]
        raise InputError(
            f"--expert {name}={weights[name]} is a weight, and no --expert {name}=FOLDER says of what; add it (a "
            f"folder of that name is given as ./{weights[name]})"
        )
    return folders, [f"weights.{name}={float(number)!r}" for name, number in weights.items()]


def _is_number(text: str) -> bool:
    return NUMBER.fullmatch(text) is not None and math.isfinite(float(text))


def fuse_overrides(
    overrides: list[str] | None,
    attention: str,
    svd_error: float | None,
    weights: Sequence[str] = (),
    *,
    allow_negated: bool = False,
) -> list[str]:
    """The settings of `fuse`, its own options included. Raises InputError for a weight that is given in both ways."""
    given = {override.partition("=")[0] for override in overrides or []}
    twice = [weight for weight in weights if weight.partition("=")[0] in given]
    if twice:
        raise InputError(f"{twice[0].partition('=')[0]} is given twice, also as --expert NAME=NUMBER; keep one")
    own = [f"shared={attention}"] if attention else []
    own += [f"svd_error={svd_error}"] if svd_error is not None else []
    own += ["allow_negated=true"] if allow_negated else []
    return [*(overrides or []), *own, *weights]


def examples(data: list[str], format: str) -> "list[Example]":
    """The rows of all --data options."""
    from triune.data.formats import read_examples

    return [row for axis, source in pairs(data, "--data").items() for row in read_examples(source, format, axis).items]


def training_rows(data: list[str], format: str, buffer: int | None, seed: int) -> "Rows":
    """The rows of all --data options, in memory or, where --stream says how many are shuffled together, streamed."""
    if buffer is None:
        return examples(data, format)
    from triune.data.streamed import axis_stream
    from triune.data.streaming import Stream
    from triune.data_settings import Streaming

    how = Streaming(buffer=buffer)
    sources = {axis: Slice(source=source, format=format) for axis, source in pairs(data, "--data").items()}
    return Stream(tuple(axis_stream(wanted, how, axis, seed) for axis, wanted in sources.items()))


def context_from(base: str, template: str, max_length: int, seed: int) -> "Context":
    """What every verb shares, from the command line."""
    from triune.pipeline import Context
    from triune.recipe_file import validate

    content = {"path": base, "template": template, "max_length": max_length}
    return Context(validate(Base, content, "the command line"), seed, terminal())


def terminal() -> "Progress":
    """Progress on this terminal; of several processes the first one alone tells."""
    from triune.experts.processes import rank
    from triune.progress import SILENT, Terminal

    return Terminal(out_console) if rank() == 0 else SILENT


def say(folder: Path) -> None:
    """Where the result is."""
    from triune.experts.processes import rank

    if rank() == 0:
        out_console.print(f"wrote {folder}", highlight=False)


def close(folder: Path) -> None:
    """The closing table and where the page is."""
    from triune.report.across_folder import load_across, seeds_of
    from triune.report.folder import load_run
    from triune.report.tables import render_terminal

    seeds = seeds_of(folder)
    out_console.print(render_terminal(load_across(folder).means if seeds else load_run(folder)))
    if seeds:
        out_console.print(f"Means over seeds {', '.join(map(str, seeds))} with 95 % t intervals.", highlight=False)
    page = (folder / "report.html").resolve().as_uri()
    out_console.print(f"The whole story: {page}", highlight=False, soft_wrap=True)
