"""Bases whose linear layers bitsandbytes holds in 4 or 8 bits.

The weights on disk stay what they are: they are quantised while they are loaded, and what is saved never holds them.
"""

import copy
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from triune.errors import InputError
from triune.quantised_settings import Quantised

# Linear layers that stay whole: the output layer (often the embedding too), and what is trained or tiny.
KEPT = ("lm_head", "prompt_router", "output_calibration")
BLOCK, NESTED_BLOCK = 64, 256  # weights that share a scale, scales that share one (QLoRA, §3; bitsandbytes' own)
_LOUD = "bitsandbytes.autograd._functions"  # warns at every product of int8 whose input is not float16


def check_available() -> None:
    """Raise InputError where bitsandbytes is not installed or this machine's accelerator has not been tried."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "base.quantised needs bitsandbytes: pip install 'triune[quantised]', or leave base.quantised out"
        )
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is not None and found.type != "cuda":
        raise InputError(
            f"base.quantised runs on CUDA or ROCm GPUs and, slowly, on a CPU; here is {found.type}, which has not "
            "been tried: leave base.quantised out"
        )


def loading_arguments(quantised: Quantised | None, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is told beside the dtype; nothing without `quantised`. Raises as `check_available`."""
    if quantised is None:
        return {}
    check_available()
    from transformers import BitsAndBytesConfig

    if quantised.quant_type == "int8":
        own: dict[str, Any] = {"load_in_8bit": True, "llm_int8_threshold": quantised.int8_threshold}
    else:
        own = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": quantised.quant_type,
            "bnb_4bit_use_double_quant": quantised.double_quant,
            "bnb_4bit_compute_dtype": dtype,
        }
    return {"quantization_config": BitsAndBytesConfig(**own, llm_int8_skip_modules=list(KEPT))}


def settle(model: nn.Module) -> None:
    """Make a model just loaded fit for evaluation and training in turn, and its products quiet.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 packs a 4-bit weight anew at the first pass without gradients: from
    then on products are rounded to bfloat16, some widths fail, and no gradient passes the layer any more.

    Raises InputError for a 4-bit layer that bitsandbytes unpacks wrongly on a CPU. Blocks of 64 weights run on over
    the rows, and 0.50.2 with AVX512 does not follow them at some widths that are no multiple of 64 (96, 160 and 352
    were wrong, 97 and 172 right), so that each layer is looked at.
    """
    logging.getLogger(_LOUD).setLevel(logging.ERROR)
    for name, layer in quantised_layers(model):
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
            if layer.weight.device.type == "cpu" and not _unpacks(layer):
                raise InputError(
                    f"{name} has {layer.in_features} inputs, and this bitsandbytes unpacks such 4-bit weights wrongly "
                    "on a CPU; use a GPU, base.quantised: int8, or a base whose widths are multiples of 64"
                )


def _unpacks(layer: Any) -> bool:
    from bitsandbytes import functional

    found = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return torch.equal(found.float(), dense_weight(layer))


def is_quantised(model: object) -> bool:
    """Whether a model (or what PEFT made of it) was loaded with packed weights."""
    return getattr(model, "quantization_method", None) is not None


def refuse_quantised(model: object, what: str, way_out: str) -> None:
    """Raise InputError where the model's weights are packed, which `what` cannot do."""
    if is_quantised(model):
        raise InputError(f"{what} needs float weights, and the base is quantised (base.quantised); {way_out}")


def quantised_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Every linear layer with a packed weight, by name."""
    packed = ("Params4bit", "Int8Params")
    return [(n, m) for n, m in model.named_modules() if type(getattr(m, "weight", None)).__name__ in packed]


@contextmanager
def as_adapted(model: nn.Module) -> Iterator[None]:
    """Within the context Trainer takes a quantised model for training: what learns is beside the packed weights.

    It knows PEFT's adapters only, and refuses every other quantised model.
    """
    own: Any = model
    before = getattr(own, "is_quantized", False)
    if before:
        own.is_quantized = False
    try:
        yield
    finally:
        if before:
            own.is_quantized = before


def dense_weight(layer: Any) -> Float[Tensor, "out in"]:
    """What a packed weight stands for, in float32: code · scale of its block (4 bits) or row (8 bits)."""
    from bitsandbytes import functional

    weight = layer.weight
    if type(weight).__name__ == "Params4bit":
        state = copy.copy(weight.quant_state)
        shape, state.shape = state.shape, torch.Size((1, state.shape.numel()))  # as one row: see `settle`
        found: Tensor = functional.dequantize_4bit(weight.data, state)
        return found.view(shape).float()
    return weight.data.float() * (_row_scales(layer).float() / 127).unsqueeze(1)


def _row_scales(layer: Any) -> Tensor:
    # The first pass moves them from the weight to the layer's state.
    found: Tensor = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return found


def layer_bytes(layer: Any) -> int:
    """What a packed weight takes in memory, with its scales and tables; biases not counted."""
    weight = layer.weight
    if type(weight).__name__ != "Params4bit":
        return int(weight.nbytes + _row_scales(layer).nbytes)
    state = weight.quant_state
    tensors = [weight.data, state.absmax, state.code]
    if state.nested:
        tensors += [state.state2.absmax, state.state2.code, state.offset]
    return sum(int(tensor.nbytes) for tensor in tensors)


def packed_bytes(n_out: int, n_in: int, quantised: Quantised) -> int:
    """What a matrix of n = n_out · n_in weights takes, with b = ⌈n/64⌉ blocks:

    4 bits: ⌈n/2⌉ + 4b + 64 (a table of 16 codes); with double_quant ⌈n/2⌉ + b + 4⌈b/256⌉ + 4 + 64 + 1024, the mean
    that the scales are taken from and their table of 256 codes. 8 bits: n + 4 n_out.
    """
    n = n_out * n_in
    if quantised.quant_type == "int8":
        return n + 4 * n_out
    blocks = -(-n // BLOCK)
    scales = blocks + 4 * -(-blocks // NESTED_BLOCK) + 4 + 4 * 256 if quantised.double_quant else 4 * blocks
    return -(-n // 2) + scales + 4 * 16


def model_bytes(model: nn.Module) -> int:
    """What all parameters take, packed weights with their scales, shared ones once."""
    packed = {id(layer.weight): layer_bytes(layer) for _, layer in quantised_layers(model)}
    return sum(packed.get(id(parameter), parameter.nbytes) for parameter in model.parameters())
