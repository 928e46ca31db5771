"""Shapes and types are checked while the tests run; nothing may reach the network."""

import os
import signal
import socket
from pathlib import Path
from typing import Any

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

# This machine; None and "" are what servers listen on.
HERE = {"unix", "127.0.0.1", "::1", "localhost", "0.0.0.0", None, "", socket.gethostname()}
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
    """A connection, a datagram or a question for a name that is for anything but this machine fails the test."""

    def check(address: object) -> None:
        host = address[0] if isinstance(address, tuple) else "unix"
        if host not in HERE:
            raise RuntimeError(f"a test tried to reach {address!r}")

    def guard(owner: Any, name: str, place: int) -> None:
        plain = getattr(owner, name)

        def guarded(*words: Any, **more: Any) -> Any:
            check(words[place])
            return plain(*words, **more)

        monkeypatch.setattr(owner, name, guarded)

    guard(socket.socket, "connect", 1)
    guard(socket.socket, "connect_ex", 1)
    guard(socket.socket, "sendto", -1)
    plain = socket.getaddrinfo

    def asked(host: Any, *words: Any, **more: Any) -> Any:
        check((host.decode() if isinstance(host, bytes) else host,))
        return plain(host, *words, **more)

    monkeypatch.setattr(socket, "getaddrinfo", asked)
