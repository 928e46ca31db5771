"""TrinityX's importance: worked by hand, against dense float64 loops, at its limits, and where it is undefined."""

import math
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.fusion.conftest import random_base, random_experts
from triune.errors import InputError
from triune.experts import lowrank, task_vector
from triune.experts.lowrank import LowRank
from triune.experts.task_vector import TaskVector
from triune.fusion.importance import (
    SIMILARITIES,
    Weighing,
    cosine,
    find_reference,
    inner,
    inner_products,
    reference_shares,
    weigh,
)
from triune.method_settings import Importance

F64 = torch.float64
AXES = ("helpful", "harmless", "honest")
NAME = "model.layers.0.mlp.up_proj"


def gram_of(*vectors: list[float]) -> Tensor:
    rows = torch.tensor(vectors, dtype=F64)
    return rows @ rows.T


def line(axis: str, *entries: float) -> TaskVector:
    """A task vector of one row in a feed-forward matrix."""
    return TaskVector(axis, {NAME: LowRank(torch.ones(1, 1, dtype=F64), torch.tensor([entries], dtype=F64))})


def test_a_hand_worked_value() -> None:
    # T = (1, 0) and (0, 2), whose mean is (1/2, 1).
    gram = gram_of([1, 0], [0, 2])
    found = weigh(gram, ("a", "b"), Importance(similarity="inner"))
    assert found.similarities == (0.5, 2.0)
    assert found.importance == pytest.approx((1 / (1 + math.exp(1.5)), 1 / (1 + math.exp(-1.5))), rel=1e-15)
    found = weigh(gram, ("a", "b"), Importance(temperature=0.5))
    assert found.similarities == pytest.approx((1 / math.sqrt(5), 2 / math.sqrt(5)), rel=1e-15)
    assert found.importance[1] == pytest.approx(1 / (1 + math.exp(-2 / math.sqrt(5))), rel=1e-15)
    assert not found.equal
    # The reference is (0, 2) itself, or (3, 4), which is supplied.
    assert weigh(gram, ("a", "b"), Importance(reference="b")).similarities == (0.0, 1.0)
    supplied = weigh(gram_of([1, 0], [0, 2], [3, 4]), ("a", "b"), Importance(reference="a/folder"))
    assert supplied.similarities == pytest.approx((0.6, 0.8), rel=1e-15)
    assert sum(supplied.importance) == pytest.approx(1, rel=1e-15)


def dense(vector: TaskVector, n_in: dict[str, tuple[int, ...]]) -> Tensor:
    """The feed-forward changes of a vector, zeros where it has none, as one row."""
    rows = []
    for name, shape in n_in.items():
        module = name.removesuffix(".weight")
        change = torch.zeros(shape, dtype=F64)
        if module in vector.parts:
            change = vector.parts[module].b.double() @ vector.parts[module].a.double()
        elif name in vector.others:
            change = vector.others[name].double()
        rows.append(change.flatten())
    return torch.cat(rows)


@pytest.fixture
def experts() -> list[TaskVector]:
    """Experts that change different matrices, one densely, with attention and norms beside them."""
    found = random_experts(random_base("llama"))
    rng = torch.Generator().manual_seed(5)
    attention = {"model.layers.0.self_attn.q_proj": LowRank(torch.ones(16, 1, dtype=F64), torch.ones(1, 16).double())}
    others = {
        "model.layers.1.mlp.up_proj.weight": torch.randn(24, 16, generator=rng, dtype=F64),
        "model.norm.weight": torch.randn(16, generator=rng, dtype=F64),
    }
    found[0] = TaskVector("helpful", {**found[0].parts, **attention})
    found[2] = TaskVector("honest", found[2].parts, "", others)
    return found


def feed_forward_shapes() -> dict[str, tuple[int, ...]]:
    parameters = random_base("llama").named_parameters()
    return {name: tuple(p.shape) for name, p in parameters if ".mlp." in name}


@pytest.mark.parametrize("temperature", [0.3, 1.0, 50.0])
@pytest.mark.parametrize("reference", ["mean", "harmless", "supplied"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_against_dense_loops(experts: list[TaskVector], similarity: str, reference: str, temperature: float) -> None:
    experts = [experts[0], task_vector.negated(experts[1]), task_vector.scaled(experts[2], 0.25)]
    rng = torch.Generator().manual_seed(7)
    extra = TaskVector("x", {NAME: LowRank(torch.randn(24, 3, generator=rng), torch.randn(3, 16, generator=rng))})
    supplied = [extra] if reference == "supplied" else []
    shapes = feed_forward_shapes()
    rows = [dense(vector, shapes) for vector in experts]
    aim = {"mean": sum(rows) / 3, "harmless": rows[1], "supplied": dense(extra, shapes)}[reference]
    want = []
    for row in rows:
        total = math.fsum(float(x) * float(y) for x, y in zip(row, aim, strict=True))
        lengths = [math.sqrt(math.fsum(float(x) ** 2 for x in v)) for v in (row, aim)]
        want.append(total if similarity == "inner" else total / lengths[0] / lengths[1])
    raised = [math.exp((s - max(want)) / temperature) for s in want]
    settings = Importance(similarity=similarity, reference=reference, temperature=temperature)
    _, gram = inner_products([*experts, *supplied])
    found = weigh(gram, AXES, settings)
    assert found.similarities == pytest.approx(want, rel=1e-12, abs=1e-12)
    assert found.importance == pytest.approx([x / math.fsum(raised) for x in raised], rel=1e-11)


def test_inner_products_are_those_of_dense_arithmetic(experts: list[TaskVector]) -> None:
    whole, part = inner_products(experts)
    every = {name: tuple(p.shape) for name, p in random_base("llama").named_parameters()}
    for gram, shapes in ((whole, every), (part, feed_forward_shapes())):
        rows = torch.stack([dense(vector, shapes) for vector in experts])
        torch.testing.assert_close(gram, rows @ rows.T, rtol=1e-12, atol=1e-12)
    assert whole.dtype == part.dtype == F64
    for i, j in product(range(3), repeat=2):
        assert float(whole[i, j]) == pytest.approx(task_vector.inner(experts[i], experts[j]), rel=1e-12, abs=1e-12)


def test_what_is_shared_does_not_count(experts: list[TaskVector]) -> None:
    """A huge change of a norm, which no routing mixes, is none of an expert's importance."""
    much = TaskVector("honest", experts[2].parts, "", {**experts[2].others, "model.norm.weight": torch.ones(16) * 1e6})
    grams = [inner_products([*experts[:2], honest])[1] for honest in (experts[2], much)]
    assert weigh(grams[0], AXES, Importance()) == weigh(grams[1], AXES, Importance())


def test_no_dense_product_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowrank, "dense", lambda x: pytest.fail("a product was made dense"))
    rng = torch.Generator().manual_seed(0)
    # 10^12 entries as a matrix; a million numbers as factors.
    parts = [LowRank(torch.randn(10**6, 1, generator=rng), torch.randn(1, 10**6, generator=rng)) for _ in range(2)]
    _, gram = inner_products([TaskVector(axis, {NAME: part}) for axis, part in zip("ab", parts, strict=True)])
    assert float(gram[0, 0]) == pytest.approx(float(lowrank.squared_norm(lowrank.double(parts[0]))), rel=1e-9)


def test_rules_of_the_cosine() -> None:
    gram, shares = gram_of([1, 2, 0], [0, 3, -1], [5, 1, 1]), torch.tensor([0.0, 0.0, 1.0], dtype=F64)
    found = cosine(gram, shares)
    for factor in (1e-150, 3.0, 1e100):
        scale = torch.diag(torch.tensor([factor, 1, 1], dtype=F64))
        torch.testing.assert_close(cosine(scale @ gram @ scale, shares), found, rtol=1e-12, atol=0)
    turned = torch.diag(torch.tensor([-1, 1, 1], dtype=F64))
    torch.testing.assert_close(cosine(turned @ gram @ turned, shares), found * torch.tensor([-1.0, 1, 1]).double())
    torch.testing.assert_close(inner(turned @ gram @ turned, shares), inner(gram, shares) * turned.diagonal())
    assert float(found[2]) == 1
    assert cosine(gram_of([1, 0], [0, 0]), torch.tensor([1.0, 0.0], dtype=F64)).isnan().tolist() == [False, True]


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_equal_similarities_are_uniform_and_told(similarity: str) -> None:
    found = weigh(gram_of([1, 0, 0], [0, 1, 0], [0, 0, 1]), AXES, Importance(similarity=similarity))
    assert found.equal
    assert found.importance == pytest.approx([1 / 3] * 3, rel=1e-15)
    assert Weighing((0.0, 0.0), (0.5, 0.5)).equal
    assert not Weighing((0.0, 1e-9), (0.5, 0.5)).equal
    # Of two, whatever they are, the mean of equally long ones is as near to each.
    rows = torch.nn.functional.normalize(torch.randn(2, 99, dtype=F64, generator=torch.Generator().manual_seed(0)))
    assert weigh(rows @ rows.T, AXES[:2], Importance(similarity=similarity)).equal


def test_the_limits_of_the_temperature() -> None:
    gram = gram_of([1, 0], [1, 1], [0, 1])
    hot = weigh(gram, AXES, Importance(reference="helpful", temperature=1e12))
    assert hot.importance == pytest.approx([1 / 3] * 3, rel=1e-10)
    assert not hot.equal
    cold = weigh(gram, AXES, Importance(reference="helpful", temperature=1 / 700))
    assert cold.importance[0] == 1
    assert 0 < cold.importance[2] < 1e-300
    assert math.isfinite(math.log(cold.importance[2]))
    with pytest.raises(InputError, match=r"of 'honest' is 0 .* lies 1000 temperatures below .* of 0.00143 or more"):
        weigh(gram, AXES, Importance(reference="helpful", temperature=1e-3))


def test_an_inner_product_over_many_coordinates_is_refused_where_it_saturates() -> None:
    long = LowRank(torch.ones(4000, 1), torch.ones(1, 4000))
    vectors = [TaskVector("a", {NAME: long}), TaskVector("b", {NAME: lowrank.scaled(long, 0.5)})]
    _, gram = inner_products(vectors)
    message = r"importance of 'b' is 0 in float64: its similarity 6e\+06 .*similarity=cosine, or a .*of 8\.57e\+03 or"
    with pytest.raises(InputError, match=message):
        weigh(gram, ("a", "b"), Importance(similarity="inner"))
    assert weigh(gram, ("a", "b"), Importance(similarity="inner", temperature=8.58e3)).importance[1] > 0
    assert weigh(gram, ("a", "b"), Importance()).equal


HALF = gram_of([1, 0], [-1, 0], [0, 0])
FAULTS: dict[str, tuple[Tensor, Importance, str]] = {
    "a zero task vector": (
        gram_of([1, 0], [0, 0]),
        Importance(),
        r"\['b'\] change no feed-forward .*undefined; leave",
    ),
    "experts that cancel": (
        gram_of([1, 2], [-1, -2]),
        Importance(),
        r"cancel each other: their mean has the norm 0, they have up to 2\.24, .*choose another reference",
    ),
    "experts that nearly cancel": (gram_of([1, 2], [-1, -2 + 1e-8]), Importance(), "cancel each other: their mean"),
    "a zero reference": (HALF, Importance(reference="x/y"), "the reference 'x/y' changes no feed-forward matrix"),
    "a zero expert as reference": (gram_of([1], [0]), Importance(reference="b"), r"\['b'\] change no feed-forward"),
    "NaN": (gram_of([1, 0], [math.nan, 1]), Importance(), "inner products are not finite"),
    "infinite products": (gram_of([1, 0], [1e200, 1]), Importance(similarity="inner"), "are not finite"),
    "a temperature that divides to infinity": (
        gram_of([1e100, 0], [1, 0]),
        Importance(similarity="inner", temperature=1e-200),
        "which are not all finite; choose a larger fuse.importance.temperature",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_undefined_is_refused(name: str) -> None:
    gram, settings, message = FAULTS[name]
    with pytest.raises(InputError, match=message):
        weigh(gram, ("a", "b"), settings)


def test_an_inner_product_is_defined_where_a_cosine_is_not() -> None:
    for gram in (gram_of([1, 0], [0, 0]), gram_of([1, 2], [-1, -2])):
        assert sum(weigh(gram, ("a", "b"), Importance(similarity="inner")).importance) == pytest.approx(1)


def test_references_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "honest").mkdir()
    assert find_reference(None, AXES) is None
    for name in ("mean", *AXES):  # an expert of that name, whatever folders there are
        assert find_reference(Importance(reference=name), AXES) is None
    assert find_reference(Importance(reference="./honest"), AXES) == Path("honest")
    message = r"reference is 'kind', which is no folder; allowed: mean, helpful, harmless, honest, or the folder"
    with pytest.raises(InputError, match=message):
        find_reference(Importance(reference="kind"), AXES)
    assert reference_shares("mean", AXES, 3).tolist() == pytest.approx([1 / 3] * 3)
    assert reference_shares("harmless", AXES, 3).tolist() == [0, 1, 0]
    assert reference_shares("./honest", AXES, 4).tolist() == [0, 0, 0, 1]
