"""Nothing reaches the network: tests cannot, and a whole verb works in a process whose sockets are blocked."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.spoiling import make_world

SOURCE = Path(__file__).parents[2] / "src"
# What a libc call could still do, sitecustomize blocks before anything is imported; each try is written down.
BLOCK = """
import os, socket
def refuse(what):
    def call(*words, **more):
        with open(os.environ["TRIED"], "a") as file:
            file.write(f"{what} {words[:2]}\\n")
        raise OSError("no network here")
    return call
for name in ("connect", "connect_ex", "sendto", "sendmsg", "bind"):
    setattr(socket.socket, name, refuse(name))
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, refuse(name))
"""


def test_a_test_cannot_leave_this_machine() -> None:
    with socket.socket() as one:
        for call in (one.connect, one.connect_ex):
            with pytest.raises(RuntimeError, match="a test tried to reach"):
                call(("192.0.2.1", 80))
    with socket.socket(type=socket.SOCK_DGRAM) as one, pytest.raises(RuntimeError, match="a test tried to reach"):
        one.sendto(b"x", ("192.0.2.1", 53))
    for look in (socket.getaddrinfo, socket.create_connection):
        with pytest.raises(RuntimeError, match="a test tried to reach"):
            look(*(("triune.invalid", 80) if look is socket.getaddrinfo else (("triune.invalid", 80),)))


def test_a_test_can_reach_this_machine() -> None:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        client.connect(server.getsockname())
    assert socket.getaddrinfo("localhost", 80)


def blocked(place: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A command in a process that can open no connection, without the switches that keep libraries silent."""
    (place / "site").mkdir(exist_ok=True)
    (place / "site" / "sitecustomize.py").write_text(BLOCK)
    silent = {"HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "HF_DATASETS_OFFLINE", "DO_NOT_TRACK"}
    kept = {name: value for name, value in os.environ.items() if name not in silent and "COV" not in name}
    paths = os.pathsep.join([str(place / "site"), str(SOURCE)])
    own = {"PYTHONPATH": paths, "TRIED": str(place / "tried"), "HF_HOME": str(place / "hub"), **more}
    return subprocess.run(
        [sys.executable, "-m", "triune", *words],
        cwd=place,
        env={**kept, **own},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_block_blocks(tmp_path: Path) -> None:
    make_world(tmp_path)
    words = ("--data", "helpful=helpful.jsonl", "--template", "plain", "--max-length", "32", "--out", "out")
    done = blocked(tmp_path, "train", "--base", "nobody/nothing-of-that-name", *words)
    assert done.returncode == 2, done.stderr
    assert "not in the hub's local cache either, and not downloaded" in done.stderr
    assert (tmp_path / "tried").is_file()


@pytest.mark.slow
def test_whole_verbs_ask_nobody(tmp_path: Path) -> None:
    """check, train, fuse, align, chat and report's input of a run on local files: not one try to reach anything."""
    make_world(tmp_path)
    base, rows = ("--base", "base"), ("--data", "helpful=helpful.jsonl", "--data", "honest=honest.jsonl")
    experts = ("--expert", "helpful=helpful", "--expert", "honest=honest")
    plain = ("--template", "plain", "--max-length", "32")
    for words in (
        ("check", *base, *experts),
        ("train", *base, *rows[:2], *plain, "--out", "trained", "fit.steps=1"),
        ("fuse", *base, *experts, *rows, *plain, "--out", "fused"),
        ("align", "fused", *rows, "--out", "aligned", "fit.steps=1"),
        ("chat", "aligned", "why?", "--plain", "--new-tokens", "2"),
    ):
        done = blocked(tmp_path, *words)
        assert done.returncode == 0, (words, done.stderr)
    assert not (tmp_path / "tried").exists(), (tmp_path / "tried").read_text()


def test_the_command_line_switches_telemetry_off(tmp_path: Path) -> None:
    """In the library itself, which reads its environment when it is imported, long before our main."""
    told = (
        "import sys; sys.argv = ['triune', '--help']\n"
        "import triune.cli\n"
        "try:\n    triune.cli.main()\nexcept SystemExit:\n    pass\n"
        "from huggingface_hub import constants\n"
        "print('telemetry off:', constants.HF_HUB_DISABLE_TELEMETRY)\n"
    )
    (tmp_path / "told.py").write_text(told)
    kept = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name and "COV" not in name}
    own = {**kept, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "told.py"], cwd=tmp_path, env=own, capture_output=True, text=True, check=False
    )
    assert "telemetry off: True" in done.stdout, done.stderr
