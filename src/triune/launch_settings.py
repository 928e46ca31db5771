"""How the training steps of a recipe are spread over processes: the settings that `accelerate launch` gets."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from triune.settings import Count, Settings


class Launch(Settings):
    """Training on several devices of one machine; on several machines, start `triune train` and `align` by hand.

    Precision, accumulation, recomputed activations and the batch, which counts the rows of all processes, are `fit`'s.
    """

    processes: Count = Field(1, description="of each training step, one a device; 1 trains in the run's own process")
    sharded: bool = Field(False, description="FSDP2: each process holds a part of the model; else each a whole one")
    config: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="file of `accelerate config`, for everything else; the two keys above come before it"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Launch":
        if self.sharded and self.processes == 1:
            raise ValueError("launch.sharded is set, but launch.processes is 1; one process cannot share a model out")
        if self.config is not None and not Path(self.config).is_file():
            raise ValueError(f"launch.config is {self.config!r}, which is no file; write one with `accelerate config`")
        return self
