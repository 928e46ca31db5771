"""The coverage-guided runs, where atheris is installed (how: atheris_driver.py)."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fuzz.atheris_driver import MISSING, TARGETS, main, targets
from tests.fuzz.fuzzing import LONG_SECONDS

ROOT = Path(__file__).parents[2]


def test_each_target_takes_its_first_cases(tmp_path: Path) -> None:
    made = targets()
    assert tuple(made) == TARGETS
    for name, make in made.items():
        (tmp_path / name).mkdir()
        call, cases = make(tmp_path / name)
        for case in cases[:2]:
            call(case)


def test_what_it_says_without_the_library(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tests.fuzz.atheris_driver.find_spec", lambda name: None)
    assert main(["recipe"]) == MISSING
    assert "pip install atheris" in capsys.readouterr().err
    assert main(["nothing"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_guided_run(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if find_spec("atheris") is None:
        pytest.skip("atheris is not installed; pip install atheris==3.0.0")
    command = [sys.executable, str(ROOT / "tests/fuzz/atheris_driver.py"), target]
    done = subprocess.run(
        [*command, f"-max_total_time={LONG_SECONDS / len(TARGETS):.0f}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs
    assert int(runs[1]) > 0
    with capsys.disabled():
        print(f"\n{target}: {int(runs[1]):,} guided cases")
