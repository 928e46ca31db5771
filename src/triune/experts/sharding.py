"""A model in parts, one a process: torch's FSDP2, as accelerate prepares it."""

import copy
from collections.abc import Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from triune.experts.processes import world


def twin(model: nn.Module) -> nn.Module:
    """Another tree of modules over the same parameters and buffers: sharding it leaves `model` whole."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def bare(module: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel's and PEFT's wrappers, with its parameters as they are now."""
    inner = getattr(module, "module", module) if isinstance(module, nn.parallel.DistributedDataParallel) else module
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner  # type: ignore[operator]


def use_plugin(trainer: Any) -> None:
    """Let accelerate shard the trainer's model (FSDP2), also on CPUs.

    accelerate 1.15 reads the launch's FSDP settings for GPUs and the like only: among CPU processes it drops them
    without a word and every process would hold the whole model.
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy

    state = AcceleratorState()
    plugin = getattr(state, "fsdp_plugin", None)
    if plugin is None:
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
        AcceleratorState._shared_state |= {"fsdp_plugin": plugin, "distributed_type": DistributedType.FSDP}
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    # Parameters stay as they are stored (routers in float32); the forward pass runs under autocast as elsewhere.
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    if plugin.auto_wrap_policy is None:
        plugin.auto_wrap_policy = transformer_auto_wrap_policy
    trainer.is_fsdp_enabled = True


def forget_plugin() -> None:
    """The state as it was for the next job, whose layers may have other names."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=False)


def autocast(model: nn.Module) -> None:
    """Run the model's forward pass in bfloat16; what comes out is float32. (accelerate does so for whole models.)"""
    from accelerate import PartialState
    from accelerate.utils import convert_outputs_to_fp32

    forward: Any = model.forward
    device = PartialState().device

    @wraps(forward)
    def narrow(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return forward(*args, **kwargs)

    model.forward = convert_outputs_to_fp32(narrow)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor with all its parts, differentiable; any other as it is.

    Every process computes the same of it and takes the gradient; the mean of theirs goes back, each part to its owner,
    as it would from the forward pass.
    """
    if not _is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import Partial

    found: Tensor = tensor.full_tensor(grad_placements=[Partial("sum")])  # type: ignore[attr-defined]
    return found / world() + (found - found / world()).detach()


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each with all its parts, without gradient. All processes must ask at once."""
    found: dict[str, Any] = {name: tensor.detach() for name, tensor in tensors.items()}
    return {name: tensor.full_tensor() if _is_sharded(tensor) else tensor for name, tensor in found.items()}


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Copy a whole value into a tensor that may be sharded: each process keeps its part."""
    target.copy_(like(target, value))


def like(target: Tensor, value: Tensor) -> Tensor:
    """A whole value, in parts where `target` is."""
    if not _is_sharded(target):
        return value
    from torch.distributed.tensor import distribute_tensor

    wanted: Any = target
    return distribute_tensor(value.to(target.device), wanted.device_mesh, wanted.placements)


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")
