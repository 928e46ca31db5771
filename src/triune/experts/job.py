"""What a training job is: its rows, its settings, and the loss as a plain function."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from triune.experts import checkpoint
from triune.models.encoding import Encoded, collate
from triune.models.packing import packed
from triune.models.token_stream import TokenStream
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

    `stream` stands in place of `rows` where they are not in memory; `settings.steps` says how far it is read.
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
    stream: TokenStream | None = None

    @property
    def n_rows(self) -> int:
        """How many rows it has; of a stream, how many are read in all steps together."""
        if self.stream is None:
            return len(self.rows)
        return (self.settings.steps or 0) * self.settings.accumulation * self.settings.batch_size

    def fingerprint(self, model: nn.Module) -> str:
        """Tells this job's checkpoints from those of others. (What changes no more than rounding is left out.)"""
        parameters = {n: [str(p.dtype), *p.shape] for n, p in checkpoint.trainable(model).items()}
        settings = self.settings.model_dump(exclude={"save_every", "packing"})
        rows = self.stream.stream.identity if self.stream else [digest(repr(row)) for row in self.rows]
        # Not the targets' values: a GPU computes them anew with other last digits.
        targets = None if self.targets is None else list(self.targets.shape)
        own = [self.identity, settings, self.seed, self.pad_id, self.axes, self.learning_rates]
        return digest([checkpoint.FORMAT, own, rows, targets, parameters])

    def collate(self, items: Sequence[int]) -> Batch:
        """The batch of the rows with these numbers."""
        batch = self.batch([self.rows[i] for i in items])
        if self.targets is not None:
            batch["target"] = self.targets[list(items)]
        return batch

    def batch(self, rows: Sequence[Encoded]) -> Batch:
        """The batch of these rows, which need not be the job's own."""
        batch = collate(rows, self.pad_id, axes=self.axes)
        if self.settings.packing is not None:
            batch |= packed(batch, self.settings.packing)
        return batch
