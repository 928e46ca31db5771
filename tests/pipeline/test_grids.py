"""Grids: which points there are, what they are called, and what is refused before anything starts."""

from pathlib import Path

import pytest

from triune.errors import InputError
from triune.pipeline import grids
from triune.pipeline.grids import MANY, expand
from triune.pipeline.running import demo_recipe
from triune.recipe_file import to_yaml
from triune.report.sweep_words import short_keys, value_name


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(demo_recipe()))
    return path


def test_the_points_of_two_keys_and_the_seed_with_one_value_for_all(recipe: Path) -> None:
    points = expand(recipe, ["align.gating=0,0.01", "fuse.top_k=1,2", "seed=3,4", "new_tokens=5"])
    assert [point.name for point in points] == [
        f"gating={gating},top_k={k},seed={seed}" for gating in ("0", "0.01") for k in (1, 2) for seed in (3, 4)
    ]
    last = points[-1].recipe
    assert (last.align.gating, last.fuse.top_k, last.seed, last.new_tokens) == (0.01, 2, 4, 5)
    assert points[0].values == {"align.gating": 0, "fuse.top_k": 1, "seed": 3}


def test_lists_and_texts_are_values_and_names_are_folders(recipe: Path) -> None:
    points = expand(recipe, ["train.lora.targets=[up_proj],[up_proj, down_proj]", "title='a/b: c','x'"])
    assert points[1].recipe.train.lora.targets == ("up_proj",)
    assert points[2].recipe.train.lora.targets == ("up_proj", "down_proj")
    assert points[3].name == "targets=up_proj+down_proj,title=x"
    assert points[0].name.startswith("targets=up_proj,title=a-b-c-")
    assert all("/" not in point.name for point in points)


def test_long_names_are_cut_and_stay_apart(recipe: Path) -> None:
    points = expand(recipe, [f"title={'a' * 90}1,{'a' * 90}2"])
    assert len({point.name for point in points}) == 2
    assert all(len(point.name) <= 90 for point in points)


def test_keys_are_called_by_as_many_parts_as_tell_them_apart() -> None:
    assert short_keys(["train.fit.steps", "align.gating"]) == {"train.fit.steps": "steps", "align.gating": "gating"}
    assert list(short_keys(["train.fit.steps", "align.fit.steps"]).values()) == ["train.fit.steps", "align.fit.steps"]
    assert [value_name(value) for value in (0.1, True, None, [], ["a", 1])] == ["0.1", "true", "null", "none", "a+1"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["align.gating"], "'align.gating' is not KEY=V1,V2"),
        (["align.gating="], "'align.gating=' is not KEY=V1,V2"),
        (["align.gating=0,1", "align.gating=2"], "align.gating is given twice"),
        (["align.gating=0.1"], "a sweep needs a key with several values"),
        (["align.gatng=0,1"], "unknown key 'align.gatng'; the nearest known one is 'gating'"),
        (["align.gating=0,-1"], "align.gating"),
        (["align.gating=[0,1"], "are not valid YAML"),
        (["align.gating=0.1,0.10"], "the points gating=0.1 and gating=0.1 are the same recipe"),
        (["align.gating=0,0.0"], "the points gating=0 and gating=0.0 are the same recipe"),
        (["title=2020-01-01,x"], "which no recipe can hold; quote it"),
        ([f"seed={','.join(map(str, range(MANY + 1)))}"], f"has {MANY + 1} points, more than {MANY}; give --yes"),
        (["seed=1,2", "seeds=[3,4]"], r"has seeds \[3, 4\]; a sweep has a run for each point"),
        (["seeds=[1,2],[3,4]"], "a sweep needs a key"),
    ],
)
def test_grids_that_are_refused(recipe: Path, keys: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        expand(recipe, keys)


def test_many_points_may_be_meant(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "MANY", 2)
    with pytest.raises(InputError, match="has 3 points, more than 2; give --yes"):
        expand(recipe, ["seed=1,2,3"])
    assert len(expand(recipe, ["seed=1,2,3"], yes=True)) == 3
