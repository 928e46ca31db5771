"""Reading a fused folder for export: what it gives, and what is refused before anything is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.fusion.conftest import random_base, random_experts
from tests.fusion.export.conftest import configure, fused_of, strong_experts, with_post_norm
from triune.errors import InputError
from triune.experts.lowrank import dense
from triune.fusion.building import build
from triune.fusion.export.source import Options, open_source
from triune.models.carrying import CARRIED, carry
from triune.models.store import hash_weights
from triune.recipe import Fuse

Save = Callable[..., Path]
FACTOR = "model.layers.1.mlp.up_b"
ROUTER = "model.layers.0.mlp.router.weight"


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_factors_are_the_experts_increments(fused_folder: Save) -> None:
    source = open_source(fused_folder(ranks=(1, 5, 3)))
    base = random_base("llama")
    experts = strong_experts(base, (1, 5, 3), torch.Generator().manual_seed(3))
    for layer in range(2):
        for which in ("gate", "up", "down"):
            assert source.ranks(which) == (1, 5, 3)
            for expert, found in zip(experts, source.factors(layer, which), strict=True):
                wanted = expert.parts[f"model.layers.{layer}.mlp.{which}_proj"]
                assert found.shape == wanted.shape
                assert torch.allclose(dense(found).double(), dense(wanted), atol=1e-6)


def test_an_expert_that_leaves_a_matrix_alone_has_no_increment_there(tmp_path: Path) -> None:
    base = random_base("llama")
    build(base, random_experts(base), Fuse()).save_pretrained(tmp_path)
    source = open_source(tmp_path)
    assert source.ranks("up")[2] == 0  # honest
    assert not dense(source.factors(0, "up")[2]).any()
    assert dense(source.factors(0, "gate")[2]).any()


def test_tensors_are_the_saved_ones_and_bases_keep_their_keys(fused_folder: Save) -> None:
    folder = fused_folder("mistral", dtype=torch.bfloat16)
    source = open_source(folder)
    stored = load_file(folder / "model.safetensors")
    assert set(source.infos) == set(stored)
    assert all(torch.equal(source.tensor(name), stored[name]) for name in stored)
    assert set(source.base_names()) == set(random_base("mistral").state_dict())
    assert (source.n_experts, source.dtype, source.router(0).dtype) == (3, torch.bfloat16, torch.float32)
    assert source.record == {}


def test_a_sharded_folder_is_read_as_well(tmp_path: Path) -> None:
    model = fused_of(random_base("llama"))
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="5KB")
    many = open_source(tmp_path / "many")
    assert len(set(many.files.values())) > 2
    assert all(torch.equal(many.tensor(name), open_source(tmp_path / "one").tensor(name)) for name in many.infos)


def test_carry_copies_what_stands_beside_the_weights(fused_folder: Save, tmp_path: Path) -> None:
    folder = fused_folder()
    for name in CARRIED:
        (folder / name).write_text(f"this is {name}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (tmp_path / "out").mkdir()
    carry(open_source(folder).folder, tmp_path / "out")
    found = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == {*CARRIED, "additional_chat_templates/tools.jinja"}
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "this is tokenizer.json"


def test_options_keep_the_stored_dtype_by_default() -> None:
    assert Options() == Options(dtype=None, max_shard_bytes=5_000_000_000, base="")


def nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[FACTOR][0, :3] = torch.nan


def infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors[ROUTER][1, 2] = -torch.inf


def another_width(tensors: dict[str, torch.Tensor]) -> None:
    tensors[FACTOR] = torch.ones(7, 25)


def another_rank(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.mlp.down_a"] = torch.ones(6, 24)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (nan, rf"3 NaN or infinite values in {FACTOR}"),
        (infinite, rf"1 NaN or infinite values in {ROUTER}"),
        (lambda tensors: tensors.pop(FACTOR), rf"1 missing \({FACTOR}\)"),
        (lambda tensors: tensors.pop("model.norm.weight"), r"1 missing \(model.norm.weight\)"),
        (lambda tensors: tensors.update(more=torch.ones(2)), r"1 unexpected \(more\)"),
        (another_width, rf"1 of another shape \({FACTOR} \(7, 25\), not \(7, 24\)\)"),
        (another_rank, r"model.layers.0.mlp.down_a \(6, 24\), not \(7, 24\)"),
    ],
)
def test_unsound_weights_are_refused_by_name(
    fused_folder: Save, edit: Callable[[dict[str, torch.Tensor]], Any], says: str
) -> None:
    folder = fused_folder()
    change(folder, edit)
    with pytest.raises(InputError, match=says):
        open_source(folder)


def empty_factors(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.endswith(("_a", "_b"))]:
        tensors[name] = tensors[name][:0]


def test_a_model_whose_experts_change_nothing_is_refused(fused_folder: Save) -> None:
    folder = configure(fused_folder(), expert_ranks={which: [0, 0, 0] for which in ("gate", "up", "down")})
    change(folder, empty_factors)
    with pytest.raises(InputError, match="all ranks are 0, so every expert is the base itself"):
        open_source(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_experts_per_tok": 4}, r"num_experts_per_tok=4 with 3 experts.*allowed: 1 to 3"),
        ({"num_experts_per_tok": 0}, r"num_experts_per_tok=0 with 3 experts"),
        ({"num_experts_per_tok": "two"}, r"num_experts_per_tok='two'"),
        ({"num_experts_per_tok": True}, r"num_experts_per_tok=True"),
        (
            {"expert_ranks": {which: [0, 0, 0] for which in ("gate", "up", "down")}},
            r"12 of another shape \(model.layers.0.mlp.down_a",
        ),
        ({"expert_ranks": {"gate": [1, 1, 1], "up": [1, -1, 1], "down": [1, 1, 1]}}, "expert_ranks"),
        ({"expert_ranks": {"gate": [1, 1], "up": [1, 1, 1], "down": [1, 1, 1]}}, "expert_ranks"),
        ({"expert_ranks": {"gate": 2, "up": 2, "down": 2}}, "expert_ranks"),
        ({"expert_ranks": None}, "expert_ranks"),
        ({"router_temperature": 0}, "router_temperature"),
        ({"text_config": {"model_type": "gpt2"}}, "text_config"),
        ({"text_config": None}, "text_config"),
        ({"text_config": {"model_type": "llama", "hidden_size": "wide"}}, "hidden_size"),
        ({"model_type": "llama"}, "holds no fused model"),
    ],
)
def test_unsound_configurations_are_refused(fused_folder: Save, changes: dict[str, Any], says: str) -> None:
    folder = fused_folder()
    configure(folder, **changes)
    with pytest.raises(InputError, match=says):
        open_source(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"router_temperature": [1.0]},
        {"router_temperature": [1.0, 0.0]},
        {"router_temperature": -1.0},
        {"expert_importance": [0.5, 0.5]},
        {"expert_importance": [0.5, 0.5, 0.0]},
        {"router_bias": [[0.0, 0.0, 0.0]]},
        {"router_bias": [[0.0, 0.0], [0.0, 0.0]]},
        {"router_bias": [[0.0, float("inf"), 0.0]] * 2},
    ],
)
def test_unsound_calibrations_are_refused_by_name(fused_folder: Save, changes: dict[str, Any]) -> None:
    folder = configure(fused_folder(), **changes)
    with pytest.raises(InputError, match=f"config.json lacks {next(iter(changes))}"):
        open_source(folder)


@pytest.mark.parametrize(
    ("changes", "added"),
    [
        ({}, []),
        ({"expert_importance": [1 / 3, 1 / 3, 1 / 3]}, []),
        ({"expert_importance": [0.3, 0.3, 0.4]}, ["expert_importance"]),
        ({"router_bias": [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]}, []),
        ({"router_bias": [[1.0, 1.0, 1.0], [2.0, 2.0, 1.0]]}, ["router_bias"]),
        ({"expert_importance": [1.0, 2.0, 2.0], "router_bias": [[0.0, 0.0, 0.0]] * 2}, ["expert_importance"]),
        (
            {"expert_importance": [1.0, 2.0, 2.0], "router_bias": [[0.0, 0.0, 1.0]] * 2},
            ["expert_importance", "router_bias"],
        ),
    ],
)
def test_constants_that_differ_between_experts_are_named(
    fused_folder: Save, changes: dict[str, Any], added: list[str]
) -> None:
    assert open_source(configure(fused_folder(), **changes)).added == added


def test_a_layer_norm_is_the_mixtures(tmp_path: Path) -> None:
    with_post_norm(fused_of(random_base("llama"))).save_pretrained(tmp_path)
    source = open_source(tmp_path)
    assert "model.layers.1.mlp.post_norm.bias" in source.infos
    assert not any("post_norm" in name for name in source.base_names())


def test_folders_without_a_whole_fused_model_are_refused(fused_folder: Save, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_source(tmp_path / "nothing")
    random_base("llama").save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match="holds no fused model"):
        open_source(tmp_path / "base")
    folder = fused_folder()
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-20])
    with pytest.raises(InputError, match="truncated"):
        open_source(folder)
    (folder / "model.safetensors").write_bytes(whole)


def test_reading_changes_nothing(fused_folder: Save) -> None:
    folder = fused_folder()
    before = hash_weights(folder)
    source = open_source(folder)
    source.factors(0, "gate")[0].a.zero_()
    source.tensor("model.norm.weight").zero_()
    assert hash_weights(folder) == before
    assert AutoModelForCausalLM.from_pretrained(folder).config.num_experts == 3
