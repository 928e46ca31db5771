"""Training in several processes is training in one: the same curve, the same weights, the same checkpoints."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.experts import distributed_cases as cases
from tests.experts.conftest import random_rows
from triune.errors import InputError
from triune.experts import processes, sharding
from triune.experts.fitting import Curve, Job, answer_objective, fit
from triune.experts.training_arguments import training_arguments
from triune.fusion import losses
from triune.progress import SILENT
from triune.recipe import Fit

ROOT = Path(__file__).parents[2]
# Sums of the same float64 numbers in another order, through six steps of AdamW: 2e-16 seen.
ROUNDING = 1e-12
SINGLE = 1e-6  # Trainer adds up the loss in float32: 1.2e-7 seen
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
Result = tuple[dict[str, Tensor], Curve]


def together(out: Path, names: list[str], n_processes: int = 2, **environment: str) -> list[dict[str, Result]]:
    """The cases' results, by process."""
    command = [sys.executable, "-m", "tests.experts.distributed_cases", str(out), str(n_processes), *names]
    own = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, env=own, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [
        {
            name: (load_file(out / f"{name}-{rank}.st"), json.loads((out / f"{name}-{rank}.json").read_text()))
            for name in names
            if not name.endswith(":stopped")
        }
        for rank in range(n_processes)
    ]


def assert_close(one: Result, other: Result, tolerance: float = ROUNDING) -> None:
    assert one[0].keys() == other[0].keys()
    assert [row.keys() for row in one[1]] == [row.keys() for row in other[1]]
    for row, another in zip(one[1], other[1], strict=True):
        assert row == pytest.approx(another, rel=max(tolerance, SINGLE), abs=max(tolerance, SINGLE))
    for name, tensor in one[0].items():
        torch.testing.assert_close(tensor, other[0][name], rtol=tolerance, atol=tolerance)


def assert_same(one: Result, other: Result) -> None:
    assert one[1] == other[1]
    assert all(torch.equal(tensor, other[0][name]) for name, tensor in one[0].items())


def moved(result: Result) -> bool:
    start = cases.fused().state_dict()
    return any((tensor - start[name]).abs().max() > 1e-3 for name, tensor in result[0].items())


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    first, second = together(tmp_path, ["uneven", "adapter"])
    for name, alone in {"uneven": cases.aligned("uneven"), "adapter": cases.adapted()}.items():
        assert_same(first[name], second[name])
        assert_close(first[name], alone)
    assert moved(first["uneven"])


@pytest.mark.slow
def test_every_case_is_what_one_process_does(tmp_path: Path) -> None:
    names = [name for name in cases.CASES if name != "narrow"]
    first, second = together(tmp_path, [*names, "narrow", "factors:resumed", "adapter:dropout"])
    for name in names:
        assert_same(first[name], second[name])
        assert_close(first[name], cases.aligned(name))
    assert_close(first["packed"], cases.aligned("factors"))  # and as if it had not been packed
    assert_close(first["narrow"], cases.aligned("narrow"), 5e-2)
    assert_same(first["factors:resumed"], first["factors"])
    assert_same(first["adapter:dropout"], second["adapter:dropout"])


@pytest.mark.slow
def test_three_processes_and_a_last_batch_for_one(tmp_path: Path) -> None:
    found = together(tmp_path, ["thirds"], 3)
    assert_close(found[0]["thirds"], cases.aligned("thirds"))
    assert_same(found[1]["thirds"], found[2]["thirds"])


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, SHARDED], ids=["whole", "sharded"])
def test_one_process_goes_on_from_the_checkpoint_of_two(tmp_path: Path, environment: dict[str, str]) -> None:
    together(tmp_path, ["factors:stopped"], **environment)
    resumed = cases.aligned("factors", tmp_path / "factors-place", save_every=1)
    assert_close(resumed, cases.aligned("factors"))


@pytest.mark.slow
def test_a_sharded_model_trains_saves_and_resumes_as_a_whole_one(tmp_path: Path) -> None:
    names = ["routers", "factors", "uneven", "accumulated", "recomputed", "packed", "attention"]
    first, second = together(tmp_path, [*names, "narrow", "factors:resumed", "adapter"], **SHARDED)
    for name in names:
        assert_same(first[name], second[name])
        assert_close(first[name], cases.aligned(name))
    assert_close(first["narrow"], cases.aligned("narrow"), 5e-2)
    assert_close(first["factors:resumed"], first["factors"], 1e-12)
    assert_close(first["adapter"], cases.adapted())
    for rank in range(2):
        shares = json.loads((tmp_path / f"shares-{rank}.json").read_text())
        # Three experts make a router of three rows and stacks of seven: two and four here, one and three there.
        assert len(shares) > 50
        assert 0.3 < min(shares) <= max(shares) < 0.7


# The parts, without processes


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Makes this process one of several, as far as it can tell."""

    def become(rank: int, world: int) -> None:
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}.items():
            monkeypatch.setenv(name, str(value))

    return become


def test_an_ordinary_program_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")  # a cluster's, without torchrun
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert (processes.world(), processes.rank(), processes.sharded()) == (1, 0, False)
    assert processes.share(7) == 7
    mean = torch.tensor([0.25])
    assert processes.whole_mean(mean, {"labels": torch.zeros(3, 4)}) is mean


@pytest.mark.parametrize("world", [1, 2, 3, 6])
@pytest.mark.parametrize("n_rows", [1, 5, 12, 13])
def test_the_order_does_not_depend_on_how_many_there_are(
    process: Callable[[int, int], None], world: int, n_rows: int
) -> None:
    whole = processes.whole_order(n_rows, 3, 1)
    assert sorted(whole) == list(range(n_rows))
    parts = []
    for rank in range(world):
        process(rank, world)
        parts.append(list(processes.SharedBatches(n_rows, 6, 3, lambda: 1)))
        assert len(processes.SharedBatches(n_rows, 6, 3, lambda: 1)) == len(parts[-1])
    assert [[row for part in batch for row in part] for batch in zip(*parts, strict=True)] == [
        whole[begin : begin + 6] for begin in range(0, n_rows, 6)
    ]
    assert max(len(batch) for part in parts for batch in part) <= 6 // world


def test_the_order_is_the_one_that_a_single_process_goes_through() -> None:
    rows, seen = random_rows(7, shortest=8), []

    def objective(model: Any, batch: dict[str, Tensor]) -> Any:
        seen.append(
            [
                next(i for i, own in enumerate(rows) if own.input_ids == _ids(row, mask))
                for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
            ]
        )
        return answer_objective(model, batch)

    model = cases.fused().requires_grad_(False)
    model.mixtures()[0].router.weight.requires_grad_(True)
    fit(model, Job("training", rows, Fit(epochs=2, batch_size=3, learning_rate=1e-3), 5, 0), objective, SILENT)
    orders = [processes.whole_order(7, 5, epoch) for epoch in range(2)]
    assert orders[0] != orders[1]
    assert seen == [order[begin : begin + 3] for order in orders for begin in (0, 3, 6)]


def _ids(row: Tensor, mask: Tensor) -> tuple[int, ...]:
    return tuple(row[mask.bool()].tolist())


def test_a_process_without_rows_gets_one_that_does_not_count(process: Callable[[int, int], None]) -> None:
    process(1, 2)
    job = Job("training", random_rows(3), Fit(batch_size=2), 0, 0)
    batches = list(processes.shared_loader(job.collate, processes.SharedBatches(3, 2, 0, lambda: 0)))
    assert [processes.counted(batch) for batch in batches] == [1, 0]
    assert batches[1]["input_ids"].shape[0] == 1
    assert (batches[1]["labels"] == -100).all()


def test_a_batch_that_the_processes_do_not_divide_is_refused(
    process: Callable[[int, int], None], tmp_path: Path
) -> None:
    process(0, 3)
    with pytest.raises(InputError, match=r"batch_size is 32, which 3 processes do not divide.*multiple of 3"):
        training_arguments(Fit(), 0, str(tmp_path))


def test_the_first_version_of_fsdp_is_refused(
    process: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    process(0, 2)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(InputError, match="--fsdp_version 2"):
        processes.sharded()
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert processes.sharded()


def test_every_process_loads_whole_weights(
    process: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    process(1, 2)
    for name, value in {**SHARDED, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    processes.join()
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"


def test_other_work_is_refused_in_several_processes(process: Callable[[int, int], None]) -> None:
    processes.alone("triune fuse")
    process(0, 2)
    with pytest.raises(InputError, match="triune fuse runs in one process, and here are 2"):
        processes.alone("triune fuse")


def test_the_gradient_of_a_divergence_is_that_of_the_whole_batch(
    process: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three processes with 3, 1 and 0 rows: KL(mean routing ‖ q), from the definition and in parts."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, generator=rng, dtype=torch.float64, requires_grad=True)  # layers, rows, experts
    q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    whole = losses.routing_divergence(logits.softmax(-1).mean(1), q)
    (wanted,) = torch.autograd.grad(whole, logits)
    counts, begins = [3, 1, 0], [0, 3, 0]
    means = [logits.softmax(-1)[:, b : b + max(n, 1)].mean(1) for n, b in zip(counts, begins, strict=True)]
    rows = [
        torch.cat([m.detach().flatten() * n, torch.tensor([float(n)])]) for m, n in zip(means, counts, strict=True)
    ]
    monkeypatch.setattr(processes, "total", lambda _own: torch.stack(rows).sum(0))
    got = torch.zeros_like(logits)
    for rank, (mean, n) in enumerate(zip(means, counts, strict=True)):
        process(rank, 3)
        term = losses.routing_divergence(processes.whole_mean(mean, {processes.ROWS: torch.tensor(n)}), q)
        assert term.item() == pytest.approx(whole.item(), rel=1e-12)
        got += torch.autograd.grad(term * (n / 4), logits, retain_graph=True)[0]
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-15)


def test_all_send_the_same_type_when_they_agree(
    process: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Tensor] = []
    monkeypatch.setattr(processes, "total", lambda own: sent.append(own) or own)
    for rank, number in ((0, True), (1, False), (1, 7)):
        process(rank, 2)
        processes.agreed(number)
    assert [(own.dtype, own.item()) for own in sent] == [(torch.int64, 1), (torch.int64, 0), (torch.int64, 0)]


def test_steps_draw_apart_and_again(process: Callable[[int, int], None]) -> None:
    draws = {}
    with torch.random.fork_rng():
        for rank in range(2):
            process(rank, 2)
            for step in range(3):
                processes.seed_step(7, step)
                draws[rank, step] = torch.rand(4).tolist()
        assert len({tuple(draw) for draw in draws.values()}) == 6
        processes.seed_step(7, 1)
        assert torch.rand(4).tolist() == draws[1, 1]


def test_a_twin_shares_every_tensor_and_no_module() -> None:
    model = cases.fused()
    other = sharding.twin(model)
    assert {id(p) for p in other.parameters()} == {id(p) for p in model.parameters()}
    assert not {id(m) for m in other.modules()} & {id(m) for m in model.modules()}
    assert sharding.bare(other) is other
