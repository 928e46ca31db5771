"""Every kind of bad input that issue 2 lists: a clear error before anything is computed, and nothing lost.

One row a fault: what spoils a sound world of a base, two experts and their data, what is then called, and the
essential words of the message: what was got, what is allowed, the way out.
"""

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.folders import closed_folder, foreign, names, tree
from tests.spoiling import (
    UP,
    add_tokens,
    check,
    edit,
    expert,
    experts,
    fuse,
    line,
    make_world,
    nothing,
    poison,
    recipe,
    retrained,
    rows,
    run,
    train,
    truncate,
    written,
)
from triune import pipeline
from triune.data.mixing import mix
from triune.data.preparing import prepare
from triune.errors import InputError
from triune.experts.adapters import read_adapter
from triune.models.preflight import check_base
from triune.recipe import Align, Fuse
from triune.recipe_file import settings_from
from triune.record import claim


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sound world; not to be changed."""
    world = tmp_path_factory.mktemp("sound") / "world"
    make_world(world)
    return world


@pytest.fixture
def world(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the sound world to spoil, as the working folder."""
    monkeypatch.chdir(shutil.copytree(sound, tmp_path / "world"))


@pytest.fixture
def no_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward pass of any module fails the test."""

    def forward(module: torch.nn.Module, *args: object, **kwargs: object) -> None:
        pytest.fail(f"computed: {type(module).__name__}")

    monkeypatch.setattr(torch.nn.Module, "__call__", forward)


Fault = tuple[Callable[[], object], Callable[[], object], str]
FAULTS: dict[str, Fault] = {
    "base without weights": (
        lambda: Path("base/model.safetensors").unlink(),
        lambda: check_base("base"),
        "base has no weights; wanted model.safetensors, or model.safetensors.index.json with its shards",
    ),
    "base without weights, in a run": (lambda: Path("base/model.safetensors").unlink(), run, "base has no weights"),
    "base with pickled weights only": (
        lambda: Path("base/model.safetensors").rename("base/pytorch_model.bin"),
        run,
        r"only pickled weights \(pytorch_model.bin\).*refused.*convert it",
    ),
    "base with NaN weights": (
        poison,
        lambda: check_base("base"),
        rf"base: NaN or infinite weights in 1 of \d+ tensors: {UP}.weight 1 of 384; download it again or choose",
    ),
    "base with NaN weights, in training": (poison, train, "NaN or infinite weights in 1 of"),
    "base with truncated safetensors": (
        truncate,
        lambda: check_base("base"),
        r"truncated or not a safetensors file: .* ends at byte [\d,]+ of the data and the file holds [\d,]+; download",
    ),
    "base with truncated safetensors, in fusing": (truncate, fuse, "truncated or not a safetensors file"),
    "no base": (lambda: shutil.move("base", "bases"), run, "'base': no such folder; nearest: .*bases.*give the path"),
    "rows longer than the base's context": (
        nothing,
        lambda: run(base={"path": "base", "template": "plain", "max_length": 300}),
        "base.max_length is 300, but the context of base is 64 tokens; lower it",
    ),
    "an adapter on layers that no base has": (
        nothing,
        lambda: run(mixture={"lora": {"targets": ["c_fc"]}}, fuse={"shared": "average"}),
        r"mixture.lora.targets names \['c_fc'\]; the layers of these models are gate_proj, .*o_proj",
    ),
    "a chat template that the tokenizer lacks": (
        nothing,
        lambda: run(base={"path": "base", "template": "chat", "max_length": 32}),
        "template 'chat' wants a tokenizer with a chat template",
    ),
    "adapter for another base, by its shapes": (
        lambda: expert(UP, 48, 16),
        check,
        rf"helpful changes '{UP}' of shape \(48, 16\), but the base's is \(24, 16\); .* another base",
    ),
    "adapter for another base, by its modules": (
        lambda: expert("model.layers.7.mlp.up_proj", 24, 16),
        fuse,
        "'model.layers.7.mlp.up_proj', which the base does not have .*; it was made for another base model",
    ),
    "adapter for another base, by its weights' hash": (
        retrained,
        fuse,
        r"expert 'helpful' was trained on other base weights \(sha256 0123456789ab, this base has [0-9a-f]{12}\)",
    ),
    "adapters of two bases, by the weights' hash": (
        retrained,
        check,
        r"trained on different base weights \(helpful: 0123456789ab, honest: [0-9a-f]{12}\); they cannot be fused",
    ),
    "adapter with another rank pattern": (
        lambda: edit("helpful/adapter_config.json", rank_pattern={"up_proj": 7}),
        lambda: read_adapter(Path("helpful"), "helpful"),
        rf"'{UP}' has factors \(24, 2\) and \(2, 16\), but its adapter_config.json says rank 7 .*do not belong",
    ),
    "adapter with DoRA": (
        lambda: edit("helpful/adapter_config.json", use_dora=True),
        fuse,
        "helpful uses use_dora=True, which a fused model cannot honour; merge it into its base .* or train a plain",
    ),
    "adapter with modules_to_save": (
        lambda: edit("honest/adapter_config.json", modules_to_save=["lm_head"]),
        check,
        r"lacks the tensor 'lm_head.weight', which its adapter_config.json says PEFT trained",
    ),
    "tokenizer larger than the embedding": (
        add_tokens,
        lambda: check_base("base"),
        r"the tokenizer gives ids up to \d+ and the embedding has 320 rows; use the tokenizer .* or resize_token",
    ),
    "tokenizer larger than the embedding, in a run": (
        add_tokens,
        run,
        "and the embedding has 320 rows; use the tokenizer",
    ),
    "configuration larger than the embedding": (
        lambda: edit("base/config.json", vocab_size=400),
        lambda: check_base("base"),
        "config.json says vocab_size 400 and the embedding has 320 rows; correct config.json",
    ),
    "data file missing": (
        lambda: Path("helpful.jsonl").rename("helpfull.jsonl"),
        lambda: rows("helpful"),
        "helpful.jsonl does not exist; did you mean helpfull.jsonl",
    ),
    "data file missing, in a run": (lambda: Path("honest.jsonl").unlink(), run, "honest.jsonl does not exist"),
    "data file empty": (
        lambda: Path("helpful.jsonl").write_bytes(b""),
        lambda: rows("helpful"),
        "helpful.jsonl: the file is empty; wanted rows of data",
    ),
    "data not JSON on a line": (
        lambda: line(3, b'{"prompt": "why?",'),
        lambda: rows("helpful"),
        r"helpful.jsonl:3: not JSON \(.*\): .*why\?.*; wanted one object a line",
    ),
    "data with a missing field": (
        lambda: line(2, b'{"prompt": "why?", "answer": "so"}'),
        lambda: rows("helpful"),
        r"helpful.jsonl, row 2: has the fields \(prompt, answer\); .*'rows' wants \(prompt, response\)\. Choose",
    ),
    "data with an empty answer": (
        lambda: line(4, b'{"prompt": "why?", "response": " "}'),
        run,
        "helpful.jsonl, row 4: empty answer; mend or remove the row",
    ),
    "data in Latin-1": (
        lambda: line(5, '{"prompt": "für?", "response": "so"}'.encode("latin-1")),
        lambda: rows("helpful"),
        r"helpful.jsonl:5: byte 0xfc at offset \d+ is not UTF-8 \(perhaps Latin-1 or Windows-1252\); save the file as",
    ),
    "data in UTF-16": (
        lambda: Path("helpful.jsonl").write_bytes(Path("helpful.jsonl").read_text().encode("utf-16")),
        lambda: rows("helpful"),
        r"helpful.jsonl:1: byte 0x.. at offset 0 is not UTF-8 \(perhaps UTF-16\); save the file as UTF-8",
    ),
    "an axis without data, in a recipe": (
        nothing,
        lambda: written("axes:\n  helpful: {train: {source: a}}\n  honest:\n"),
        "my.yaml: 'axes.honest' is empty; it takes calibration, expert, shifted, streaming, test, train",
    ),
    "an axis without data, in its slice": (
        lambda: Path("honest.jsonl").write_text('{"prompt": "why?", "response": "so"}\n'),
        run,
        "honest.jsonl from 0.5 to 1.0 holds no row; widen start and stop",
    ),
    "an axis without data, in a mixture": (
        nothing,
        lambda: mix({"helpful": rows("helpful"), "honest": []}, random.Random(0)),
        "axis 'honest' has no data; give it a source, or leave the axis out",
    ),
    "an axis without data, in fusing": (
        nothing,
        lambda: fuse(axes=("helpful",)),
        r"no row of the axis 'honest'; theirs are \['helpful'\]",
    ),
    "routers without data": (nothing, lambda: fuse(axes=()), "needs examples of every axis; give them .*, or choose"),
    "train and test overlap": (
        nothing,
        lambda: prepare(recipe(test_start=0.3)),
        r"'the training data' and 'test of helpful' share 1 prompt, for instance 'helpful .\?'; divide .* or take",
    ),
    "train and test overlap, in a run": (nothing, lambda: run(test_start=0.0), "'test of helpful' share 3 prompts"),
    "k > E, in a recipe": (
        nothing,
        lambda: written("fuse: {top_k: 3}"),
        "top_k is 3, but there are only 2 experts; lo",
    ),
    "k > E, in fusing": (nothing, lambda: fuse(Fuse(top_k=3)), "top_k is 3, but there are only 2 experts; lower it"),
    "k > E, in building": (nothing, lambda: check(Fuse(top_k=3)), "top_k is 3, but there are only 2 experts; lower"),
    "negative λ, in a recipe": (
        nothing,
        lambda: written("align: {gating: -0.01}"),
        r"my.yaml: 'align.gating': .*greater than or equal to 0 \(got -0.01\)",
    ),
    "negative λ, on the command line": (
        nothing,
        lambda: settings_from(Align, ["gating=-1"]),
        r"the command line: 'gating': .*greater than or equal to 0 \(got -1\)",
    ),
    "an output folder that is not ours": (
        lambda: foreign(Path("out")),
        lambda: claim(Path("out")),
        "out exists and was not written by Triune; choose a new or empty folder with --out",
    ),
    "an output folder that is not ours, in a run": (
        lambda: foreign(Path("out")),
        run,
        "not written by Triune; choose",
    ),
    "an output folder that is not ours, in training": (
        lambda: foreign(Path("out")),
        train,
        "not written by Triune; ch",
    ),
    "an output folder that is not ours, in fusing": (
        lambda: foreign(Path("out")),
        fuse,
        "not written by Triune; choo",
    ),
    "an output folder that is not ours, in evaluation": (
        lambda: foreign(Path("out")),
        lambda: pipeline.examine(recipe(), experts(), Path("out")),
        "not written by Triune; choose",
    ),
    "an output folder that is a file": (
        nothing,
        lambda: run("helpful.jsonl"),
        "helpful.jsonl is a file .*; give a fold",
    ),
    "an input as the output folder": (
        nothing,
        lambda: train("helpful"),
        "helpful exists and was not written by Triune",
    ),
    # /proc takes no file from anybody, root included; an ordinary folder without permission is tried below.
    "no permission to write, in a run": (
        nothing,
        lambda: run("/proc/triune"),
        r"cannot write in /proc \(.*\)",
    ),
    "no permission to write, in training": (
        nothing,
        lambda: train("/proc/triune"),
        "cannot write in /proc .*; choose",
    ),
}


@pytest.mark.usefixtures("world", "no_compute")
@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input(fault: str, capfd: pytest.CaptureFixture[str]) -> None:
    spoil, call, message = FAULTS[fault]
    spoil()
    before, folders = tree(), names(Path())
    with pytest.raises(InputError) as caught:
        call()
    said = str(caught.value)
    assert re.search(message, said), said
    assert len(said) < 700
    assert (tree(), names(Path())) == (before, folders)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("world")
def test_no_permission_to_write_in_an_ordinary_folder() -> None:
    wanted = recipe()
    with closed_folder() as closed:
        for call in (pipeline.run, lambda made, out: pipeline.examine(made, experts(), out)):
            with pytest.raises(InputError, match=r"cannot write in .*closed \(Permission denied\); choose"):
                call(wanted, closed / "out")
