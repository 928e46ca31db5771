"""Engines on toy steps: the same results as one after the other, workers that die, steps that fail, what is kept."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.toy_steps import diamond, identities, values
from triune.errors import InputError, TriuneError
from triune.pipeline.engines import LOCAL, Engine, check_engine, do_tasks
from triune.pipeline.ray_pool import open_ray
from triune.record import LOCK

ROOT = Path(__file__).parents[2]
NICENESS = ("RAY_worker_niceness", "0")  # 15 by default, with which a test on a busy machine takes minutes
ALL = {"a": 1, "b": 11, "c": 101, "d": 1112, "e": 5}
RAY = pytest.param("ray", marks=pytest.mark.slow)  # needs a cluster


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
    return Engine(kind, workers=2, cpus=1, **own)


@pytest.fixture(autouse=True)
def _cluster(request: pytest.FixtureRequest) -> None:
    """For tests on Ray."""
    if "[ray]" in request.node.name:
        request.getfixturevalue("ray_cluster")


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """Ray itself on this machine, started as the engine starts its own, for all tests of this file."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'triune[ray]')")
    with pytest.MonkeyPatch.context() as own:
        own.setenv(*NICENESS)
        pool = open_ray(2, 1, 0.0)
    yield
    pool.stop()
    assert not ray.is_initialized()


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
import os, sys
from pathlib import Path
from tests.pipeline.toy_steps import diamond
from triune.pipeline.engines import Engine, do_tasks
from triune.progress import SILENT
if __name__ == "__main__":
    out, traps = map(Path, sys.argv[2:])
    (traps / "starter").write_text(str(os.getpid()))
    do_tasks(diamond(out, traps), Engine(sys.argv[1], workers=2, cpus=1), SILENT, lambda name, before: None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["processes", "ray: its own"])
def test_a_run_whose_starter_is_killed_leaves_no_worker_and_goes_on_serially(
    kind: str, serial: Path, tmp_path: Path
) -> None:
    kind = kind.split(":")[0]
    pytest.importorskip("ray" if kind == "ray" else "multiprocessing")
    traps, out = tmp_path / "traps", tmp_path / "out"
    traps.mkdir()
    (traps / "d-orphan").touch()
    (tmp_path / "driver.py").write_text(DRIVER)
    command = [sys.executable, str(tmp_path / "driver.py"), kind, str(out), str(traps)]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), *sys.path])
    own = {"PYTHONPATH": paths, **dict([NICENESS])}
    ended = subprocess.run(command, env={**os.environ, **own}, check=False)
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
        (Engine("processes", workers=0), "workers, cpus and shards are 1 or more"),
        (Engine("processes", shards=0), "workers, cpus and shards are 1 or more"),
        (Engine("processes", retries=-1), "retries 0 or more"),
        (Engine(workers=2), "are of --engine processes or ray"),
        (Engine(shards=2), "--gpus and --shards are of --engine processes or ray"),
        (Engine("processes", gpus=1.0), "hands out GPUs"),
    ],
)
def test_engines_that_are_refused(engine: Engine, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_engine(engine)


def test_ray_is_asked_for_by_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triune.pipeline.engines.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'triune\[ray\]'"):
        check_engine(Engine("ray"))


ALONE = """
import json, os, signal, sys
from pathlib import Path
from tests.pipeline.toy_steps import diamond, values
from triune.pipeline.engines import Engine, do_tasks
from triune.progress import SILENT
if __name__ == "__main__":
    out = Path(sys.argv[1])
    do_tasks(diamond(out), Engine("ray", workers=2, cpus=1), SILENT, lambda name, before: None)
    import ray
    from ray._common.usage import usage_lib
    told = {"values": values(out), "left": ray.is_initialized(), "telemetry": usage_lib.usage_stats_enabled()}
    told["handler"] = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    print(json.dumps(told))
"""


@pytest.mark.slow
def test_a_cluster_of_its_own_says_nothing_tells_nobody_and_is_gone(tmp_path: Path) -> None:
    """Warnings are errors in that process, and Ray's own words on standard error count too."""
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'triune[ray]')")
    (tmp_path / "alone.py").write_text(ALONE)
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), *sys.path])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "COV_"))}
    command = [sys.executable, "-W", "error", str(tmp_path / "alone.py"), str(tmp_path / "out")]
    own = {**kept, "PYTHONPATH": paths, **dict([NICENESS])}
    ended = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told == {"values": ALL, "left": False, "telemetry": False, "handler": True}
    assert "ray" not in ended.stderr.lower()
