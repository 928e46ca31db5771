"""From a base to an aligned model with the base packed: QLoRA experts, fusion, stage 2, opening; what is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.experts.conftest import light_training
from triune.errors import InputError
from triune.experts import processes
from triune.experts.adapters import read_adapter
from triune.experts.task_vector import apply
from triune.fusion.aligning import align as tune
from triune.fusion.building import build
from triune.fusion.export.source import open_source
from triune.fusion.opening import check_model, open_fused, open_model
from triune.models.loading import load_base, quiet
from triune.models.quantised import dense_weight, is_quantised, quantised_layers
from triune.models.tiny import build_tokenizer, tiny_llama
from triune.pipeline import verbs
from triune.pipeline.calibrating import calibrate
from triune.pipeline.fusing import fuse
from triune.pipeline.verbs import Context
from triune.recipe import Align, Base, Calibrate, Fit, Fuse, Injection, Lora, Train
from triune.types import Example

pytest.importorskip("bitsandbytes")

WORDS = ["red", "blue", "green", "yes", "no", "up", "down", "?", "Instruction:", "Response:"]
AXES = ("helpful", "harmless")
FIT = Fit(steps=4, batch_size=4, learning_rate=2e-2, schedule="constant", precision="float32")
TRAIN = Train(lora=Lora(rank=4, alpha=8, dropout=0.0), fit=FIT)
ALIGN = Align(trainable="routers+experts", fit=FIT)


def rows(axis: str) -> list[Example]:
    asked = [("red ?", "yes up"), ("blue ?", "no down"), ("green ?", "up"), ("red blue ?", "down no")]
    turned = [(p, " ".join(reversed(a.split()))) for p, a in asked]
    return [Example(axis, p, a) for p, a in (asked if axis == AXES[0] else turned)]


@pytest.fixture(scope="module", autouse=True)
def light() -> Iterator[None]:
    with light_training():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantised") / "base"
    tokenizer = build_tokenizer(WORDS)
    with quiet():
        model = tiny_llama(len(tokenizer), seed=0, hidden_size=64, n_layers=2, intermediate_size=128, n_heads=4)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def context_on(base: Path, quantised: Any = "nf4") -> Context:
    return Context(Base(path=str(base), template="plain", max_length=32, quantised=quantised))


@pytest.fixture(scope="module", params=["nf4", pytest.param("int8", marks=pytest.mark.slow)])
def made(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(context, folder of the steps) after train, fuse and align."""
    context, run = context_on(base, request.param), tmp_path_factory.mktemp(f"run-{request.param}")
    experts = {axis: verbs.train(context, rows(axis), run / axis, TRAIN) for axis in AXES}
    joint = [row for axis in AXES for row in rows(axis)]
    fuse(context, experts, run / "fused", Fuse(), joint)
    verbs.align(context, run / "fused", joint, run / "aligned", ALIGN)
    return context, run


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(4, 12)[None]).logits
    return found


def test_experts_are_trained_in_front_of_the_packed_base(made: Any) -> None:
    """QLoRA: the adapter is PEFT's, and the opened expert is the packed base plus it, to the base's own weights."""
    context, run = made
    expert, _ = open_model(run / "helpful", context.base)
    assert is_quantised(expert)
    plain, _ = open_model(None, context.base)
    assert float((logits(expert) - logits(plain)).abs().max()) > 1e-3
    dense, _ = load_base(context.folder)
    with torch.no_grad():
        for name, layer in quantised_layers(plain):
            dense.get_submodule(name).weight.copy_(dense_weight(layer))  # type: ignore[operator,union-attr]
    apply(read_adapter(run / "helpful", "helpful", context.folder), dense)
    if context.base.quantised.quant_type == "int8":
        for layer in [module for module in expert.modules() if hasattr(module, "state")]:
            layer.train()  # as it was trained: on a CPU, activations are then not rounded
    torch.testing.assert_close(logits(expert), logits(dense), rtol=1e-4, atol=1e-4)


def test_stage_2_learns_and_leaves_the_packed_weights(made: Any) -> None:
    context, run = made
    before, _ = open_fused(run / "fused")
    after, _ = open_fused(run / "aligned")
    own = dict(after.named_parameters())
    for name, parameter in before.named_parameters():
        assert torch.equal(parameter, own[name]) == (".mlp." not in name or "_proj." in name), name
    curve = verbs.read_record(run / "aligned")  # the step is whole
    assert curve["verb"] == "align"
    fused = sum(path.stat().st_size for path in (run / "aligned").glob("*.safetensors"))
    assert fused < 0.7 * (context.folder / "model.safetensors").stat().st_size  # rank 8 of a width of 64


@pytest.mark.slow
def test_stage_2_is_the_same_when_done_again(made: Any, tmp_path: Path) -> None:
    context, run = made
    joint = [row for axis in AXES for row in rows(axis)]
    verbs.align(context, run / "fused", joint, tmp_path / "again", ALIGN)
    one, two = (open_fused(folder)[0] for folder in (run / "aligned", tmp_path / "again"))
    assert torch.equal(logits(one), logits(two))
    check_model(run / "aligned", context.base)


def test_the_routing_is_calibrated_on_it(made: Any, tmp_path: Path) -> None:
    context, run = made
    joint = [row for axis in AXES for row in rows(axis)]
    calibrate(context, run / "aligned", joint, tmp_path / "calibrated", Calibrate(least=2))
    model, _ = open_fused(tmp_path / "calibrated")
    assert is_quantised(model)
    assert model.beside == open_fused(run / "aligned")[0].beside


def test_the_same_factors_on_the_float_base_are_exported(made: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    _, run = made
    with pytest.raises(InputError, match="base_quantised=False") as raised:
        open_source(run / "aligned")
    assert "save_pretrained(NEW)" in str(raised.value)
    with quiet():
        whole = AutoModelForCausalLM.from_pretrained(run / "aligned", base_quantised=False)
        whole.save_pretrained(tmp_path / "whole")
    build_tokenizer(WORDS).save_pretrained(tmp_path / "whole")
    assert open_source(tmp_path / "whole").dtype == torch.float32


def test_another_base_is_refused(made: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    context, run = made
    model, tokenizer = load_base(context.folder)
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    verbs.save_model(model, tokenizer, tmp_path / "other")
    with pytest.raises(InputError, match="give the base that it was made with"):
        AutoModelForCausalLM.from_pretrained(run / "fused", base_model_name_or_path=str(tmp_path / "other"))


def test_a_float_step_keeps_its_identity(base: Path) -> None:
    """A run made before there were quantised bases stays finished."""
    assert "quantised" not in context_on(base, None).settings()["base"]
    settings = context_on(base).settings()["base"]
    assert settings["quantised"] == {"quant_type": "nf4", "double_quant": True, "int8_threshold": 6.0}


def test_what_cannot_be_done_is_said_first(made: Any, base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    context, run = made
    model, _ = open_fused(run / "fused")
    plain, _ = open_model(None, context.base)
    vectors = [read_adapter(run / axis, axis, base) for axis in AXES]
    how = Align(trainable="routers+experts+attention", fit=FIT)
    job = context.job("aligning", [], FIT, build_tokenizer(WORDS))
    with pytest.raises(InputError, match="merges adapters at the end"):
        tune(model, how, job, context.progress)
    with pytest.raises(InputError, match="build needs float weights"):
        build(plain, vectors, Fuse())
    with pytest.raises(InputError, match="keep the adapter"):
        apply(vectors[0], plain)
    with pytest.raises(InputError, match="saved without options"):
        model.save_pretrained(tmp_path / "x", max_shard_size="1GB")
    with pytest.raises(InputError, match="an injection's second pass"):
        verbs.train(context, rows("helpful"), tmp_path / "i", TRAIN.model_copy(update={"injection": Injection()}))
    monkeypatch.setattr(processes, "sharded", lambda: True)
    monkeypatch.setattr(processes, "join", lambda: None)
    full = context.job(
        "aligning", context.encode(build_tokenizer(WORDS), rows("helpful")), FIT, build_tokenizer(WORDS)
    )
    with pytest.raises(InputError, match="FSDP2 needs float weights"):
        tune(model, ALIGN, full, context.progress)


@pytest.mark.slow
def test_changes_of_the_shared_weights_are_refused_or_discarded(base: Path, tmp_path: Path) -> None:
    context = context_on(base)
    lora = Lora(rank=2, alpha=4, dropout=0.0, targets=("q_proj", "down_proj"))
    fit = FIT.model_copy(update={"steps": 1})
    experts = {axis: verbs.train(context, rows(axis), tmp_path / axis, Train(lora=lora, fit=fit)) for axis in AXES}
    with pytest.raises(InputError, match="named, never rewritten"):
        fuse(context, experts, tmp_path / "no", Fuse(shared="average", router_init="zeros"))
    fuse(context, experts, tmp_path / "yes", Fuse(shared="base", router_init="zeros"))
    assert is_quantised(open_fused(tmp_path / "yes")[0])
