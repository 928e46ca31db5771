"""What engines hand to workers, and what comes back."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from triune.errors import InputError, TriuneError
from triune.libraries import settle_libraries
from triune.pipeline.tasks import Work, rebound
from triune.progress import SILENT, Advance


@dataclass(frozen=True)
class Outcome:
    """How a step ended in its worker: what it said, and what went wrong.

    error: what the step raised; bad_input: that was an InputError; died: why the worker is gone, so that the step can
    be begun again.
    """

    said: tuple[str, ...] = ()
    error: str = ""
    bad_input: bool = False
    died: str = ""


@runtime_checkable
class Pool(Protocol):
    """Workers, each of which does one step at a time."""

    def has_room(self) -> bool:
        """Whether another step may be started."""
        ...

    def start(self, name: str, work: Work) -> None:
        """Hand a step to a worker."""
        ...

    def wait(self) -> dict[str, Outcome]:
        """Wait until a step ends; those that did, by name."""
        ...

    def stop(self) -> None:
        """End what is still under way, and the workers."""
        ...


class Remembering:
    """Keeps what is said, and how each task ended, for whoever started the step."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Advance]:
        last = [""]

        def advance(steps: int = 1, note: str = "") -> None:
            last[0] = note or last[0]

        yield advance
        self.say(f"{title}: done. {last[0]}".rstrip())

    def say(self, text: str) -> None:
        self.said.append(text)


def shippable(work: Work) -> Work:
    """The step without its watcher, which may hold a terminal and so cannot leave the process."""
    return rebound(work, progress=SILENT)


def attempt(work: Callable[[], Path], threads: int) -> Outcome:
    """Do a step in a worker on so many torch threads."""
    settle_libraries()
    torch.set_num_threads(threads)
    heard = Remembering()
    try:
        rebound(work, progress=heard)()
    except TriuneError as error:
        return Outcome(tuple(heard.said), str(error), isinstance(error, InputError))
    except Exception:  # told by whoever started the step; a worker has no terminal
        return Outcome(tuple(heard.said), traceback.format_exc().rstrip())
    return Outcome(tuple(heard.said))
