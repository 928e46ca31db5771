"""The router of whole prompts: against its definition, its gradient, its limits, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fusion.conftest import random_base
from triune.errors import InputError
from triune.fusion.configuration import TriuneConfig
from triune.fusion.fractal import fit_fractal, fractal_tensors
from triune.fusion.natural import fit_natural, natural_tensors
from triune.fusion.prompt_router import PromptRouter, check_routing, checked_ends, last_tokens, routing_features

E, K, D = 3, 2, 16
NAMES = ["helpful", "harmless", "honest"]


def config(**changes: Any) -> TriuneConfig:
    fields: dict[str, Any] = {
        "text_config": random_base("llama").config.to_dict(),
        "expert_names": NAMES,
        "expert_ranks": {"gate": [1, 1, 1], "up": [1, 1, 1], "down": [1, 1, 1]},
        "routing": "prompt",
        "routing_layer": 1,
        "prior_weights": [0.5, 0.25, 0.25],
        "latent_size": K,
        "calibrator_lambdas": [0.6, 0.4],
        "anchor_counts": [20, 30, 25],
    }
    return TriuneConfig(**{**fields, **changes})


def filled(lambdas: tuple[float, float] = (0.6, 0.4)) -> PromptRouter:
    rng = torch.Generator().manual_seed(0)
    own = PromptRouter(config(calibrator_lambdas=list(lambdas)))
    state = {name: torch.randn(t.shape, generator=rng) for name, t in own.state_dict().items()}
    for a, n in enumerate([20, 30, 25]):
        anchors = torch.randn(n, K, generator=rng) + a
        if lambdas[0]:
            state |= {f"fractal.{a}.{name}": t for name, t in fractal_tensors(fit_fractal(anchors, 0.05)).items()}
        if lambdas[1]:
            state |= {f"natural.{a}.{name}": t for name, t in natural_tensors(fit_natural(anchors)).items()}
    for name in ("fractal_standard.std", "natural_standard.std"):
        if name in state:
            state[name] = state[name].abs() + 0.5
    own.load_state_dict(state)
    return own.double()


def by_definition(own: PromptRouter, h: Tensor) -> Tensor:
    """One prompt's logits, number by number, float64."""
    s = {name: t.double() for name, t in own.state_dict().items()}
    z = [sum(float(s["projection"][i, j]) * float(h[j]) for j in range(D)) for i in range(K)]
    u = list(z)
    for a in range(E):
        u += [z[i] * float(s["features"][a, i]) for i in range(K)]
    found = []
    for a in range(E):
        total = sum(float(w) * x for w, x in zip(s["weight"][a], u, strict=True))
        if own.lambdas[0]:
            distances = [
                sum((z[i] - float(row[i])) ** 2 for i in range(K)) ** 0.5 for row in s[f"fractal.{a}.anchors"]
            ]
            radii, least = s[f"fractal.{a}.radii"], float(s[f"fractal.{a}.resolution"])
            y = torch.tensor([max(0.5, sum(least < r <= float(e) for r in distances)) for e in radii]).double().log()
            x = radii.log() - radii.log().mean()
            score = -abs(float((x * y).sum() / x.square().sum()) - float(s[f"fractal.{a}.mean"]))
            score /= float(s[f"fractal.{a}.std"])
            total += (
                own.lambdas[0] * (score - float(s["fractal_standard.mean"][a])) / float(s["fractal_standard.std"][a])
            )
        if own.lambdas[1]:
            w = s[f"natural.{a}.whitening"] @ (torch.tensor(z, dtype=torch.float64) - s[f"natural.{a}.mean"])
            score = -0.5 * float(w.square().sum()) / K
            total += (
                own.lambdas[1] * (score - float(s["natural_standard.mean"][a])) / float(s["natural_standard.std"][a])
            )
        found.append(total)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("lambdas", [(0.6, 0.4), (0.0, 0.4), (0.6, 0.0), (0.0, 0.0)])
def test_equals_its_definition(lambdas: tuple[float, float]) -> None:
    own = filled(lambdas)
    h = torch.randn(5, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 4
    want = torch.stack([by_definition(own, row) for row in h])
    torch.testing.assert_close(own(h), want, rtol=1e-11, atol=1e-11)


def test_features_by_hand() -> None:
    z, phi = torch.tensor([[2.0, 3.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.5]])
    assert routing_features(z, phi).tolist() == [[2.0, 3.0, 2.0, 0.0, -2.0, 1.5]]


def test_gradients_are_those_of_the_function() -> None:
    own = filled()
    h = (torch.randn(3, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64) / 4).requires_grad_()

    def logits(h: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(own, {"weight": weight}, (h,))

    assert torch.autograd.gradcheck(logits, (h, own.weight.detach().clone().requires_grad_()))


def test_a_calibrator_that_is_off_has_no_tensors() -> None:
    names = set(PromptRouter(config(calibrator_lambdas=[0.0, 0.4], anchor_counts=None)).state_dict())
    assert not any(name.startswith("fractal") for name in names)
    assert {"weight", "projection", "features", "natural.2.whitening", "natural_standard.std"} <= names
    assert len(PromptRouter(config(calibrator_lambdas=[0.0, 0.0])).state_dict()) == 3


def test_unfilled_it_prefers_nothing() -> None:
    assert PromptRouter(config())(torch.randn(4, D)).abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states_are_routed_in_float32(dtype: torch.dtype) -> None:
    own = filled().float()
    h = torch.randn(4, D, generator=torch.Generator().manual_seed(3)).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = own(h)
    assert found.dtype == torch.float32
    assert torch.equal(found, own(h.float()))


def test_nan_states_give_nan_and_no_guess() -> None:
    h = torch.zeros(2, D)
    h[1, 3] = torch.nan
    found = filled().float()(h)
    assert found[0].isfinite().all()
    assert found[1].isnan().all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"routing": "sentence"}, "known: token, prompt"),
        ({"routing_layer": 0}, "allowed: 1 to 1"),
        ({"routing_layer": 2}, "allowed: 1 to 1"),
        ({"routing_layer": None}, "routing_layer is None"),
        ({"routing_passes": 3}, "allowed: 1, 2"),
        ({"latent_size": 17}, "allowed: 1 to 16"),
        ({"prior_weights": [0.5, 0.5]}, "3 numbers from 0 on that sum to 1"),
        ({"prior_weights": [0.5, 0.5, 0.5]}, "sum to 1"),
        ({"calibrator_lambdas": [0.6]}, "two finite numbers"),
        ({"calibrator_lambdas": [-0.1, 0.4]}, "two finite numbers"),
        ({"anchor_counts": [20, 20]}, "one number an expert"),
        ({"calibrator_lambdas": {"a": 1, "b": 2}}, "calibrator_lambdas is .*wanted: a list of numbers"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_routing(config(**changes))


def test_last_tokens_on_either_side() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]])
    assert last_tokens(mask, (3, 4), mask.device).tolist() == [3, 1, 3]
    assert last_tokens(None, (2, 4), mask.device).tolist() == [3, 3]
    with pytest.raises(InputError, match="empty"):
        last_tokens(torch.zeros(1, 4), (1, 4), mask.device)
    with pytest.raises(InputError, match="routing_position"):
        last_tokens(torch.ones(1, 1, 4, 4), (1, 4), mask.device)


def test_ends_outside_a_row_are_refused() -> None:
    mask = torch.tensor([[0, 0, 1, 1]])
    assert checked_ends(torch.tensor([2]), mask, (1, 4)).tolist() == [2]
    for place in (-1, 1, 4):
        with pytest.raises(InputError, match="empty, or this pass"):
            checked_ends(torch.tensor([place]), mask, (1, 4))
    with pytest.raises(InputError, match="one a row"):
        checked_ends(torch.tensor([2, 2]), mask, (1, 4))
