"""Runs that nobody stopped, and copies of their folders without the run."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.killing import FEW_STEPS, MANY_STEPS, RUN, Nursery, make_chaos_world, nursery


@pytest.fixture(scope="session")
def warm() -> Iterator[Nursery]:
    """Importing Triune takes longer than a run of this recipe: once for all tests."""
    with nursery() as own:
        yield own


def _unstopped(place: Path, recipe: str, starter: Nursery) -> Path:
    make_chaos_world(place, recipe)
    starter.folder = place
    child = starter.start(*RUN)
    assert child.wait() == 0, child.said()
    return place


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, warm: Nursery) -> Path:
    """A folder with a recipe of few steps, its data, and `out`: a run that nobody stopped."""
    return _unstopped(tmp_path_factory.mktemp("chaos") / "whole", FEW_STEPS, warm)


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory, warm: Nursery) -> Path:
    """The same with a step of every kind."""
    return _unstopped(tmp_path_factory.mktemp("chaos") / "wide", MANY_STEPS, warm)


def copied(world: Path, place: Path, starter: Nursery) -> Path:
    """A copy of the folder without the run, in which the starter starts from now on."""
    shutil.copytree(world, place, ignore=lambda above, found: {"out"} & set(found))
    starter.folder = place
    return place


@pytest.fixture
def again(whole: Path, tmp_path: Path, warm: Nursery) -> Path:
    """A copy of `whole` without the run."""
    return copied(whole, tmp_path / "again", warm)


@pytest.fixture
def wide_again(wide: Path, tmp_path: Path, warm: Nursery) -> Path:
    """A copy of `wide` without the run."""
    return copied(wide, tmp_path / "again", warm)
