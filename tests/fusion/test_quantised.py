"""The factored layer on packed weights is that on the weights which those stand for; and what they take."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.fusion.conftest import random_experts
from tests.fusion.quantised_world import KINDS, make, open_, write_base, write_model
from triune.errors import InputError
from triune.fusion import factored
from triune.fusion.modeling import TriuneForCausalLM
from triune.fusion.reference import materialised, unfactored_ffn
from triune.models import quantised
from triune.models.loading import quiet
from triune.models.quantised import dense_weight, layer_bytes, model_bytes, packed_bytes, quantised_layers
from triune.models.store import load_tensors
from triune.quantised_settings import Quantised

pytest.importorskip("bitsandbytes")

# The packed layer computes in float32, the twin in float64: sums of up to 192 products, each rounded to 2^-24, and two
# layers of them; 1e-5 of the largest entry is ten times what was seen.
CLOSE = 1e-5
# int8 without gradients also rounds each token's activations to 8 bits: half a step of 1/127 of the largest an entry.
ROUNDED = 5e-2
# NormalFloat-4, QLoRA's appendix E.
NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
Pair = tuple[TriuneForCausalLM, TriuneForCausalLM]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Pair]:
    made: dict[tuple[str, str], Pair] = {}

    def get(kind: str, family: str = "llama") -> Pair:
        if (kind, family) not in made:
            made[kind, family] = make(tmp_path_factory.mktemp(f"{kind}-{family}"), kind, family)
        return made[kind, family]

    return get


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, 40, (3, 9), generator=torch.Generator().manual_seed(2))


def apart(got: Tensor, want: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return float((got.double() - want.double()).abs().max() / want.double().abs().max())


def test_a_packed_weight_is_the_nearest_code_times_the_scale_of_its_block(tmp_path: Path) -> None:
    """QLoRA §3 from its definition: q = argmin |w/c − code|, c the block's largest |w|; w ≈ c · code[q]."""
    base = write_base(tmp_path / "base")
    packed, _ = make(tmp_path, "nf4-single")
    name = "model.layers.0.mlp.gate_proj"
    blocks = base.get_submodule(name).weight.detach().flatten().view(-1, 64)  # type: ignore[union-attr,operator]
    scale = blocks.abs().amax(1, keepdim=True)
    nearest = ((blocks / scale).unsqueeze(-1) - NF4).abs().argmin(-1)
    want = (NF4[nearest] * scale).view(192, 128)
    torch.testing.assert_close(dense_weight(packed.get_submodule(name)), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_is_the_mixture_by_its_definition(pair: Callable[[str], Pair], kind: str) -> None:
    packed, twin = pair(kind)
    x = torch.randn(2, 7, 128, generator=torch.Generator().manual_seed(5))
    mixture, dense = packed.mixtures()[1], twin.mixtures()[1]
    weights = dense._by_token(x.double(), dense.router).flatten(0, 1)
    experts = [materialised(dense, dense.factors(), a) for a in range(3)]
    want = unfactored_ffn(x.double().flatten(0, 1), weights, experts).view_as(x)
    with torch.no_grad():
        assert apart(mixture(x), want) < (ROUNDED if kind == "int8" else CLOSE)
    mixture.train()  # on a CPU, int8 then multiplies with the weights that the codes stand for
    try:
        with torch.no_grad():
            assert apart(mixture(x), want) < CLOSE
    finally:
        mixture.eval()


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("weights", [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1 / 3, 1 / 3, 1 / 3]])
def test_one_expert_alone_and_all_alike(
    pair: Callable[[str], Pair], kind: str, weights: list[float], ids: Tensor
) -> None:
    packed, twin = pair(kind)
    packed.train()
    with torch.no_grad(), packed.fixed_routing(torch.tensor(weights)), twin.fixed_routing(torch.tensor(weights)):
        assert apart(packed(ids).logits, twin(ids).logits) < CLOSE
    packed.eval()


@pytest.mark.parametrize(("kind", "family"), [("nf4", "llama"), ("nf4", "qwen2"), ("fp4", "llama"), ("int8", "llama")])
@pytest.mark.parametrize("gathered", [False, True])
def test_gradients_of_factors_and_routers_pass_the_packed_base(
    pair: Callable[[str, str], Pair],
    ids: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    family: str,
    gathered: bool,
) -> None:
    """Also after a pass without gradients, which on some CPUs packs the weights anew (see `settle`)."""
    packed, twin = pair(kind, family)
    if gathered:
        monkeypatch.setattr(factored, "TOGETHER_UP_TO", -1)
    with torch.no_grad():
        packed(ids)
    found = []
    for model in (packed.train(), twin):
        learning = {n: p for n, p in model.named_parameters() if ".mlp." in n and n.rsplit(".", 2)[-2] != "proj"}
        learning = {n: p for n, p in learning.items() if p.requires_grad and "_proj." not in n}
        assert len(learning) == 2 * 7
        loss = model(input_ids=ids, labels=ids).loss
        found.append(dict(zip(learning, torch.autograd.grad(loss, list(learning.values())), strict=True)))
    packed.eval()
    for name, want in found[1].items():
        assert float(want.abs().max()) > 1e-6, name
        assert apart(found[0][name], want) < 10 * CLOSE, name


def test_packed_weights_never_learn(pair: Callable[[str], Pair]) -> None:
    packed, _ = pair("nf4")
    assert not any(layer.weight.requires_grad for _, layer in quantised_layers(packed))
    names = {name.rsplit(".", 1)[-1] for name, _ in quantised_layers(packed)}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert packed.mixtures()[0].router.weight.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_opened_again_it_is_the_same(pair: Callable[[str], Pair], tmp_path: Path, kind: str) -> None:
    packed, _ = pair(kind)
    ids = torch.arange(3, 13)[None]
    with quiet():
        packed.save_pretrained(tmp_path / "again")
    again = open_(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(again(ids).logits, packed(ids).logits)
    own = load_tensors(tmp_path / "again" / "model.safetensors")
    assert {name.split("mlp.")[-1] for name in own} == {
        *(f"{which}_{side}" for which in ("gate", "up", "down") for side in "ab"),
        "router.weight",
    }
    told = json.loads((tmp_path / "again" / "config.json").read_text(encoding="utf-8"))
    assert told["base_quantised"] == KINDS[kind].model_dump()
    assert "quantization_config" not in told
    assert again.beside == packed.beside


def test_on_float_weights_the_same_folder_is_a_whole_model(pair: Callable[[str], Pair], tmp_path: Path) -> None:
    packed, _ = pair("nf4")
    whole = open_(Path(str(packed.name_or_path)), base_quantised=False)
    with quiet():
        whole.save_pretrained(tmp_path / "whole")
    again = open_(tmp_path / "whole")
    assert not quantised_layers(again)
    assert not hasattr(again.config, "base_quantised")
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, whole(ids).logits)
        # and 4 bits do change it, so that the tests above compare something
        assert 1e-3 < apart(packed(ids).logits, whole(ids).logits) < 1


def test_bytes_worked_out_by_hand() -> None:
    """4096 weights in 64 blocks: 2048 + 64·4 + 64; doubled 2048 + 64 + 4 + 4 + 64 + 1024; 8 bits 4096 + 4·64."""
    assert packed_bytes(64, 64, Quantised(double_quant=False)) == 2368
    assert packed_bytes(64, 64, Quantised()) == 3208
    assert packed_bytes(64, 64, Quantised(quant_type="int8")) == 4352
    # of a 7B model's matrix, bytes a weight: 1/2 + 1/64 + 4/(64·256) + 1092/45088768
    assert packed_bytes(4096, 11008, Quantised()) / (4096 * 11008) == pytest.approx(0.5158934, abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_of_the_formula(pair: Callable[[str], Pair], kind: str) -> None:
    packed, _ = pair(kind)
    layers = quantised_layers(packed)
    for name, layer in layers:
        assert layer_bytes(layer) == packed_bytes(layer.out_features, layer.in_features, KINDS[kind]), name
    whole = [p for n, p in packed.named_parameters() if not n.endswith("_proj.weight")]
    assert model_bytes(packed) == sum(layer_bytes(layer) for _, layer in layers) + sum(p.nbytes for p in whole)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_widths_that_the_cpu_unpacks_wrongly_are_refused(tmp_path: Path, kind: str) -> None:
    """bitsandbytes 0.50.2; where a newer one has mended it, nothing is refused and this test can go."""
    origin = write_base(tmp_path / "base", intermediate_size=160)  # 2.5 blocks a row of down_proj
    folder = write_model(tmp_path / "base", random_experts(origin), tmp_path / "fused", KINDS[kind])
    with pytest.raises(InputError, match="down_proj has 160 inputs"):
        open_(folder)


def test_int8_takes_every_width(tmp_path: Path) -> None:
    origin = write_base(tmp_path / "base", intermediate_size=172)
    folder = write_model(tmp_path / "base", random_experts(origin), tmp_path / "fused", KINDS["int8"])
    layer, x = open_(folder).mixtures()[0].down_proj, torch.randn(4, 172)
    with torch.no_grad():
        assert apart(layer.train()(x), x @ dense_weight(layer).T + layer.bias) < CLOSE


def test_products_of_int8_are_quiet(pair: Callable[[str], Pair], caplog: pytest.LogCaptureFixture) -> None:
    packed, _ = pair("int8")
    with torch.no_grad():
        packed(torch.arange(3, 13)[None])
    assert not caplog.records


@pytest.mark.parametrize(
    ("installed", "accelerator", "said"), [(False, None, "needs bitsandbytes"), (True, "mps", "here is mps")]
)
def test_machines_that_cannot(
    monkeypatch: pytest.MonkeyPatch, installed: bool, accelerator: str | None, said: str
) -> None:
    monkeypatch.setattr(quantised.importlib.util, "find_spec", lambda _name: object() if installed else None)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(accelerator or "cpu"))
    with pytest.raises(InputError, match=said):
        quantised.loading_arguments(Quantised(), torch.float32)
    assert quantised.loading_arguments(None, torch.float32) == {}
