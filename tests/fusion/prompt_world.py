"""Small models that route whole prompts, and prompts of three axes for them."""

import copy
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.fusion.conftest import SIZES, random_experts
from triune.fusion.building import build
from triune.fusion.modeling import TriuneForCausalLM
from triune.fusion.prompt_building import PromptParts, prompt_parts, prompt_states, route_by_prompt, routing_layer
from triune.method_settings import PromptRouting
from triune.models.encoding import Encoded
from triune.recipe import Fuse

AXES = ("helpful", "harmless", "honest")


def deep_base(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A Llama of four layers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_hidden_layers": 4, "tie_word_embeddings": True}))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval()


def axis_rows(n: int = 24, seed: int = 5) -> list[Encoded]:
    """Prompts of 3 to 7 tokens and answers of 3; each axis has words of its own beside common ones."""
    rng = torch.Generator().manual_seed(seed)
    rows = []
    for a, axis in enumerate(AXES):
        words = torch.cat([torch.arange(3 + 9 * a, 12 + 9 * a), torch.arange(30, 36)])
        for i in range(n):
            length = 3 + i % 5
            ids = words[torch.randint(len(words), (length + 3,), generator=rng)].tolist()
            rows.append(Encoded(tuple(ids), length, axis))
    return rows


def parts_for(
    token_model: TriuneForCausalLM, features: dict[str, torch.Tensor] | None = None, **settings: Any
) -> PromptParts:
    how = PromptRouting(**{"latent": 6, **settings})
    config: Any = token_model.config
    states = prompt_states(token_model, axis_rows(), routing_layer(how, config.num_hidden_layers), 0)
    return prompt_parts(states, features or {}, how, config)


def prompt_model(
    dtype: torch.dtype = torch.float32, top_k: int = 2, fuse: dict[str, Any] | None = None, **settings: Any
) -> TriuneForCausalLM:
    """Four layers, three experts, a router of prompts before the third layer (`settings` of PromptRouting)."""
    base = deep_base(dtype)
    model = build(copy.deepcopy(base), random_experts(base), Fuse(top_k=top_k, router_init="zeros", **(fuse or {})))
    rng = torch.Generator().manual_seed(9)
    features = {axis: torch.randn(16, generator=rng) for axis in AXES}
    route_by_prompt(model, parts_for(model, features, **settings))
    return model
