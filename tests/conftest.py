"""Shapes and types are checked while the tests run; nothing may reach the network."""

import os
import signal
import socket
from pathlib import Path

# A shell's background jobs ignore Ctrl-C, and so would everything that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

PACKAGE = Path(__file__).parents[1] / "src" / "triune"
# A transformers configuration is a dataclass that takes any keyword; the hook's wrapper would refuse them.
UNCHECKED = {"triune.fusion.configuration", "triune.__main__"}
MODULES = {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts) for p in PACKAGE.rglob("*.py")}
install_import_hook(sorted(m for m in MODULES - UNCHECKED if not m.endswith("__init__")), "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

# Many tiny products: a second thread only waits, and under load it waits long.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models: skip where it is absent, but fail in CI."""
    folder = Path(os.environ.get("TRIUNE_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        message = f"no shared data at {folder}; set TRIUNE_SHARED to its folder"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anything but this machine fails the test."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else "unix"
        if host not in {"unix", "127.0.0.1", "::1", "localhost"}:
            raise RuntimeError(f"a test tried to reach {address!r}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
