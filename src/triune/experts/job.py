"""What a training job is: its rows, its settings, and the loss as a plain function."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from triune.experts import checkpoint
from triune.models.encoding import Encoded, collate
from triune.models.packing import packed
from triune.recipe import Fit
from triune.record import digest

Batch = dict[str, Tensor]
Objective = Callable[[nn.Module, Batch], tuple[Tensor, dict[str, float]]]
Curve = list[dict[str, int | float]]


@runtime_checkable
class StatefulObjective(Protocol):
    """An objective that remembers something from step to step: it is kept in checkpoints, and given back."""

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, float]]: ...

    def state(self) -> dict[str, Tensor]:
        """What it remembers, by name."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave, now on the device of training; called before the first batch, or never."""
        ...


@dataclass(frozen=True)
class Job:
    """What `fit` needs beside the model: the rows, how to train, the loss, and how to say where it is.

    `objective(model, batch)` gives the mean loss of a batch and its named parts (logged, not differentiated);
    `learning_rates` gives parameters whose name contains a key a learning rate of their own; `targets`, one row an
    example, reaches the objective as batch["target"].

    `checkpoint` is the folder for checkpoints: one is written every `settings.save_every` steps and after the last,
    and the job goes on from the one it finds there. `identity` stands for what they depend on and `fit` cannot see:
    the model's frozen weights and the objective's own settings.
    """

    title: str
    rows: Sequence[Encoded]
    settings: Fit
    seed: int
    pad_id: int
    axes: tuple[str, ...] = ()
    learning_rates: tuple[tuple[str, float], ...] = ()
    targets: Tensor | None = None
    checkpoint: Path | None = None
    identity: str = ""

    def fingerprint(self, model: nn.Module) -> str:
        """Tells this job's checkpoints from those of others. (What changes no more than rounding is left out.)"""
        parameters = {n: [str(p.dtype), *p.shape] for n, p in checkpoint.trainable(model).items()}
        settings = self.settings.model_dump(exclude={"save_every", "packing"})
        rows = [digest(repr(row)) for row in self.rows]
        # Not the targets' values: a GPU computes them anew with other last digits.
        targets = None if self.targets is None else list(self.targets.shape)
        own = [self.identity, settings, self.seed, self.pad_id, self.axes, self.learning_rates]
        return digest([checkpoint.FORMAT, own, rows, targets, parameters])

    def collate(self, items: Sequence[int]) -> Batch:
        """The batch of the rows with these numbers."""
        batch = collate([self.rows[i] for i in items], self.pad_id, axes=self.axes)
        if self.settings.packing is not None:
            batch |= packed(batch, self.settings.packing)
        if self.targets is not None:
            batch["target"] = self.targets[list(items)]
        return batch
