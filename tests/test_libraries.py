"""The libraries below send nothing and say nothing of themselves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from triune.libraries import settle_libraries

COMMAND = "from triune.libraries import settle_libraries; settle_libraries(); import bitsandbytes, peft"
WORKER = "import triune.settled, triune.pipeline.process_pool, triune.pipeline.planning"  # what their server preloads


def test_telemetry_is_off_whenever_the_hub_library_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    settle_libraries()
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert constants.HF_HUB_DISABLE_TELEMETRY is True


@pytest.mark.parametrize("program", [COMMAND, WORKER])
def test_importing_what_triune_uses_says_nothing(program: str) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (pip install 'triune[quantised]')")
    own = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    ended = subprocess.run([sys.executable, "-c", program], env=own, capture_output=True, text=True, check=True)
    assert ended.stderr == ""
