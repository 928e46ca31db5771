"""The arithmetic of time: values worked out by hand, and what torch counts of the models themselves."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.fusion.conftest import random_base
from triune.experts.lowrank import LowRank
from triune.experts.task_vector import FFN, TaskVector
from triune.fusion import compute
from triune.fusion.building import build
from triune.fusion.memory import Fused, Shape, Stage2, shape_of
from triune.recipe import Fuse

# L 2, d 4, f 6, h 2, h_kv 1, d_h 2, V 10
SMALL = Shape(2, 4, 6, 2, 1, 2, 10)
ROWS, TOKENS = 2, 24


def test_small_by_hand() -> None:
    model = Fused(SMALL, experts=3, rank=2)
    once = compute.forward(model, 5)
    # A token and layer: 2·4·2·(2 + 1)·2 = 96; 4·5·2·2 = 80; 6·4·6 = 144; 6·3·2·10 = 360; 2·3·4 = 24
    assert (once.projections, once.attention, once.block) == (2 * 96, 2 * 80, 2 * 144)
    assert (once.narrow, once.routing, once.logits) == (2 * 360, 2 * 24, 80)
    assert once.layers == 2 * 704
    assert once.total == 2 * 704 + 80
    # Backward: logits 80, the second layer's attention 96 + 2·80, blocks 288, factors 2·720, routers 2·48; less
    # 4·4·6 + 4·3·2·4 + 2·3·4 = 96 + 96 + 24 of the first block's input
    backward = 80 + 96 + 160 + 288 + 2 * 720 + 96 - 216
    assert compute.stage2(model, Stage2(1, 5, checkpointing=False)) == 5 * (1488 + backward)
    assert compute.stage2(model, Stage2(1, 5)) == 5 * (1488 + backward + 96 + 160 + 216 + 1408)
    assert compute.stage2(model, Stage2(1, 5, experts=False, checkpointing=False)) == 5 * (1488 + backward - 720)
    assert compute.dense_forward(SMALL, 3, 5) == 15 * (2 * (96 + 80 + 144) + 80)
    # All weights but 10·4 numbers of the table; a token of a row has 2·2·1·2 keys and values.
    assert compute.decoding_bytes(model, 7, 5) == model.weights - 80 + 35 * 8 * 2


def counted(model: Any, learning: tuple[str, ...], *, checkpointing: bool = False) -> int:
    """What torch counts of one step; where nothing learns, of a forward pass."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(learning))
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    ids = torch.randint(3, 30, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        if learning:
            loss.backward()
    return int(counter.get_total_flops())


def models(kind: str) -> tuple[Any, Any, Fused]:
    """A base, it fused with three experts of rank 2, and the fused model's shape."""
    base = random_base(kind)
    rng, experts = torch.Generator().manual_seed(1), []
    for axis in ("helpful", "harmless", "honest"):
        parts = {}
        for name, module in base.named_modules():
            if name.rsplit(".", 1)[-1] in FFN:
                n_out, n_in = module.weight.shape
                parts[name] = LowRank(torch.randn(n_out, 2, generator=rng), torch.randn(2, n_in, generator=rng))
        experts.append(TaskVector(axis, parts))
    fused = build(random_base(kind), experts, Fuse(top_k=3))
    for model in (base, fused):
        model.set_attn_implementation("eager")
    return base, fused, Fused(shape_of(base.config), rank=2)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_the_forward_passes_are_what_torch_counts(kind: str) -> None:
    base, fused, model = models(kind)
    assert counted(base, ()) == compute.dense_forward(model.base, ROWS, TOKENS)
    assert counted(fused, ()) == ROWS * TOKENS * compute.forward(model, TOKENS).total


def test_a_step_of_stage_2_is_what_torch_counts() -> None:
    _, fused, model = models("llama")
    learning, how = ("_a", "_b", "router.weight"), {"rows": ROWS, "tokens": TOKENS}
    assert counted(fused, learning) == compute.stage2(model, Stage2(**how, checkpointing=False))
    # The last product of a layer is not made again: nothing is kept of it.
    told = compute.stage2(model, Stage2(**how))
    assert 0.99 * told < counted(fused, learning, checkpointing=True) < told


def test_routers_alone_cost_a_little_less_than_is_told() -> None:
    """Nothing is asked of the first layer's experts, which is not worth a term of its own."""
    _, fused, model = models("llama")
    told = compute.stage2(model, Stage2(ROWS, TOKENS, checkpointing=False, experts=False))
    assert 0.9 * told < counted(fused, ("router.weight",)) <= told
