"""Recipes as files: YAML, quick settings, overrides, and errors that name the place and the nearest known key."""

import json
from pathlib import Path

import pytest

from tests.folders import closed_folder
from triune.errors import InputError
from triune.presets import preset, presets
from triune.recipe import Align, Base, Calibrate, Fuse, Importance, Recipe, Train
from triune.recipe_file import load_recipe, parse_recipe, recipe_schema, settings_from, to_yaml, validate

ROOT = Path(__file__).parents[1]
SHIPPED = [*sorted((ROOT / "recipes").glob("*.yaml")), *sorted((ROOT / "src/triune/recipes").glob("*.yaml"))]
TEXT = """\
seed: 0
base: {miniature: {steps: 9}}
axes:
  helpful: {train: {source: a.jsonl}}
  train: {train: {source: b.jsonl}, test: {source: c.jsonl}}
align: &align
  gating: 0.5
  fit: {steps: 7}
scarce: {align: *align}
evaluate:
  - kind: nll
  - kind: preference
    data: {source: d.jsonl, format: chosen}
quick:
  base.miniature.steps: 2
  evaluate.1.data.limit: 3
"""


def read(*overrides: str, quick: bool = False) -> Recipe:
    return parse_recipe(TEXT, "my.yaml", quick=quick, overrides=overrides)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
@pytest.mark.parametrize("quick", [False, True])
def test_shipped_recipes_are_valid_and_survive_writing(path: Path, quick: bool) -> None:
    recipe = load_recipe(path, quick=quick)
    assert parse_recipe(to_yaml(recipe), "again") == recipe
    assert (recipe == load_recipe(path)) == (not quick or not recipe.quick)


def test_there_are_shipped_recipes() -> None:
    assert {"miniature.yaml", "real-tiny.yaml"} <= {path.name for path in SHIPPED}


def test_overrides_are_set_at_their_place() -> None:
    recipe = read("seed=3", "train.fit.learning_rate=3e-3", "evaluate.1.data.limit=5", "compare=[base, fused]")
    assert (recipe.seed, recipe.train.fit.learning_rate, recipe.compare) == (3, 3e-3, ("base", "fused"))
    assert recipe.evaluate[1].data.limit == 5  # type: ignore[union-attr]
    assert recipe.align.gating == 0.5


def test_an_override_is_for_one_place_also_where_yaml_shares() -> None:
    recipe = read("align.gating=0.1", "scarce.align.fit.steps=1")
    assert recipe.scarce is not None
    assert (recipe.align.gating, recipe.align.fit.steps) == (0.1, 7)
    assert (recipe.scarce.align.gating, recipe.scarce.align.fit.steps) == (0.5, 1)


def test_quick_settings_come_before_overrides() -> None:
    assert read().base.miniature.steps == 9  # type: ignore[union-attr]
    assert read(quick=True).base.miniature.steps == 2  # type: ignore[union-attr]
    assert read(quick=True).evaluate[1].data.limit == 3  # type: ignore[union-attr]
    assert read("base.miniature.steps=4", quick=True).base.miniature.steps == 4  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fuse.topk=3", "unknown key 'fuse.topk'; the nearest known one is 'top_k'"),
        ("sed=3", "unknown key 'sed'; the nearest known one is 'seed'"),
        ("axes.helpful.trian=1", "unknown key 'axes.helpful.trian'; the nearest known one is 'train'"),
        # An axis whose name is a key elsewhere; a union's member has its own keys.
        ("axes.train.tset=1", "unknown key 'axes.train.tset'; the nearest known one is 'test'"),
        ("evaluate.0.data=1", "unknown key 'evaluate.0.data'; the nearest known one is 'kind'"),
        ("evaluate.1.dat=1", "unknown key 'evaluate.1.dat'; the nearest known one is 'data'"),
        ("evaluate.1.data.limits=1", "unknown key 'evaluate.1.data.limits'; the nearest known one is 'limit'"),
        ("evaluate.1.data.limit=0", r"'evaluate.1.data.limit': .* greater than or equal to 1 \(got 0\)"),
        ("evaluate.0={}", "'evaluate.0' has no kind; known: nll, preference, multiple_choice, miniature"),
        ("evaluate.0.kind=vibes", "'evaluate.0': kind 'vibes' is unknown; known: nll, preference, multiple_choice, "),
        ("axes.helpful=", "'axes.helpful' is empty; it takes calibration, expert, shifted, streaming, test, train"),
        ("axes.helpful={}", "'axes.helpful.train' is missing; add it"),
        ("axes.helpful.train.start=2", r"less than or equal to 1 \(got 2\)"),
        ("title=", r"'title': .*string \(got None\)"),
        ("compare=base", r"'compare': a list is wanted \(got 'base'\)"),
        ("train.fit=fast", r"'train.fit': keys are wanted \(got 'fast'\)"),
        ("align.drift=0.1", r"'align.drift': keys are wanted \(got 0.1\)"),
        ("align.gating=-1", r"'align.gating': .*greater than or equal to 0 \(got -1\)"),
        ("fuse.top_k=3", "^my.yaml: fuse.top_k is 3, but there are only 2 experts; lower it$"),
        ("title=[" + "1, " * 60 + "1]", r"'title': .*\(got \[1, [1, ]*…\)"),
        (
            "evaluate.2.kind=nll",
            r"'evaluate.2.kind' \(the command line\) leads nowhere: '2' is not .* one of 2 items, from 0",
        ),
        ("evaluate.²=nll", "'²' is not the number of one of 2 items"),
        ("seed.x=1", "'seed.x' .* leads nowhere: 'x' would be inside a plain value; shorten the key"),
        ("seed.x.y=1", "'seed.x.y' .* leads nowhere: 'x' would be inside a plain value"),
        ("seed", "'seed' is not key=value, for example align.gating=0.1"),
        ("=3", "'=3' is not key=value"),
        ("seed=[1", r"the value of 'seed=\[1' is not valid YAML"),
        ("title=2024-13-45", "the value of 'title=2024-13-45' is not valid YAML: month must be in 1..12; quote it"),
    ],
)
def test_wrong_overrides(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(override)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "my.yaml is empty; a recipe is a mapping of keys"),
        ("- seed", "my.yaml holds a list; a recipe is a mapping of keys, see `triune run --schema`"),
        ("seed: [1", "my.yaml is not valid YAML"),
        ("day: 2024-13-45", "my.yaml is not valid YAML: month must be in 1..12"),
        ("!!python/object/apply:os.system [ls]", "my.yaml is not valid YAML"),
        ("seed: 1\ntitle: x\nseed: 2", "my.yaml:3: 'seed' is given twice; keep one"),
        ("a: {b: 1, c: 2, b: 3}", "my.yaml:1: 'b' is given twice"),
        ("a: &a\n  b: *a", "my.yaml is not valid YAML: line 1: a part contains itself; write it out"),
        ("seed: 1\n2: 3", "my.yaml:2: the key '2' is no text in YAML; put it in quotes"),
        ("axes: {no: 1}", "my.yaml:1: the key 'no' is no text"),
        ("quick: 3", r"'quick': keys are wanted \(got 3\)"),
        ("quick: {a: 1}\nbase: 3", "unknown key 'a'"),
    ],
)
def test_texts_that_are_no_recipe(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_recipe(text, "my.yaml", quick=True)


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(InputError, match=r"'title': .*; 'seed': .*; 'align.gating': "):
        read("seed=-1", "title=3", "align.gating=x")


def test_a_merge_key_is_no_repetition() -> None:
    text = "x: &x {fit: {steps: 3}}\ntrain: {<<: *x}\nmixture: {<<: *x}\n"
    with pytest.raises(InputError, match="unknown key 'x'") as caught:
        parse_recipe(text, "my.yaml")
    assert "twice" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no recipe at .*; see recipes/ for examples and `triune run --schema`"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(InputError, match=r"is a folder; give the recipe's own file"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("title: für".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin.yaml: byte 8 is not UTF-8; save the file as UTF-8"):
        load_recipe(tmp_path / "latin.yaml")
    with (
        closed_folder("my.yaml") as closed,
        pytest.raises(InputError, match=r"my.yaml cannot be read \(Permission denied\); mend its permissions"),
    ):
        load_recipe(closed / "my.yaml")


def test_parts_from_the_command_line() -> None:
    assert settings_from(Train, []) == Train()
    assert settings_from(Train, ["fit.steps=100", "lora.targets=[up_proj]"]).lora.targets == ("up_proj",)
    with pytest.raises(InputError, match="the command line: unknown key 'gate'; the nearest known one is 'gating'"):
        settings_from(Align, ["gate=1"])
    with pytest.raises(InputError, match=r"'fit.steps' is not key=value, for example fit.steps=100"):
        settings_from(Train, ["fit.steps"])
    with pytest.raises(InputError, match="here: give either path"):
        validate(Base, {}, "here")


def test_the_schema_says_every_key() -> None:
    schema = json.loads(recipe_schema())
    assert schema["properties"].keys() == Recipe.model_fields.keys()
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Fuse"]["properties"]["top_k"]["default"] == 2
    assert "H3Fusion" in schema["$defs"]["Lora"]["properties"]["rank"]["description"]


def test_a_preset_fills_what_the_recipe_leaves_open() -> None:
    text = """
preset: trinityx
base: {path: models/base}
axes: {helpful: {train: {source: a}}, honest: {train: {source: b}}}
evaluate: [{kind: nll}]
align: {entropy: 0.2}
"""
    recipe = parse_recipe(text, "a recipe")
    assert (recipe.fuse.top_k, recipe.fuse.temperature, recipe.fuse.importance) == (1, 0.7, Importance())
    assert (recipe.align.entropy, recipe.align.running, recipe.align.top_k) == (0.2, 0.01, "all")
    with pytest.raises(InputError, match="a recipe: there is no preset 'trinity'; known: alignx, h3fusion, trinityx"):
        parse_recipe(text.replace("trinityx", "trinity"), "a recipe")


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_settings_of_the_parts(name: str) -> None:
    parts = {"train": Train, "fuse": Fuse, "align": Align}
    assert {"fuse", "align"} <= set(preset(name)) <= set(parts)
    for part, found in preset(name).items():
        assert settings_from(parts[part], [f"preset={name}"]) == parts[part].model_validate(found)


def test_a_preset_gives_way_to_what_is_said_beside_it() -> None:
    assert settings_from(Fuse, ["top_k=3", "preset=trinityx"]).top_k == 3
    assert settings_from(Calibrate, ["preset=trinityx"]) == Calibrate()
