"""Models whose routing has biases, as gpt-oss: against the fused model itself, and at the limits of the class."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GptOssForCausalLM, PreTrainedModel

from tests.fusion.conftest import random_base
from tests.fusion.export.conftest import configure, fused_of
from triune.errors import InputError
from triune.fusion.export import gpt_oss, native
from triune.fusion.export.source import Options, open_source
from triune.models.loading import load_base
from triune.models.store import folder_header, load_tensors

pytestmark = pytest.mark.skipif(
    not gpt_oss.CONFIGURABLE, reason="this transformers has gpt-oss with its own constants"
)

Save = Callable[..., Path]
FLOAT32 = Options(torch.float32)
BIAS = [[0.3, -0.9, 0.2], [-0.4, 0.1, 0.8]]


def exported(folder: Path, options: Options = FLOAT32) -> Path:
    out = folder.with_name("native")
    out.mkdir()
    source = open_source(folder)
    native.check(source, options)
    native.write(source, options, out)
    return out


def loaded(folder: Path, **settings: Any) -> PreTrainedModel:
    """With plain transformers; every key is used and none is missing."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **settings)
    assert not any(info.values()), info
    assert isinstance(model, GptOssForCausalLM)
    model.set_experts_implementation("eager")  # grouped_mm wants widths of a multiple of 16 bytes
    return model.eval()


def fused(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def error(model: PreTrainedModel, other: PreTrainedModel, ids: torch.Tensor) -> float:
    """Largest difference of logits, relative to the largest logit."""
    with torch.no_grad():
        wanted, found = model(input_ids=ids).logits.float(), other(input_ids=ids).logits.float()
    return float((wanted - found).abs().max() / wanted.abs().max())


def greedy(model: PreTrainedModel, ids: torch.Tensor) -> list[list[int]]:
    written = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=0
    )
    return written.tolist()


def agree(model: PreTrainedModel, other: PreTrainedModel, ids: torch.Tensor) -> None:
    # Measured: at most 2e-7 on the tiny models, 2e-6 on the real ones, as the Mixtral export.
    assert error(model, other, ids) < 1e-5
    assert greedy(model, ids) == greedy(other, ids)


CALIBRATIONS: dict[str, dict[str, Any]] = {
    "importance": {"expert_importance": [0.6, 0.3, 0.1]},
    "bias": {"router_bias": BIAS},
    "both, a temperature a layer": {
        "expert_importance": [0.6, 0.3, 0.1],
        "router_bias": BIAS,
        "router_temperature": [0.3, 2.0],
    },
    "in one layer": {"router_bias": [[0.0, 0.0, 0.0], [2.0, 0.0, -2.0]]},
    "an expert that is never taken": {"router_bias": [[0.0, 0.0, -1e4]] * 2},
}


@pytest.mark.parametrize("kind", ["llama", "mistral", "mistral-window"])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("calibration", CALIBRATIONS.values(), ids=list(CALIBRATIONS))
def test_logits_and_greedy_tokens_are_the_fused_models(
    fused_folder: Save, kind: str, k: int, calibration: dict[str, Any], tokens: torch.Tensor
) -> None:
    folder = configure(fused_folder(kind, top_k=k), **calibration)
    agree(fused(folder), loaded(exported(folder)), tokens)


def test_padding_is_seen_as_the_fused_model_sees_it(fused_folder: Save, tokens: torch.Tensor) -> None:
    folder = configure(fused_folder(), router_bias=BIAS)
    model, other = fused(folder), loaded(exported(folder))
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    with torch.no_grad():
        wanted, found = (each(input_ids=tokens, attention_mask=mask).logits[:, -1] for each in (model, other))
    assert torch.allclose(wanted, found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["stories260K-hf", "babyllama105-hf"])
@pytest.mark.parametrize("k", [1, 2])
def test_real_models_agree(shared: Path, tmp_path: Path, name: str, k: int) -> None:
    base, tokenizer = load_base(shared / "models" / name)
    model = fused_of(base, temperature=0.8, top_k=k)
    rng = torch.Generator().manual_seed(6)
    model.save_pretrained(tmp_path / "fused")
    bias = torch.randn(model.config.num_hidden_layers, 3, generator=rng).tolist()
    configure(tmp_path / "fused", router_bias=bias, expert_importance=[0.5, 0.2, 0.3])
    ids = torch.tensor([tokenizer("Once upon a time there was a small dog who").input_ids])
    agree(fused(tmp_path / "fused"), loaded(exported(tmp_path / "fused")), ids)


def test_the_comparison_sees_a_missing_bias_and_a_sink(fused_folder: Save, tokens: torch.Tensor) -> None:
    folder = configure(fused_folder(), router_bias=BIAS)
    model, other = fused(folder), loaded(exported(folder))
    bias = other.model.layers[0].mlp.router.bias.data
    assert torch.allclose(bias, torch.tensor([0.0, -1.2, -0.1]))  # shifted so that the largest is 0
    bias.zero_()
    assert error(model, other, tokens) > 1e-3
    again = loaded(folder.with_name("native"))
    again.model.layers[0].self_attn.sinks.data.zero_()
    assert error(model, again, tokens) > 1e-3


def test_activations_beyond_the_class_own_clamp_are_exact(tmp_path: Path, tokens: torch.Tensor) -> None:
    base = random_base("llama")
    for layer in base.model.layers:
        layer.mlp.gate_proj.weight.data *= 30
        layer.mlp.up_proj.weight.data *= 30
    fused_of(base).save_pretrained(tmp_path / "fused")
    model, out = fused(configure(tmp_path / "fused", router_bias=BIAS)), exported(tmp_path / "fused")
    agree(model, loaded(out), tokens)
    assert error(model, loaded(configure(out, swiglu_limit=7.0)), tokens) > 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_as_that_of_the_fused_model(
    tmp_path: Path, dtype: torch.dtype, tokens: torch.Tensor
) -> None:
    base = random_base("llama")
    for layer in base.model.layers:  # the same function with a small up, beside which the class's 1 is large
        layer.mlp.up_proj.weight.data /= 64
        layer.mlp.down_proj.weight.data *= 64
    fused_of(base, top_k=3).save_pretrained(tmp_path / "fused")  # k = 3: no token changes its experts by rounding
    whole = fused(configure(tmp_path / "fused", router_bias=BIAS))
    half = loaded(exported(tmp_path / "fused", Options(dtype)))
    assert half.dtype == dtype
    same = AutoModelForCausalLM.from_pretrained(tmp_path / "fused", dtype=dtype)
    assert error(whole, half, tokens) < 2 * error(whole, same, tokens)


def test_keys_shapes_and_settings(fused_folder: Save) -> None:
    folder = configure(fused_folder("mistral-window"), router_bias=BIAS, router_temperature=[0.5, 2.0])
    out, d, f = exported(folder), 16, 24
    layer = {
        "mlp.router.weight": (3, d),
        "mlp.router.bias": (3,),
        "mlp.experts.gate_up_proj": (3, d, 2 * f),
        "mlp.experts.gate_up_proj_bias": (3, 2 * f),
        "mlp.experts.down_proj": (3, f, d),
        "mlp.experts.down_proj_bias": (3, d),
        "self_attn.sinks": (4,),
    }
    found = {name.split("layers.1.")[1]: info.shape for name, info in folder_header(out).items() if ".1." in name}
    assert {name: shape for name, shape in found.items() if "proj.weight" not in name and "norm" not in name} == layer
    config = json.loads((out / "config.json").read_text())
    wanted = {
        "model_type": "gpt_oss",
        "architectures": ["GptOssForCausalLM"],
        "layer_types": ["sliding_attention"] * 2,
        "sliding_window": 4,
        "swiglu_alpha": 1.0,
        "swiglu_limit": 1e30,
        "attention_bias": False,
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "intermediate_size": f,
        "head_dim": 4,
        "tie_word_embeddings": False,
    }
    assert {name: config.get(name) for name in wanted} == wanted


def test_weights_are_the_experts_times_a_power_of_two(fused_folder: Save) -> None:
    folder = configure(fused_folder(), router_bias=BIAS)
    found, source = load_tensors(exported(folder) / "model.safetensors"), open_source(folder)
    wanted = {}
    for which in ("gate", "up", "down"):
        base, part = source.tensor(f"model.layers.1.mlp.{which}_proj.weight"), source.factors(1, which)[2]
        wanted[which] = (base.double() + part.b.double() @ part.a.double()).float().T
    gate_up = found["model.layers.1.mlp.experts.gate_up_proj"][2]
    assert torch.equal(gate_up[:, ::2], wanted["gate"])
    assert torch.equal(gate_up[:, 1::2], 64 * wanted["up"])
    assert torch.equal(found["model.layers.1.mlp.experts.down_proj"][2], wanted["down"] / 64)
    bias = found["model.layers.1.mlp.experts.gate_up_proj_bias"][0]
    assert (bias[::2].unique().tolist(), bias[1::2].unique().tolist()) == ([0.0], [-1.0])
    assert not found["model.layers.1.mlp.experts.down_proj_bias"].any()


def test_overflow_is_named(fused_folder: Save) -> None:
    folder = fused_folder()
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = 9000.0  # times 8 it is beyond float16
    model.save_pretrained(folder)
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.experts\.gate_up_proj, up of expert 0 overflows float16"):
        exported(configure(folder, router_bias=BIAS), Options(torch.float16))


def test_what_the_class_cannot_express_is_refused(
    fused_folder: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = configure(fused_folder(), router_bias=BIAS)
    source = open_source(folder)
    monkeypatch.setattr(gpt_oss, "CONFIGURABLE", False)
    with pytest.raises(InputError, match=r"Mixtral's gate has no bias; the class gpt-oss of the installed.*compact"):
        native.check(source, FLOAT32)
    monkeypatch.undo()
    source.text.hidden_act = "gelu"
    with pytest.raises(InputError, match=r"Mixtral's gate has no bias; its activation is gelu.*--format compact"):
        native.check(source, FLOAT32)
    biased = configure(fused_folder("llama-bias"), router_bias=BIAS)
    with pytest.raises(InputError, match=r"base has biases \(mlp_bias\)"):
        native.check(open_source(biased), FLOAT32)


def test_programs_that_cannot_serve_it_are_named(fused_folder: Save) -> None:
    source = open_source(configure(fused_folder(), expert_importance=[0.5, 0.3, 0.2]))
    assert any("expert_importance" in line and "vLLM and llama.cpp" in line for line in native.limits(source, FLOAT32))
    assert native.what(source).endswith("GptOssForCausalLM with all experts written out, for transformers.")
    assert "GptOssForCausalLM" in native.SERVE


def test_routing_by_hand(tmp_path: Path) -> None:
    # One logit direction: z = (x, 0, -x), T = 2, c = (0, log 3, 0). At x = 2 log 3: z/T + c = (log 3, log 3, -log 3).
    model = fused_of(random_base("llama"), top_k=2, temperature=2.0)
    for mixture in model.mixtures():
        mixture.router.weight.data.zero_()
        mixture.router.weight.data[:, 0] = torch.tensor([1.0, 0.0, -1.0])
    model.save_pretrained(tmp_path / "fused")
    router = (
        loaded(exported(configure(tmp_path / "fused", expert_importance=[1.0, 3.0, 1.0]))).model.layers[0].mlp.router
    )
    x = torch.zeros(1, 16)
    x[0, 0] = 2 * math.log(3)
    _, weights, chosen = router(x)
    assert sorted(chosen[0].tolist()) == [0, 1]
    assert torch.allclose(weights, torch.tensor([[0.5, 0.5]]))
