"""Two passes as one task vector: exact, re-compressed with the error that is said, and trained in that order."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from tests.experts import peft_adapters
from tests.experts.conftest import random_rows
from tests.fusion.conftest import random_base, random_experts
from tests.models.conftest import byte_level
from triune.errors import InputError
from triune.experts import injection, lowrank, task_vector
from triune.experts.adapters import read_adapter, write_adapter
from triune.experts.fitting import Job
from triune.experts.injection import Passes, Trained, injected, joined, losses, merged, recompressed
from triune.experts.lowrank import LowRank
from triune.experts.task_vector import TaskVector
from triune.method_settings import INJECTED, injected_texts
from triune.models.encoding import Encoded
from triune.models.likelihood import answer_log_likelihoods
from triune.progress import SILENT
from triune.recipe import Fit, Injection, Lora, Recipe, Train
from triune.recipe_file import parse_recipe, settings_from
from triune.types import Example

F64 = torch.float64
UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"
EXAMPLE = Example("honest", "Is glass a liquid?", "No.", "truthfulqa", "physics")


def test_the_instruction_stands_before_the_prompt_alone() -> None:
    assert injected(EXAMPLE, "Be honest.") == replace(EXAMPLE, prompt="Be honest.\n\nIs glass a liquid?")


def test_examples_that_fit_both_ways_are_paired() -> None:
    tokenizer = byte_level()
    rows = [Example("a", "ask", "yes"), Example("a", "a" * 20, "yes"), Example("b", "ask", "yes")]
    pairs = injection.encode_both(tokenizer, rows, {"a": "Think", "b": "B" * 40}, "plain", 24)
    assert [(pair[0].axis, pair[1].axis) for pair in pairs] == [("a", "a")]
    plain, longer = pairs[0]
    assert tokenizer.decode(longer.input_ids[: longer.n_prompt]).endswith("Think\n\nask")
    assert plain.input_ids[plain.n_prompt :] == longer.input_ids[longer.n_prompt :]
    with pytest.raises(InputError, match="none of 3 examples fits in 4 tokens with the injected text"):
        injection.encode_both(tokenizer, rows, {"a": "Think", "b": "B"}, "plain", 4)


# The texts


def test_an_axis_has_its_own_text_before_the_built_in_one() -> None:
    found = injected_texts(Injection(texts={"honest": "No lies."}), ["helpful", "honest"])
    assert found == {"helpful": INJECTED["axis"]["helpful"], "honest": "No lies."}
    thought = Injection.model_validate({"style": "chain_of_thought", "texts": {"honest": "No lies."}})
    assert injected_texts(thought, ["anything", "honest"]) == {
        "anything": INJECTED["chain_of_thought"][""],
        "honest": "No lies.",
    }
    assert set(INJECTED["axis"]) == {"helpful", "harmless", "honest"}


def recipe(**train: Any) -> Recipe:
    axes = {name: {"train": {"source": "x"}, "test": {"source": "x"}} for name in ("helpful", "curious")}
    content = {"base": {"path": "x"}, "axes": axes, "evaluate": [{"kind": "nll"}], **train}
    return Recipe.model_validate(content)


def test_an_axis_without_a_text_is_named() -> None:
    with pytest.raises(InputError, match=r"no text for \['curious'\].*set injection.texts.curious"):
        injected_texts(Injection(), ["helpful", "curious"])
    for place in ({"train": {"injection": {}}}, {"scarce": {"mixture": {"injection": {}}}}):
        with pytest.raises(ValueError, match=r"(train|scarce.mixture): injection has no text for \['curious'\]"):
            recipe(**place)
    with pytest.raises(ValueError, match=r"mixture.injection.texts names \['honest'\], which are not axes"):
        recipe(mixture={"injection": {"style": "chain_of_thought", "texts": {"honest": "x"}}})
    with pytest.raises(ValueError, match=r"instruct\.injection is set"):
        recipe(instruct={"injection": {}})
    with pytest.raises(ValueError, match="pattern"):
        Injection(texts={"honest": " "})
    assert recipe(train={"injection": {"texts": {"curious": "Ask."}}}).train.injection is not None


def test_the_settings_come_from_yaml_and_the_command_line() -> None:
    assert settings_from(Train, []).injection is None
    found = settings_from(Train, ["injection.style=chain_of_thought", "injection.fit.steps=7", "injection.rank=4"])
    assert found.injection == Injection(style="chain_of_thought", fit=Fit(steps=7), rank=4)
    with pytest.raises(InputError, match="the nearest known one is 'style'"):
        settings_from(Train, ["injection.styles=axis"])
    text = "base: {path: x}\naxes: {helpful: {train: {source: x}, test: {source: x}}, honest: {train: {source: x}, "
    text += "test: {source: x}}}\nevaluate: [{kind: nll}]\ntrain: {injection: {layer: 3}}\n"
    train = parse_recipe(text, "here").train
    assert train.injection is not None
    assert train.injection.layer == 3


# The merge


def vector(seed: int, ranks: tuple[int, int] = (2, 3), dtype: torch.dtype = F64) -> TaskVector:
    rng = torch.Generator().manual_seed(seed)
    parts = {}
    for (name, shape), rank in zip({UP: (24, 16), DOWN: (16, 24)}.items(), ranks, strict=True):
        b = torch.randn(shape[0], rank, generator=rng, dtype=dtype)
        parts[name] = LowRank(b, torch.randn(rank, shape[1], generator=rng, dtype=dtype))
    return TaskVector("a", parts)


def test_the_sum_is_exact_and_the_ranks_add() -> None:
    one, two = vector(0), replace(vector(1, (1, 1)), parts={UP: vector(1, (1, 1)).parts[UP]})
    found = merged(one, two)
    assert (found.errors, found.error) == ({}, 0.0)
    assert {name: part.rank for name, part in found.vector.parts.items()} == {UP: 3, DOWN: 3}
    dense = {name: lowrank.dense(part) for name, part in found.vector.parts.items()}
    torch.testing.assert_close(
        dense[UP], lowrank.dense(one.parts[UP]) + lowrank.dense(two.parts[UP]), rtol=1e-12, atol=1e-12
    )
    assert torch.equal(dense[DOWN], lowrank.dense(one.parts[DOWN]))


def test_peft_computes_with_the_merged_adapter_what_both_passes_give(tmp_path: Path) -> None:
    base = peft_adapters.save_base(tmp_path / "base", "llama")
    peft_adapters.train(base, tmp_path / "one", seed=1, r=3)
    peft_adapters.train(base, tmp_path / "two", seed=2, r=2, use_rslora=True, target_modules=["up_proj", "q_proj"])
    one, two = (read_adapter(tmp_path / name, "a") for name in ("one", "two"))
    write_adapter(merged(one, two).vector, tmp_path / "merged", "base")
    with peft_adapters.unwarned(), torch.no_grad():
        # As pass 2 was trained: on the base with pass 1 in its weights.
        first = PeftModel.from_pretrained(
            peft_adapters.load_base64(base), str(tmp_path / "one"), autocast_adapter_dtype=False
        ).merge_and_unload()
        both = PeftModel.from_pretrained(first, str(tmp_path / "two"), autocast_adapter_dtype=False)
        wanted = both.eval()(peft_adapters.TOKENS).logits
    found = peft_adapters.pefts_logits(base, tmp_path / "merged")
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(peft_adapters.our_logits(base, tmp_path / "merged"), wanted, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(peft_adapters.pefts_logits(base, tmp_path / "one"), wanted, rtol=1e-3, atol=1e-3)


def test_what_recompression_loses_by_hand() -> None:
    four_three = LowRank(torch.tensor([[4.0, 0.0], [0.0, 3.0]], dtype=F64), torch.eye(2, dtype=F64))
    alone = LowRank(torch.tensor([[2.0], [0.0]], dtype=F64), torch.tensor([[0.0, 1.0]], dtype=F64))
    nothing = LowRank(torch.zeros(2, 2, dtype=F64), torch.ones(2, 2, dtype=F64))
    found = recompressed(TaskVector("a", {"x": four_three, "y": alone, "z": nothing}, "hash"), 1)
    assert found.errors == {"x": pytest.approx(0.6, rel=1e-12), "y": 0.0, "z": 0.0}
    assert found.error == pytest.approx((9 / 29) ** 0.5, rel=1e-12)
    assert {name: part.rank for name, part in found.vector.parts.items()} == {"x": 1, "y": 1, "z": 0}
    kept = lowrank.dense(found.vector.parts["x"])
    torch.testing.assert_close(kept, torch.tensor([[4.0, 0.0], [0.0, 0.0]], dtype=F64), rtol=1e-12, atol=1e-12)
    assert (found.vector.axis, found.vector.base_hash) == ("a", "hash")


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5, 6, 9])
def test_recompression_is_the_truncated_svd_of_the_dense_sum(rank: int) -> None:
    one, two = vector(0), vector(1)
    found, dense_lost, dense_whole = merged(one, two, rank), 0.0, 0.0
    for name, error in found.errors.items():
        dense = lowrank.dense(one.parts[name]) + lowrank.dense(two.parts[name])
        u, s, vh = torch.linalg.svd(dense, full_matrices=False)
        nearest = (u[:, :rank] * s[:rank]) @ vh[:rank]
        torch.testing.assert_close(lowrank.dense(found.vector.parts[name]), nearest, rtol=1e-10, atol=1e-10)
        own = one.parts[name].rank + two.parts[name].rank
        lost = float(s[rank:own].square().sum())
        assert error == pytest.approx((lost / float(dense.square().sum())) ** 0.5, rel=1e-12)
        assert found.vector.parts[name].rank == min(rank, own)
        dense_lost, dense_whole = dense_lost + lost, dense_whole + float(dense.square().sum())
    assert found.error == pytest.approx((dense_lost / dense_whole) ** 0.5, rel=1e-12)
    assert (found.error > 0) == (rank < 6)


def test_recompression_keeps_the_dtype_and_refuses_what_it_cannot() -> None:
    found = recompressed(vector(0, dtype=torch.float32), 1)
    assert {factor.dtype for part in found.vector.parts.values() for factor in (part.a, part.b)} == {torch.float32}
    nothing = recompressed(TaskVector("a", {}), 1)
    assert (dict(nothing.vector.parts), nothing.errors, nothing.error) == ({}, {}, 0.0)
    for strange, rank in ((vector(0), 0), (TaskVector("a", {}, others={"norm": torch.ones(2)}), 1)):
        with pytest.raises(InputError, match="wanted is a rank of at least 1 and low-rank changes alone"):
            recompressed(strange, rank)


# The training

PLAIN = random_rows(8)
LONGER = [replace(row, input_ids=(7, 8, 9, *row.input_ids), n_prompt=row.n_prompt + 3) for row in PLAIN]
PAIRS = list(zip(PLAIN, LONGER, strict=True))
LORA = Lora(rank=3, alpha=6, dropout=0.0)


def nll(model: Any, rows: list[Encoded]) -> float:
    sums, counts = answer_log_likelihoods(model, rows, batch_size=3, pad_id=0)
    return float(-(sums / counts).mean())


def test_losses_are_means_over_examples_of_some_rows() -> None:
    model = random_base("llama")
    found = losses(model, PAIRS, 0)
    assert found == {
        "n": 8,
        "plain": pytest.approx(nll(model, PLAIN), rel=1e-6),
        "injected": pytest.approx(nll(model, LONGER), rel=1e-6),
    }
    many = [pair for pair in PAIRS for _ in range(50)]
    assert losses(model, many, 0) == {
        "n": 200,
        **{name: pytest.approx(found[name], rel=1e-6) for name in ("plain", "injected")},
    }
    nothing = losses(model, [], 0)
    assert nothing["n"] == 0
    assert nothing["plain"] != nothing["plain"]


def test_the_curves_of_both_passes_are_one() -> None:
    found = joined([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}], [{"step": 1, "loss": 3.0, "part": 0.5}])
    assert found == [
        {"step": 1, "pass": 1, "loss": 2.0},
        {"step": 2, "pass": 1, "loss": 1.0},
        {"step": 3, "pass": 2, "loss": 3.0, "part": 0.5},
    ]
    assert joined([], []) == []


def trained(model: Any, rank: int | None = None, steps: int = 12) -> Trained:
    fit = Fit(steps=steps, batch_size=4, learning_rate=0.1)
    passes = Passes("honest", Job("one", PLAIN, fit, 0, 0), Job("two", LONGER, fit, 1, 0), PAIRS)
    return injection.train_injected(model, LORA, passes, rank, SILENT)


@pytest.mark.parametrize("rank", [None, 4])
def test_both_passes_train_and_the_model_ends_as_the_merged_expert(rank: int | None, tmp_path: Path) -> None:
    model = random_base("llama")
    found = trained(model, rank)
    assert [row["pass"] for row in found.curve] == [1] * 12 + [2] * 12
    assert [row["step"] for row in found.curve] == list(range(1, 25))
    assert set(found.losses) == {"base", "first", "merged"}
    assert found.losses["base"]["plain"] == pytest.approx(nll(random_base("llama"), PLAIN), rel=1e-6)
    assert found.losses["first"]["plain"] < found.losses["base"]["plain"] - 0.1
    assert found.losses["merged"]["injected"] < found.losses["first"]["injected"] - 0.04
    assert {part.rank for part in found.merged.vector.parts.values()} == {rank or 6}
    assert (0 < found.merged.error < 1) == (rank is not None)

    write_adapter(found.merged.vector, tmp_path, "base")
    with peft_adapters.unwarned():
        loaded = PeftModel.from_pretrained(random_base("llama"), str(tmp_path))
    tokens = peft_adapters.TOKENS
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, loaded.eval()(tokens).logits, rtol=1e-4, atol=1e-4)
    assert found.losses["merged"]["plain"] == pytest.approx(nll(loaded, PLAIN), rel=1e-4)


def test_the_second_pass_is_a_second_lora_on_top_of_the_first() -> None:
    """Its gradient at the start is that of base + T_1: by hand, one training after the other."""
    found = trained(random_base("llama"), steps=3)
    model = random_base("llama")
    task_vector.apply(found.first, model)
    fit = Fit(steps=3, batch_size=4, learning_rate=0.1)
    again, _ = injection._train(model, LORA, Job("two", LONGER, fit, 1, 0), "honest", SILENT)
    alone, _ = injection._train(random_base("llama"), LORA, Job("two", LONGER, fit, 1, 0), "honest", SILENT)
    for name, part in found.second.parts.items():
        assert torch.equal(part.a, again.parts[name].a)
        assert torch.equal(part.b, again.parts[name].b)
        assert not torch.equal(part.b, alone.parts[name].b)
        # Another seed, so that the two begin with other A.
        assert not torch.allclose(part.a, found.first.parts[name].a, atol=0.05)


def test_a_fingerprint_is_of_names_and_numbers() -> None:
    one = random_experts(random_base("llama"))[0]
    assert injection.fingerprint(one) == injection.fingerprint(TaskVector("b", dict(reversed(one.parts.items()))))
    name = next(iter(one.parts))
    part = one.parts[name]
    for other in (LowRank(part.b * 1.0001, part.a), LowRank(part.b, -part.a), LowRank(part.b.float(), part.a.float())):
        assert injection.fingerprint(TaskVector("a", {**one.parts, name: other})) != injection.fingerprint(one)


def test_checkpoints_of_the_second_pass_belong_to_the_first_passs_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """On another machine the same first pass may end with other last digits."""
    jobs: list[Job] = []
    one, other, second = vector(0), vector(1), vector(2)

    def train(first: TaskVector) -> Any:
        def step(_model: Any, _lora: Lora, job: Job, *_rest: Any) -> Any:
            jobs.append(job)
            return (first if job.title == "one" else second), []

        return step

    monkeypatch.setattr(task_vector, "apply", lambda *_args: None)
    for first in (one, one, other):
        monkeypatch.setattr(injection, "_train", train(first))
        passes = Passes("a", Job("one", PLAIN, Fit(), 0, 0, identity="i"), Job("two", PLAIN, Fit(), 1, 0), PAIRS)
        injection.train_injected(random_base("llama"), LORA, passes, None, SILENT)
    assert {job.identity for job in jobs if job.title == "one"} == {"i"}
    again = [job.identity for job in jobs if job.title == "two"]
    assert again[0] == again[1] != again[2]
