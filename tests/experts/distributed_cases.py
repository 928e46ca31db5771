"""Jobs of test_several_processes.py: each is done by one process there, and by several through this program."""

import gc
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.experts.conftest import random_rows
from tests.fusion.conftest import random_base, random_experts
from triune.experts import processes, sharding
from triune.experts.fitting import Curve, Job, answer_objective, fit
from triune.experts.training import with_adapters
from triune.fusion.aligning import align
from triune.fusion.building import build
from triune.fusion.modeling import TriuneForCausalLM
from triune.progress import SILENT
from triune.recipe import Align, Fit, Fuse, Lora

STOPPED_AFTER = 4  # of six steps, in the second epoch
N_ROWS = 10  # batches of four: the last of an epoch has two rows, one for each of two processes
TERMS: dict[str, Any] = {
    "gating": 0.1,
    "balance": 0.3,
    "entropy": 0.1,
    "running": 0.5,
    "running_decay": 0.5,
    "prior": 0.2,
    "prior_shares": {"honest": 2.0},
    "drift": {"helpful": 0.1, "harmless": 0.05},
    "representation": 0.01,
}
FIT: dict[str, Any] = {"epochs": 2, "batch_size": 4, "learning_rate": 5e-3, "schedule": "cosine"}
CASES: dict[str, dict[str, Any]] = {
    "routers": {"trainable": "routers", **TERMS},
    "factors": {"trainable": "routers+experts", **TERMS},
    "attention": {"attention": Lora(dropout=0.0, targets=("q_proj",)), "trainable": "routers+experts+attention"},
    # The last batch has one row: one process has none.
    "uneven": {"trainable": "routers+experts", "rows": 9, **TERMS},
    "accumulated": {"trainable": "routers+experts", "fit": {"accumulation": 2, "clip": 0.05}, **TERMS},
    "recomputed": {"trainable": "routers+experts", "fit": {"checkpointing": True}, **TERMS},
    "thirds": {"trainable": "routers+experts", "rows": 7, "fit": {"batch_size": 6}, **TERMS},
    "packed": {"trainable": "routers+experts", "fit": {"packing": 24}, **TERMS},
    "narrow": {"trainable": "routers+experts", "fit": {"precision": "bfloat16"}},
}


def exact(model: Any) -> Any:
    """With torch's norms: transformers' own compute in float32 in any model, and so does their gradient.

    A gradient that is divided by three before them or behind them then differs by 1e-8, and hides greater faults.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, LlamaRMSNorm):
            norm = nn.RMSNorm(len(module.weight), module.variance_epsilon)
            norm.weight = module.weight
            model.set_submodule(name, norm)
    return model


def fused(dtype: torch.dtype = torch.float64) -> TriuneForCausalLM:
    """A fused model with random routers."""
    base = exact(random_base("llama", dtype))
    model = build(base, random_experts(base, std=0.3), Fuse(top_k=2))
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for mixture in model.mixtures():
            mixture.router.weight.copy_(torch.randn(mixture.router.weight.shape, generator=rng))
    return model


def aligned(name: str, place: Path | None = None, **own: Any) -> tuple[dict[str, Tensor], Curve]:
    """The tuned model's weights and its curve; `place` keeps checkpoints, `own` changes the fit."""
    case = {"fit": {}, "rows": N_ROWS, **CASES[name]}
    how = Fit(**{**FIT, **case.pop("fit"), **own})
    rows = random_rows(case.pop("rows"))
    model = fused(torch.float32 if how.precision == "bfloat16" else torch.float64)
    job = Job("aligning", rows, how, 0, 0, checkpoint=place)
    curve = align(model, Align(fit=how, **case), job, SILENT)
    return {key: value.clone() for key, value in model.state_dict().items()}, curve


def adapted(dropout: float = 0.0, place: Path | None = None, **own: Any) -> tuple[dict[str, Tensor], Curve]:
    """The factors of a LoRA expert and its curve."""
    base = exact(random_base("llama", torch.float64))
    model = with_adapters(base, Lora(rank=2, dropout=dropout, targets=("up_proj",)), 0)
    job = Job("training", random_rows(N_ROWS), Fit(**{**FIT, **own}), 0, 0, checkpoint=place)
    curve = fit(model, job, answer_objective, SILENT)
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}, curve


SHARES: list[float] = []  # of a sharded tensor's numbers, how many this process held


def watch_shares() -> None:
    """Note of every tensor that is gathered what part of it was here."""
    gathered = sharding.gathered

    def noting(tensors: Any) -> dict[str, Tensor]:
        SHARES.extend(t.to_local().numel() / t.numel() for t in tensors.values() if hasattr(t, "to_local"))
        return gathered(tensors)

    sharding.gathered = noting


def write(out: Path, name: str, result: tuple[dict[str, Tensor], Curve]) -> None:
    """Each process's result, to be compared with the others'."""
    tensors, curve = result
    save_file({key: value.contiguous() for key, value in tensors.items()}, out / f"{name}-{processes.rank()}.st")
    (out / f"shares-{processes.rank()}.json").write_text(json.dumps(SHARES), encoding="utf-8")
    (out / f"{name}-{processes.rank()}.json").write_text(json.dumps(curve), encoding="utf-8")


class Stopped(Exception):
    """Somebody pulled the plug."""


def stopped(case: str, place: Path, after: int) -> None:
    """Do a case until its checkpoint of step `after` is written."""
    wait = processes.wait

    def stop() -> None:
        wait()
        if (place / f"step-{after}").is_dir():
            raise Stopped

    processes.wait = stop
    try:
        aligned(case, place, save_every=1)
    except Stopped:
        return
    finally:
        processes.wait = wait
    raise AssertionError("the job was not stopped")


def do(out: Path, name: str) -> None:
    """A case of CASES, or "adapter". With ":stopped" it is stopped, with ":resumed" stopped and gone on with."""
    case, _, how = name.partition(":")
    if case == "adapter":
        write(out, name, adapted(dropout=0.5 if how == "dropout" else 0.0))
    elif how:
        stopped(case, out / f"{case}-place", STOPPED_AFTER)
        if how == "resumed":
            write(out, name, aligned(case, out / f"{case}-place", save_every=1))
    else:
        write(out, name, aligned(name))


def main(out: Path, n_processes: int, names: list[str]) -> int:
    """Do the cases in so many processes, which share what has been imported; 0 where all of them did it."""
    gc.freeze()  # Trainer collects garbage after each run, over all that the libraries keep
    port = _free_port()
    children = []
    for rank in range(n_processes):
        child = os.fork()
        if child:
            children.append(child)
            continue
        code = 1
        try:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n_processes)}
            os.environ |= {"LOCAL_WORLD_SIZE": str(n_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            torch.set_num_threads(1)
            watch_shares()
            for name in names:
                do(out, name)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    failed = 0
    while children:
        child, status = os.wait()
        children.remove(child)
        if status and not failed:  # the others wait for it
            failed = 1
            for other in children:
                os.kill(other, signal.SIGKILL)
    return failed


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
