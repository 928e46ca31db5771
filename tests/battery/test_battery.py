"""Every bad input of every verb, one row each in battery.yaml: its exit code, its message, and nothing written."""

import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.battery.world import SPOIL, Row, make_battery_world, read_battery
from tests.folders import names, tree
from triune import cli

ROWS = read_battery()
FEWEST = 150
Call = Callable[[Row], tuple[int, str, str]]


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The sound world; not to be changed."""
    world = tmp_path_factory.mktemp("battery") / "world"
    with pytest.MonkeyPatch.context() as patch:
        make_battery_world(world, patch)
    return world


@pytest.fixture
def call(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Spoil a copy of the sound world by a row and give the command line: exit code, errors, output."""
    monkeypatch.chdir(shutil.copytree(sound, tmp_path / "world"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setattr(torch.nn.Module, "__call__", computed)
    monkeypatch.setattr(signal, "signal", lambda *given: None)  # the test keeps its own

    def run(row: Row) -> tuple[int, str, str]:
        for how, *what in row.spoil:
            SPOIL[how](*what)
        before = names(Path())
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["triune", *row.arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        output, errors = capsys.readouterr()
        assert names(Path()) == before
        here = f"{Path.cwd()}/"
        return code, plain(errors).replace(here, ""), plain(output).replace(here, "")

    return run


def computed(module: torch.nn.Module, *args: object, **kwargs: object) -> None:
    """Stands in for a forward pass: bad input must be refused before one."""
    pytest.fail(f"computed: {type(module).__name__}")


def plain(text: str) -> str:
    """In one line, without the frame that typer draws."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.verb}: {row.bad}")
def test_a_bad_input_is_refused(row: Row, call: Call) -> None:
    code, errors, output = call(row)
    assert "Traceback" not in errors + output
    assert plain(row.says) in errors + output
    assert code == row.code
    assert len(errors) < 1000


def test_nothing_is_written(sound: Path, call: Call) -> None:
    row = next(row for row in ROWS if row.verb == "fuse" and not row.spoil)
    before, folders = tree(), names(Path())
    assert call(row)[0] == row.code
    assert (tree(), names(Path())) == (before, folders)


def test_the_battery_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = {command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback}
    verbs |= {group.name for group in cli.app.registered_groups if group.name}
    assert {row.verb.split()[0] for row in ROWS} == verbs
    kinds = {(row.verb, row.bad) for row in ROWS}
    assert len(kinds) == len(ROWS) >= FEWEST
    with capsys.disabled():
        print(f"\nbattery: {len(ROWS)} bad inputs of {len(verbs)} verbs")
