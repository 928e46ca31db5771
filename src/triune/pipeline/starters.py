"""Processes that end with the one that started them, however that one ends.

torch's launcher puts each training process in a session of its own. Where the launcher is killed they would train on,
and hold their step's draft against the run that goes on.
"""

import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "starter.lock"


@contextmanager
def starting(folder: Path) -> Iterator[None]:
    """In the starter: hold a lock in `folder` while they are under way; the system drops it with its owner."""
    with (folder / NAME).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def end_with_starter(folder: Path) -> None:
    """In a started process: from now on be killed when the starter's `starting` is over. No-op where there is none."""
    path = folder / NAME
    if path.is_file():
        threading.Thread(target=_end, args=(os.open(path, os.O_RDWR),), daemon=True).start()


def _end(lock: int) -> None:
    fcntl.flock(lock, fcntl.LOCK_SH)  # comes when the starter is gone
    os.kill(os.getpid(), signal.SIGKILL)
