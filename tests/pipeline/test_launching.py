"""Training steps in processes of their own: what is started, and that the results are those of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.chaos.killing import FEW_STEPS, make_chaos_world
from tests.fusion.conftest import random_base, random_experts
from triune.errors import InputError, TriuneError
from triune.experts import processes
from triune.fusion.building import build
from triune.launch_settings import Launch
from triune.models.tiny import build_tokenizer
from triune.pipeline import launched as program
from triune.pipeline import launching, verbs
from triune.pipeline.verbs import Context, save_model
from triune.progress import SILENT
from triune.recipe import Align, Base, Fit, Fuse, Lora, Train
from triune.record import Step, read_record, writing
from triune.types import Example

ROOT = Path(__file__).parents[2]
AXES = ("helpful", "harmless", "honest")
ROWS = [Example(AXES[i % 3], f"w{i} w{i + 1}", f"w{i + 2} w{i % 5} w3") for i in range(10)]
FIT = Fit(epochs=2, batch_size=4, learning_rate=1e-3, save_every=2)
TRAIN = Train(lora=Lora(rank=2, dropout=0.0), fit=FIT)
ALIGN = Align(fit=FIT, running=0.5, balance=0.2, drift={"helpful": 0.1})


@pytest.fixture
def context(tmp_path: Path) -> Context:
    tokenizer = build_tokenizer([f"w{i}" for i in range(20)])
    random_base("llama").save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base = Base(path=str(tmp_path / "base"), template="dialogue")
    model = random_base("llama")
    fused = build(model, random_experts(model, std=0.1), Fuse())
    save_model(fused, tokenizer, tmp_path / "start")
    return Context(base, 3)


def launched(context: Context, **settings: Any) -> Context:
    return Context(context.base, context.seed, launch=Launch(**settings))


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_launched_step_is_that_of_one_process(context: Context, tmp_path: Path, sharded: bool) -> None:
    together = launched(context, processes=2, sharded=sharded)
    for out, own in {"alone": context, "both": together}.items():
        verbs.align(own, tmp_path / "start", ROWS, tmp_path / out / "fused", ALIGN)
        verbs.train(own, [row for row in ROWS if row.axis == "honest"] * 3, tmp_path / out / "expert", TRAIN)
    for name in ("fused/model.safetensors", "expert/adapter_model.safetensors"):
        one, two = (load_file(tmp_path / out / name) for out in ("alone", "both"))
        assert one.keys() == two.keys()
        for key, tensor in one.items():
            torch.testing.assert_close(two[key], tensor, rtol=0, atol=1e-5)
    for name in ("fused", "expert"):
        one, two = (json.loads((tmp_path / out / name / "curve.json").read_text()) for out in ("alone", "both"))
        assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in two], rel=1e-5)
        records = [read_record(tmp_path / out / name) for out in ("alone", "both")]
        assert records[0]["identity"] == records[1]["identity"]
    # Nothing else is left, and the identity is the same: either context finds it finished.
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["expert", "fused"]


@pytest.mark.slow
def test_the_command_of_the_documentation(context: Context, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": row.prompt, "response": row.response} for row in ROWS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    start = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    start += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    verb = ["-m", "triune", "train", "--base", str(context.base.path), "--data", f"honest={data}"]
    verb += ["--out", str(tmp_path / "expert"), "--template", "dialogue", "fit.batch_size=4", "fit.steps=2"]
    own = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*start, *verb], env=own, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("wrote ") == 1
    assert (tmp_path / "expert" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.long
def test_a_whole_recipe_whose_training_is_launched(tmp_path: Path) -> None:
    """Its data, experts, merges, stage 2 and scores: those of one process, and nothing is done again without it."""
    make_chaos_world(tmp_path / "world", FEW_STEPS)
    own = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    place = tmp_path / "world"

    def run(out: str, *words: str) -> str:
        command = [sys.executable, "-m", "triune", "run", "recipe.yaml", "--out", out, *words]
        done = subprocess.run(command, env=own, cwd=place, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    same = "train.lora.dropout=0"  # which each process draws for itself
    run("alone", same)
    run("both", same, "launch.processes=2")
    one, two = (json.loads((place / out / "scores.json").read_text()) for out in ("alone", "both"))
    assert len(one) == 10
    assert [row["model"] + row["score"] for row in one] == [row["model"] + row["score"] for row in two]
    assert [row["value"] for row in one] == pytest.approx([row["value"] for row in two], rel=1e-4)
    names = ("experts/helpful", "experts/honest", "fused")
    identities = [[read_record(place / out / name)["identity"] for name in names] for out in ("alone", "both")]
    assert identities[0] == identities[1]
    again = run("both", same)  # without the processes
    steps = json.loads((place / "both" / "timings.json").read_text())["steps"]
    assert again.count("finished before, skipped") == len(steps)


def test_what_is_started() -> None:
    plain = launching.command(Launch(processes=2), Path("job.json"))
    assert plain[1:3] == ["-m", "accelerate.commands.launch"]
    assert plain[-3:] == ["-m", "triune.pipeline.launched", "job.json"]
    assert "--multi_gpu" in plain
    parts = launching.command(Launch(processes=4, sharded=True, config=__file__), Path("job.json"))
    assert [parts[parts.index(key) + 1] for key in ("--num_processes", "--fsdp_version", "--config_file")] == [
        "4",
        "2",
        __file__,
    ]
    assert "--multi_gpu" not in parts


def test_the_job_holds_everything(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program does from the file what the verb was asked for; here in one process."""
    alone = tmp_path / "alone"

    others = subprocess.run  # the record asks git and the system

    def run(command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        if launching.PROGRAM not in command:
            return others(command, **how)
        job = Path(command[-1])
        found = launching.read_job(job)
        assert (found["rows"], found["told"]) == (ROWS, False)
        program.do(job)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    verbs.train(launched(context, processes=2), ROWS, tmp_path / "both", TRAIN, title="x")
    verbs.train(context, ROWS, alone, TRAIN, title="x")
    one, two = (load_file(out / "adapter_model.safetensors") for out in (alone, tmp_path / "both"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    monkeypatch.setattr(subprocess, "run", None)
    verbs.train(launched(context, processes=2), ROWS, tmp_path / "both", TRAIN, title="x")  # finished: nothing starts


def test_processes_that_fail_are_said(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 7))
    with pytest.raises(TriuneError, match="expert: its 2 processes ended with code 7"):
        verbs.train(launched(context, processes=2), ROWS, tmp_path / "expert", TRAIN)
    assert not (tmp_path / "expert").exists()


def test_a_file_that_is_no_job_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="is no job of a recipe"):
        launching.read_job(tmp_path / "job.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"sharded": True}, "one process cannot share"), ({"config": "nowhere.yaml"}, "which is no file")],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Launch(**settings)


def test_verbs_that_train_nothing_are_refused_in_several_processes(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    step = Step(tmp_path / "out", "fuse", {})
    with (
        pytest.raises(InputError, match="triune fuse runs in one process"),
        verbs.unless_finished(step, context),
    ):
        pass


def test_the_second_process_writes_nothing_that_stays(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "join", lambda: None)
    monkeypatch.setattr(processes, "wait", lambda: None)
    monkeypatch.setattr(processes, "agreed", lambda _: 0)
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    step = Step(tmp_path / "out" / "expert", "train", {})
    with verbs.unless_finished(step, context) as draft:
        assert draft is not None
        (draft / "model").write_text("much", encoding="utf-8")
    assert not draft.exists()
    assert not (tmp_path / "out").exists()
    with writing(step):
        pass
    monkeypatch.setattr(processes, "agreed", lambda _: 1)
    with verbs.unless_finished(step, Context(context.base, 3, SILENT)) as nothing:
        assert nothing is None
