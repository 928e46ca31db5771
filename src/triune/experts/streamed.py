"""Training from a stream: what a job must say for it, its loader, and where a checkpoint goes on from."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from triune.errors import InputError
from triune.experts import processes
from triune.experts.checkpoint import Checkpoint
from triune.experts.job import Batch, Job
from triune.models.encoding import IGNORED, Encoded
from triune.models.token_stream import Mark, TokenStream


def check_stream(job: Job) -> None:
    """Raise InputError for a streamed job without a number of steps, with targets, or with rows too short to pack."""
    stream, settings = job.stream, job.settings
    if stream is None:
        return
    if settings.steps is None:
        raise InputError(
            f"{job.title}: its rows are streamed, so that nobody knows how many an epoch has; set fit.steps "
            f"(a step takes batch_size x accumulation = {settings.batch_size * settings.accumulation} rows)"
        )
    if job.targets is not None or job.rows:
        raise InputError(f"{job.title}: rows or targets in memory stand beside a stream; give one or the other")
    if settings.packing is not None and settings.packing < stream.max_length:
        raise InputError(
            f"fit.packing is {settings.packing} tokens a row, and a streamed row may have {stream.max_length} "
            "(max_length); raise it to that at least"
        )


class _Batches(IterableDataset[list[Encoded]]):
    """This process's rows of each batch, after those of the steps that are done. Nobody knows how many there are."""

    def __init__(self, stream: TokenStream, size: int, n_done: int, marks: Sequence[Mark]) -> None:
        self.stream, self.size, self.n_done, self.marks = stream, size, n_done, marks

    def __iter__(self) -> Iterator[list[Encoded]]:
        n_own = processes.share(self.size)
        begin = processes.rank() * n_own
        return self.stream.batches(self.size, slice(begin, begin + n_own), self.n_done, self.marks)


def stream_loader(job: Job, kept: Checkpoint | None) -> Any:
    """What gives this process's batches after those of `kept`, each with the number of rows that count."""
    stream = job.stream
    if stream is None:
        raise InputError(f"{job.title}: it has no stream")
    n_done, marks = (0, ()) if kept is None else (rows_done(job, kept.state.global_step), kept.numbers["stream"])
    nothing = Encoded((job.pad_id, job.pad_id), 1, stream.stream.axes[0])

    def collated(rows: list[Encoded]) -> Batch:
        batch = job.batch(rows or [nothing])
        if not rows:
            batch["labels"] = torch.full_like(batch["labels"], IGNORED)
        return {**batch, processes.ROWS: torch.tensor(len(rows))}

    return DataLoader(
        _Batches(stream, job.settings.batch_size, n_done, marks),
        batch_size=None,
        collate_fn=collated,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else it draws from the global one, by which dropout after a stop would differ
    )


def rows_done(job: Job, steps: int) -> int:
    """The rows of the stream's first steps, over all processes."""
    return steps * job.settings.accumulation * job.settings.batch_size
