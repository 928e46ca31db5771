"""Axis collapse of tiny experts: every number is that of its formula on that model and those rows."""

import json
import math
import random
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.baselines.tiny_experts import random_model, save_experts, save_fine_tune, settings
from triune.diagnose import collapse
from triune.diagnose.collapse import (
    ALL,
    BASE,
    OWN,
    Collapse,
    Judged,
    Look,
    Subjects,
    collapse_content,
    measure_collapse,
    open_folders,
)
from triune.diagnose.probing import hold
from triune.diagnose.reliability import routing_reliability
from triune.diagnose.routing import routing_weights
from triune.errors import InputError
from triune.experts.adapters import read_adapter
from triune.fusion.building import build
from triune.fusion.opening import open_model
from triune.metrics.intervals import Measure
from triune.metrics.representation import by_prompt, cka
from triune.metrics.routing import misrouting_score
from triune.metrics.separation import distances, silhouette
from triune.models.encoding import pad_id
from triune.models.likelihood import answer_log_likelihoods, hidden_states
from triune.models.tiny import build_tokenizer, tiny_llama
from triune.recipe import Base, Fuse
from triune.record import write_json
from triune.types import Example

AXES = ("helpful", "harmless", "honest")


def examples(n: int = 8) -> list[Example]:
    """`n` rows an axis; the last one has the prompt of the first."""
    rng = random.Random(0)

    def words(least: int) -> str:
        return " ".join(f"w{rng.randrange(30)}" for _ in range(rng.randint(least, 5)))

    rows = [Example(axis, words(2), words(1)) for _ in range(n) for axis in AXES]
    return [*rows[:-3], *(replace(new, prompt=old.prompt) for new, old in zip(rows[-3:], rows[:3], strict=True))]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collapse")
    save_experts(folder)
    tuned = torch.full((16, 24), 0.05)
    save_fine_tune(folder / "whole", folder / "base", **{"model.layers.1.mlp.down_proj.weight": tuned})
    return folder


@pytest.fixture(scope="module")
def base(root: Path) -> Base:
    return settings(root)


@pytest.fixture(scope="module")
def subjects(root: Path, base: Base) -> Subjects:
    experts = {axis: root / "experts" / axis for axis in AXES}
    vectors = [read_adapter(folder, axis, root / "base") for axis, folder in experts.items()]

    def fused() -> Any:
        model = build(random_model(), vectors, Fuse(temperature=0.5))
        rng = torch.Generator().manual_seed(3)
        for mixture in model.mixtures():
            torch.nn.init.normal_(mixture.router.weight, generator=rng)
        return model, open_model(None, base)[1]

    return replace(open_folders(base, {**experts, "whole": root / "whole"}), fused=fused)


@pytest.fixture(scope="module")
def found(subjects: Subjects, base: Base) -> Collapse:
    return measure_collapse(subjects, examples(), base, Look(batch_size=5, rank=3), np.random.default_rng(0))


def slow(subjects: Subjects, base: Base) -> Mapping[str, tuple[torch.Tensor, list[torch.Tensor]]]:
    """NLL and states of every model, by the functions of the room of models."""
    result = {}
    for name, opened in {BASE: subjects.base, **subjects.experts}.items():
        model, tokenizer = opened()
        rows, pad = hold(tokenizer, examples(), base).rows, pad_id(tokenizer)
        sums, counts = answer_log_likelihoods(model, rows, batch_size=64, pad_id=pad)
        states = [hidden_states(model, rows, batch_size=64, pad_id=pad, layer=layer) for layer in (1, 2)]
        result[name] = (-sums / counts, states)
    return result


def test_shape(found: Collapse) -> None:
    assert found.axes == AXES
    assert found.experts == (*AXES, "whole")
    assert found.n_layers == 2
    assert found.n_prompts == (7, 7, 7)
    assert found.n_left_out == 0
    assert found.score is None
    # Ten pairs of five models, on all rows and on each axis's; three pairs of axes, under the base and their own.
    assert len(found.likeness) == 10 * 4 * 2
    assert len(found.angles) == 3 * 2 * 2
    assert len(found.separation) == 2 * 2 * 2


def test_every_number_is_its_formulas(found: Collapse, subjects: Subjects, base: Base) -> None:
    models, rows = slow(subjects, base), examples()
    own = {axis: [i for i, row in enumerate(rows) if row.axis == axis] for axis in AXES}
    prompts = [row.prompt for row in rows]
    for i, trained in enumerate(found.experts):
        for j, axis in enumerate(AXES):
            difference = (models[trained][0] - models[BASE][0])[own[axis]].mean()
            assert found.loss.cells[i][j].value == pytest.approx(float(difference), rel=1e-3, abs=1e-5)
            assert found.loss.cells[i][j].n == 8
    for row in found.likeness:
        places = list(range(len(rows))) if row.rows == ALL else own[row.rows]
        x, y = (
            by_prompt(models[name][1][row.layer - 1][places], [prompts[i] for i in places])
            for name in (row.one, row.other)
        )
        assert row.cka.value == pytest.approx(cka(x, y), rel=1e-3)
        assert row.cka.n == (21 if row.rows == ALL else 7)
    for part in found.separation:
        features = [
            by_prompt(
                models[a if part.states == OWN else BASE][1][part.layer - 1][own[a]], [prompts[i] for i in own[a]]
            )
            for a in AXES
        ]
        labels = [axis for axis in AXES for _ in range(7)]
        expected = silhouette(distances(torch.cat(features), part.metric), labels)
        assert part.silhouette.value == pytest.approx(expected.value, rel=1e-3, abs=1e-5)
    assert {angle.pair.ranks for angle in found.angles} == {(3, 3)}


def test_experts_that_do_nothing_forget_nothing(subjects: Subjects, base: Base) -> None:
    idle = Subjects(subjects.base, dict.fromkeys(AXES, subjects.base))
    found = measure_collapse(idle, examples(), base, Look(), np.random.default_rng(0))
    assert all(cell.value == 0.0 for row in found.loss.cells for cell in row)
    assert all(row.cka.value == pytest.approx(1.0) for row in found.likeness)
    for one, other in zip(found.separation[:4], found.separation[4:], strict=True):
        assert (one.states, other.states) == (BASE, OWN)
        assert one.silhouette == other.silhouette
    assert found.routing is None


def test_one_model_at_a_time(subjects: Subjects, base: Base) -> None:
    alive: list[weakref.ref[Any]] = []

    def watched(opened: collapse.Open) -> collapse.Open:
        def wrapped() -> Any:
            assert [ref for ref in alive if ref() is not None] == []
            model, tokenizer = opened()
            alive.append(weakref.ref(model))
            return model, tokenizer

        return wrapped

    experts = {axis: watched(subjects.experts[axis]) for axis in AXES}
    measure_collapse(Subjects(watched(subjects.base), experts), examples(), base, Look(), np.random.default_rng(0))
    assert len(alive) == 4


def test_routing_is_the_fused_models(found: Collapse, subjects: Subjects, base: Base) -> None:
    assert found.routing is not None
    assert subjects.fused is not None
    model, tokenizer = subjects.fused()
    held = hold(tokenizer, examples(), base)
    weights = routing_weights(model, held.rows, pad_id(tokenizer))
    axis = torch.tensor([AXES.index(own) for own in held.axes])
    expected = misrouting_score(weights, axis, rng=np.random.default_rng(0))
    assert found.routing.misrouting.value == pytest.approx(expected.value)
    assert 0 < expected.value < 100
    assert {row["what"] for row in found.routing.calibration} == {"all layers", "whole rows"}
    assert {"ece", "brier", "accuracy"} <= {row["metric"] for row in found.routing.calibration}


def test_judged_answers_make_a_second_matrix(subjects: Subjects, base: Base) -> None:
    few = Subjects(subjects.base, {axis: subjects.experts[axis] for axis in AXES})
    before = {axis: [1, 0, 1, 1] for axis in AXES}
    after = {axis: {other: [1, 1, 1, 1] if other == axis else [0, 0, 1, 0] for other in AXES} for axis in AXES}
    judged = Judged(Measure("right", "higher", "%", "rule", scale=100.0), before, after)
    found = measure_collapse(few, examples(), base, Look(), np.random.default_rng(0), judged)
    assert found.score is not None
    assert [cell.value for cell in found.score.cells[0]] == [-25.0, 50.0, 50.0]
    content = collapse_content(found)
    assert content["score"]["off_diagonal"]["value"] == 50.0
    assert content["routing"] is None


def test_content_is_json(found: Collapse, tmp_path: Path) -> None:
    write_json(tmp_path / "collapse.json", collapse_content(found))
    content = json.loads((tmp_path / "collapse.json").read_text())
    assert content["axes"] == list(AXES)
    assert content["loss"]["cells"][0][1]["value"] == found.loss.cells[0][1].value
    row = content["angles"][0]
    assert (row["one"], row["other"], row["states"], row["layer"]) == ("helpful", "harmless", BASE, 1)
    assert 0 <= row["angle"] <= math.pi / 2
    assert len(row["angles"]) == 3
    assert content["routing"]["misrouting"]["unit"] == "%"
    assert content["separation"][0].keys() == {"states", "layer", "metric", "silhouette", "ratio"}


def test_refused_before_anything_is_opened(base: Base) -> None:
    def never() -> Any:
        raise AssertionError("a model was opened")

    three = dict.fromkeys(AXES, never)
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match=r"rows of \['honest'\] have no expert; the experts are \['helpful'"):
        measure_collapse(Subjects(never, {"helpful": never, "harmless": never}), examples(), base, Look(), rng)
    one = [row for row in examples() if row.axis == "honest"]
    with pytest.raises(InputError, match=r"there are rows of \['honest'\] alone"):
        measure_collapse(Subjects(never, three), one, base, Look(), rng)
    with pytest.raises(InputError, match=r"there are rows of \[\] alone"):
        measure_collapse(Subjects(never, three), [], base, Look(), rng)
    with pytest.raises(InputError, match="an expert is called 'base'"):
        measure_collapse(Subjects(never, {**three, BASE: never}), examples(), base, Look(), rng)


def test_refused_experts(subjects: Subjects, base: Base) -> None:
    rng, rows = np.random.default_rng(0), examples()
    model, tokenizer = subjects.base()

    def other(made: Any) -> Subjects:
        return Subjects(subjects.base, {**dict.fromkeys(AXES, subjects.base), "helpful": lambda: made})

    wide = tiny_llama(len(tokenizer), seed=0, hidden_size=32, n_layers=2, intermediate_size=24, n_heads=2)
    with pytest.raises(InputError, match="'helpful' has 2 layers of width 32, the base 2 of 16"):
        measure_collapse(other((wide, tokenizer)), rows, base, Look(), rng)
    strange = build_tokenizer([f"w{index}" for index in range(30)])
    with pytest.raises(InputError, match="the tokenizer of 'helpful' reads"):
        measure_collapse(other((model, strange)), rows, base, Look(), rng)
    held = hold(tokenizer, rows, base)
    with pytest.raises(InputError, match="the fused model is a LlamaForCausalLM"):
        routing_reliability(model, held, pad_id=0, batch_size=4, rng=rng)
    assert subjects.fused is not None
    fused = subjects.fused()[0]
    with pytest.raises(InputError, match=r"rows of \['polite'\]; the fused model's experts"):
        routing_reliability(fused, replace(held, axes=("polite",) * len(rows)), pad_id=0, batch_size=4, rng=rng)


def test_an_axis_none_of_whose_rows_fit_is_refused(subjects: Subjects, base: Base) -> None:
    rows = [row if row.axis != "honest" else replace(row, prompt=" ".join(["w1"] * 99)) for row in examples()]
    with pytest.raises(InputError, match=r"no row of \['honest'\] fits in 64 tokens"):
        measure_collapse(subjects, rows, base, Look(), np.random.default_rng(0))
