"""A merge as a stream, one parameter at a time, into an ordinary model folder."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triune.errors import InputError
from triune.experts.changes import Changes
from triune.merges.planning import Place, checked_weights, n_elements, places, read_place
from triune.merges.selection import pieces
from triune.merges.table import Entry, Merge
from triune.models.carrying import carry
from triune.models.shards import Planned, cast, is_whole, shards, write_shards
from triune.parsing import parse_json
from triune.progress import SILENT, Progress
from triune.record import write_json
from triune.settings import Settings

Made = tuple[Tensor, Tensor | None]
Note = Callable[[str, Tensor | None], None]
MEASURES = "measures.jsonl"  # in the folder while it is being written: what is known of the parameters done
IN_FLIGHT = 1 << 24  # elements that are worked on together; a larger parameter is worked on alone


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller chooses beside the method. dtype: None is, of each parameter, the one that the base has.

    Each of `threads` works on a parameter of its own with one thread of torch's; None is torch's own number.
    """

    dtype: torch.dtype | None = None
    max_shard_bytes: int = 5_000_000_000  # decimal GB, the hub's own limit for comfortable downloads
    seed: int = 0
    threads: int | None = None
    progress: Progress = SILENT


@dataclass(frozen=True)
class Job:
    """A merge that has been checked: all that is needed to make any of its parameters."""

    base: Mapping[str, Place]
    experts: Sequence[Changes]
    how: Merge
    settings: Any
    weights: Sequence[float]
    options: Options

    def dtype(self, name: str) -> torch.dtype:
        """What a parameter is written in."""
        stored = self.base[name].info.dtype
        return self.options.dtype or stored if stored.is_floating_point else stored

    def touched(self, name: str) -> bool:
        """Whether any expert changes the parameter."""
        return any(name in expert.shapes for expert in self.experts)


def write_merge(
    base: Path, experts: Sequence[Changes], how: Merge, settings: Any, folder: Path, options: Options | None = None
) -> dict[str, Any]:
    """Write W = W_base + merge(ΔW_1 … ΔW_E) of every parameter, and what else a model folder holds, into `folder`.

    The arithmetic is float32 (float64 where the base is); each number is rounded once, to the dtype written. A
    parameter that no expert changes has the base's own bytes. A random merge draws from a generator of (seed,
    parameter name): neither the order nor the sharding changes anything. An interrupted call goes on where it
    stopped if `folder` belongs to the same merge. Memory: a few tensors of the largest parameter's size, float32.

    Returns the manifest: method, paper, settings, weights, seed; numbers of parameters changed and copied; ‖ΔW‖_F of
    every expert and of the merge over all parameters, and cos(merge, expert) (NaN where either is zero).

    Raises InputError as `checked_weights` and where the disk has too little room, before anything is written; then
    where a value overflows the dtype written or is not finite, with the parameter's name and whose value it is.
    """
    options = options or Options()
    found = places(base)
    job = Job(found, experts, how, settings, checked_weights(found, experts, how, settings), options)
    with _one_thread_each() as n_threads, _measures(folder) as (done, note):
        _write_weights(job, folder, note, options.threads or n_threads)
        for name in found:  # in shards that were there, without the record of what is in them
            if job.touched(name) and name not in done:
                note(name, merged(job, name)[1])
    _write_config(base, folder, options.dtype)
    carry(base, folder)
    (folder / MEASURES).unlink()
    return manifest(job, done)


@contextmanager
def _measures(folder: Path) -> Iterator[tuple[dict[str, Tensor], Note]]:
    """The measures of the parameters done, with those of an interrupted call, and how to add to them."""
    path = folder / MEASURES
    done: dict[str, Tensor] = {}
    for line in path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []:
        with suppress(ValueError):  # half a line of a process that was killed; what it was of is merged again
            name, values = parse_json(line)
            done[name] = torch.tensor(values, dtype=torch.float64)

    def note(name: str, inner: Tensor | None) -> None:
        if inner is not None:
            done[name] = inner
            with path.open("a", encoding="utf-8") as log:
                log.write("\n" + json.dumps([name, inner.tolist()]) + "\n")

    yield done, note


def _write_weights(job: Job, folder: Path, note: Note, threads: int) -> None:
    def make(name: str) -> Tensor:
        tensor, inner = next(stream)
        note(name, inner)
        return tensor

    plan = [Planned(name, job.dtype(name), place.info.shape, partial(make, name)) for name, place in job.base.items()]
    limit = job.options.max_shard_bytes
    to_do = [shard for shard in shards(plan, limit) if not is_whole(folder / shard.name, shard)]
    names = [planned.name for shard in to_do for planned in shard.tensors]  # the order in which they are written
    with _ahead(job, names, threads) as stream:
        write_shards(plan, folder, limit, job.options.progress)


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """Torch computes with one thread meanwhile; gives how many it had. Parameters side by side use them better."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


@contextmanager
def _ahead(job: Job, names: Sequence[str], threads: int) -> Iterator[Iterator[Made]]:
    """The parameters made in the order of `names`, the next ones while the caller writes the last."""
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield _in_order(job, names, pool, threads)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _in_order(job: Job, names: Sequence[str], pool: ThreadPoolExecutor, threads: int) -> Iterator[Made]:
    sizes = [n_elements(job.base[name]) for name in names]
    under_way: list[tuple[int, Future[Made]]] = []
    memory, position = threading.local(), 0
    while position < len(names) or under_way:
        while position < len(names) and len(under_way) <= threads:
            if under_way and sum(size for size, _ in under_way) + sizes[position] > IN_FLIGHT * threads:
                break
            under_way.append((sizes[position], pool.submit(merged, job, names[position], memory)))
            position += 1
        yield under_way[0][1].result()
        del under_way[0]


def merged(job: Job, name: str, memory: threading.local | None = None) -> Made:
    """One parameter as it is written, and the measures of its changes (see `_added`); None where it is copied.

    `memory` keeps a thread's working space from one parameter to the next: fresh pages cost as much as the arithmetic.

    Raises InputError where a value overflows or is not finite, with the parameter and whose value it is.
    """
    stored, dtype = read_place(job.base[name]), job.dtype(name)
    if not job.touched(name):
        written = stored.to(dtype)
        if not written.sum().isfinite():
            _check_finite(job, name, {})
            cast(stored, dtype, name)
        return written, None
    space = _space(job, name, memory or threading.local())
    total, deltas = space[0].copy_(stored), _deltas(job, name, space[0], space[1:])
    del stored
    written, found = _added(job, Entry(name, total, deltas), dtype)
    # A sum is finite only where every term is, and costs a tenth of looking at each.
    if not (found.isfinite().all() and written.sum().isfinite()):
        axes = [expert.axis for expert in job.experts]
        _check_finite(job, name, dict(zip(axes, deltas, strict=True)))
        wide, found = _added(job, Entry(name, total.double(), deltas.double()), torch.float64)
        _check_finite(job, name, {f"the merge {job.how.name}": wide})
        cast(wide, dtype, name)
    return written, found


def _added(job: Job, entry: Entry, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """W + ΔW in `dtype`, and, of every v in [ΔW_1 … ΔW_E, ΔW], ‖v‖² and ⟨v, ΔW⟩ as two rows in float64.

    Piece by piece, so that what one operation leaves in the cache is there for the next; within a piece the products
    are float32. A fixed linear combination is made in pieces too, and never stands in memory as a whole.
    """
    arguments = job.settings, job.weights, generator(job.options.seed, entry.name)
    base, deltas = entry.base.view(-1), entry.deltas.view(len(entry.deltas), -1)
    whole = None if job.how.linear else job.how.fn(entry, *arguments).reshape(-1)
    written = torch.empty(entry.base.shape, dtype=dtype)
    squares, inner = [0.0] * (len(deltas) + 1), [0.0] * (len(deltas) + 1)
    for part in pieces(base.numel()):
        rows = deltas[:, part]
        change = job.how.fn(Entry(entry.name, base[part], rows), *arguments) if whole is None else whole[part]
        for i, row in enumerate((*rows, change)):
            squares[i] += float(torch.dot(row, row))
            inner[i] += float(torch.dot(row, change))
        written.view(-1)[part] = base[part] + change
    return written, torch.tensor([squares, inner], dtype=torch.float64)


def _space(job: Job, name: str, memory: threading.local) -> Tensor:
    """Room for the base's and every expert's values of one parameter, [1 + E, *shape]; a large one's is its own."""
    info, n_rows = job.base[name].info, 1 + len(job.experts)
    dtype, size = torch.promote_types(info.dtype, torch.float32), n_rows * n_elements(job.base[name])
    if n_elements(job.base[name]) > IN_FLIGHT:
        return torch.empty(n_rows, *info.shape, dtype=dtype)
    kept: Tensor | None = getattr(memory, "kept", None)
    if kept is None or kept.dtype != dtype or len(kept) < size:
        kept = memory.kept = torch.empty(size, dtype=dtype)
    return kept[:size].view(n_rows, *info.shape)


def generator(seed: int, name: str) -> torch.Generator:
    """The random numbers of one parameter: the same in whatever order parameters are merged."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _deltas(job: Job, name: str, base: Tensor, space: Tensor) -> Tensor:
    """[E, *shape]; zeros where an expert leaves the parameter alone."""
    for row, expert in zip(space, job.experts, strict=True):
        if name not in expert.shapes:
            row.zero_()
        elif expert.value is not None:
            _subtract(expert.value(name), base, row)
        else:
            row.copy_(expert.read(name))
    return space


def _subtract(value: Tensor, base: Tensor, out: Tensor) -> None:
    """out = value − base, in pieces that stay in the cache: fresh memory of the whole size costs more than the sum."""
    flat, taken, given = value.reshape(-1), base.view(-1), out.view(-1)
    for part in pieces(flat.numel()):
        torch.sub(flat[part].to(out.dtype), taken[part], out=given[part])


def _check_finite(job: Job, name: str, values: Mapping[str, Tensor]) -> None:
    """Raise InputError that says whose values are NaN or infinite; nothing where none is."""
    for whose, tensor in {"the base": read_place(job.base[name]), **values}.items():
        count = int((~tensor.isfinite()).sum())
        if count:
            raise InputError(
                f"{name}: {whose} has {count:,} NaN or infinite values of {tensor.numel():,}; download that model "
                "again, or leave it out"
            )


def _write_config(base: Path, folder: Path, dtype: torch.dtype | None) -> None:
    """The base's config.json, which says the dtype written."""
    config = parse_json((base / "config.json").read_text(encoding="utf-8"))
    if dtype is not None:
        config.pop("torch_dtype", None)  # its name before transformers 5
        config["dtype"] = str(dtype).removeprefix("torch.")
    write_json(folder / "config.json", config)


def manifest(job: Job, measured: Mapping[str, Tensor]) -> dict[str, Any]:
    """What was merged, how, and how large the changes are."""
    n_experts = len(job.experts)
    start = torch.zeros(2, n_experts + 1, dtype=torch.float64)
    squares, inner = sum((measured[name] for name in job.base if name in measured), start)  # in one order always
    norms = squares.sqrt()
    cosines = inner / (norms[-1] * norms)
    experts = {
        expert.axis: {
            "weight": weight,
            "parameters": len(expert.shapes),
            "norm": float(norms[i]),
            "cosine": float(cosines[i]),
        }
        for i, (expert, weight) in enumerate(zip(job.experts, job.weights, strict=True))
    }
    return {
        "method": job.how.name,
        "paper": job.how.paper,
        "settings": job.settings.model_dump() if isinstance(job.settings, Settings) else None,
        "seed": job.options.seed,
        "dtype": None if job.options.dtype is None else str(job.options.dtype).removeprefix("torch."),
        "experts": experts,
        "norm": float(norms[-1]),
        "changed": len(measured),
        "copied": len(job.base) - len(measured),
    }
