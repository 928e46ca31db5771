"""Each term of the stage-2 loss: by hand, against a slow float64 loop, at its limits, and its gradient."""

import math

import pytest
import torch

from triune.experts.lowrank import LowRank
from triune.fusion import losses

F64 = torch.float64


def random_probs(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).softmax(-1)


class TestSampleRouting:
    def test_by_hand(self) -> None:
        probs = torch.tensor([[[[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]], [[[0.5, 0.5], [0.5, 0.5], [0.0, 1.0]]]])
        mask = torch.tensor([[True, True, False]])
        assert losses.sample_routing(probs, mask).tolist() == [[0.625, 0.375]]

    def test_against_a_loop(self) -> None:
        probs = random_probs(3, 4, 5, 2)
        mask = torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) > 0.4
        mask[:, 0] = True
        got = losses.sample_routing(probs, mask)
        for b in range(4):
            for e in range(2):
                kept = [probs[layer, b, t, e].item() for layer in range(3) for t in range(5) if mask[b, t]]
                assert got[b, e].item() == pytest.approx(math.fsum(kept) / len(kept), rel=1e-12)

    def test_limits(self) -> None:
        probs = random_probs(2, 1, 3, 4)
        assert losses.sample_routing(probs, torch.zeros(1, 3, dtype=torch.bool)).tolist() == [[0.25] * 4]
        assert losses.sample_routing(probs[:, :0], torch.zeros(0, 3, dtype=torch.bool)).shape == (0, 4)
        one = losses.sample_routing(probs[:1], torch.tensor([[False, True, False]]))
        torch.testing.assert_close(one, probs[0, :, 1])

    def test_gradient(self) -> None:
        mask = torch.tensor([[True, False], [False, False]])
        probs = random_probs(2, 2, 2, 3).requires_grad_()
        assert torch.autograd.gradcheck(lambda p: losses.sample_routing(p, mask), probs)


class TestGatingLoss:
    def test_by_hand(self) -> None:
        routing = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], dtype=F64)
        got = losses.gating_loss(routing, torch.tensor([1, 2]))
        assert got.tolist() == pytest.approx([math.log(4), -math.log(0.8)], rel=1e-12)

    def test_against_a_loop(self) -> None:
        routing, axis = random_probs(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
        loop = [-math.log(routing[i, a].item()) for i, a in enumerate(axis.tolist())]
        assert losses.gating_loss(routing, axis).tolist() == pytest.approx(loop, rel=1e-12)

    def test_limits(self) -> None:
        assert losses.gating_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([0])).item() == 0
        assert losses.gating_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([1])).isfinite().all()
        assert losses.gating_loss(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).shape == (0,)

    def test_gradient(self) -> None:
        axis = torch.tensor([0, 2, 1])
        assert torch.autograd.gradcheck(lambda p: losses.gating_loss(p, axis), random_probs(3, 3).requires_grad_())


class TestRoutingEntropy:
    def test_by_hand(self) -> None:
        probs = torch.tensor(
            [[[[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]]], [[[1.0, 0.0], [0.25, 0.75], [0.5, 0.5]]]], dtype=F64
        )
        mask = torch.tensor([[True, True, False]])
        quarter = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
        assert losses.routing_entropy(probs, mask).tolist() == pytest.approx([(math.log(2) + quarter) / 4], rel=1e-12)

    def test_against_a_loop(self) -> None:
        probs = random_probs(2, 3, 4, 3)
        mask = torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) > 0.4
        mask[:, 0] = True
        for b, got in enumerate(losses.routing_entropy(probs, mask).tolist()):
            kept = [probs[layer, b, t].tolist() for layer in range(2) for t in range(4) if mask[b, t]]
            loop = [-math.fsum(p * math.log(p) for p in row) for row in kept]
            assert got == pytest.approx(math.fsum(loop) / len(loop), rel=1e-12)

    def test_limits(self) -> None:
        one_hot = torch.eye(3)[torch.tensor([[[0, 1]], [[2, 2]]])]
        assert losses.routing_entropy(one_hot, torch.tensor([[True, True]])).item() == 0
        assert losses.routing_entropy(one_hot, torch.tensor([[False, False]])).item() == 0
        uniform = torch.full((1, 2, 3, 4), 0.25, dtype=F64)
        mask = torch.ones(2, 3, dtype=torch.bool)
        assert losses.routing_entropy(uniform, mask).tolist() == pytest.approx([math.log(4)] * 2)

    def test_gradient(self) -> None:
        mask = torch.tensor([[True, False], [True, True]])
        probs = random_probs(2, 2, 2, 3).requires_grad_()
        assert torch.autograd.gradcheck(lambda p: losses.routing_entropy(p, mask), probs)
        edge = torch.tensor([[[[1.0, 0.0]]]], dtype=F64, requires_grad=True)
        losses.routing_entropy(edge, torch.tensor([[True]])).sum().backward()
        assert edge.grad is not None
        assert edge.grad.isfinite().all()


class TestRoutingDivergence:
    def test_by_hand(self) -> None:
        p = torch.tensor([[0.5, 0.5], [1.0, 0.0]], dtype=F64)
        q = torch.tensor([0.25, 0.75], dtype=F64)
        first, second = 0.5 * math.log(2) + 0.5 * math.log(2 / 3), math.log(4)
        assert losses.routing_divergence(p, q).item() == pytest.approx((first + second) / 2, rel=1e-12)

    def test_against_a_loop(self) -> None:
        p, q = random_probs(4, 3), random_probs(4, 3, seed=1)
        rows = [
            math.fsum(a * math.log(a / b) for a, b in zip(*pair, strict=True))
            for pair in zip(p.tolist(), q.tolist(), strict=True)
        ]
        assert losses.routing_divergence(p, q).item() == pytest.approx(math.fsum(rows) / 4, rel=1e-12)

    def test_limits(self) -> None:
        p = random_probs(2, 3)
        assert losses.routing_divergence(p, p).item() == 0
        assert losses.routing_divergence(torch.tensor([[1.0, 0.0]]), torch.tensor([0.0, 1.0])).item() == math.inf
        assert losses.routing_divergence(torch.tensor([[1.0, 0.0]]), torch.tensor([1.0, 0.0])).item() == 0

    def test_the_gradient_is_that_of_the_routing_alone(self) -> None:
        p, q = random_probs(2, 3).requires_grad_(), random_probs(2, 3, seed=1).requires_grad_()
        losses.routing_divergence(p, q).backward()
        assert q.grad is None
        assert torch.autograd.gradcheck(lambda x: losses.routing_divergence(x, q.detach()), p)


class TestBatchRouting:
    def test_every_sample_counts_once_in_each_layer(self) -> None:
        probs = torch.tensor(
            [[[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [9.0, 9.0]], [[7.0, 7.0], [7.0, 7.0]]]], dtype=F64
        )
        mask = torch.tensor([[True, True], [True, False], [False, False]])
        assert losses.batch_routing(probs, mask).tolist() == [[0.5, 0.5]]

    def test_against_a_loop(self) -> None:
        probs = random_probs(2, 3, 4, 3)
        mask = torch.rand(3, 4, generator=torch.Generator().manual_seed(2)) > 0.5
        mask[:, 1] = True
        got = losses.batch_routing(probs, mask)
        for layer in range(2):
            for e in range(3):
                samples = [[probs[layer, b, t, e].item() for t in range(4) if mask[b, t]] for b in range(3)]
                mean = math.fsum(math.fsum(own) / len(own) for own in samples) / 3
                assert got[layer, e].item() == pytest.approx(mean, rel=1e-12)

    def test_limits_and_gradient(self) -> None:
        probs = random_probs(2, 2, 3, 4).requires_grad_()
        nothing = losses.batch_routing(probs, torch.zeros(2, 3, dtype=torch.bool))
        assert nothing.tolist() == [[0.25] * 4] * 2
        mask = torch.tensor([[True, False, True], [False, True, False]])
        assert torch.autograd.gradcheck(lambda p: losses.batch_routing(p, mask), probs)


def test_the_running_average_by_hand_and_against_a_loop() -> None:
    first = torch.tensor([[1.0, 0.0]], dtype=F64)
    average = losses.running_average(None, first, 0.9)
    assert average.tolist() == [[1.0, 0.0]]
    assert losses.running_average(average, torch.tensor([[0.0, 1.0]], dtype=F64), 0.75).tolist() == [[0.75, 0.25]]
    batches = [random_probs(2, 3, seed=s) for s in range(5)]
    average = batches[0]
    for batch in batches[1:]:
        average = losses.running_average(average, batch, 0.8)
    weights = [0.8**4, *(0.2 * 0.8 ** (4 - i) for i in range(1, 5))]
    loop = sum(weight * batch for weight, batch in zip(weights, batches, strict=True))
    torch.testing.assert_close(average, loop, rtol=1e-12, atol=0)
    assert not losses.running_average(None, batches[0].requires_grad_(), 0.5).requires_grad


class TestBalanceLoss:
    def test_by_hand(self) -> None:
        routing = torch.tensor([[0.6, 0.4], [0.2, 0.8]], dtype=F64)
        load = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=F64)
        assert losses.balance_loss(routing, load).tolist() == pytest.approx(
            [2 * (0.75 * 0.6 + 0.25 * 0.4), 2 * (0.75 * 0.2 + 0.25 * 0.8)], rel=1e-12
        )

    def test_against_a_loop(self) -> None:
        routing, load = random_probs(5, 3), random_probs(5, 3, seed=1)
        for b, got in enumerate(losses.balance_loss(routing, load).tolist()):
            share = [math.fsum(load[:, e].tolist()) / 5 for e in range(3)]
            assert got == pytest.approx(3 * math.fsum(share[e] * routing[b, e].item() for e in range(3)), rel=1e-12)

    def test_limits(self) -> None:
        uniform = torch.full((4, 3), 1 / 3, dtype=F64)
        torch.testing.assert_close(losses.balance_loss(uniform, uniform), torch.ones(4, dtype=F64))
        collapsed = torch.tensor([[1.0, 0.0, 0.0]])
        assert losses.balance_loss(collapsed, collapsed).item() == 3

    def test_gradient_flows_through_the_probabilities_alone(self) -> None:
        load = random_probs(2, 3, seed=1).requires_grad_()
        routing = random_probs(2, 3).requires_grad_()
        losses.balance_loss(routing, load).sum().backward()
        assert load.grad is None
        assert torch.autograd.gradcheck(lambda p: losses.balance_loss(p, load.detach()), routing)


class TestRepresentationLoss:
    def test_by_hand(self) -> None:
        got = losses.representation_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, -2.0]]))
        assert got.tolist() == [25.0]

    def test_against_a_loop(self) -> None:
        x, y = random_probs(3, 7), random_probs(3, 7, seed=1)
        loop = [math.fsum((x[i, j] - y[i, j]).item() ** 2 for j in range(7)) for i in range(3)]
        assert losses.representation_loss(x, y).tolist() == pytest.approx(loop, rel=1e-12)

    def test_limits(self) -> None:
        x = random_probs(2, 3)
        assert losses.representation_loss(x, x).tolist() == [0, 0]
        assert losses.representation_loss(x[:0], x[:0]).shape == (0,)

    def test_gradient(self) -> None:
        y = random_probs(2, 3, seed=1)
        assert torch.autograd.gradcheck(
            lambda x: losses.representation_loss(x, y), random_probs(2, 3).requires_grad_()
        )

    def test_mean_hidden(self) -> None:
        hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]], [[5.0, 5.0]] * 3])
        mask = torch.tensor([[True, True, False], [False, False, False]])
        assert losses.mean_hidden(hidden, mask).tolist() == [[2.0, 3.0], [0.0, 0.0]]


def increments(seed: int, dtype: torch.dtype = F64) -> list[list[LowRank]]:
    rng = torch.Generator().manual_seed(seed)
    return [
        [LowRank(torch.randn(4, 2, generator=rng, dtype=dtype), torch.randn(2, 3, generator=rng, dtype=dtype))] * 2
        for _ in range(3)
    ]


class TestDrift:
    def test_by_hand(self) -> None:
        # Layer 1 moves by [[3, 4]] (norm 5), layer 2 not at all: the mean is 2.5.
        def layer(x: float, y: float) -> list[LowRank]:
            return [LowRank(torch.ones(1, 1, dtype=F64), torch.tensor([[x, y]], dtype=F64))]

        assert losses.drift([layer(3, 4), layer(1, 1)], [layer(0, 0), layer(1, 1)]).item() == pytest.approx(2.5)

    def test_against_dense_matrices(self) -> None:
        now, start = increments(0), increments(1)
        norms = []
        for layer, before in zip(now, start, strict=True):
            squares = [((p.b @ p.a - q.b @ q.a) ** 2).sum().item() for p, q in zip(layer, before, strict=True)]
            norms.append(math.sqrt(math.fsum(squares)))
        assert losses.drift(now, start).item() == pytest.approx(math.fsum(norms) / 3, rel=1e-12)

    def test_at_zero_change_value_and_gradient_are_zero(self) -> None:
        start = increments(0)
        b = start[0][0].b.clone().requires_grad_()
        value = losses.drift([[LowRank(b, start[0][0].a)]], [[start[0][0]]])
        value.backward()
        assert value.item() == 0
        assert b.grad is not None
        assert b.grad.abs().max() == 0

    def test_gradient(self) -> None:
        start = increments(1)[:1]
        other = increments(0)[0][0]

        def value(b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
            return losses.drift([[LowRank(b, a)] * 2], start)

        assert torch.autograd.gradcheck(value, (other.b.requires_grad_(), other.a.requires_grad_()))
