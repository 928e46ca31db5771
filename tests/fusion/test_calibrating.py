"""Fitting the routing's calibration: closed forms, slow references, known temperatures, bounds, bad input."""

import itertools
import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from triune.errors import InputError
from triune.fusion.calibrating import (
    B_LIMIT,
    FITS,
    T_RANGE,
    Calibration,
    Logits,
    Start,
    fit_bias,
    fit_biases,
    fit_temperature,
    fit_temperatures,
    routing_nll,
)

F64 = torch.float64
LEAST = 30


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def samples(n: int, n_layers: int = 2, n_experts: int = 3, seed: int = 0) -> Logits:
    """Ragged samples, one to four tokens each, whose own expert's logits are larger by 1 on the average."""
    axis = torch.arange(n) % n_experts
    sample = torch.arange(n).repeat_interleave(torch.randint(1, 5, (n,), generator=rng(seed)))
    sample = sample[torch.randperm(len(sample), generator=rng(seed))]
    noise = torch.randn(n_layers, len(sample), n_experts, generator=rng(seed + 1), dtype=F64)
    return Logits(noise + torch.nn.functional.one_hot(axis[sample], n_experts), sample, axis)


def drawn(n: int, temperatures: list[float], bias: list[float], seed: int = 0) -> Logits:
    """Axes drawn from softmax(z / T + b), one token a sample; z is scaled so that all layers say the same."""
    base = 1.5 * torch.randn(n, len(bias), generator=rng(seed), dtype=F64)
    axis = torch.multinomial((base + torch.tensor(bias, dtype=F64)).softmax(-1), 1, generator=rng(seed + 1))
    return Logits(torch.stack([t * base for t in temperatures]), torch.arange(n), axis.squeeze(1))


def plain(n_layers: int, temperature: float = 1.0) -> Start:
    return Start([temperature] * n_layers)


def slow_nll(logits: Logits, temperatures: list[float], bias: list[list[float]]) -> float:
    """From the definition: softmax by token and layer, mean by sample, −log of the own expert's."""
    losses = []
    for index, axis in enumerate(logits.axis.tolist()):
        shares = []
        for layer, token in itertools.product(range(len(logits.values)), range(len(logits.sample))):
            if logits.sample[token] != index:
                continue
            z = logits.values[layer, token].tolist()
            powers = [math.exp(v / temperatures[layer] + b) for v, b in zip(z, bias[layer], strict=True)]
            shares.append(powers[axis] / math.fsum(powers))
        losses.append(-math.log(math.fsum(shares) / len(shares)))
    return math.fsum(losses) / len(losses)


def nll(logits: Logits, temperatures: list[float], bias: list[list[float]] | None = None) -> float:
    rows = bias or [[0.0] * logits.values.shape[-1]] * len(logits.values)
    return float(routing_nll(logits, torch.tensor(temperatures, dtype=F64), torch.tensor(rows, dtype=F64)))


class TestObjective:
    def test_by_hand(self) -> None:
        # Tokens with p = ¾ and ¼ of expert 0 make p̄ = ½; a third of another sample has p = ¼ of its expert 1.
        z = torch.tensor([[[math.log(3), 0.0], [0.0, math.log(3)], [math.log(3), 0.0]]], dtype=F64)
        logits = Logits(z, torch.tensor([0, 0, 1]), torch.tensor([0, 1]))
        assert nll(logits, [1.0]) == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-12)
        # log 9 more for expert 1: 3/12, 1/28 and 9/12 of it.
        biased = [[0.0, math.log(9)]]
        expected = -(math.log((1 / 4 + 1 / 28) / 2) + math.log(3 / 4)) / 2
        assert nll(logits, [1.0], biased) == pytest.approx(expected, rel=1e-12)

    def test_against_a_loop(self) -> None:
        logits = samples(20, n_layers=3)
        bias = torch.randn(3, 3, generator=rng(4), dtype=F64).tolist()
        temperatures = [0.5, 1.0, 3.0]
        assert nll(logits, temperatures, bias) == pytest.approx(slow_nll(logits, temperatures, bias), rel=1e-12)

    def test_limits(self) -> None:
        # e^−3000 has a logarithm: 60 / 0.02.
        one = Logits(torch.tensor([[[60.0, 0.0]]]), torch.tensor([0]), torch.tensor([1]))
        assert nll(one, [0.02]) == pytest.approx(3000, rel=1e-12)
        assert nll(samples(9), [1e6, 1e6]) == pytest.approx(math.log(3), rel=1e-5)
        assert nll(Logits(-one.values, one.sample, one.axis), [1e-2]) == 0

    def test_order_of_tokens_says_nothing(self) -> None:
        logits = samples(12)
        order = torch.randperm(len(logits.sample), generator=rng(9))
        other = Logits(logits.values[:, order], logits.sample[order], logits.axis)
        assert nll(logits, [0.7, 2.0]) == pytest.approx(nll(other, [0.7, 2.0]), rel=1e-12)

    def test_gradient(self) -> None:
        logits = samples(8)
        temperatures = torch.tensor([0.7, 1.5], dtype=F64, requires_grad=True)
        bias = torch.randn(2, 3, generator=rng(2), dtype=F64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda t, b: routing_nll(logits, t, b), (temperatures, bias))

    def test_gradient_where_a_probability_vanishes(self) -> None:
        one = Logits(torch.tensor([[[60.0, 0.0]]]), torch.tensor([0]), torch.tensor([1]))
        temperature = torch.tensor([0.02], dtype=F64, requires_grad=True)
        routing_nll(one, temperature, torch.zeros(1, 2, dtype=F64)).backward()
        assert temperature.grad is not None
        assert temperature.grad.item() == pytest.approx(-60 / 0.02**2)  # of 60/T


class TestTemperature:
    def test_closed_form_of_two_experts_and_one_token(self) -> None:
        # z = (1, 0) or (0, 1); 45 of 60 are right, so σ(1/T) = ¾ and T = 1/log 3.
        right = torch.arange(60) % 4 != 0
        axis = torch.arange(60) // 30
        strongest = torch.where(right, axis, 1 - axis)
        logits = Logits(torch.nn.functional.one_hot(strongest, 2).double()[None], torch.arange(60), axis)
        assert right.sum() == 45
        fitted = fit_temperature(logits, plain(1), least=LEAST)
        assert fitted.temperatures[0] == pytest.approx(1 / math.log(3), rel=1e-6)
        entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
        assert fitted.nll_after == pytest.approx(entropy, rel=1e-10)
        assert fitted.nll_before == pytest.approx(nll(logits, [1.0]), rel=1e-12)
        assert (fitted.converged, fitted.biases, fitted.notes) == (True, None, ())
        assert fitted.n_steps > 0

    @pytest.mark.parametrize("start", [0.05, 0.7, 20.0])
    def test_scipys_scalar_search_finds_no_better(self, start: float) -> None:
        logits = samples(120)
        fitted = fit_temperature(logits, plain(2, start), least=LEAST)
        grid = torch.logspace(-2, 2, 400, dtype=F64).tolist()
        best = min(grid, key=lambda t: nll(logits, [t, t]))
        found = minimize_scalar(
            lambda t: nll(logits, [t, t]), bounds=(best / 1.1, best * 1.1), method="bounded", options={"xatol": 1e-9}
        )
        assert fitted.nll_after == pytest.approx(found.fun, rel=1e-10)
        assert fitted.temperatures == pytest.approx([found.x] * 2, rel=1e-4)
        assert fitted.nll_after == pytest.approx(nll(logits, fitted.temperatures), rel=1e-12)

    def test_a_known_temperature_comes_back(self) -> None:
        fitted = fit_temperature(drawn(4000, [2.5, 2.5], [0.0] * 3), plain(2, 0.7), least=LEAST)
        assert fitted.temperatures == pytest.approx([2.5, 2.5], rel=0.08)
        assert fitted.nll_after < fitted.nll_before

    def test_one_a_layer(self) -> None:
        logits = drawn(4000, [0.3, 1.0, 4.0], [0.0] * 3)
        fitted = fit_temperatures(logits, plain(3), least=LEAST)
        # The layers say the same, each on its own scale.
        first = fitted.temperatures[0]
        assert fitted.temperatures == pytest.approx([first, first / 0.3, first * 4 / 0.3], rel=1e-4)
        assert first == pytest.approx(0.3, rel=0.08)
        alone = [
            fit_temperature(Logits(logits.values[i : i + 1], logits.sample, logits.axis), plain(1), least=LEAST)
            for i in range(3)
        ]
        assert fitted.temperatures == [part.temperatures[0] for part in alone]
        assert fitted.nll_after == pytest.approx(sum(part.nll_after for part in alone) / 3, rel=1e-12)
        assert fitted.n_steps == sum(part.n_steps for part in alone)

    def test_the_models_bias_and_importance_are_counted_and_stay(self) -> None:
        bias, importance = [0.5, -0.2, -0.3], [0.5, 0.3, 0.2]
        total = [b + math.log(gamma) for b, gamma in zip(bias, importance, strict=True)]
        logits = drawn(4000, [2.5], total)
        fitted = fit_temperature(logits, Start([1.0], [bias], importance), least=LEAST)
        assert fitted.temperatures == pytest.approx([2.5], rel=0.08)
        assert fitted.biases == [bias]
        assert fitted.nll_after == pytest.approx(nll(logits, fitted.temperatures, [total]), rel=1e-12)


class TestBias:
    def test_closed_form_without_any_signal(self) -> None:
        # z = 0: softmax(b) is the axes' shares, 60, 30 and 30 of 120, whatever T.
        axis = torch.tensor([0] * 60 + [1] * 30 + [2] * 30)
        logits = Logits(torch.zeros(1, 120, 3), torch.arange(120), axis)
        fitted = fit_bias(logits, plain(1), least=LEAST)
        assert fitted.biases is not None
        expected = [math.log(2) * 2 / 3, -math.log(2) / 3, -math.log(2) / 3]
        assert fitted.biases[0] == pytest.approx(expected, abs=1e-5)
        assert fitted.temperatures == [1.0]
        assert fitted.nll_after == pytest.approx(1.5 * math.log(2), rel=1e-10)

    def test_known_temperature_and_bias_come_back(self) -> None:
        bias = [1.0, -0.4, -0.6]
        fitted = fit_bias(drawn(4000, [2.5, 2.5], bias), plain(2, 0.7), least=LEAST)
        assert fitted.temperatures == pytest.approx([2.5, 2.5], rel=0.08)
        assert fitted.biases is not None
        assert fitted.biases[0] == fitted.biases[1] == pytest.approx(bias, abs=0.15)
        assert sum(fitted.biases[0]) == pytest.approx(0, abs=1e-12)
        by_layer = fit_biases(drawn(4000, [2.5, 0.5], bias), plain(2, 0.7), least=LEAST)
        assert by_layer.temperatures == pytest.approx([2.5, 0.5], rel=0.08)
        assert by_layer.biases is not None
        assert by_layer.biases[1] == pytest.approx(bias, abs=0.15)

    def test_importance_is_added_to_what_is_fitted(self) -> None:
        logits, importance = samples(120), [0.6, 0.3, 0.1]
        without = fit_bias(logits, plain(2), least=LEAST)
        fitted = fit_bias(logits, Start([1.0, 1.0], None, importance), least=LEAST)
        assert fitted.biases is not None
        assert without.biases is not None
        logs = [math.log(gamma) for gamma in importance]
        centred = [log - sum(logs) / 3 for log in logs]
        for with_gamma, alone, log in zip(fitted.biases[0], without.biases[0], centred, strict=True):
            assert with_gamma + log == pytest.approx(alone, abs=1e-4)
        assert fitted.nll_after == pytest.approx(without.nll_after, rel=1e-9)

    def test_more_freedom_is_never_worse(self) -> None:
        logits = samples(120, n_layers=3)
        found = {name: fit(logits, plain(3, 0.7), least=LEAST).nll_after for name, fit in FITS.items()}
        assert found["vector"] <= found["temperature"]
        assert found["layer_vector"] <= found["layer_temperature"]


class TestStartAndBounds:
    @pytest.mark.parametrize("name", list(FITS))
    def test_never_worse_than_the_start_and_fitting_again_changes_nothing(self, name: str) -> None:
        for seed in range(3):
            logits = samples(90, seed=seed)
            first = FITS[name](logits, plain(2, 0.7), least=LEAST)
            assert first.nll_after <= first.nll_before
            assert first.converged
            again = FITS[name](logits, Start(first.temperatures, first.biases), least=LEAST)
            assert again.nll_before == pytest.approx(first.nll_after, rel=1e-12)
            assert again.nll_after == pytest.approx(first.nll_after, rel=1e-9)
            assert again.temperatures == pytest.approx(first.temperatures, rel=1e-3)

    def test_a_start_that_no_single_temperature_reaches_is_kept(self) -> None:
        logits = drawn(600, [0.05, 20.0], [0.0] * 3)
        start = Start([0.05, 20.0])
        fitted = fit_temperature(logits, start, least=LEAST)
        assert fitted.temperatures == start.temperatures
        assert fitted.nll_after == fitted.nll_before
        assert "the model's own is kept" in fitted.notes[0]

    @pytest.mark.parametrize("name", list(FITS))
    @pytest.mark.parametrize(("sign", "kind"), [(1, "sharper"), (-1, "flatter")])
    def test_the_end_of_the_range_is_said(self, name: str, sign: int, kind: str) -> None:
        axis = torch.arange(90) % 3
        values = sign * torch.nn.functional.one_hot(axis, 3)[None].float()
        fitted = FITS[name](Logits(values, torch.arange(90), axis), plain(1, 0.7), least=LEAST)
        assert fitted.temperatures == pytest.approx([T_RANGE[0] if sign > 0 else T_RANGE[1]])
        assert f"{kind} routing is always better" in fitted.notes[0]
        assert fitted.notes[0].startswith("layer 1: ") == name.startswith("layer")

    def test_a_bias_at_the_end_of_its_range_is_said(self) -> None:
        # Expert 0's logit is 50 on its own samples, 40 on the others': only a bias parts them, better without end.
        axis = torch.arange(60) // 30
        values = torch.zeros(1, 60, 2)
        values[0, :, 0] = torch.where(axis == 0, 50.0, 40.0)
        fitted = fit_bias(Logits(values, torch.arange(60), axis), plain(1), least=LEAST)
        assert fitted.biases == [[pytest.approx(-B_LIMIT), pytest.approx(B_LIMIT)]]
        assert fitted.notes == (f"a bias is at the end of its range, {B_LIMIT:g}: these samples do not determine it",)
        assert fitted.nll_after < 1e-6 < fitted.nll_before

    @pytest.mark.parametrize("name", list(FITS))
    def test_a_router_that_says_nothing_keeps_its_temperature(self, name: str) -> None:
        axis = torch.arange(90) % 3
        logits = Logits(torch.zeros(2, 90, 3), torch.arange(90), axis)
        fitted = FITS[name](logits, plain(2, 0.7), least=LEAST)
        assert fitted == Calibration([0.7, 0.7], None, fitted.nll_before, fitted.nll_before, 0, True)
        assert fitted.nll_before == pytest.approx(math.log(3))

    def test_low_precision_logits_are_taken_in_float64(self) -> None:
        logits = samples(90)
        half = Logits(logits.values.bfloat16(), logits.sample, logits.axis)
        wide = Logits(logits.values.bfloat16().double(), logits.sample, logits.axis)
        assert fit_temperature(half, plain(2), least=LEAST) == fit_temperature(wide, plain(2), least=LEAST)


class TestBadInput:
    @pytest.mark.parametrize("name", list(FITS))
    def test_too_few_samples_of_an_axis(self, name: str) -> None:
        logits = samples(60)
        with pytest.raises(InputError, match=r"axis 0 has 20, axis 1 has 20.*wanted at least 30.*more held-out rows"):
            FITS[name](logits, plain(2), least=LEAST)
        assert FITS[name](logits, plain(2), least=20).converged

    def test_an_axis_without_samples(self) -> None:
        logits = samples(60, n_experts=2)
        values = torch.cat([logits.values, logits.values[..., :1]], dim=-1)
        with pytest.raises(InputError, match="axis 2 has 0; wanted at least 1"):
            fit_temperature(Logits(values, logits.sample, logits.axis), plain(2), least=0)
        nothing = torch.zeros(0, dtype=torch.int64)
        empty = Logits(torch.zeros(1, 0, 3), nothing, nothing)
        with pytest.raises(InputError, match="axis 0 has 0, axis 1 has 0, axis 2 has 0"):
            fit_temperature(empty, plain(1), least=LEAST)

    @pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
    def test_logits_that_are_no_numbers(self, wrong: float) -> None:
        logits = samples(90)
        logits.values[1, 5, 2] = wrong
        with pytest.raises(InputError, match=rf"layer 1, token 5, expert 2 is {wrong}"):
            fit_biases(logits, plain(2), least=LEAST)

    @pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
    def test_temperatures_that_are_not_positive(self, wrong: float) -> None:
        with pytest.raises(InputError, match=rf"temperatures \[1.0, {wrong}\]; wanted positive numbers"):
            fit_temperature(samples(90), Start([1.0, wrong]), least=LEAST)

    @pytest.mark.parametrize(
        ("start", "message"),
        [
            (Start([1.0]), "1 temperatures, 2 rows of biases.*2 layers and 3 experts"),
            (Start([1.0, 1.0], [[0.0] * 3]), "2 temperatures, 1 rows of biases"),
            (Start([1.0, 1.0], [[0.0] * 3, [0.0] * 2]), r"rows of \[2, 3\] numbers"),
            (Start([1.0, 1.0], None, [0.5, 0.5]), r"rows of \[2, 3\] numbers"),
            (Start([1.0, 1.0], None, [0.5, 0.5, 0.0]), "wanted positive γ and finite biases"),
            (Start([1.0, 1.0], [[0.0, math.nan, 0.0]] * 2), "wanted positive γ and finite biases"),
        ],
    )
    def test_starts_of_another_shape(self, start: Start, message: str) -> None:
        with pytest.raises(InputError, match=message):
            fit_temperature(samples(90), start, least=LEAST)

    def test_samples_and_axes_out_of_range(self) -> None:
        logits = samples(90)
        with pytest.raises(InputError, match="a token is of sample 90; wanted 0 to 89"):
            fit_temperature(Logits(logits.values, logits.sample + 1, logits.axis), plain(2), least=LEAST)
        with pytest.raises(InputError, match=r"axes \[1, 2, 3\]; wanted 0 to 2"):
            fit_temperature(Logits(logits.values, logits.sample, logits.axis + 1), plain(2), least=LEAST)
        more = torch.cat([logits.axis, torch.tensor([0])])
        with pytest.raises(InputError, match="sample 90 has no token that counts; leave it out"):
            fit_temperature(Logits(logits.values, logits.sample, more), plain(2), least=LEAST)
