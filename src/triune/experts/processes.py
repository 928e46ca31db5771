"""Several processes that train one model together (`accelerate launch`): who this one is, and means over all.

Nothing here does anything in a program of one process.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from triune.errors import InputError

ROWS = "rows"  # in a batch: how many of its rows count; 0 where it only keeps step with the other processes


def world() -> int:
    """How many processes train together; 1 in an ordinary program. As torchrun and accelerate say it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def rank() -> int:
    """Which of them this is, from 0 on. The first one alone writes."""
    return int(os.environ.get("RANK", "0")) if world() > 1 else 0


def sharded() -> bool:
    """Whether the launch asks for the model in parts, one a process (FSDP2).

    Raises InputError for FSDP's first version, which flattens the factors that a fused model reads one by one.
    """
    if world() == 1 or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise InputError(f"FSDP version {version} is asked for; only 2 is supported: launch with --fsdp_version 2")
    return True


def join() -> None:
    """Meet the other processes; with gloo on CPUs, else with the devices' own backend."""
    if sharded():
        # accelerate's default: all but the first process would load empty weights, and what is computed before the
        # model is sharded (targets, checks) would be computed from those.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    if world() > 1 and not torch.distributed.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=not torch.accelerator.is_available())


def alone(what: str) -> None:
    """Raise InputError where several processes would each do `what`."""
    if world() > 1:
        raise InputError(
            f"{what} runs in one process, and here are {world()}; only train and align are for `accelerate launch` "
            "(triune run starts the processes of its training steps itself: launch.processes in the recipe)"
        )


def wait() -> None:
    """Go on when all processes are here."""
    if world() > 1:
        torch.distributed.barrier()


def total(values: Tensor) -> Tensor:
    """The sum over all processes, the same to the last bit in each; carries no gradient."""
    if world() == 1:
        return values.detach()
    from accelerate import PartialState

    # NCCL adds on its own device only. PartialState's is that of training.
    summed = values.detach().to(PartialState().device, copy=True)
    torch.distributed.all_reduce(summed)
    return summed.to(values.device)


def agreed(number: int) -> int:
    """The first process's number, in all."""
    # Also of a truth value: all must send the same type.
    return int(total(torch.tensor(int(number) if rank() == 0 else 0)))


def share(global_batch: int) -> int:
    """This process's rows of a whole batch. Raises InputError where the processes do not divide it."""
    if global_batch % world():
        raise InputError(
            f"batch_size is {global_batch}, which {world()} processes do not divide; it counts the rows of all "
            f"processes together: choose a multiple of {world()}"
        )
    return global_batch // world()


def counted(batch: dict[str, Tensor]) -> int:
    """How many rows of the batch count."""
    return int(batch[ROWS]) if ROWS in batch else len(batch["labels"])


def whole_mean(mean: Float[Tensor, "*shape"], batch: dict[str, Tensor]) -> Float[Tensor, "*shape"]:
    """The mean over all processes' rows, from the mean over this one's; for terms that are not linear in it.

    m = Σ_r n_r m_r / Σ_r n_r. Its gradient is taken of this process's m_r as it stands: Trainer weights this
    process's loss by n_r / Σ n before the gradients are summed, so that f'(m) ∂m = Σ_r (n_r / Σ n) f'(m) ∂m_r.
    """
    if world() == 1:
        return mean
    n_rows = float(counted(batch))
    summed = total(torch.cat([mean.detach().flatten() * n_rows, mean.new_tensor([n_rows])]))
    whole = (summed[:-1] / summed[-1]).view_as(mean)
    return mean + (whole - mean.detach())


class SharedBatches:
    """The batches of one process: of every batch of the whole job, its own stretch of rows.

    The whole job's batches are those of a single process: the order is drawn from `seed` and the epoch alone, so it
    depends neither on how many processes there are nor on whether the job was stopped. A last batch too small to
    share gives some processes no rows; they still take part in the step.
    """

    drop_last = False

    def __init__(self, n_rows: int, global_batch: int, seed: int, epoch: Callable[[], int]) -> None:
        self.n_rows, self.global_batch, self.seed, self.epoch = n_rows, global_batch, seed, epoch
        self.batch_size = share(global_batch)

    def __len__(self) -> int:
        return -(-self.n_rows // self.global_batch)

    def __iter__(self) -> Iterator[list[int]]:
        order = whole_order(self.n_rows, self.seed, self.epoch())
        for begin in range(0, self.n_rows, self.global_batch):
            own = begin + rank() * self.batch_size
            yield order[own : min(own + self.batch_size, begin + self.global_batch)]


def whole_order(n_rows: int, seed: int, epoch: int) -> list[int]:
    """The order of the rows in an epoch: accelerate's, which a single process goes through."""
    from accelerate.data_loader import SeedableRandomSampler

    sampler = SeedableRandomSampler(range(n_rows), data_seed=seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def shared_loader(collate: Callable[[Sequence[int]], dict[str, Tensor]], batches: SharedBatches) -> Any:
    """What gives this process's batches, each with the number of rows that count (`ROWS`)."""
    from torch.utils.data import DataLoader

    def collated(items: Sequence[int]) -> dict[str, Tensor]:
        batch = collate(items or [0])
        if not items:
            batch["labels"] = torch.full_like(batch["labels"], -100)
        return {**batch, ROWS: torch.tensor(len(items))}

    return DataLoader(
        range(batches.n_rows),  # type: ignore[arg-type]
        batch_sampler=batches,
        collate_fn=collated,
        pin_memory=torch.cuda.is_available(),
    )


def seed_step(seed: int, step: int) -> None:
    """Dropout's draws at this step: different in each process, and the same again after a stop."""
    # 64-bit odd constants keep (seed, step, rank) apart; torch takes any 64-bit number.
    torch.manual_seed((seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank() * 0x94D049BB133111EB) % 2**63)
