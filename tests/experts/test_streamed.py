"""Training from a stream: resumed to the last bit, and the same in several processes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.experts import streamed_cases as cases
from tests.experts.conftest import random_rows
from tests.experts.test_several_processes import assert_close, assert_same, process
from triune.errors import InputError
from triune.experts import processes
from triune.experts.fitting import Curve, answer_objective, fit
from triune.experts.streamed import stream_loader
from triune.models.encoding import collate
from triune.progress import SILENT

__all__ = ["process"]
ROOT = Path(__file__).parents[2]
Result = tuple[dict[str, Tensor], Curve]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return cases.write_shards(tmp_path / "shards")


def together(out: Path, names: list[str], n_processes: int = 2) -> list[dict[str, Result]]:
    """The cases' results, by process."""
    command = [sys.executable, "-m", "tests.experts.streamed_cases", str(out), str(n_processes), *names]
    own = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=own, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [
        {
            name: (load_file(out / f"{name}-{rank}.st"), json.loads((out / f"{name}-{rank}.json").read_text()))
            for name in names
        }
        for rank in range(n_processes)
    ]


def rows_of(batch: dict[str, Tensor]) -> list[list[int]]:
    return [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


def test_two_processes_train_what_one_does(tmp_path: Path, folder: Path) -> None:
    names = ["adapted", "resumed"]
    first, second = together(tmp_path, names)
    for name in names:
        assert_same(first[name], second[name])
        assert_close(first[name], cases.adapted(folder))
    assert_same(first["resumed"], first["adapted"])


@pytest.mark.slow
def test_a_mixture_of_streams_aligns_in_several_processes_as_in_one(tmp_path: Path, folder: Path) -> None:
    first, second, third = together(tmp_path, ["aligned"], 3)
    assert_same(first["aligned"], second["aligned"])
    assert_same(first["aligned"], third["aligned"])
    assert_close(first["aligned"], cases.aligned(folder))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_stopped_job_ends_as_one_that_was_not_stopped(tmp_path: Path, folder: Path, dropout: float) -> None:
    whole = cases.adapted(folder, dropout=dropout)
    assert len(whole[1]) == cases.FIT["steps"]
    place = tmp_path / "place"

    class Stop(Exception):
        pass

    def wait() -> None:
        if (place / f"step-{cases.STOPPED_AFTER}").is_dir():
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "wait", wait)
        with pytest.raises(Stop):
            cases.adapted(folder, place, dropout, save_every=1)
    numbers = json.loads((place / f"step-{cases.STOPPED_AFTER}" / "numbers.json").read_text(encoding="utf-8"))
    # 36 rows are 12 of each axis: in the second block of eight, and at the end of the third epoch of four.
    assert [mark["rows"] for mark in numbers["stream"]] == [8, 8, 8]
    assert_same(cases.adapted(folder, place, dropout, save_every=1), whole)


def test_a_job_of_other_shards_has_another_fingerprint(tmp_path: Path, folder: Path) -> None:
    place = tmp_path / "place"
    model = cases.with_adapters(cases.random_base("llama", torch.float64), cases.Lora(rank=2, targets=("up_proj",)), 0)
    same = cases.job(folder, place).fingerprint(model)
    text = (folder / "0.jsonl").read_text(encoding="utf-8")
    (folder / "0.jsonl").write_text(text.replace('"3 4"', '"3 5"'), encoding="utf-8")
    assert cases.job(folder, place).fingerprint(model) != same


def test_processes_share_each_batch_in_one_order(folder: Path, process: Any) -> None:
    def batches(n: int) -> list[list[list[int]]]:
        job = cases.job(folder)
        found = [rows_of(batch) for batch, _ in zip(stream_loader(job, None), range(n), strict=False)]
        assert job.stream is not None
        job.stream.close()
        return found

    whole = batches(12)
    assert {len(batch) for batch in whole} > {6}  # rows that do not fit leave their places empty
    for world in (2, 3):
        parts = []
        for rank in range(world):
            process(rank, world)
            parts.append(batches(12))
        process(0, 1)
        # [0, 0] is what a process without rows gets.
        joined = [[row for part in batch for row in part if row != [0, 0]] for batch in zip(*parts, strict=True)]
        assert joined == whole


def test_a_process_without_rows_gets_one_that_does_not_count(folder: Path) -> None:
    job = cases.job(folder, batch_size=1)
    assert job.stream is not None
    job.stream.encode = lambda example: None
    batch = next(iter(stream_loader(job, None)))
    assert processes.counted(batch) == 0
    assert (batch["labels"] == -100).all()
    model = cases.with_adapters(cases.random_base("llama"), cases.Lora(rank=2, targets=("up_proj",)), 0)
    with pytest.raises(InputError, match="training: no row of a step fits; raise max_length"):
        fit(model, job, answer_objective, SILENT)


def test_what_a_stream_cannot_do_is_refused(folder: Path) -> None:
    model = cases.random_base("llama")
    with pytest.raises(InputError, match=r"rows are streamed.*set fit\.steps \(a step takes .* = 12 rows\)"):
        fit(model, cases.job(folder, steps=None), answer_objective, SILENT)
    with pytest.raises(InputError, match=r"fit\.packing is 6 tokens a row, and a streamed row may have 8"):
        fit(model, cases.job(folder, packing=6), answer_objective, SILENT)
    with pytest.raises(InputError, match="in memory stand beside a stream"):
        fit(model, replace(cases.job(folder), rows=random_rows(2)), answer_objective, SILENT)
    settings = cases.Align(representation=0.1, fit=cases.job(folder).settings)
    with pytest.raises(InputError, match=r"align\.representation needs every row's target at once"):
        cases.align(cases.cases.fused(), settings, cases.job(folder), SILENT)
    strange = replace(cases.job(folder).stream, stream=cases.Stream((cases.KeptRows("rude", (), 0),)))
    with pytest.raises(InputError, match=r"there are rows of \['rude'\]"):
        cases.align(cases.cases.fused(), cases.Align(), replace(cases.job(folder), stream=strange), SILENT)


def test_packed_batches_of_a_stream_train_to_the_same(folder: Path) -> None:
    assert_close(cases.adapted(folder, packing=16), cases.adapted(folder), 1e-9)


def test_a_batch_is_that_of_its_rows(folder: Path) -> None:
    rows = random_rows(3)
    found = cases.job(folder).batch(rows)
    assert all(torch.equal(found[key], value) for key, value in collate(rows, 0).items())
    assert cases.job(folder).n_rows == 7 * 6 * 2
