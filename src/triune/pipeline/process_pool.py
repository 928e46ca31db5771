"""Steps in processes of this machine, a new one for each step; the standard library's multiprocessing only."""

import multiprocessing
import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from triune.pipeline.pools import Outcome, Pool, attempt, shippable
from triune.pipeline.tasks import Work

PATIENCE = 10.0  # seconds that a worker has to leave nothing half-written when it is ended


@dataclass
class Processes:
    """At most `workers` steps at once on `threads` torch threads each."""

    workers: int
    threads: int
    running: dict[Connection, tuple[str, BaseProcess]] = field(default_factory=dict)

    def has_room(self) -> bool:
        return len(self.running) < self.workers

    def start(self, name: str, work: Work) -> None:
        # Forked from a server that has only imported: no threads, locks or CUDA context of this process are copied.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["triune.settled", "triune.pipeline.process_pool", "triune.pipeline.planning"])
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_answer, args=(shippable(work), self.threads, theirs), name=name)
        process.start()
        theirs.close()  # so that the worker's death is the end of the pipe
        self.running[ours] = (name, process)

    def wait(self) -> dict[str, Outcome]:
        found = {}
        for ready in connection.wait(list(self.running)):
            if isinstance(ready, Connection):
                name, process = self.running.pop(ready)
                found[name] = _received(ready, process)
        return found

    def stop(self) -> None:
        for _, process in self.running.values():
            process.terminate()
        for pipe, (_, process) in self.running.items():
            process.join(PATIENCE)
            process.kill()
            process.join()
            pipe.close()
        self.running.clear()


def open_processes(workers: int | None, cpus: int | None, _gpus: float) -> Pool:
    """A pool that shares this machine's cores out among its workers."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    several = workers or max(1, cores // (cpus or 1))
    return Processes(several, cpus or max(1, cores // several))


def _received(pipe: Connection, process: BaseProcess) -> Outcome:
    with pipe:
        try:
            outcome = pipe.recv()
        except EOFError:
            process.join()
            code = process.exitcode or 0
            how = f"signal {-code} ended it" if code < 0 else f"it ended with code {code}"
            return Outcome(died=how)
    process.join()
    return outcome if isinstance(outcome, Outcome) else Outcome(error=f"the worker answered {outcome!r}")


def _answer(work: Work, threads: int, pipe: Connection) -> None:
    """In the worker: do the step and send its outcome."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches whoever started us, who then ends us
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # an exception, so that the step clears its draft away
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pipe.send(attempt(work, threads))


def _end_with_parent() -> None:
    """A worker left alone would hold its step's lock against the run that goes on."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)
