"""gpt-oss: the one mixture class of transformers whose router has a bias that is in the weights too.

Its router is top-k of W x + b and the softmax of those: softmax(z/T + c), top-k, renormalised, with W = W_r / T and
b = c. The rest becomes a Llama's or Mistral's block and attention:
- an expert computes (u + 1) · g · σ(α g), g and u clamped at a limit: with α = 1 and a limit beyond every number it is
  (u + 1) · SiLU(g). Stored are s·W_up with the bias -1, and W_down / s: (s u - 1 + 1) / s = u. s is a power of two, so
  that the weights are exact, and large enough that rounding at the 1 is small beside s u;
- a head's softmax has one more logit, its sink, that attends to nothing: -60000 leaves it exp(-60000) = 0;
- windows are set layer by layer.
α and the limit are settings of transformers (`swiglu_alpha`, `swiglu_limit`); vLLM and llama.cpp have 1.702 and 7
built in (llama.cpp: llama-graph.cpp, LLM_FFN_SWIGLU_OAI_MOE; vLLM: swigluoai_and_mul), so they cannot serve this.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GptOssConfig

from triune.fusion.export.expert_weights import expert_weight, router_weight
from triune.fusion.export.families import Family, common_faults
from triune.fusion.export.source import Source
from triune.models.shards import Planned, cast

# Whether the installed transformers reads α and the limit from the configuration (older ones ignored them).
CONFIGURABLE = hasattr(GptOssConfig, "swiglu_alpha") and hasattr(GptOssConfig, "swiglu_limit")
SINK = -60000.0  # float16 holds it
# (s, limit) by dtype. float16 ends at 65504: a smaller s leaves u the numbers up to 7500.
_RANGES = {torch.float16: (8.0, 60000.0)}
_WIDE = (64.0, 1e30)


def _settings(source: Source, dtype: torch.dtype) -> dict[str, Any]:
    text = source.text
    window = getattr(text, "sliding_window", None)
    return {
        "num_local_experts": source.n_experts,
        "swiglu_alpha": 1.0,
        "swiglu_limit": _RANGES.get(dtype, _WIDE)[1],
        "attention_bias": False,
        "layer_types": ["sliding_attention" if window else "full_attention"] * text.num_hidden_layers,
        "sliding_window": window or text.max_position_embeddings,  # the class wants one also where no layer has it
    }


def _faults(source: Source) -> Iterator[str]:
    yield from common_faults(source)
    if source.text.hidden_act != "silu":
        yield f"its activation is {source.text.hidden_act}, and gpt-oss can be made to compute SiLU only"
    if not CONFIGURABLE:
        yield (
            "the class gpt-oss of the installed transformers does not read swiglu_alpha and swiglu_limit from its "
            "configuration (a newer one does)"
        )


def _limits(source: Source) -> Iterator[str]:
    yield (
        f"Its routing adds a constant to each expert's logit ({', '.join(source.added)}), which only the class of "
        "gpt-oss can hold. Serve it with transformers: vLLM and llama.cpp compute gpt-oss with constants of their own "
        "(1.702 and a clamp at 7) in place of swiglu_alpha and swiglu_limit, and so does a transformers that is too "
        "old to have these settings; what they write is wrong."
    )
    yield "transformers runs this class with eager, flash or flex attention; it has no SDPA for it."


def _block(source: Source, layer: int, dtype: torch.dtype) -> Iterator[Planned]:
    heads, n_experts = source.text.num_attention_heads, source.n_experts
    d, f = source.text.hidden_size, source.text.intermediate_size
    prefix = f"model.layers.{layer}"
    mlp, experts = f"{prefix}.mlp", f"{prefix}.mlp.experts"
    made = {
        f"{prefix}.self_attn.sinks": ((heads,), partial(torch.full, (heads,), SINK)),
        f"{mlp}.router.weight": ((n_experts, d), partial(router_weight, source, layer)),
        f"{mlp}.router.bias": ((n_experts,), partial(_bias, source, layer)),
        f"{experts}.gate_up_proj": ((n_experts, d, 2 * f), partial(_gate_up, source, layer, dtype)),
        f"{experts}.gate_up_proj_bias": ((n_experts, 2 * f), partial(_minus_one, (n_experts, f))),
        f"{experts}.down_proj": ((n_experts, f, d), partial(_down, source, layer, dtype)),
        f"{experts}.down_proj_bias": ((n_experts, d), partial(torch.zeros, (n_experts, d))),
    }
    for name, (shape, make) in made.items():
        yield Planned(name, dtype, shape, partial(_stored, make, dtype, name))


def _stored(make: partial[Tensor], dtype: torch.dtype, name: str) -> Tensor:
    return cast(make(), dtype, name)


def _bias(source: Source, layer: int) -> Tensor:
    # A shift of all logits changes nothing; with 0 for the largest, the logits that count round least.
    wide = torch.tensor((source.config.biases or [])[layer], dtype=torch.float64)
    return wide - wide.max()


def _minus_one(shape: tuple[int, int]) -> Tensor:
    """Biases of gates (0) and ups (-1), taking turns."""
    return torch.stack([torch.zeros(shape), -torch.ones(shape)], -1).flatten(-2)


def _gate_up(source: Source, layer: int, dtype: torch.dtype) -> Tensor:
    """[E, d, 2 f], the columns of gate and up taking turns."""
    d, f = source.text.hidden_size, source.text.intermediate_size
    result = torch.empty(source.n_experts, d, f, 2, dtype=dtype)
    scales = {"gate": 1.0, "up": _RANGES.get(dtype, _WIDE)[0]}
    for column, which in enumerate(scales):
        base, factors = source.tensor(f"model.layers.{layer}.mlp.{which}_proj.weight"), source.factors(layer, which)
        for index, part in enumerate(factors):
            name = f"model.layers.{layer}.mlp.experts.gate_up_proj, {which} of expert {index}"
            result[index, :, :, column] = expert_weight(base, part, dtype, name, scales[which]).T
    return result.flatten(-2)


def _down(source: Source, layer: int, dtype: torch.dtype) -> Tensor:
    """[E, f, d]."""
    base = source.tensor(f"model.layers.{layer}.mlp.down_proj.weight")
    result = torch.empty(source.n_experts, *base.T.shape, dtype=dtype)
    for index, part in enumerate(source.factors(layer, "down")):
        name = f"model.layers.{layer}.mlp.experts.down_proj of expert {index}"
        result[index] = expert_weight(base, part, dtype, name, 1 / _RANGES.get(dtype, _WIDE)[0]).T
    return result


GPT_OSS = Family("GptOssForCausalLM", GptOssConfig, _settings, _faults, _block, _limits)
