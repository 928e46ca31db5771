"""The program of each process of a recipe's training step: `python -m triune.pipeline.launched JOB`."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from triune.errors import InputError, TriuneError
from triune.libraries import settle_libraries
from triune.pipeline import verbs
from triune.pipeline.launching import read_job
from triune.pipeline.starters import end_with_starter
from triune.pipeline.verbs import Context
from triune.progress import SILENT, Terminal
from triune.recipe import Align, Base, Train


def _train(context: Context, job: Mapping[str, Any]) -> Path:
    settings = Train.model_validate(job["settings"])
    return verbs.train(context, job["rows"], Path(job["out"]), settings, title=job["own"]["title"])


def _align(context: Context, job: Mapping[str, Any]) -> Path:
    settings = Align.model_validate(job["settings"])
    return verbs.align(context, Path(job["own"]["fused"]), job["rows"], Path(job["out"]), settings)


VERBS: dict[str, Callable[[Context, Mapping[str, Any]], Path]] = {"train": _train, "align": _align}


def do(path: Path) -> Path:
    """This process's part of the job in the file. Raises InputError as the verb, and where the file is no job."""
    job = read_job(path)
    watcher = Terminal(Console()) if job["told"] else SILENT
    return VERBS[job["verb"]](Context(Base.model_validate(job["base"]), job["seed"], watcher), job)


def main() -> int:
    """Do the job; what is wrong goes to standard error, with `triune`'s own exit codes."""
    settle_libraries()
    end_with_starter(Path(sys.argv[1]).parent)
    try:
        do(Path(sys.argv[1]))
    except TriuneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
