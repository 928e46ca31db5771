"""Opening any model of a run: the right one, whole, or an error that says what is wrong."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from tests.fusion.conftest import random_base, random_experts
from triune.errors import InputError
from triune.experts import task_vector
from triune.experts.adapters import write_adapter
from triune.experts.task_vector import TaskVector
from triune.fusion.building import build
from triune.fusion.modeling import TriuneForCausalLM
from triune.fusion.opening import check_model, is_fused, open_fused, open_model
from triune.models.loading import quiet
from triune.models.store import hash_weights, load_tensors, save_tensors
from triune.models.tiny import build_tokenizer
from triune.recipe import Base, Fuse


def save(model: PreTrainedModel, folder: Path) -> Path:
    with quiet():
        model.save_pretrained(folder)
    build_tokenizer([f"word{index}" for index in range(36)]).save_pretrained(folder)
    return folder


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    return save(random_base("llama"), tmp_path / "base")


@pytest.fixture
def fused_folder(tmp_path: Path) -> Path:
    base = random_base("llama")
    model = build(base, random_experts(base), Fuse())
    for mixture in model.mixtures():
        torch.nn.init.normal_(mixture.router.weight, generator=torch.Generator().manual_seed(0))
    return save(model, tmp_path / "fused")


def settings(folder: Path, **changes: Any) -> Base:
    return Base(path=str(folder), **changes)


def test_the_base_itself_and_another_base_folder(base_folder: Path, tmp_path: Path, tokens: Tensor) -> None:
    other = save(random_base("qwen3"), tmp_path / "other")
    for folder, family in ((None, "llama"), (other, "qwen3")):
        model, tokenizer = open_model(folder, settings(base_folder))
        torch.testing.assert_close(model(tokens).logits, random_base(family)(tokens).logits)
        assert tokenizer("word3")["input_ids"] == [7]
        assert not model.training


def test_an_adapter_is_merged_into_the_base(base_folder: Path, tmp_path: Path, tokens: Tensor) -> None:
    base = random_base("llama")
    expert = random_experts(base)[0]
    stamped = TaskVector(expert.axis, expert.parts, hash_weights(base_folder))
    task_vector.apply(expert, base)
    for name, vector in {"silent": expert, "stamped": stamped}.items():
        write_adapter(vector, tmp_path / name, str(base_folder))
        model, _ = open_model(tmp_path / name, settings(base_folder))
        torch.testing.assert_close(model(tokens).logits, base(tokens).logits, rtol=1e-5, atol=1e-5)


def test_an_adapters_dense_changes_are_applied_too(tmp_path: Path, tokens: Tensor) -> None:
    folder = save(random_base("llama-bias"), tmp_path / "base")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        peft: Any = get_peft_model(
            random_base("llama-bias"),
            LoraConfig(task_type="CAUSAL_LM", target_modules=["up_proj"], modules_to_save=["lm_head"]),
        )
        for parameter in peft.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.5)
    peft.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    model, _ = open_model(tmp_path / "adapter", settings(folder))
    check_model(tmp_path / "adapter", settings(folder))
    with torch.no_grad():
        want = peft.eval()(tokens).logits
        torch.testing.assert_close(model(tokens).logits, want, rtol=1e-5, atol=1e-4)
        assert (want - random_base("llama-bias")(tokens).logits).abs().max() > 1


def test_a_full_fine_tune_alone_is_a_model(base_folder: Path, tmp_path: Path, tokens: Tensor) -> None:
    tuned = random_base("llama")
    task_vector.apply(random_experts(tuned)[0], tuned)
    folder = save(tuned, tmp_path / "tuned")
    check_model(folder, settings(base_folder))
    torch.testing.assert_close(open_model(folder, settings(base_folder))[0](tokens).logits, tuned(tokens).logits)


def test_an_adapter_of_another_base_is_refused(base_folder: Path, tmp_path: Path) -> None:
    expert = random_experts(random_base("llama"))[0]
    write_adapter(TaskVector("helpful", expert.parts, "f" * 64), tmp_path / "alien", str(base_folder))
    own = hash_weights(base_folder)[:12]
    with pytest.raises(InputError, match=rf"'alien' was trained on other base weights \(sha256 ffffffffffff.*{own}"):
        open_model(tmp_path / "alien", settings(base_folder))


def test_a_fused_model(base_folder: Path, fused_folder: Path, tokens: Tensor) -> None:
    model, tokenizer = open_model(fused_folder, settings(base_folder))
    assert isinstance(model, TriuneForCausalLM)
    assert not model.training
    assert tokenizer.decode([7]) == "word3"
    stored = load_tensors(fused_folder / "model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items() if name in stored)
    assert len(stored) == len(model.state_dict()) - 1  # the output layer is tied
    low, _ = open_model(fused_folder, settings(base_folder, dtype="bfloat16"))
    assert low.model.layers[0].mlp.gate_a.dtype == torch.bfloat16
    assert (low(tokens).logits.float() - model(tokens).logits).abs().max() < 0.1


def test_a_fused_model_in_shards(fused_folder: Path, tmp_path: Path, tokens: Tensor) -> None:
    model, tokenizer = open_fused(fused_folder)
    with quiet():
        model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    tokenizer.save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    torch.testing.assert_close(open_fused(tmp_path / "shards")[0](tokens).logits, model(tokens).logits)


def test_which_folders_are_fused(base_folder: Path, fused_folder: Path, tmp_path: Path) -> None:
    assert is_fused(fused_folder)
    assert not is_fused(base_folder)
    assert not is_fused(tmp_path / "absent")
    for text in ("{", "[1]", "\udc80".encode("utf-8", "surrogateescape")):
        (base_folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(InputError, match=r"config\.json is not a model configuration"):
            is_fused(base_folder)


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def edit_tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_tensors(folder / "model.safetensors")
        change(tensors)
        save_tensors(folder / "model.safetensors", tensors)

    return damage


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


KEY = "model.layers.0.mlp.gate_a"
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a base's configuration": (
        edit_config(model_type="llama"),
        r"lacks model_type \(triune\); it has .llama.; give the folder of",
    ),
    "no experts": (edit_config(expert_names=None), "lacks expert_names"),
    "two experts of one name": (edit_config(expert_names=["a", "a", "b"]), "lacks expert_names"),
    "k of 0": (edit_config(num_experts_per_tok=0), "lacks num_experts_per_tok"),
    "k above E": (
        edit_config(num_experts_per_tok=4),
        "lacks num_experts_per_tok .1 to the number of experts.; it has 4",
    ),
    "temperature 0": (edit_config(router_temperature=0), "lacks router_temperature"),
    "temperatures of other layers": (edit_config(router_temperature=[1.0]), "lacks router_temperature .*one a layer"),
    "a temperature of 0 in one layer": (edit_config(router_temperature=[1.0, 0]), "lacks router_temperature"),
    "an infinite temperature": (edit_config(router_temperature=float("inf")), "lacks router_temperature"),
    "no temperature": (edit_config(router_temperature=None), "lacks router_temperature"),
    "a temperature of truth": (edit_config(router_temperature=True), "lacks router_temperature"),
    "importance of 0": (edit_config(expert_importance=[0.5, 0.5, 0]), "lacks expert_importance .above 0, one number"),
    "importance of two": (edit_config(expert_importance=[0.5, 0.5]), r"expert_importance .*it has \[0.5, 0.5\]"),
    "importance as text": (edit_config(expert_importance="even"), "lacks expert_importance"),
    "an importance beyond floats": (edit_config(expert_importance=[1, 1, 10**400]), "a whole number of 401 digits"),
    "a bias of one layer": (edit_config(router_bias=[[0.0, 0.0, 0.0]]), "lacks router_bias .of each layer, one"),
    "a bias that is NaN": (edit_config(router_bias=[[0.0, 0.0, float("nan")]] * 2), "lacks router_bias"),
    "a bias for two": (edit_config(router_bias=[[0.0, 0.0]] * 2), "lacks router_bias"),
    "a weight of 0": (edit_config(expert_weights=[1.0, 0.0, 1.0]), "lacks expert_weights .other than 0"),
    "two weights": (edit_config(expert_weights=[1.0, 2.0]), "lacks expert_weights"),
    "a norm that is no truth": (edit_config(post_norm="yes"), "lacks post_norm .true or false.; it has .yes."),
    "one λ": (edit_config(output_calibration=[0.6], output_calibration_width=4), "lacks output_calibration .two"),
    "a λ below 0": (edit_config(output_calibration=[0.6, -1], output_calibration_width=4), "lacks output_calibration"),
    "a λ without width": (edit_config(output_calibration=[0.6, 0.4]), "lacks output_calibration"),
    "no ranks": (edit_config(expert_ranks={"gate": [1, 1, 1]}), "lacks expert_ranks"),
    "ranks for other experts": (
        edit_config(expert_ranks={"gate": [1, 1], "up": [1], "down": [1]}),
        "lacks expert_ranks",
    ),
    "no base": (edit_config(text_config=None), "lacks text_config"),
    "an unknown base": (edit_config(text_config={"model_type": "gpt2"}), "lacks text_config .a model of llama"),
    "fewer experts than factors": (edit_config(expert_names=["a", "b"]), "lacks expert_ranks"),
    "a missing tensor": (edit_tensors(lambda t: t.pop(KEY)), rf"missing_keys.*{KEY}"),
    "a strange tensor": (edit_tensors(lambda t: t.update(x=torch.ones(1))), "unexpected_keys': .'x'"),
    "another shape": (
        edit_tensors(lambda t: t.update({KEY: torch.ones(9, 15)})),
        rf"1 of another shape .{KEY} .9, 15., not",
    ),
    "NaN": (edit_tensors(lambda t: t[KEY][0].fill_(float("nan"))), rf"16 NaN or infinite values in {KEY}"),
    "truncated": (cut, "truncated"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
}


def test_every_setting_of_the_routing_is_opened(fused_folder: Path) -> None:
    plain = open_fused(fused_folder)[0].config
    assert (plain.temperatures, plain.biases, plain.negated) == ([1.0, 1.0], None, [])
    edit_config(
        router_temperature=[0.5, 2],
        expert_importance=[0.5, 0.25, 0.25],
        router_bias=[[0, 1.5, -1], [0, 0, 0]],
        expert_weights=[1, -1, 0.5],
        post_norm=False,
    )(fused_folder)
    config = open_fused(fused_folder)[0].config
    assert config.temperatures == [0.5, 2]
    assert config.negated == ["harmless"]
    quarter, half = math.log(0.25), math.log(0.5)
    assert config.biases == [[half, quarter + 1.5, quarter - 1], [half, quarter, quarter]]


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(name: str, fused_folder: Path) -> None:
    damage, message = DAMAGES[name]
    damage(fused_folder)
    with pytest.raises(InputError, match=message) as caught:
        open_fused(fused_folder)
    assert str(fused_folder) in str(caught.value)


def test_models_can_be_checked_without_loading_them(base_folder: Path, fused_folder: Path, tmp_path: Path) -> None:
    expert = random_experts(random_base("llama"))[0]
    write_adapter(expert, tmp_path / "good", str(base_folder))
    write_adapter(TaskVector("helpful", expert.parts, "f" * 64), tmp_path / "alien", str(base_folder))
    for folder in (base_folder, fused_folder, tmp_path / "good"):
        check_model(folder, settings(base_folder))
    with pytest.raises(InputError, match="absent does not exist"):
        check_model(tmp_path / "absent", settings(base_folder))
    with pytest.raises(InputError, match="was trained on other base weights"):
        check_model(tmp_path / "alien", settings(base_folder))
    for name in ("NaN", "truncated", "k above E"):
        folder = save(open_fused(fused_folder)[0], tmp_path / name)
        damage, message = DAMAGES[name]
        damage(folder)
        with pytest.raises(InputError, match=message):
            check_model(folder, settings(base_folder))
    cut(base_folder)
    with pytest.raises(InputError, match="truncated"):
        check_model(base_folder, settings(base_folder))
