"""The options that say where a recipe's steps are done."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from triune.pipeline.engines import Engine

Kind = Annotated[
    str,
    typer.Option(
        "--engine",
        help="Where steps are done: local (one after the other, in this process), processes (several at once, on this "
        "machine), or ray (several at once, on the cluster that RAY_ADDRESS names, else on this machine).",
    ),
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Steps at once; by default as many as fit.")]
Cpus = Annotated[int | None, typer.Option("--cpus", min=1, help="Cores and threads a step.")]
Gpus = Annotated[float, typer.Option("--gpus", min=0.0, help="GPUs a step, with --engine ray.")]
Retries = Annotated[int, typer.Option("--retries", min=0, help="Times a step is begun again whose worker died.")]
Shards = Annotated[
    int, typer.Option("--shards", min=1, help="Tasks that share each model's prompts, with several steps at once.")
]


def engine_from(kind: str, workers: int | None, cpus: int | None, gpus: float, retries: int, shards: int) -> "Engine":
    """The engine, checked. Raises InputError as `check_engine`."""
    from triune.pipeline.engines import Engine, check_engine

    engine = Engine(kind, workers, cpus, gpus, retries, shards)
    check_engine(engine)
    return engine
