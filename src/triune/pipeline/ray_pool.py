"""Steps as tasks of a Ray cluster: one that runs (RAY_ADDRESS), or one of this machine, for as long as a run takes."""

import os
from dataclasses import dataclass, field
from typing import Any

from triune.pipeline.pools import Outcome, Pool, attempt, shippable
from triune.pipeline.tasks import Work

TOLD = 300  # characters of what Ray says of a dead worker


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
    """A pool on the cluster that RAY_ADDRESS names, else on one of this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    ours = not ray.is_initialized()
    if ours and os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    elif ours:
        # By the loopback address: Ray would otherwise ask a public server for its own.
        room = None if workers is None else workers * (cpus or 1)
        ray.init(num_cpus=room, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    return Rays(workers, cpus or 1, gpus, ours)


def _received(task: Any) -> Outcome:
    import ray

    try:
        outcome = ray.get(task)
    except ray.exceptions.RayTaskError as error:  # before the step began: Triune is not installed there, say
        return Outcome(error=str(error))
    except ray.exceptions.RayError as error:
        return Outcome(died=" ".join(str(error).split())[:TOLD])
    return outcome if isinstance(outcome, Outcome) else Outcome(error=f"the worker answered {outcome!r}")
