"""Engines on toy steps: the same results as one after the other, workers that die, steps that fail, what is kept."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.toy_steps import diamond, identities, values
from triune.errors import InputError, TriuneError
from triune.pipeline.engines import LOCAL, Engine, check_engine, do_tasks
from triune.record import LOCK

ROOT = Path(__file__).parents[2]
ALL = {"a": 1, "b": 11, "c": 101, "d": 1112, "e": 5}
RAY = pytest.param("ray", marks=pytest.mark.slow)  # starts a cluster for each test


class Listener:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.done: dict[str, bool] = {}

    def task(self, title: str, total: int):  # type: ignore[no-untyped-def]
        raise AssertionError("a worker's bars stay with it")

    def say(self, text: str) -> None:
        self.said.append(text)


def engine_of(kind: str, **own: int) -> Engine:
    if kind == "ray":
        pytest.importorskip("ray", reason="Ray is not installed (pip install 'triune[ray]')")
    return Engine(kind, workers=2, cpus=1, **own)


def do(out: Path, engine: Engine, traps: Path | None = None, *, first: int = 1) -> Listener:
    listener = Listener()
    do_tasks(diamond(out, traps, first=first), engine, listener, listener.done.__setitem__)
    return listener


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("serial")
    do(out, LOCAL)
    return out


@pytest.mark.parametrize("kind", ["local", "processes", RAY])
def test_every_engine_has_the_results_of_one_step_after_the_other(kind: str, serial: Path, tmp_path: Path) -> None:
    heard = do(tmp_path, engine_of(kind) if kind != "local" else LOCAL)
    assert values(tmp_path) == values(serial) == ALL
    assert identities(tmp_path) == identities(serial)
    assert heard.done == dict.fromkeys(ALL, False)
    where = {(tmp_path / name / "pid").read_text() for name in ALL}
    assert (str(os.getpid()) in where) == (kind == "local")
    again = do(tmp_path, LOCAL)  # what one engine finished, another skips
    assert again.done == dict.fromkeys(ALL, True)


@pytest.mark.parametrize("kind", ["processes", RAY])
def test_each_step_says_when_it_begins_and_ends_and_what_it_said(kind: str, tmp_path: Path) -> None:
    said = do(tmp_path, engine_of(kind)).said
    for name in ALL:
        begun, ended = (
            next(i for i, line in enumerate(said) if line.startswith(f"{name}: {w}")) for w in ("begun", "done")
        )
        assert begun < ended
    assert "d: adding 1000" in said
    assert said[-1].startswith(("d: done (5 of 5 done", "e: done (5 of 5 done"))
    again = do(tmp_path, engine_of(kind))
    assert again.said == [f"{name}: finished before, skipped" for name in ALL]


@pytest.mark.parametrize("kind", ["processes", RAY])
def test_a_step_whose_worker_is_killed_is_begun_again(kind: str, serial: Path, tmp_path: Path) -> None:
    traps = tmp_path / "traps"
    traps.mkdir()
    for name in ("b-kill", "d-kill1", "d-kill2"):
        (traps / name).touch()
    heard = do(tmp_path / "out", engine_of(kind, retries=2), traps)
    assert values(tmp_path / "out") == ALL
    assert identities(tmp_path / "out") == identities(serial)
    assert list(traps.iterdir()) == []
    deaths = [line.split(":")[0] for line in heard.said if "its worker died" in line]
    assert sorted(deaths) == ["b", "d", "d"]


@pytest.mark.parametrize("kind", ["processes", RAY])
def test_a_step_that_dies_too_often_fails_by_name_and_the_rest_is_kept(kind: str, tmp_path: Path) -> None:
    traps = tmp_path / "traps"
    traps.mkdir()
    for place in range(3):
        (traps / f"b-kill{place}").touch()
    with pytest.raises(TriuneError, match=r"the step b failed: its worker died 2 times.*Finished steps are kept"):
        do(tmp_path / "out", engine_of(kind, retries=1), traps)
    left = values(tmp_path / "out")
    assert left["a"] == 1
    assert "b" not in left
    assert "d" not in left
    (traps / "b-kill2").unlink()
    resumed = do(tmp_path / "out", LOCAL, traps)  # the other way round: serially where several were under way
    assert values(tmp_path / "out") == ALL
    assert resumed.done["a"]
    assert not resumed.done["b"]


DRIVER = """
import sys
from pathlib import Path
from tests.pipeline.toy_steps import diamond
from triune.pipeline.engines import Engine, do_tasks
from triune.progress import SILENT
if __name__ == "__main__":
    out, traps = map(Path, sys.argv[1:])
    do_tasks(diamond(out, traps), Engine("processes", workers=2, cpus=1), SILENT, lambda name, before: None)
"""


@pytest.mark.slow
def test_a_run_whose_starter_is_killed_leaves_no_worker_and_goes_on_serially(serial: Path, tmp_path: Path) -> None:
    traps, out = tmp_path / "traps", tmp_path / "out"
    traps.mkdir()
    (traps / "d-orphan").touch()
    (tmp_path / "driver.py").write_text(DRIVER)
    command = [sys.executable, str(tmp_path / "driver.py"), str(out), str(traps)]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), *sys.path])
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=False)
    assert ended.returncode == -signal.SIGKILL
    with (out / ".d.draft" / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # comes when the worker is gone; a test that hangs here has found one left
    resumed = do(out, LOCAL, traps)
    assert values(out) == ALL
    assert identities(out) == identities(serial)
    assert resumed.done == {"a": True, "b": True, "c": True, "d": False, "e": False}


def test_what_a_step_refuses_is_bad_input_and_is_not_tried_again(tmp_path: Path) -> None:
    traps = tmp_path / "traps"
    traps.mkdir()
    (traps / "b-refuse").touch()
    with pytest.raises(InputError, match="the step b failed: no such luck"):
        do(tmp_path / "out", engine_of("processes"), traps)
    assert not (tmp_path / "out" / "d").exists()
    (traps / "d-break").touch()
    (traps / "b-refuse").unlink()
    with pytest.raises(TriuneError, match=r"the step d failed: Traceback[\s\S]*RuntimeError: broken") as found:
        do(tmp_path / "out", engine_of("processes"), traps)
    assert not isinstance(found.value, InputError)


def test_changed_settings_are_done_anew_in_parallel_too(tmp_path: Path) -> None:
    do(tmp_path, LOCAL)
    heard = do(tmp_path, engine_of("processes"), first=2)
    assert values(tmp_path) == {**ALL, "a": 2, "b": 12, "c": 102, "d": 1114}
    assert heard.done == {"a": False, "b": False, "c": False, "d": False, "e": True}


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (Engine("slurm"), "the engine 'slurm' is unknown; known: local, processes, ray"),
        (Engine("processes", workers=0), "workers and cpus are 1 or more"),
        (Engine("processes", retries=-1), "retries 0 or more"),
        (Engine(workers=2), "are of --engine processes or ray"),
        (Engine("processes", gpus=1), "hands out GPUs"),
    ],
)
def test_engines_that_are_refused(engine: Engine, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_engine(engine)


def test_ray_is_asked_for_by_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triune.pipeline.engines.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'triune\[ray\]'"):
        check_engine(Engine("ray"))
