"""Steps as tasks of a Ray cluster: one that runs (RAY_ADDRESS), or one of this machine, for as long as a run takes."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from triune.errors import InputError, TriuneError
from triune.pipeline.pools import Outcome, Pool, attempt, shippable
from triune.pipeline.tasks import Work

TOLD = 300  # characters of what Ray says of a dead worker
PATIENCE = 10.0  # seconds in which a cluster must take a connection; Ray itself tries for minutes, and then exits
# What steps hand over are paths and training rows. Ray would else reserve 30 % of the machine's memory.
STORE = 256 * 2**20
# By the loopback address: Ray would otherwise ask a public server for its own, and listen on it.
OURS: Mapping[str, Any] = {
    "include_dashboard": False,
    "object_store_memory": STORE,
    "_node_ip_address": "127.0.0.1",
}


@dataclass
class Rays:
    """Steps with so many cores and GPUs each; Ray queues what there is no room for."""

    workers: int | None
    cpus: int
    gpus: float
    ours: bool  # whether the cluster was started for this run
    running: dict[Any, str] = field(default_factory=dict)

    def has_room(self) -> bool:
        return self.workers is None or len(self.running) < self.workers

    def start(self, name: str, work: Work) -> None:
        import ray

        # Ray's own retries are off: whoever starts steps counts them, and says so.
        remote = ray.remote(attempt).options(
            num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0, name=name, scheduling_strategy="SPREAD"
        )
        self.running[remote.remote(shippable(work), self.cpus)] = name

    def wait(self) -> dict[str, Outcome]:
        import ray

        ready, _ = ray.wait(list(self.running), num_returns=1)
        return {self.running.pop(task): _received(task) for task in ready}

    def stop(self) -> None:
        import ray

        for task in self.running:
            ray.cancel(task, force=True)
        self.running.clear()
        if self.ours:
            ray.shutdown()


def open_ray(workers: int | None, cpus: int | None, gpus: float) -> Pool:
    """A pool on the cluster that RAY_ADDRESS names, else on one of this machine. Raises TriuneError without one."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # no telemetry
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    ours = not ray.is_initialized()
    room = None if workers is None else workers * (cpus or 1)
    own = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": room, **OURS}
    if ours:
        with _own_signals():
            # What Ray tells beside errors is of its own affairs, such as where it keeps its token.
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **own)
            except Exception as error:  # Ray raises the bare class where its processes take more than 30 s to start
                ray.shutdown()
                raise TriuneError(
                    f"Ray did not start: {error}; try again when the machine is less busy, or take --engine processes"
                ) from error
    return Rays(workers, cpus or 1, gpus, ours)


def check_cluster() -> None:
    """Raise InputError where nothing answers at RAY_ADDRESS."""
    address = os.environ.get("RAY_ADDRESS", "")
    place = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = place.hostname, place.port
    except ValueError as error:
        raise InputError(f"RAY_ADDRESS is {address!r} ({error}); give HOST:PORT, or unset it") from error
    if host is None or port is None:  # "auto" and "local" are Ray's own words
        return
    try:
        socket.create_connection((host, port), PATIENCE).close()
    except OSError as error:
        raise InputError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error}); start one there (ray start --head), or unset "
            "RAY_ADDRESS to use this machine"
        ) from error


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray puts a handler of its own on SIGTERM, which would end the run without a word."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _received(task: Any) -> Outcome:
    import ray

    try:
        outcome = ray.get(task)
    except ray.exceptions.RayTaskError as error:  # before the step began: Triune is not installed there, say
        return Outcome(error=str(error))
    except ray.exceptions.RayError as error:
        return Outcome(died=" ".join(str(error).split())[:TOLD])
    return outcome if isinstance(outcome, Outcome) else Outcome(error=f"the worker answered {outcome!r}")
