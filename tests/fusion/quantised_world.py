"""A random base on disk, and fused models that borrow it packed."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config

from tests.fusion.conftest import random_experts
from triune.experts.task_vector import TaskVector
from triune.fusion import borrowed
from triune.fusion.modeling import TriuneForCausalLM
from triune.fusion.writing import blank, fusion, write_fused
from triune.models.loading import quiet
from triune.models.quantised import dense_weight, quantised_layers
from triune.quantised_settings import Quantised
from triune.recipe import Fuse

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": lambda: LlamaConfig(**SIZES, mlp_bias=True, tie_word_embeddings=False),
    "qwen2": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
}
KINDS = {
    "nf4": Quantised(),
    "nf4-single": Quantised(double_quant=False),
    "fp4": Quantised(quant_type="fp4"),
    "int8": Quantised(quant_type="int8"),
}


def write_base(folder: Path, family: str = "llama", **sizes: int) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = FAMILIES[family]()
        config.update(sizes)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    with quiet():
        model.save_pretrained(folder)
    return model


def write_model(
    base: Path, experts: list[TaskVector], out: Path, quantised: Quantised, settings: Fuse | None = None
) -> Path:
    """A fused folder with random routers that borrows the base packed."""
    rng, dtype = torch.Generator().manual_seed(3), torch.float32
    origin = blank(base, dtype)
    shape = (len(experts), origin.config.hidden_size)
    routers = [torch.randn(shape, generator=rng) for _ in range(origin.config.num_hidden_layers)]
    out.mkdir(parents=True)
    made = fusion(origin, experts, settings or Fuse(), routers)
    write_fused(made, out, beside=borrowed.beside(base, str(base), dtype, quantised))
    return out


def open_(folder: Path, **options: Any) -> TriuneForCausalLM:
    with quiet():
        found: TriuneForCausalLM = TriuneForCausalLM.from_pretrained(folder, **options)
    return found.eval()


def make(tmp: Path, kind: str, family: str = "llama") -> tuple[TriuneForCausalLM, TriuneForCausalLM]:
    """A fused model on a packed base, and its float64 twin on the weights that the packed ones stand for."""
    base = tmp / family
    origin = write_base(base, family)
    folder = write_model(base, random_experts(origin, std=0.15), tmp / kind, KINDS[kind])
    packed = open_(folder)
    twin = open_(folder, base_quantised=False)
    with torch.no_grad():
        for name, layer in quantised_layers(packed):
            twin.get_submodule(name).weight.copy_(dense_weight(layer))  # type: ignore[operator,union-attr]
    return packed, twin.double()
