"""A process that has imported Triune once and forks a child for each command line: a kill then costs no import.

It reads a JSON line {"words": [...], "folder": ..., "log": ...} from its input, writes the child's number, and when
the child has ended its exit code (negative: the signal). A child is the command line as `python -m triune` runs it.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path


def child(words: list[str], folder: str, log: str) -> None:
    """Run one command line to its end; never returns."""
    from triune.cli import main

    os.chdir(folder)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
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


def serve() -> None:
    """Fork children until the input ends."""
    for line in sys.stdin:
        asked = json.loads(line)
        number = os.fork()
        if number == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            child(asked["words"], asked["folder"], asked["log"])
        print(number, flush=True)
        _, status = os.waitpid(number, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


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
