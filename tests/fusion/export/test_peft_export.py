"""The fused model as PEFT adapters: read by PEFT alone, and fused again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.fusion.conftest import random_base, random_experts
from tests.fusion.export.conftest import configure, fused_of, with_post_norm
from triune.errors import InputError
from triune.experts.adapters import read_adapter
from triune.fusion.building import build
from triune.fusion.export import peft as export
from triune.fusion.export.source import Options, open_source
from triune.fusion.modeling import TriuneForCausalLM
from triune.models.store import hash_weights, load_tensors
from triune.recipe import Fuse

TOKENS = torch.tensor([[1, 5, 9, 3], [7, 2, 8, 4]])


def saved(tmp_path: Path, kind: str = "llama") -> tuple[Path, Path]:
    """(base folder, fused folder) of one random base, its experts of different ranks."""
    random_base(kind).save_pretrained(tmp_path / "base")
    fused_of(random_base(kind), temperature=0.7, top_k=2).save_pretrained(tmp_path / "fused")
    return tmp_path / "base", tmp_path / "fused"


def exported(fused: Path, base: Path, out: Path, dtype: torch.dtype | None = None) -> Path:
    out.mkdir(exist_ok=True)
    source, options = open_source(fused), Options(dtype=dtype, base=str(base))
    export.check(source, options)
    export.write(source, options, out)
    return out


def alone(fused: Path, index: int) -> Tensor:
    """Logits of one expert of the fused model."""
    model = TriuneForCausalLM.from_pretrained(fused)
    with torch.no_grad(), model.fixed_routing(torch.eye(model.config.num_experts)[index]):
        return model(TOKENS).logits


def with_peft(base: Path, adapter: Path, shared: Path | None = None) -> Tensor:
    """Logits of the base with an adapter, by PEFT."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if shared is not None:
        assert not model.load_state_dict(load_file(shared), strict=False).unexpected_keys
    with torch.no_grad():
        return PeftModel.from_pretrained(model, str(adapter)).eval()(TOKENS).logits


def test_each_adapter_is_its_expert(family: str, tmp_path: Path) -> None:
    base, fused = saved(tmp_path, family)
    out = exported(fused, base, tmp_path / "out")
    for index, name in enumerate(("helpful", "harmless", "honest")):
        wanted = alone(fused, index)
        found = with_peft(base, out / "experts" / name)
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
        assert not torch.allclose(found, alone(fused, (index + 1) % 3), rtol=1e-2)


def test_adapters_fuse_again_to_the_same_factors(tmp_path: Path) -> None:
    base, fused = saved(tmp_path)
    out = exported(fused, base, tmp_path / "out")
    experts = [read_adapter(out / "experts" / name, name) for name in ("helpful", "harmless", "honest")]
    assert {expert.base_hash for expert in experts} == {hash_weights(base)}
    again = build(AutoModelForCausalLM.from_pretrained(base), experts, Fuse(temperature=0.7)).state_dict()
    wanted = TriuneForCausalLM.from_pretrained(fused).state_dict()
    assert again.keys() == wanted.keys()
    assert all(torch.equal(again[name], wanted[name]) for name in wanted if "router" not in name)


def test_matrices_that_an_expert_leaves_alone_are_left_out(tmp_path: Path) -> None:
    model = random_base("llama")
    model.save_pretrained(tmp_path / "base")
    experts = random_experts(model)
    build(random_base("llama"), experts, Fuse()).save_pretrained(tmp_path / "fused")
    out = exported(tmp_path / "fused", tmp_path / "base", tmp_path / "out")
    for expert in experts:
        found = read_adapter(out / "experts" / expert.axis, expert.axis)
        assert found.parts.keys() == expert.parts.keys()
        assert all(torch.equal(found.parts[name].a, part.a.float()) for name, part in expert.parts.items())


def test_routers_and_routing_are_beside_the_adapters(tmp_path: Path) -> None:
    base, fused = saved(tmp_path)
    out = exported(fused, base, tmp_path / "out", torch.bfloat16)
    routers, model = load_tensors(out / "routers.safetensors"), TriuneForCausalLM.from_pretrained(fused)
    assert len(routers) == 2
    for layer, mixture in enumerate(model.mixtures()):
        assert torch.equal(routers[f"model.layers.{layer}.mlp.router.weight"], mixture.router.weight)
    routing = json.loads((out / "routing.json").read_text(encoding="utf-8"))
    assert routing["experts"] == ["helpful", "harmless", "honest"]
    assert (routing["num_experts_per_tok"], routing["router_temperature"]) == (2, 0.7)
    assert routing["norm_topk_prob"] is True
    assert (routing["expert_importance"], routing["router_bias"], routing["post_norm"]) == (None, None, False)
    assert routing["shared"] == []
    assert (routing["base_model_name_or_path"], routing["base_sha256"]) == (str(base), hash_weights(base))
    assert not (out / "shared.safetensors").exists()
    config = json.loads((out / "experts" / "honest" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(base)
    assert (config["r"], config["lora_alpha"]) == (2, 2)
    weights = load_tensors(out / "experts" / "honest" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_calibration_and_layer_norm_are_in_the_routers_files(tmp_path: Path) -> None:
    base, fused = saved(tmp_path)
    with_post_norm(TriuneForCausalLM.from_pretrained(fused)).save_pretrained(fused)
    calibration = {
        "router_temperature": [0.5, 2.0],
        "expert_importance": [0.5, 0.3, 0.2],
        "router_bias": [[0.1, -0.4, 0.3], [0.0, 1.0, -1.0]],
        "post_norm": True,
        "expert_weights": [1.0, -1.0, 0.5],
    }
    out = exported(configure(fused, **calibration), base, tmp_path / "out")
    routing = json.loads((out / "routing.json").read_text(encoding="utf-8"))
    assert {name: routing[name] for name in calibration} == calibration
    found, model = load_tensors(out / "routers.safetensors"), TriuneForCausalLM.from_pretrained(fused)
    wanted = {name: tensor for name, tensor in model.state_dict().items() if "router." in name or "post_norm." in name}
    assert found.keys() == wanted.keys()
    assert len(found) == 6
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert not (out / "shared.safetensors").exists()


def test_changed_attention_stands_beside_the_adapters(tmp_path: Path) -> None:
    base, fused = saved(tmp_path)
    model = TriuneForCausalLM.from_pretrained(fused)
    model.model.layers[1].self_attn.v_proj.weight.data *= 2
    model.save_pretrained(fused)
    out = exported(fused, base, tmp_path / "out")
    wanted, adapter = alone(fused, 0), out / "experts" / "helpful"
    assert not torch.allclose(with_peft(base, adapter), wanted, rtol=1e-2)
    found = with_peft(base, adapter, out / "shared.safetensors")
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    routing = json.loads((out / "routing.json").read_text(encoding="utf-8"))
    assert routing["shared"] == ["model.layers.1.self_attn.v_proj.weight"]


def refusal(fused: Path, base: str) -> str:
    with pytest.raises(InputError) as caught:
        export.check(open_source(fused), Options(base=base))
    return str(caught.value)


def test_base_is_needed_and_must_be_the_one(tmp_path: Path) -> None:
    base, fused = saved(tmp_path)
    assert "--base" in refusal(fused, "")
    assert "no such folder" in refusal(fused, str(tmp_path / "absent"))
    other = AutoModelForCausalLM.from_pretrained(base)
    other.model.embed_tokens.weight.data[0, 0] += 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"embed_tokens\.weight has other values"):
        exported(fused, tmp_path / "other", tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


def test_experts_without_an_adapter_are_refused(fused_folder: Callable[..., Path], tmp_path: Path) -> None:
    base, fused = saved(tmp_path)
    config = json.loads((fused / "config.json").read_text(encoding="utf-8"))
    for name, why in (("a/b", "each a plain name"), ("..", "each a plain name"), (".hidden", "folder's name")):
        changed = config | {"expert_names": [name, "harmless", "honest"]}
        (fused / "config.json").write_text(json.dumps(changed))
        assert why in refusal(fused, str(base))
    model = fused_of(random_base("llama"), ranks=(2, 0, 2))
    model.save_pretrained(tmp_path / "idle")
    assert "'harmless' changes no" in refusal(tmp_path / "idle", str(base))


def test_overflow_is_named(tmp_path: Path) -> None:
    base, fused = saved(tmp_path)
    model = TriuneForCausalLM.from_pretrained(fused)
    model.model.layers[1].mlp.up_a.data[0, 0] = 1e6
    model.save_pretrained(fused)
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj overflows float16"):
        exported(fused, base, tmp_path / "out", torch.float16)


def test_tokenizer_is_carried_over(tmp_path: Path) -> None:
    base, fused = saved(tmp_path)
    (fused / "tokenizer_config.json").write_text("{}")
    assert (exported(fused, base, tmp_path / "out") / "tokenizer_config.json").read_text() == "{}"
