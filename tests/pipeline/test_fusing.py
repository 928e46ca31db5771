"""The verb fuse over adapters and full fine-tunes: what it writes, says, and never does."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.folders import names
from tests.fusion.conftest import random_base, random_experts
from tests.fusion.test_building import with_attention
from tests.fusion.test_opening import save
from triune import pipeline
from triune.errors import InputError
from triune.experts import lowrank, task_vector
from triune.experts.adapters import write_adapter
from triune.experts.task_vector import TaskVector
from triune.fusion import building
from triune.fusion.opening import open_fused, open_model
from triune.fusion.router_init import feed_forward_inputs
from triune.models.loading import load_base
from triune.models.rows import encode_examples
from triune.models.store import hash_weights
from triune.pipeline import Context
from triune.progress import Advance
from triune.recipe import Align, Base, Fit, Fuse, Importance
from triune.types import Example

AXES = ("helpful", "harmless", "honest")
ROWS = [Example(axis, f"word{i} word{i + 1}", f"word{i + 2}") for i, axis in enumerate(AXES * 4)]


class Listener:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Advance]:
        def advance(steps: int = 1, note: str = "") -> None: ...

        yield advance

    def say(self, text: str) -> None:
        self.said.append(text)


def context(base: Path, progress: Any = None) -> Context:
    return Context(Base(path=str(base), template="plain", max_length=32), progress=progress or Listener())


def dense(vector: TaskVector) -> dict[str, Tensor]:
    """Everything that a vector changes, as matrices by parameter."""
    low = {f"{name}.weight": lowrank.dense(part).double() for name, part in vector.parts.items()}
    return low | {name: change.double() for name, change in vector.others.items()}


@pytest.fixture
def world(tmp_path: Path) -> tuple[Path, dict[str, Path], list[TaskVector]]:
    """A base; an adapter with attention, a full fine-tune of everything, a full fine-tune of its matrices."""
    stored = random_base("llama-bias")
    base = save(stored, tmp_path / "base")
    vectors = [with_attention(stored)[0], *random_experts(stored)[1:]]
    rng = torch.Generator().manual_seed(2)
    others = {
        "model.norm.weight": torch.randn(16, generator=rng),
        "lm_head.weight": torch.randn(40, 16, generator=rng),
    }
    vectors[1] = TaskVector("harmless", vectors[1].parts, "", others)
    write_adapter(TaskVector("helpful", vectors[0].parts, hash_weights(base)), tmp_path / "helpful", "base")
    for vector in vectors[1:]:
        model = random_base("llama-bias")
        task_vector.apply(vector, model)
        save(model, tmp_path / vector.axis)
    return base, {axis: tmp_path / axis for axis in AXES}, vectors


World = tuple[Path, dict[str, Path], list[TaskVector]]


def test_experts_of_every_make_in_one_model(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (base, folders, vectors), tokens = world, torch.arange(3, 30).view(3, 9)
    monkeypatch.setattr(Context, "load", lambda self: pytest.fail("the base was loaded"))
    settings = Fuse(shared="harmless", router_init="zeros", svd_error=0.0)
    out = pipeline.fuse(context(base), folders, tmp_path / "out", settings)
    fused, tokenizer = open_fused(out)
    assert tokenizer("word3")["input_ids"] == [7]
    assert not any(mixture.router.weight.any() for mixture in fused.mixtures())
    shared = TaskVector("harmless", {}, "", vectors[1].others)
    for index, vector in enumerate(vectors):
        want = random_base("llama-bias")
        for part in (task_vector.halves(vector)[0], shared):
            task_vector.apply(part, want)
        with torch.no_grad(), fused.fixed_routing(torch.eye(3)[index]):
            torch.testing.assert_close(fused(tokens).logits, want(tokens).logits, rtol=1e-4, atol=1e-4)
    alone, _ = open_model(folders["harmless"], Base(path=str(base)))
    with torch.no_grad(), fused.fixed_routing(torch.eye(3)[1]):
        torch.testing.assert_close(fused(tokens).logits, alone(tokens).logits, rtol=1e-4, atol=1e-4)
    assert [name for name in names(out) if "scratch" in name or ".draft" in name] == []


def test_the_account_is_that_of_dense_arithmetic(world: World, tmp_path: Path) -> None:
    base, folders, vectors = world
    listener = Listener()
    settings = Fuse(shared="average", router_init="zeros", svd_error=0.2)
    out = pipeline.fuse(context(base, listener), folders, tmp_path / "out", settings)
    told = json.loads((out / "fusion.json").read_text())
    own = [dense(vector) for vector in vectors]
    every = sorted({name for changes in own for name in changes})
    zero = {name: torch.zeros_like(random_base("llama-bias").get_parameter(name)).double() for name in every}
    flat = [torch.cat([(zero | changes)[name].flatten() for name in every]) for changes in own]
    for vector, vector_flat in zip(vectors, flat, strict=True):
        assert told["experts"][vector.axis]["norm"] == pytest.approx(vector_flat.norm().item(), rel=1e-5)
    for (i, one), (j, other) in (((0, "helpful"), (1, "harmless")), ((1, "harmless"), (2, "honest"))):
        cosine = (flat[i] @ flat[j] / flat[i].norm() / flat[j].norm()).item()
        assert told["cosines"][f"{one}, {other}"] == pytest.approx(cosine, rel=1e-4, abs=1e-6)
    outside = [name for name in every if ".mlp." not in name]
    mean = {name: sum((zero | changes)[name] for changes in own) / 3 for name in outside}
    total = 0.0
    for vector, changes, vector_flat in zip(vectors, own, flat, strict=True):
        lost = sum(((zero | changes)[name] - mean[name]).square().sum().item() for name in outside)
        expert = told["experts"][vector.axis]
        assert expert["discarded_norm"] == pytest.approx(lost**0.5, rel=1e-5)
        assert expert["discarded_share"] == pytest.approx(lost**0.5 / vector_flat.norm().item(), rel=1e-5)
        total += lost
    assert told["discarded_norm"] == pytest.approx(total**0.5, rel=1e-5)
    assert told["shared"] == "average"
    (line,) = [text for text in listener.said if "discards" in text]
    assert f"shared=average discards a norm of {total**0.5:.4g}: helpful " in line
    assert all(f"{axis} " in line for axis in AXES)
    assert line.count(" of its whole norm)") == 3


def test_what_became_of_a_full_fine_tunes_matrices_is_written_and_said(world: World, tmp_path: Path) -> None:
    base, folders, vectors = world
    listener = Listener()
    settings = Fuse(shared="base", router_init="zeros", svd_error=0.6)
    out = pipeline.fuse(context(base, listener), folders, tmp_path / "out", settings)
    told = json.loads((out / "fusion.json").read_text())["experts"]
    fused, _ = open_fused(out)
    assert "matrices" not in told["helpful"]
    for index, vector in enumerate(vectors[1:], 1):
        expert = told[vector.axis]
        assert expert["matrices"].keys() == vector.parts.keys()
        assert expert["svd_error"] == 0.6
        lost = whole = 0.0
        layers = building.layer_factors(fused, index)
        for name, part in vector.parts.items():
            row = expert["matrices"][name]
            place = ("gate_proj", "up_proj", "down_proj").index(name.rsplit(".", 1)[-1])
            stored = lowrank.dense(layers[int(name.split(".")[2])][place]).double()
            apart, size = (stored - lowrank.dense(part)).norm().item(), lowrank.dense(part).norm().item()
            assert row["error"] <= 0.6
            assert apart / size == pytest.approx(row["error"], rel=1e-3, abs=1e-5)
            assert row["rank"] <= part.rank
            assert not row["whole"]
            lost, whole = lost + apart**2, whole + size**2
        assert expert["error"] == pytest.approx((lost / whole) ** 0.5, rel=1e-3)
        assert expert["whole"] == 0
        assert 0.1 < expert["error"] < 0.6
        (line,) = [text for text in listener.said if text.startswith(f"  {vector.axis}: ")]
        assert f"{len(vector.parts)} matrices of rank" in line
        assert "0 kept whole; relative error 0." in line
        assert "(allowed in each matrix: 0.6)" in line


@pytest.mark.parametrize("how", ["means", "random"])
def test_routers_start_as_in_memory(how: str, world: World, tmp_path: Path) -> None:
    base, folders, vectors = world
    only = {axis: folders[axis] for axis in ("helpful", "honest")}
    settings = Fuse(router_init=how, shared="average")
    rows = [row for row in ROWS if row.axis in only]
    out = pipeline.fuse(context(base), only, tmp_path / "out", settings, rows)
    model, tokenizer = load_base(base)
    seen = []
    if how == "means":
        encoded = encode_examples(tokenizer, rows, "plain", 32)
        seen = feed_forward_inputs(model, encoded, list(only), 0)
    want = building.build(model, [vectors[0], vectors[2]], settings)
    building.start_routers(want, how, seen, torch.Generator().manual_seed(0))
    got, _ = open_fused(out)
    for mine, theirs in zip(got.mixtures(), want.mixtures(), strict=True):
        assert mine.router.weight.any()
        # The rows are shuffled, and sums of them rounded.
        torch.testing.assert_close(mine.router.weight, theirs.router.weight, rtol=1e-4, atol=1e-4)


def test_a_second_call_is_skipped_and_another_error_is_another_step(world: World, tmp_path: Path) -> None:
    base, folders, _ = world
    settings = Fuse(shared="average", router_init="zeros")
    listener = Listener()
    for wanted in (settings, settings, settings.model_copy(update={"svd_error": 0.0})):
        pipeline.fuse(context(base, listener), folders, tmp_path / "out", wanted)
    assert [text for text in listener.said if "skipped" in text] == [f"{tmp_path / 'out'}: finished before, skipped"]
    assert (tmp_path / ".superseded" / "out-1" / "fusion.json").is_file()


FEED_FORWARD = [f"layers.{i}.mlp.{name}_proj.weight" for i in (0, 1) for name in ("gate", "up", "down")]


def feed_forward(vector: TaskVector) -> Tensor:
    """A vector's changes of the feed-forward matrices, as one row."""
    own = {name.removeprefix("model."): change for name, change in dense(vector).items()}
    shapes = {name.removeprefix("model."): p.shape for name, p in random_base("llama-bias").named_parameters()}
    return torch.cat([own.get(name, torch.zeros(shapes[name])).double().flatten() for name in FEED_FORWARD])


@pytest.mark.parametrize("reference", ["mean", "honest", "an adapter", "a full fine-tune"])
def test_importance_of_what_is_fused(reference: str, world: World, tmp_path: Path) -> None:
    base, folders, vectors = world
    listener = Listener()
    rows = [feed_forward(vector) * factor for vector, factor in zip(vectors, (1, -1, 0.5), strict=True)]
    supplied = {"an adapter": 0, "a full fine-tune": 1}  # as they are: the weights are the experts'
    if reference in supplied:
        aim, reference = feed_forward(vectors[supplied[reference]]), str(folders[AXES[supplied[reference]]])
    else:
        aim = sum(rows) / 3 if reference == "mean" else rows[2]
    importance = Importance(reference=reference, temperature=2)
    settings = Fuse(
        shared="average",
        router_init="zeros",
        importance=importance,
        weights={"harmless": -1, "honest": 0.5},
        allow_negated=True,
        svd_error=0.0,
    )
    out = pipeline.fuse(context(base, listener), folders, tmp_path / "out", settings)
    told = json.loads((out / "fusion.json").read_text())
    cosines = torch.stack([row @ aim / row.norm() / aim.norm() for row in rows])
    assert list(told["similarities"].values()) == pytest.approx(cosines.tolist(), rel=1e-5, abs=1e-6)
    assert list(told["importance"].values()) == pytest.approx((cosines / 2).softmax(0).tolist(), rel=1e-5)
    assert told["importance_settings"] == importance.model_dump()
    assert told["weights"] == {"helpful": 1, "harmless": -1, "honest": 0.5}
    assert told["experts"]["honest"]["norm"] == pytest.approx(task_vector.norm(vectors[2]) / 2, rel=1e-5)
    fused, _ = open_fused(out)
    assert fused.config.expert_importance == list(told["importance"].values())
    assert fused.config.expert_weights == [1, -1, 0.5]
    (line,) = [text for text in listener.said if "importance" in text]
    start = (
        f"  importance by cosine to {importance.reference}, τ = 2: helpful {told['importance']['helpful']:.3g} (sim"
    )
    assert line.startswith(start)
    assert "  subtracted: harmless; README.md beside the model says so" in listener.said
    assert "The expert 'harmless' (weight -1) was subtracted" in (out / "README.md").read_text()
    record = json.loads((out / "record.json").read_text())
    assert ("reference" in record["inputs"]) == (reference not in ("mean", "honest"))


def test_a_negated_expert_alone_is_the_base_minus_it(world: World, tmp_path: Path) -> None:
    (base, folders, vectors), tokens = world, torch.arange(3, 30).view(3, 9)
    settings = Fuse(
        shared="honest",
        router_init="zeros",
        svd_error=0.0,
        weights={"helpful": -2.0, "honest": -1.0},
        allow_negated=True,
    )
    fused, _ = open_fused(pipeline.fuse(context(base), folders, tmp_path / "out", settings))
    for index, factor in ((0, -2.0), (2, -1.0)):
        want = random_base("llama-bias")
        task_vector.apply(task_vector.halves(vectors[index])[0], want, factor)
        task_vector.apply(task_vector.halves(vectors[2])[1], want, -1.0)
        with torch.no_grad(), fused.fixed_routing(torch.eye(3)[index]):
            torch.testing.assert_close(fused(tokens).logits, want(tokens).logits, rtol=1e-4, atol=1e-4)


def test_equal_experts_are_told_that_importance_changes_nothing(world: World, tmp_path: Path) -> None:
    base, folders, _ = world
    listener = Listener()
    twice = {"one": folders["helpful"], "two": folders["helpful"]}
    settings = Fuse(shared="base", router_init="zeros", importance=Importance())
    out = pipeline.fuse(context(base, listener), twice, tmp_path / "out", settings)
    assert json.loads((out / "fusion.json").read_text())["importance"] == {"one": 0.5, "two": 0.5}
    assert [
        text for text in listener.said if text.endswith("the similarities are equal, so importance changes nothing")
    ]
    assert not (out / "README.md").exists()


def test_aligning_keeps_the_warning(world: World, tmp_path: Path) -> None:
    base, folders, _ = world
    settings = Fuse(shared="base", router_init="zeros", weights={"harmless": -1}, allow_negated=True)
    start = pipeline.fuse(context(base), folders, tmp_path / "out", settings)
    tuned = pipeline.align(context(base), start, ROWS, tmp_path / "tuned", Align(fit=Fit(steps=1, batch_size=4)))
    assert (tuned / "README.md").read_bytes() == (start / "README.md").read_bytes()
    assert open_fused(tuned)[0].config.negated == ["harmless"]


def other_base(folders: dict[str, Path]) -> None:
    """A reference that says, by its hash, that it was trained on other weights."""
    expert = random_experts(random_base("llama-bias"))[0]
    write_adapter(TaskVector("x", expert.parts, "f" * 64), folders["honest"].parent / "other", "base")


def other_shapes(folders: dict[str, Path]) -> None:
    part = lowrank.LowRank(torch.ones(20, 1), torch.ones(1, 16))
    vector = TaskVector("x", {"model.layers.0.mlp.up_proj": part})
    write_adapter(vector, folders["honest"].parent / "other", "base")


def only_attention(folders: dict[str, Path]) -> None:
    part = lowrank.LowRank(torch.ones(16, 1), torch.ones(1, 16))
    vector = TaskVector("x", {"model.layers.0.self_attn.q_proj": part})
    write_adapter(vector, folders["honest"].parent / "other", "base")


def referring(to: str) -> Fuse:
    return Fuse(router_init="zeros", shared="base", importance=Importance(reference=to))


def remove_norm(folders: dict[str, Path]) -> None:
    for path in folders["harmless"].glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-10])


FAULTS: dict[str, tuple[Any, Fuse, str]] = {
    "shared changes are refused by default": (
        lambda folders: None,
        Fuse(router_init="zeros"),
        r"expert 'helpful' changes 2 parameters outside .*q_proj.*choose fuse.shared",
    ),
    "an unknown choice": (lambda folders: None, Fuse(router_init="zeros", shared="mean"), "shared='mean'; allowed"),
    "a truncated fine-tune": (remove_norm, Fuse(router_init="zeros", shared="base"), "truncated"),
    "a folder that is no expert": (
        lambda folders: folders.update(honest=folders["honest"].parent / "base" / "config.json"),
        Fuse(router_init="zeros", shared="base"),
        "config.json is a file; give a folder with a PEFT adapter, or with a full fine-tune",
    ),
    "a weight of nobody": (
        lambda folders: None,
        Fuse(router_init="zeros", shared="base", weights={"kind": 2}),
        r"fuse.weights names \['kind'\], which are no experts",
    ),
    "a negated expert without the word": (
        lambda folders: None,
        Fuse(router_init="zeros", shared="base", weights={"honest": -1}),
        r"\['honest'\] are below 0, .*fuse.allow_negated",
    ),
    "a reference that is nothing": (
        lambda folders: None,
        referring("kind"),
        "fuse.importance.reference is 'kind', which is no folder; allowed: mean, helpful",
    ),
    "a reference of another base": (
        other_base,
        referring("OTHER"),
        "'fuse.importance.reference' was trained on other base weights",
    ),
    "a reference of other shapes": (
        other_shapes,
        referring("OTHER"),
        r"other changes 'model.layers.0.mlp.up_proj' of shape \(20, 16\), but the base's is .* another base model",
    ),
    "a reference without a feed-forward matrix": (
        only_attention,
        referring("OTHER"),
        "the reference '.*' changes no feed-forward matrix, so no cosine with it; choose another",
    ),
    "the base itself as an expert": (
        lambda folders: folders.update(honest=folders["honest"].parent / "base"),
        Fuse(router_init="zeros", shared="base"),
        "'honest': all .* changes nothing",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_bad_input_leaves_nothing(name: str, world: World, tmp_path: Path) -> None:
    spoil, settings, message = FAULTS[name]
    base, folders, _ = world
    spoil(folders)
    if settings.importance is not None and settings.importance.reference == "OTHER":
        settings = referring(str(tmp_path / "other"))
    before = names(tmp_path)
    with pytest.raises(InputError, match=message):
        pipeline.fuse(context(base), folders, tmp_path / "out", settings)
    assert names(tmp_path) == before
