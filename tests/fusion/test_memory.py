"""The arithmetic of memory: published counts, real models' counts, values worked out by hand."""

import pytest

from tests.fusion.conftest import random_base, random_experts
from triune.fusion import memory
from triune.fusion.building import build
from triune.fusion.memory import Fused, Shape, Stage2
from triune.recipe import Fuse

# L 2, d 4, f 6, h 2, h_kv 1, d_h 2, V 10: a layer has 2·4·2·(2 + 1) + 3·4·6 + 2·4 = 48 + 72 + 8 = 128
SMALL = Shape(2, 4, 6, 2, 1, 2, 10)


@pytest.mark.parametrize(
    ("shape", "published"),
    [
        (Shape(32, 4096, 11008, 32, 32, 128, 32000), 6_738_415_616),  # Llama 2
        (Shape(40, 5120, 13824, 40, 40, 128, 32000), 13_015_864_320),
        (Shape(80, 8192, 28672, 64, 8, 128, 32000), 68_976_648_192),
        (Shape(22, 2048, 5632, 32, 4, 64, 32000), 1_100_048_384),  # TinyLlama
    ],
)
def test_parameters_are_those_that_are_published(shape: Shape, published: int) -> None:
    assert shape.parameters == published


def test_counts_are_those_of_a_model() -> None:
    base = random_base("llama")
    shape = memory.shape_of(base.config)
    assert shape.parameters == sum(p.numel() for p in base.parameters())
    experts = random_experts(base)
    ranks = {part.rank for expert in experts for part in expert.parts.values()}
    model = build(base, experts, Fuse())
    named = dict(model.named_parameters())
    counted = Fused(shape, rank=1, stored=4)
    assert counted.routers == sum(p.numel() for name, p in named.items() if "router" in name)
    factors = sum(p.numel() for name, p in named.items() if name.endswith(("_a", "_b")))
    assert factors == counted.factors * sum(map(sum, model.mixtures()[0].ranks.values())) / 9, ranks


def test_small_by_hand() -> None:
    model = Fused(SMALL, experts=3, rank=2)
    assert (SMALL.layer, SMALL.parameters) == (128, 2 * 128 + 4 + 80)
    assert (model.factors, model.routers) == (3 * 2 * 3 * 2 * 10, 24)
    assert model.weights == 2 * (340 + 360) + 4 * 24
    # All tokens answers: 5 · 10 logits; 2 · 50 + 8 · 50 going forward, 12 · 50 going back.
    assert memory.logits(SMALL, Stage2(1, 5)) == 600
    assert memory.logits(SMALL, Stage2(1, 5, answers=0.2)) == 2 * 50 + 8 * 10
    # A token and layer: 8·4 + 2·4 + 2·2·(4 + 2) + 2·2·6 + 4·3·(6 + 4) = 32 + 8 + 24 + 24 + 120
    assert memory.activations(model, Stage2(1, 5, checkpointing=False)) == (5 * 2 * 208, 5 * 4 * 2 * 10)
    assert memory.activations(model, Stage2(1, 5)) == (5 * 2 * 8, 5 * (208 + 80))
    assert memory.native_size(model) == 2 * (340 + 2 * 3 * 2 * 4 * 6 + 24)
    assert memory.export_peak(model, 4) == (2 + 4) * 40 + 24 * 40
    assert memory.key_values(SMALL, 7) == 7 * 2 * 2 * 1 * 2 * 2
    parts = memory.stage2(model, Stage2(1, 5))
    assert parts["weights"] == 2 * 340 + 4 * 384
    assert (parts["gradients"], parts["optimizer"]) == (4 * 384, 8 * 384)
    assert parts["activations"] == 80 + max(0, 5 * 288 - 600)
    assert parts["total"] == sum(value for name, value in parts.items() if name != "total")


def test_routers_alone_and_shards() -> None:
    model = Fused(SMALL, experts=3, rank=2)
    routers = memory.stage2(model, Stage2(1, 5, experts=False))
    assert (routers["weights"], routers["gradients"]) == (2 * (340 + 360) + 4 * 24, 4 * 24)
    shared = memory.stage2(model, Stage2(1, 5, shards=4))
    assert shared["weights"] == (2 * 340 + 4 * 384) // 4 + 2 * 2 * 128
    assert (shared["gradients"], shared["optimizer"]) == (384, 768)
