"""Ctrl-C: 130, nothing lost, nothing half-written under a final name, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.folders import names, tree
from tests.spoiling import make_world, train
from triune.progress import Advance
from triune.record import read_record

ROOT = Path(__file__).parents[1]
PATIENCE = 120  # seconds for a process to import everything and begin, on a busy machine


def interrupted(out: Path, how: signal.Signals) -> tuple[int, str, str]:
    """Run the demo's recipe with a base that takes hours, and interrupt it while it trains."""
    recipe = ROOT / "src/triune/recipes/miniature.yaml"
    command = [sys.executable, "-c", "from triune.cli import main; main()", "run", str(recipe), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "base.miniature.steps=100000"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + PATIENCE
    while not (out / ".base.draft").is_dir():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            pytest.fail(f"it never began: {process.communicate()}")
        time.sleep(0.05)
    time.sleep(1)  # into the work
    assert process.poll() is None
    process.send_signal(how)
    try:
        output, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()  # a process that does not listen would run for hours
    return process.returncode, output, errors


@pytest.mark.slow
def test_an_interrupted_run_leaves_whole_steps_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, output, errors = interrupted(out, signal.SIGINT)
    assert (code, errors) == (
        130,
        "error: interrupted; finished steps are kept, the same command goes on from there\n",
    )
    assert "skipped" not in output
    left = names(out)
    assert {"data/record.json", "recipe.yaml"} <= set(left)
    assert [name for name in left if name.startswith("base") or name.endswith((".draft", ".part"))] == []
    begun = (out / "data" / "record.json").read_bytes()
    code, output, _ = interrupted(out, signal.SIGTERM)
    assert code == 130
    assert "data: finished before, skipped" in output
    assert (out / "data" / "record.json").read_bytes() == begun
    assert names(out) == left


class Impatient:
    """Presses Ctrl-C at the second step of every task."""

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Advance]:
        done = [0]

        def advance(steps: int = 1, note: str = "") -> None:
            done[0] += steps
            if done[0] > 1:
                raise KeyboardInterrupt

        yield advance

    def say(self, text: str) -> None: ...


def test_ctrl_c_loses_nothing_and_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    train(steps=1)
    before = tree()
    with pytest.raises(KeyboardInterrupt):
        train(steps=3, progress=Impatient())
    assert tree() == before
    with pytest.raises(KeyboardInterrupt):
        train("fresh", steps=3, progress=Impatient())
    assert tree() == before
    assert not Path("fresh").exists()
    train(steps=3)
    assert read_record(Path("out"))["settings"]["train"]["fit"]["steps"] == 3
    kept = {name.removeprefix(".superseded/out-1/"): text for name, text in tree().items() if "superseded" in name}
    assert kept == {name.removeprefix("out/"): text for name, text in before.items() if name.startswith("out/")}
