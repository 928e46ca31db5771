"""Training processes in sessions of their own end when whoever started them is killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from triune.pipeline.starters import NAME, end_with_starter, starting

ROOT = Path(__file__).parents[2]
# The module by its file: the package would import torch, which takes seconds.
LOAD = """
import importlib.util, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("starters", sys.argv[1])
starters = importlib.util.module_from_spec(spec)
spec.loader.exec_module(starters)
folder = Path(sys.argv[2])
"""
STARTER = LOAD + "with starters.starting(folder):\n    print('ready', flush=True)\n    signal.pause()\n"
STARTED = LOAD + "starters.end_with_starter(folder)\nprint('ready', flush=True)\nsignal.pause()\n"


@contextmanager
def process(text: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has said that it is ready."""
    source = str(ROOT / "src" / "triune" / "pipeline" / "starters.py")
    with subprocess.Popen(
        [sys.executable, "-c", text, source, str(folder)], stdout=subprocess.PIPE, start_new_session=True
    ) as found:
        try:
            assert found.stdout is not None
            assert found.stdout.readline() == b"ready\n"
            yield found
        finally:
            found.kill()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_ends_with_its_starter_and_not_before(how: signal.Signals, tmp_path: Path) -> None:
    with process(STARTER, tmp_path) as starter, process(STARTED, tmp_path) as started:
        assert started.poll() is None
        os.kill(starter.pid, how)
        assert started.wait(60) == -signal.SIGKILL


def test_a_process_without_a_starter_goes_on(tmp_path: Path) -> None:
    end_with_starter(tmp_path)
    with starting(tmp_path):
        assert (tmp_path / NAME).is_file()
