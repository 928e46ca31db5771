"""Mixture classes of transformers, vLLM and llama.cpp whose gate has no bias: Mixtral and Qwen3-MoE.

Both are written in their original layout with one tensor an expert, the one that vLLM and llama.cpp read.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import MixtralConfig, PreTrainedConfig, Qwen3MoeConfig

from triune.fusion.export.expert_weights import expert_weight, router_weight
from triune.fusion.export.source import MATRICES, Source
from triune.models.shards import Planned, cast


@dataclass(frozen=True, slots=True)
class Family:
    """A mixture architecture of transformers.

    settings: of its configuration, beside those that a base and every mixture call the same. faults: why it cannot
    express a fused model (sentences; none where it can). block: the tensors of one layer that the base does not have.
    limits: what it, or a program that serves it, does differently (sentences for the model card).
    """

    architecture: str
    config: type[PreTrainedConfig]
    settings: Callable[[Source, torch.dtype], dict[str, Any]]
    faults: Callable[[Source], Iterator[str]]
    block: Callable[[Source, int, torch.dtype], Iterator[Planned]]
    limits: Callable[[Source], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Names:
    """Where a mixture's block and its experts' matrices stand in a checkpoint."""

    block: str
    matrices: Mapping[str, str]

    def gate(self, layer: int) -> str:
        """The router's key."""
        return f"model.layers.{layer}.{self.block}.gate.weight"

    def expert(self, layer: int, expert: int, which: str) -> str:
        """The key of one expert's matrix (gate, up or down)."""
        return f"model.layers.{layer}.{self.block}.experts.{expert}.{self.matrices[which]}.weight"


def _separate(names: Names, source: Source, layer: int, dtype: torch.dtype) -> Iterator[Planned]:
    """A gate, and one matrix an expert for each of the base's."""
    for which in MATRICES:
        shape = source.infos[f"model.layers.{layer}.mlp.{which}_proj.weight"].shape
        if which == MATRICES[0]:
            gate = names.gate(layer)
            yield Planned(gate, dtype, (source.n_experts, shape[1]), partial(_gate, source, layer, dtype, gate))
        for index in range(source.n_experts):
            key = names.expert(layer, index, which)
            yield Planned(key, dtype, shape, partial(_expert, source, (layer, index, which), dtype, key))


def _gate(source: Source, layer: int, dtype: torch.dtype, name: str) -> Tensor:
    return cast(router_weight(source, layer), dtype, name)


def _expert(source: Source, place: tuple[int, int, str], dtype: torch.dtype, name: str) -> Tensor:
    layer, index, which = place
    base = source.tensor(f"model.layers.{layer}.mlp.{which}_proj.weight")
    return expert_weight(base, source.factors(layer, which)[index], dtype, name)


def renormalised(source: Source) -> bool:
    """Whether the weights of a token's experts sum to one (those of all experts do anyway)."""
    config = source.config
    return config.norm_topk_prob or config.num_experts_per_tok == source.n_experts


def common_faults(source: Source) -> Iterator[str]:
    """What neither Mixtral nor gpt-oss can express: weights that do not sum to one, and biases of the base."""
    if not renormalised(source):
        yield (
            f"its top-{source.config.num_experts_per_tok} weights are not renormalised (norm_topk_prob=false), and "
            "Mixtral and gpt-oss always renormalise"
        )
    biases = [each for each in ("attention_bias", "mlp_bias") if getattr(source.text, each, False)]
    if biases:
        yield f"its base has biases ({', '.join(biases)}), and Mixtral has none"


def _bias_faults(source: Source, name: str) -> Iterator[str]:
    if source.added:
        names = ", ".join(source.added)
        yield f"its routing adds a constant to each expert's logit ({names}), and {name}'s gate has no bias"


def _mixtral_faults(source: Source) -> Iterator[str]:
    yield from common_faults(source)
    yield from _bias_faults(source, "Mixtral")


def _mixtral(source: Source, dtype: torch.dtype) -> dict[str, Any]:
    # Llama has no window; Mistral's means the same in Mixtral.
    return {"num_local_experts": source.n_experts, "sliding_window": getattr(source.text, "sliding_window", None)}


def _mixtral_limits(source: Source) -> Iterator[str]:
    if source.text.hidden_act != "silu":
        yield (
            f"Its activation is {source.text.hidden_act}. transformers honours that; vLLM and llama.cpp use SiLU in "
            "mixture blocks whatever the configuration says: do not serve it with them."
        )


def _qwen3(source: Source, dtype: torch.dtype) -> dict[str, Any]:
    text = source.text
    return {
        "num_experts": source.n_experts,
        "moe_intermediate_size": text.intermediate_size,
        "norm_topk_prob": source.config.norm_topk_prob,
        "decoder_sparse_step": 1,  # every layer is a mixture
        "mlp_only_layers": [],
        "attention_bias": text.attention_bias,
        "use_sliding_window": "sliding_attention" in text.layer_types,
        "sliding_window": text.sliding_window,
    }


def _qwen3_faults(source: Source) -> Iterator[str]:
    kinds = set(source.text.layer_types)
    if len(kinds) > 1:
        yield f"its layers have different attention ({', '.join(sorted(kinds))}), and Qwen3-MoE has one kind for all"
    yield from _bias_faults(source, "Qwen3-MoE")


def _qwen3_limits(source: Source) -> Iterator[str]:
    yield from _mixtral_limits(source)
    if not source.config.norm_topk_prob:
        yield "llama.cpp renormalises the routing weights, this model does not: do not serve it with llama.cpp."


MIXTRAL = Family(
    "MixtralForCausalLM",
    MixtralConfig,
    _mixtral,
    _mixtral_faults,
    partial(_separate, Names("block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"})),
    _mixtral_limits,
)
QWEN3_MOE = Family(
    "Qwen3MoeForCausalLM",
    Qwen3MoeConfig,
    _qwen3,
    _qwen3_faults,
    partial(_separate, Names("mlp", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"})),
    _qwen3_limits,
)
