"""A process that has imported Triune once and forks a child for each command line: a kill then costs no import.

It reads JSON lines {"words": [...], "folder": ..., "log": ...} from its input. It writes {"begun": number} for each,
in order, and {"ended": number, "code": code} when a child has ended (negative code: the signal). A child is the
command line as `python -m triune` runs it.
"""

import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

LATE = 0.005  # seconds after which an end is noticed


def child(words: list[str], folder: str, log: str) -> None:
    """Run one command line to its end; never returns."""
    from triune.cli import main

    os.chdir(folder)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.argv = ["triune", *words]
    code = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def asked(living: set[int]) -> Iterator[dict]:
    """What is asked for; ends that come meanwhile are told."""
    held = b""
    while True:
        ready, _, _ = select.select([0], [], [], LATE if living else None)
        for number in list(living):
            ended, status = os.waitpid(number, os.WNOHANG)
            if ended:
                living.remove(number)
                print(json.dumps({"ended": number, "code": os.waitstatus_to_exitcode(status)}), flush=True)
        if ready:
            got = os.read(0, 65536)
            if not got:
                return
            *lines, held = (held + got).split(b"\n")
            yield from map(json.loads, lines)


def serve() -> None:
    """Fork children until the input ends; what lives then is killed."""
    living: set[int] = set()
    for wanted in asked(living):
        number = os.fork()
        if number == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            child(wanted["words"], wanted["folder"], wanted["log"])
        living.add(number)
        print(json.dumps({"begun": number}), flush=True)
    for number in living:
        os.kill(number, signal.SIGKILL)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
    import torch

    torch.set_num_threads(1)
    # What the verbs import when they are called.
    import triune.cli
    import triune.pipeline
    import triune.pipeline.reporting
    import triune.report.tables  # noqa: F401

    print("ready", flush=True)
    serve()
