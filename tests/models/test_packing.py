"""Short examples in shared rows: nothing but rounding changes, and no example sees another."""

import pytest
import torch

from tests.experts.conftest import AXES, random_rows
from tests.experts.distributed_cases import TERMS, fused
from tests.fusion.conftest import random_base
from triune.errors import InputError
from triune.experts.fitting import Job, answer_objective, fit
from triune.fusion.objective import objective
from triune.models import packing
from triune.models.encoding import Encoded, collate
from triune.progress import SILENT
from triune.recipe import Align, Fit

F64 = torch.float64


def test_examples_go_into_the_first_row_with_room() -> None:
    rows = [Encoded(tuple(range(10 * n, 10 * n + length)), 1) for n, length in enumerate((3, 4, 2, 3), start=1)]
    found = packing.packed(collate(rows, 0), 6)
    # 3 + 2 in the first row, 4 in the second, 3 in a third; the widest has five tokens.
    assert found[packing.IDS].tolist() == [[10, 11, 12, 30, 31], [20, 21, 22, 23, 0], [40, 41, 42, 0, 0]]
    assert found[packing.POSITIONS].tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0], [0, 1, 2, 0, 1]]
    assert found[packing.PLACES].tolist() == [[0, 1, 2, 0], [5, 6, 7, 8], [3, 4, 0, 0], [10, 11, 12, 0]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("room", [12, 25, 200])
def test_an_example_gets_the_logits_that_it_gets_alone(attention: str, room: int) -> None:
    model = random_base("llama", F64)
    model.set_attn_implementation(attention)
    rows = random_rows(7)
    batch = collate(rows, 0)
    with torch.no_grad():
        out = packing.run(model, {**batch, **packing.packed(batch, room)})
        for index, row in enumerate(rows):
            alone = model(torch.tensor([row.input_ids])).logits[0]
            # The eager form takes its softmax in float32, whatever the model's type.
            near = 1e-10 if attention == "sdpa" else 1e-6
            torch.testing.assert_close(out.logits[index, : len(alone)], alone, rtol=near, atol=near)


def test_every_term_of_stage_two_is_what_it_is_unpacked() -> None:
    model = fused(F64)
    how = Align(**{**TERMS, "representation": 0.1})
    job = Job("aligning", random_rows(9), Fit(packing=30), 0, 0, axes=AXES, targets=torch.zeros(9, 16, dtype=F64))
    batch = job.collate(range(9))
    assert batch[packing.IDS].shape[0] < 9
    plain = {name: value for name, value in batch.items() if not name.startswith("packed")}
    parameters = [p for name, p in model.named_parameters() if name.endswith(("router.weight", "_a", "_b"))]
    losses, gradients, parts = [], [], []
    for own in (batch, plain):
        loss, found = objective(model, how)(model, own)
        losses.append(loss)
        parts.append(found)
        gradients.append(torch.autograd.grad(loss, parameters))
    assert parts[0] == pytest.approx(parts[1], rel=1e-9)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=1e-12)
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-10)


def test_training_packed_is_training() -> None:
    curves = []
    for room in (None, 40):
        model = random_base("llama", F64).requires_grad_(False)
        model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
        job = Job("training", random_rows(8), Fit(steps=3, batch_size=8, packing=room), 0, 0)
        curves.append([row["loss"] for row in fit(model, job, answer_objective, SILENT)])
    assert curves[0] == pytest.approx(curves[1], rel=1e-6)
    assert curves[0][0] > curves[0][-1]


def test_rows_too_short_for_an_example_are_refused() -> None:
    job = Job("training", random_rows(8), Fit(packing=8), 0, 0)
    with pytest.raises(InputError, match=r"fit\.packing is 8 tokens a row, and an example has 12; raise it"):
        fit(random_base("llama"), job, answer_objective, SILENT)


def test_a_model_that_routes_prompts_is_refused() -> None:
    batch = collate(random_rows(2), 0)
    with pytest.raises(InputError, match="routes whole prompts"):
        packing.run(random_base("llama"), {**batch, **packing.packed(batch, 40)}, routing_position=torch.tensor([1]))
