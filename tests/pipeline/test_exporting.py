"""The verb export: run or model in, a whole folder out, or nothing; interrupted, it goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.fusion.conftest import random_base
from tests.fusion.export.conftest import fused_of
from tests.models.conftest import byte_level
from triune.errors import InputError
from triune.fusion.export import families
from triune.fusion.export.source import Options
from triune.models.shards import DiskFull
from triune.pipeline.exporting import export, options_from
from triune.record import Step, read_record, write_json, writing

SHARDS = Options(torch.float32, max_shard_bytes=4000)


@pytest.fixture
def fused(tmp_path: Path) -> Path:
    """A fused folder with a tokenizer and a record, as `fuse` leaves it."""
    with writing(Step(tmp_path / "run" / "fused", "fuse", {"fuse": {"top_k": 2}})) as draft:
        fused_of(random_base("mistral")).save_pretrained(draft)
        byte_level().save_pretrained(draft)
    return tmp_path / "run" / "fused"


@pytest.fixture
def run(fused: Path) -> Path:
    """The run around it: recipe and scores."""
    score = {"model": "fused", "score": "helpful", "value": 61.5, "low": 55.1, "high": 67.9, "n": 200}
    rest = {"better": "higher", "unit": "%", "judge": "a rule", "agreement": None, "abstained": 0}
    write_json(fused.parent / "scores.json", [{**score, **rest}, {**score, **rest, "model": "base", "value": 56.0}])
    recipe = {"title": "My run", "caveats": ["Only a test."], "base": {"path": "them/their-model"}}
    (fused.parent / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return fused.parent


def contents(folder: Path) -> dict[str, bytes]:
    """Everything but the record, whose times differ."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "record.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def around(out: Path) -> set[str]:
    """What stands beside an export, other than the model."""
    return {path.name for path in out.parent.iterdir()} - {"run"}


class Said:
    """A watcher that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def task(self, title: str, total: int) -> Any:
        from triune.progress import SILENT

        return SILENT.task(title, total)

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_run_becomes_a_whole_folder(run: Path, tmp_path: Path) -> None:
    said = Said()
    out = export(run, tmp_path / "out", "native", SHARDS, said)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.architectures == ["MixtralForCausalLM"]
    assert AutoTokenizer.from_pretrained(out)("Name a fish.").input_ids == byte_level()("Name a fish.").input_ids
    card = (out / "README.md").read_text()
    for part in ("# My run", "`them/their-model`", "**61.5** [55.1, 67.9]", "- Only a test.", "title: My run"):
        assert part in card
    assert around(out) == {"out"}
    record = read_record(out)
    plain = {"format": "native", "dtype": "float32", "max_shard_bytes": 4000, "base": "", "tokenizer": True}
    assert record["settings"] == plain
    assert record["inputs"].keys() == {"model", "scores.json", "recipe.yaml"}
    assert any(line.startswith("native: ") and " kB in " in line for line in said.lines)
    assert f"vllm serve {out}" in said.lines[-1]


def test_a_fused_folder_does_as_well(fused: Path, tmp_path: Path) -> None:
    card = (export(fused, tmp_path / "out", "native", Options(base="me/mine")) / "README.md").read_text()
    for part in ("# out", "base_model:\n- me/mine", "Not measured", "top_k: 2"):
        assert part in card


def test_the_licence_is_that_of_the_bases_card_and_no_path_is_told(run: Path, tmp_path: Path) -> None:
    base = tmp_path / "run" / "somewhere"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: mit\n---\n# Base")
    (run / "recipe.yaml").write_text(yaml.safe_dump({"base": {"path": str(base)}}))
    front = (export(run, tmp_path / "out", "native", Options()) / "README.md").read_text().split("## Recipe")[0]
    assert "license: mit" in front
    assert "Made from somewhere (mistral" in front
    assert str(tmp_path) not in front


@pytest.mark.parametrize("text", ["---\n[\n---\n", "---\nlicense: [a]\n---\n", "# no front matter"])
def test_a_base_card_without_a_licence_says_nothing(run: Path, tmp_path: Path, text: str) -> None:
    base = tmp_path / "run" / "somewhere"
    base.mkdir()
    (base / "README.md").write_text(text)
    (run / "recipe.yaml").write_text(yaml.safe_dump({"base": {"path": str(base)}}))
    assert "licence was not found" in (export(run, tmp_path / "out", "native", Options()) / "README.md").read_text()


def test_a_second_call_skips_and_another_setting_sets_the_first_aside(fused: Path, tmp_path: Path) -> None:
    said, out = Said(), tmp_path / "out"
    export(fused, out, "native", SHARDS)
    before = (out / "record.json").read_bytes()
    export(fused, out, "native", SHARDS, said)
    assert said.lines[0].endswith("finished before, skipped")
    assert (out / "record.json").read_bytes() == before
    export(fused, out, "native", Options(torch.bfloat16))
    assert (out / "model.safetensors").is_file()
    assert (tmp_path / ".superseded" / "out-1" / "record.json").read_bytes() == before


def stop_after(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> list[str]:
    """Raise when that many expert matrices have been made; gives the names of those made."""
    weight, made = families.expert_weight, []

    def limited(*args: Any) -> torch.Tensor:
        if len(made) == number:
            raise error
        made.append(args[-1])
        return weight(*args)

    monkeypatch.setattr(families, "expert_weight", limited)
    return made


def test_an_interrupted_export_leaves_nothing_under_its_name_and_goes_on(
    fused: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    export(fused, whole, "native", SHARDS)
    with monkeypatch.context() as patch:
        stop_after(patch, 9, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            export(fused, out, "native", SHARDS)
    assert around(out) == {"whole", ".out.export"}
    made = stop_after(monkeypatch, 10**9, KeyboardInterrupt())
    export(fused, out, "native", SHARDS)
    assert 0 < len(made) < 18  # of 2 layers, 3 matrices, 3 experts
    shutil.move(whole / "README.md", tmp_path / "card")
    found = contents(out)
    assert found.pop("README.md").replace(b"out", b"whole") == (tmp_path / "card").read_bytes().replace(
        b"out", b"whole"
    )
    assert found == contents(whole)
    assert around(out) == {"whole", "out", "card"}


def test_what_is_left_of_another_export_is_not_taken_up(
    fused: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 9, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            export(fused, tmp_path / "out", "native", SHARDS)
    made = stop_after(monkeypatch, 10**9, KeyboardInterrupt())
    export(fused, tmp_path / "out", "native", Options(torch.float32, max_shard_bytes=4001))
    assert len(made) == 18


@pytest.mark.slow
def test_a_killed_process_loses_no_finished_shard(fused: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    script = """
import os, signal, sys, torch
from pathlib import Path
from triune.fusion.export import families
from triune.fusion.export.source import Options
from triune.pipeline.exporting import export
weight, made = families.expert_weight, []
def limited(*args):
    made.append(0)
    if len(made) == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    return weight(*args)
families.expert_weight = limited
export(Path(sys.argv[1]), Path(sys.argv[2]), "native", Options(torch.float32, max_shard_bytes=4000))
"""
    killed = subprocess.run([sys.executable, "-c", script, str(fused), str(out)], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".out.export").glob("*.safetensors")}
    assert kept
    export(fused, out, "native", SHARDS)
    assert all((out / name).stat().st_mtime_ns == time for name, time in kept.items())
    export(fused, whole, "native", SHARDS)
    weights = [name for name in contents(out) if name != "README.md"]
    assert {name: contents(out)[name] for name in weights} == {name: contents(whole)[name] for name in weights}
    assert around(out) == {"out", "whole"}


def test_a_full_disk_keeps_what_is_finished(fused: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 9, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            export(fused, tmp_path / "out", "native", SHARDS)
    kept = contents(tmp_path / ".out.export")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
        with pytest.raises(DiskFull, match=r"still needs .* kB and 100 bytes are free"):
            export(fused, tmp_path / "out", "native", SHARDS)
    assert contents(tmp_path / ".out.export") == kept
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_leaves_nothing(tmp_path: Path) -> None:
    model = fused_of(random_base("mistral"))
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = 1e6
    model.save_pretrained(tmp_path / "fused")
    with pytest.raises(InputError, match=r"overflows float16.*--dtype bfloat16"):
        export(tmp_path / "fused", tmp_path / "out", "native", Options(torch.float16))
    assert around(tmp_path / "out") == {"fused"}
    fused_of(random_base("gemma")).save_pretrained(tmp_path / "gemma")
    with pytest.raises(InputError, match="use --format compact"):
        export(tmp_path / "gemma", tmp_path / "out", "native", Options())
    assert around(tmp_path / "out") == {"fused", "gemma"}


def test_without_hard_links_files_are_moved(fused: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("Operation not permitted")

    whole = export(fused, tmp_path / "whole", "native", SHARDS)
    monkeypatch.setattr(os, "link", refuse)
    out = export(fused, tmp_path / "out", "native", SHARDS)
    assert contents(out).keys() == contents(whole).keys()


def test_a_model_with_a_subtracted_expert_is_exported_on_a_word_and_warns(tmp_path: Path) -> None:
    model = fused_of(random_base("mistral"), weights={"harmless": -1.0}, allow_negated=True)
    model.save_pretrained(tmp_path / "fused")
    byte_level().save_pretrained(tmp_path / "fused")
    with pytest.raises(InputError, match=r"\['harmless'\] were subtracted .*--allow-negated"):
        export(tmp_path / "fused", tmp_path / "out", "native", Options())
    assert around(tmp_path / "out") == {"fused"}
    for name in ("native", "compact"):
        out = export(tmp_path / "fused", tmp_path / name, name, Options(), allow_negated=True)
        assert "**Warning.** The expert 'harmless' (weight -1) was subtracted" in (out / "README.md").read_text()


@pytest.mark.parametrize("place", ["run/fused", "run/fused/native"])
def test_the_model_is_not_pushed_aside_by_its_export(fused: Path, tmp_path: Path, place: str) -> None:
    with pytest.raises(InputError, match="in the model's own folder"):
        export(fused, tmp_path / place, "native", SHARDS)


def test_folders_of_others_are_left_alone(fused: Path, tmp_path: Path) -> None:
    for name in ("out", ".out.export"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
        with pytest.raises(InputError, match="was not written by Triune"):
            export(fused, tmp_path / "out", "native", SHARDS)
        assert (tmp_path / name / "mine.txt").read_text() == "mine"
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: options_from("int8", "5GB", ""), "--dtype 'int8' is unknown; known: float32, bfloat16, float16"),
        (lambda: options_from("", "much", ""), "'much' is not a size"),
        (lambda: export(Path("nowhere"), Path("out"), "native", Options()), "nowhere does not exist"),
        (lambda: export(Path("nowhere"), Path("out"), "onnx", Options()), "'onnx' is unknown"),
    ],
)
def test_wrong_words_are_answered(
    call: Callable[[], object], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=says):
        call()
    assert list(tmp_path.iterdir()) == []


def test_options_in_words() -> None:
    assert options_from("bfloat16", "2GB", "a/b") == Options(torch.bfloat16, 2 * 10**9, "a/b")
    assert options_from("", "5GB", "") == Options()


def test_shard_index_names_every_file(fused: Path, tmp_path: Path) -> None:
    out = export(fused, tmp_path / "out", "native", SHARDS)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert {path.name for path in out.glob("*.safetensors")} == set(index["weight_map"].values())
