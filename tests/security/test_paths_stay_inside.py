"""A name in a file never leads out of the file's folder, neither for reading nor for writing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.fusion.serving_world import tiny
from tests.spoiling import make_world
from triune.data.sources import read_rows
from triune.errors import InputError
from triune.experts.checkpoint import MANIFEST, read
from triune.experts.kinds import read_expert
from triune.fusion.export.source import open_source
from triune.fusion.opening import check_model
from triune.fusion.router_file import EXPERTS, OWN, read_router
from triune.models.store import INDEX_FILE, SINGLE_FILE, weight_files
from triune.parsing import is_plain_name
from triune.recipe import Base
from triune.recipe_file import parse_recipe
from triune.record import digest

WAYS = ("../out", "../../etc/passwd", "/etc/passwd", "a/../../b", "..", ".", "", "a/b", "a\\b", "a\x00b")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("way", [*WAYS, 3, None, ["a"]])
def test_what_is_no_plain_name(way: Any) -> None:
    assert not is_plain_name(way)


@pytest.mark.parametrize("name", ["a", "model-00001-of-00002.safetensors", "..a", "a..b", "für", "a b"])
def test_what_is_a_plain_name(name: str) -> None:
    assert is_plain_name(name)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("inside")
    (place / "world").mkdir()
    make_world(place / "world")
    tiny(place / "tiny").exported(place / "router")
    return place


@pytest.mark.parametrize("way", WAYS)
def test_an_index_of_shards(sound: Path, tmp_path: Path, way: str) -> None:
    """Also where the file that it leads to is there, and is sound."""
    folder = Path(shutil.copytree(sound / "world" / "base", tmp_path / "base"))
    shutil.move(folder / SINGLE_FILE, tmp_path / "out")
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {"model.norm.weight": way}}))
    with pytest.raises(InputError, match="allowed are files of the same folder"):
        weight_files(folder)


@pytest.mark.parametrize("way", WAYS)
def test_the_experts_of_a_fused_model(sound: Path, tmp_path: Path, way: str) -> None:
    """An export writes a folder of each expert's name."""
    folder = Path(shutil.copytree(sound / "tiny" / "fused", tmp_path / "fused"))
    edit(folder / "config.json", expert_names=[way, "harmless", "honest"])
    for call in (lambda: check_model(folder, Base(path=str(folder))), lambda: open_source(folder)):
        with pytest.raises(InputError, match="each a plain name"):
            call()


@pytest.mark.parametrize("way", WAYS)
def test_the_adapters_of_a_router(sound: Path, tmp_path: Path, way: str) -> None:
    """With the file's own hash put right, as one who changes it on purpose would, and with the adapter there."""
    folder = Path(shutil.copytree(sound / "router", tmp_path / "router"))
    shutil.copytree(folder / EXPERTS / "helpful", tmp_path / "router" / "out")
    settings = json.loads((folder / "router.json").read_text())
    settings.pop(OWN)
    settings["expert_names"] = [way, "harmless", "honest"]
    hashes = settings["adapters_sha256"]
    settings["adapters_sha256"] = {way: hashes["helpful"], "harmless": hashes["harmless"], "honest": hashes["honest"]}
    (folder / "router.json").write_text(json.dumps({**settings, OWN: digest(settings)}))
    with pytest.raises(InputError, match="wanted names of folders in experts"):
        read_router(folder)


@pytest.mark.parametrize("way", WAYS)
def test_the_files_of_a_checkpoint(tmp_path: Path, way: str) -> None:
    folder = tmp_path / "step-1"
    folder.mkdir()
    (tmp_path / "out").write_text("x")
    (folder / MANIFEST).write_text(json.dumps({"job": "j", "files": {way: "0" * 64}}))
    with pytest.raises(InputError, match="is damaged"):
        read(folder, "j")


@pytest.mark.parametrize("way", ["../rows.jsonl", "/etc/*", "a/../../rows.jsonl"])
def test_the_files_of_a_data_card(tmp_path: Path, way: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p", "response": "r"}\n')
    (folder / "README.md").write_text(
        f"---\nconfigs: [{{config_name: default, data_files: {json.dumps(way)}}}]\n---\n"
    )
    with pytest.raises(InputError, match="leads out of the data set's folder"):
        read_rows(folder)


@pytest.mark.parametrize("way", ["../x", "/x", "a/b", "..", ""])
@pytest.mark.parametrize("part", ["axes", "variants", "mixtures", "served"])
def test_names_in_a_recipe_of_which_folders_are_made(way: str, part: str) -> None:
    whole: dict[str, Any] = {"base": {"path": "base"}, "evaluate": [{"kind": "nll"}]}
    axes: dict[str, Any] = {"helpful": {"train": {"source": "a"}}, "honest": {"train": {"source": "b"}}}
    more = {"axes": {**axes, way: {"train": {"source": "c"}}}} if part == "axes" else {"axes": axes, part: {way: {}}}
    with pytest.raises(InputError, match=r"my\.yaml"):
        parse_recipe(json.dumps({**whole, **more}), "my.yaml")  # JSON is YAML


def test_an_adapter_has_no_paths_that_are_followed(sound: Path, tmp_path: Path) -> None:
    """Where an adapter's base lies is a word about it: nothing is read from there."""
    folder = Path(shutil.copytree(sound / "world" / "helpful", tmp_path / "helpful"))
    edit(folder / "adapter_config.json", base_model_name_or_path="../../../nowhere", revision="../x")
    assert read_expert(folder, "helpful", sound / "world" / "base").parts
