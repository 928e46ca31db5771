"""The output calibration: y itself at the start, and able to leave from there."""

import math

import pytest
import torch
from torch import Tensor, nn

from triune.errors import InputError
from triune.fusion.output_calibration import OutputCalibration

D, WIDTH = 6, 5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(lambdas: tuple[float, float] = (0.6, 0.4)) -> OutputCalibration:
    """One whose weights are all away from the start."""
    module = OutputCalibration(D, WIDTH, lambdas).double()
    for seed, parameter in enumerate(module.parameters()):
        parameter.data += normal(*parameter.shape, seed=seed)
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_untrained_it_is_the_identity_to_the_bit(dtype: torch.dtype) -> None:
    y = (1e3 * normal(2, 7, D)).to(dtype)
    assert torch.equal(OutputCalibration(D, WIDTH, (0.6, 0.4)).to(dtype)(y), y)
    assert torch.equal(OutputCalibration(D, WIDTH, (0.6, 0.4))(y), y)
    assert torch.equal(OutputCalibration(D, WIDTH, (0.0, 0.0))(y), y)


def test_by_hand() -> None:
    """d = width = 1: A = 2, a = 1, B = 3, b = 0.5, C = 1, c = 0 at y = 1 is 1 + 0.6 · 9.5 + 0.4 tanh 1."""
    module = OutputCalibration(1, 1, (0.6, 0.4)).double()
    values = {"hidden": 2.0, "hidden_bias": 1.0, "out": 3.0, "out_bias": 0.5, "natural": 1.0, "natural_bias": 0.0}
    for name, value in values.items():
        module.get_parameter(name).data.fill_(value)
    y = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    wanted = [[1 + 0.6 * 9.5 + 0.4 * math.tanh(1)], [-1 + 0.6 * 0.5 + 0.4 * math.tanh(-1)]]
    torch.testing.assert_close(module(y), torch.tensor(wanted, dtype=torch.float64), rtol=1e-14, atol=0)


def slow(y: list[float], module: OutputCalibration) -> list[float]:
    a, b, c = (module.get_parameter(name).tolist() for name in ("hidden", "out", "natural"))
    a0, b0, c0 = (module.get_parameter(f"{name}_bias").tolist() for name in ("hidden", "out", "natural"))

    def product(row: list[float], x: list[float], shift: float) -> float:
        return math.fsum([shift, *(w * v for w, v in zip(row, x, strict=True))])

    hidden = [max(product(a[i], y, a0[i]), 0.0) for i in range(WIDTH)]
    one, other = module.lambdas
    return [y[i] + one * product(b[i], hidden, b0[i]) + other * math.tanh(product(c[i], y, c0[i])) for i in range(D)]


def test_against_the_slow_reference() -> None:
    module, y = trained(), normal(3, D, seed=9)
    wanted = torch.tensor([slow(row, module) for row in y.tolist()], dtype=torch.float64)
    torch.testing.assert_close(module(y), wanted, rtol=1e-12, atol=1e-13)


def test_gradient() -> None:
    module = trained()
    y = normal(3, D, seed=9).requires_grad_()
    assert torch.autograd.gradcheck(module, y)
    names, values = zip(*module.named_parameters(), strict=True)
    assert torch.autograd.gradcheck(
        lambda *given: torch.func.functional_call(module, dict(zip(names, given, strict=True)), y.detach()), values
    )


def moved(module: nn.Module, steps: int = 1) -> set[str]:
    """The weights that have a gradient after `steps` - 1 steps towards 1 + sin(3 y)."""
    y = normal(40, D, seed=9)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(steps):
        optimiser.step()
        optimiser.zero_grad()
        (module(y) - y - 1 - (3 * y).sin()).square().mean().backward()
    return {name for name, parameter in module.named_parameters() if (parameter.grad != 0).any()}


def test_gradients_flow_from_the_start() -> None:
    start = {"out", "out_bias", "natural", "natural_bias"}
    assert moved(OutputCalibration(D, WIDTH, (0.6, 0.4)).double()) == start
    assert moved(OutputCalibration(D, WIDTH, (0.6, 0.4)).double(), 2) == start | {"hidden", "hidden_bias"}


def test_were_all_zero_the_residual_would_stay_constant() -> None:
    """Why A is drawn: without it only the last shift ever has a gradient."""
    module = OutputCalibration(D, WIDTH, (0.6, 0.0)).double()
    module.hidden.data.zero_()
    assert moved(module, 5) == {"out_bias"}


def test_a_part_that_is_off_has_no_weights() -> None:
    module = OutputCalibration(D, WIDTH, (0.0, 0.4))
    assert set(module.state_dict()) == {"natural", "natural_bias"}
    assert set(OutputCalibration(D, WIDTH, (0.6, 0.0)).state_dict()) == {"hidden", "hidden_bias", "out", "out_bias"}
    whole = trained()
    y = normal(3, D, seed=9)
    half = trained((0.6, 0.0))
    half.load_state_dict({name: whole.get_parameter(name) for name in half.state_dict()})
    torch.testing.assert_close(whole(y) - half(y), 0.4 * (y @ whole.natural.T + whole.natural_bias).tanh())


def test_chance_is_an_argument() -> None:
    before = torch.random.get_rng_state()
    one, same = (OutputCalibration(D, WIDTH, (0.6, 0.4), torch.Generator().manual_seed(3)) for _ in range(2))
    other = OutputCalibration(D, WIDTH, (0.6, 0.4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.hidden, same.hidden)
    assert not torch.equal(one.hidden, other.hidden)
    assert other.hidden.detach().abs().max() <= D**-0.5
    assert float(other.hidden.std().detach()) == pytest.approx(D**-0.5 / 3**0.5, rel=0.2)


def test_without_storage_first() -> None:
    """As transformers builds models: on the meta device, then filled."""
    with torch.device("meta"):
        module = OutputCalibration(D, WIDTH, (0.6, 0.4))
    assert all(parameter.is_meta for parameter in module.parameters())
    module = module.to_empty(device="cpu")
    module.start()
    assert torch.equal(module.hidden, OutputCalibration(D, WIDTH, (0.6, 0.4)).hidden)
    assert not any(parameter.any() for name, parameter in module.named_parameters() if name != "hidden")


@pytest.mark.parametrize(
    ("width", "lambdas"), [(0, (0.6, 0.4)), (5, (0.6,)), (5, (-1.0, 0.4)), (5, (0.6, math.nan)), (5, (math.inf, 0.0))]
)
def test_refused(width: int, lambdas: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="width from 1 on and two numbers from 0 on"):
        OutputCalibration(D, width, lambdas)
