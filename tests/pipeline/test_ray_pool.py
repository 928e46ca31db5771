"""What the pool asks of Ray, by a stand-in for it: resources, no retries of Ray's own, dead workers, the end."""

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.pipeline.toy_steps import diamond, values
from triune.errors import InputError, TriuneError
from triune.pipeline.engines import Engine, check_engine, do_tasks
from triune.progress import SILENT

QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}


class RayError(Exception):
    """As Ray's own."""


class RayTaskError(RayError):
    """As Ray's own: the function raised."""


class Cluster:
    """In Ray's place: a task is done when it is asked for; `dying` says how often a step's worker dies first."""

    def __init__(self, dying: dict[str, int] | None = None, *, connected: bool = False) -> None:
        self.dying, self.connected = dying or {}, connected
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.options: list[dict[str, Any]] = []
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def is_initialized(self) -> bool:
        return self.connected

    def init(self, **given: Any) -> None:
        self.told.append(("init", given))
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))  # as Ray does

    def shutdown(self) -> None:
        self.told.append(("shutdown", {}))

    def cancel(self, task: object, *, force: bool) -> None:
        self.told.append(("cancel", {"force": force}))

    def remote(self, function: Callable[..., object]) -> Any:
        def options(**given: Any) -> Any:
            self.options.append(given)
            return SimpleNamespace(remote=lambda *args: (given["name"], len(self.options), _later(function, *args)))

        return SimpleNamespace(options=options)

    def wait(self, tasks: list[Any], *, num_returns: int) -> tuple[list[Any], list[Any]]:
        return tasks[:num_returns], tasks[num_returns:]

    def get(self, task: Any) -> object:
        name, _, work = task
        if self.dying.get(name, 0):
            self.dying[name] -= 1
            raise RayError("the worker died\nunexpectedly")
        return work()


def _later(function: Callable[..., object], *args: Any) -> Callable[[], object]:
    return lambda: function(*args)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def do(out: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, **own: Any) -> None:
    monkeypatch.setitem(sys.modules, "ray", cluster)
    do_tasks(diamond(out), Engine("ray", **own), SILENT, lambda name, before: None)


def test_a_cluster_of_this_machine_is_started_quietly_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster()
    do(tmp_path, cluster, monkeypatch, workers=2, cpus=1, gpus=0.5)
    assert values(tmp_path) == {"a": 1, "b": 11, "c": 101, "d": 1112, "e": 5}
    own = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "object_store_memory": 2**28}
    assert cluster.told == [("init", {"num_cpus": 2, **QUIET, **own}), ("shutdown", {})]
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert [given["name"] for given in cluster.options] == ["a", "b", "c", "d", "e"]
    for given in cluster.options:
        assert (given["num_cpus"], given["num_gpus"], given["max_retries"]) == (1, 0.5, 0)


def test_a_cluster_that_runs_is_used_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    cluster = Cluster()
    do(tmp_path / "one", cluster, monkeypatch)
    assert cluster.told[0] == ("init", QUIET)
    ours = Cluster(connected=True)
    do(tmp_path / "two", ours, monkeypatch)
    assert ours.told == []


def test_dead_workers_are_begun_again_and_given_up_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster({"b": 2})
    with pytest.raises(TriuneError, match="the step b failed: its worker died 2 times, last: the worker died unexp"):
        do(tmp_path, cluster, monkeypatch, retries=1)
    assert "d" not in values(tmp_path)
    done = Cluster()
    do(tmp_path, done, monkeypatch, retries=1)
    assert values(tmp_path)["d"] == 1112
    assert "a" not in [given["name"] for given in done.options]  # it was kept


def test_what_fails_before_the_step_begins_is_no_dead_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare(Cluster):
        def get(self, task: Any) -> object:
            raise RayTaskError("no module named triune")

    cluster = Bare()
    with pytest.raises(TriuneError, match="the step a failed: no module named triune"):
        do(tmp_path, cluster, monkeypatch)
    assert len(cluster.options) == 1


def test_a_request_to_end_stays_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    do(tmp_path, Cluster(), monkeypatch)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_cluster_that_does_not_answer_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triune.pipeline.engines.find_spec", lambda name: name)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        for words in (address, f"ray://{address}"):
            monkeypatch.setenv("RAY_ADDRESS", words)
            with pytest.raises(InputError, match=rf"no Ray cluster answers at RAY_ADDRESS={words}.*unset RAY_ADDRESS"):
                check_engine(Engine("ray"))
        listening.listen(1)
        check_engine(Engine("ray"))
    monkeypatch.setenv("RAY_ADDRESS", "head:many")
    with pytest.raises(InputError, match=r"RAY_ADDRESS is 'head:many'.*give HOST:PORT"):
        check_engine(Engine("ray"))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    check_engine(Engine("ray"))


def test_a_ray_that_does_not_start_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Cluster):
        def init(self, **given: Any) -> None:
            super().init(**given)
            raise Exception("the node timed out")

    before, cluster = signal.getsignal(signal.SIGTERM), Slow()
    with pytest.raises(TriuneError, match="Ray did not start: the node timed out; try again"):
        do(tmp_path, cluster, monkeypatch)
    assert [name for name, _ in cluster.told] == ["init", "shutdown"]
    assert signal.getsignal(signal.SIGTERM) is before
