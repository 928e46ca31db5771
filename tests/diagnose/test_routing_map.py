"""Routing maps of a fused model: per row, per layer, padding never counted."""

import pytest
import torch

from tests.experts.conftest import AXES, random_rows
from tests.fusion.conftest import random_base, random_experts
from triune.diagnose.routing import routing_logits, routing_map, routing_weights, spread, token_routing
from triune.errors import InputError
from triune.fusion.building import build
from triune.fusion.modeling import TriuneForCausalLM
from triune.models.encoding import Encoded
from triune.recipe import Fuse

ROWS = random_rows(7)


@pytest.fixture(scope="module")
def model() -> TriuneForCausalLM:
    base = random_base("llama")
    model = build(base, random_experts(base), Fuse(temperature=0.5))
    rng = torch.Generator().manual_seed(3)
    for mixture in model.mixtures():
        torch.nn.init.normal_(mixture.router.weight, generator=rng)
    return model


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_weights_are_those_of_each_row_alone(model: TriuneForCausalLM, batch_size: int) -> None:
    got = routing_weights(model, ROWS, pad_id=0, batch_size=batch_size)
    assert got.shape == (2, 7, 3)
    torch.testing.assert_close(got.sum(-1), torch.ones(2, 7))
    for index, row in enumerate(ROWS):
        with torch.no_grad():
            logits = model(torch.tensor([row.input_ids]), output_router_logits=True).router_logits
        for layer in range(2):
            want = (logits[layer][0] / 0.5).softmax(-1).mean(0)
            torch.testing.assert_close(got[layer, index], want, rtol=1e-4, atol=1e-5)


def test_the_map_is_the_mean_over_each_axis_rows(model: TriuneForCausalLM) -> None:
    axes = ("honest", "helpful", "harmless")
    found = routing_map(model, ROWS, axes, pad_id=0)
    weights = routing_weights(model, ROWS, pad_id=0)
    for place, axis in enumerate(axes):
        own = [i for i, row in enumerate(ROWS) if row.axis == axis]
        mean = torch.tensor(found["mean"][place])
        torch.testing.assert_close(mean, weights[:, own].mean(1), rtol=1e-5, atol=1e-6)
        assert found["n_tokens"][place] == sum(len(ROWS[i].input_ids) for i in own)
    assert (found["experts"], found["axes"], found["n_layers"]) == (list(AXES), list(axes), 2)
    assert found["model"] == "fused"


def test_the_model_is_left_as_it_was(model: TriuneForCausalLM) -> None:
    model.train()
    routing_weights(model, ROWS, pad_id=0)
    assert model.training
    model.eval()
    assert not any(mixture.router._forward_hooks for mixture in model.mixtures())


def test_no_rows_and_strange_axes(model: TriuneForCausalLM) -> None:
    assert routing_weights(model, [], pad_id=0).shape == (2, 0, 3)
    with pytest.raises(InputError, match=r"rows of \['polite'\]; the map's axes are \['helpful', "):
        routing_map(model, [*ROWS, Encoded((3, 4), 1, "polite")], AXES, pad_id=0)
    with pytest.raises(InputError, match=r"no rows of \['polite'\]"):
        routing_map(model, ROWS, (*AXES, "polite"), pad_id=0)


@pytest.mark.parametrize("batch_size", [1, 64])
def test_token_by_token_the_routing_is_that_of_each_row_alone(model: TriuneForCausalLM, batch_size: int) -> None:
    logits, sample = routing_logits(model, ROWS, pad_id=0, batch_size=batch_size)
    found = token_routing(model, ROWS, pad_id=0, batch_size=batch_size)
    assert logits.sample.tolist() == list(range(len(sample)))  # for the fit every token stands alone
    assert sample == found.sample.tolist()
    for index, row in enumerate(ROWS):
        own = [place for place, number in enumerate(sample) if number == index]
        assert [logits.axis[place].item() for place in own] == [AXES.index(str(row.axis))] * len(row.input_ids)
        with torch.no_grad():
            alone = model(torch.tensor([row.input_ids]), output_router_logits=True).router_logits
        for layer in range(2):
            torch.testing.assert_close(logits.values[layer, own], alone[layer][0], rtol=1e-4, atol=1e-5)
            probs = (alone[layer][0] / 0.5).softmax(-1)
            torch.testing.assert_close(found.probs[layer, own], probs, rtol=1e-4, atol=1e-5)


def test_no_rows_have_no_routing_and_strangers_no_expert(model: TriuneForCausalLM) -> None:
    assert token_routing(model, [], pad_id=0).probs.shape == (2, 0, 3)
    with pytest.raises(InputError, match=r"there are rows of \['kind'\]; the model's experts are"):
        routing_logits(model, [Encoded((1, 2), 1, "kind")], pad_id=0)


def test_tokens_are_spread_evenly_over_each_row() -> None:
    sample = torch.tensor([0] * 10 + [1] * 3 + [2] * 4)
    assert spread(sample, 4).tolist() == [0, 2, 5, 7, 10, 11, 12, 13, 14, 15, 16]
    assert spread(sample, 100).tolist() == list(range(17))
    assert spread(sample[:0], 4).tolist() == []
