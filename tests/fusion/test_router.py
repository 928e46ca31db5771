"""Routing: probabilities, the top k, and where routers start."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triune.fusion import router
from triune.fusion.configuration import TriuneConfig
from triune.fusion.router import Router


def test_probabilities_by_hand() -> None:
    logits = torch.tensor([[0.0, torch.log(torch.tensor(3.0))]])
    torch.testing.assert_close(router.probabilities(logits), torch.tensor([[0.25, 0.75]]))
    torch.testing.assert_close(router.probabilities(2 * logits, temperature=2.0), torch.tensor([[0.25, 0.75]]))


def test_softmax_of_half_precision_runs_in_float32() -> None:
    assert router.probabilities(torch.zeros(1, 2, dtype=torch.bfloat16)).dtype == torch.float32
    assert router.probabilities(torch.zeros(1, 2, dtype=torch.float64)).dtype == torch.float64


def test_top_k_by_hand() -> None:
    probs = torch.tensor([[0.5, 0.2, 0.3]])
    torch.testing.assert_close(router.top_k_weights(probs, 2), torch.tensor([[0.625, 0.0, 0.375]]))
    torch.testing.assert_close(router.top_k_weights(probs, 1, renormalise=False), torch.tensor([[0.5, 0.0, 0.0]]))
    assert router.top_k_weights(probs, 3) is probs


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 99))
def test_top_k_is_a_distribution_over_k_experts(k: int, n_experts: int, seed: int) -> None:
    probs = torch.randn(7, n_experts, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    weights = router.top_k_weights(probs, k)
    torch.testing.assert_close(weights.sum(-1), torch.ones(7))
    assert ((weights > 0).sum(-1) == min(k, n_experts)).all()
    assert (router.strongest(weights) == probs.argmax(-1)).all()


@pytest.mark.parametrize(("renormalise", "has_gradient"), [(True, False), (False, True)])
def test_top_1_gives_the_router_a_gradient_only_without_renormalising(renormalise: bool, has_gradient: bool) -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = router.top_k_weights(router.probabilities(logits), 1, renormalise=renormalise)
    (weights * torch.arange(12.0).view(4, 3)).sum().backward()
    assert logits.grad is not None
    assert (logits.grad.abs().max() > 1e-6) == has_gradient


def test_router_starts_uniform_and_keeps_float64() -> None:
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    logits = Router(8, 3).double()(x)
    assert logits.dtype == torch.float64
    assert router.probabilities(logits).eq(1 / 3).all()


def test_importance_is_a_bias_of_its_logarithm() -> None:
    """α̃_a = γ_a α_a / Σ_b γ_b α_b with α = softmax(z / T): by hand, against the formula, and its limits."""
    thirds = router.probabilities(torch.zeros(1, 2), bias=torch.tensor([0.5, 0.25]).log())
    torch.testing.assert_close(thirds, torch.tensor([[2 / 3, 1 / 3]]))
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gamma = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    alpha = (logits / 0.7).softmax(-1)
    wanted = gamma * alpha / (gamma * alpha).sum(-1, keepdim=True)
    torch.testing.assert_close(router.probabilities(logits, 0.7, gamma.log()), wanted, rtol=1e-12, atol=0)
    alike = router.probabilities(logits, 0.7, torch.full((3,), 1 / 3, dtype=torch.float64).log())
    torch.testing.assert_close(alike, alpha)
    sharp = router.probabilities(logits, 1e-3, gamma.log())
    torch.testing.assert_close(sharp.amax(-1), torch.ones(7, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda z: router.probabilities(z, 0.7, gamma.log()), logits.requires_grad_())


def test_every_layer_has_its_own_temperature_and_bias() -> None:
    config = TriuneConfig(
        text_config={"model_type": "llama", "num_hidden_layers": 2},
        expert_names=["a", "b"],
        router_temperature=[0.5, 2.0],
        expert_importance=[0.25, 0.75],
        router_bias=[[0.0, 0.0], [1.0, -1.0]],
    )
    logits = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])]
    found = router.layer_probabilities(logits, config)
    log = torch.tensor([0.25, 0.75]).log()
    torch.testing.assert_close(found[0], (torch.tensor([[2.0, 0.0]]) + log).softmax(-1))
    torch.testing.assert_close(found[1], (torch.tensor([[1.0, 0.0]]) + log).softmax(-1))
    assert TriuneConfig(text_config={"model_type": "llama"}, expert_names=["a", "b"]).biases is None
