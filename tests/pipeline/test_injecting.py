"""The verb `train` with an injection: one adapter of two passes, resumable in either, with all that is said of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.experts.conftest import light_training
from tests.experts.peft_adapters import unwarned
from tests.folders import names
from tests.pipeline.test_resuming import Watcher
from tests.spoiling import context, make_world, rows
from triune import cli, pipeline
from triune.errors import InputError
from triune.experts.injection import Passes, injected
from triune.experts.kinds import read_expert
from triune.experts.task_feature import prompt_states, read_feature
from triune.models.store import hash_weights
from triune.models.tiny import build_tokenizer
from triune.pipeline import injecting
from triune.pipeline.verbs import Context
from triune.progress import SILENT, Progress
from triune.recipe import Base, Fit, Train
from triune.recipe_file import settings_from
from triune.record import read_record

TEXT = "Help."


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    make_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    with light_training():
        yield tmp_path


def settings(save_every: int | None = None, **own: Any) -> Train:
    fit = {"batch_size": 4, "learning_rate": 1e-2, "save_every": save_every}
    injection = {"texts": {"helpful": TEXT}, "fit": {**fit, "steps": 5}, **own}
    return Train.model_validate({"lora": {"rank": 2}, "fit": {**fit, "steps": 3}, "injection": injection})


def train(out: str = "out", own: Train | None = None, progress: Progress = SILENT) -> Path:
    return pipeline.train(context(progress), rows("helpful"), Path(out), own or settings())


def read(out: Path, name: str) -> Any:
    return json.loads((out / name).read_text(encoding="utf-8"))


def outcome(out: Path) -> dict[str, Any]:
    weights = {n: t.numpy().tobytes() for path in out.glob("*.safetensors") for n, t in load_file(path).items()}
    assert len(weights) > 3
    return {**weights, **{name: read(out, name) for name in ("curve.json", "injection.json", "spent.json")}}


def test_an_expert_of_two_passes_is_one_adapter_with_its_account() -> None:
    out = train()
    found = {path.name for path in out.iterdir()}
    assert found == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "curve.json",
        "injection.json",
        "record.json",
        "spent.json",
        "task_feature.safetensors",
    }
    assert [(row["step"], row["pass"]) for row in read(out, "curve.json")] == [
        *((step, 1) for step in (1, 2, 3)),
        *((step, 2) for step in (4, 5, 6, 7, 8)),
    ]
    assert read(out, "spent.json") == {"steps": 8, "examples": 12}
    account = read(out, "injection.json")
    assert account["texts"] == {"helpful": TEXT}
    assert account["rows"] == {
        "given": 6,
        "plain": 6,
        "injected": 6,
        "both": 6,
        "cut": {"plain": 0, "injected": 0},
    }
    assert account["ranks"] == {"first": 2, "second": 2, "merged": 4}
    assert (account["error"], account["errors"]) == (0, {})
    assert {name: own["n"] for name, own in account["losses"].items()} == {"base": 6, "first": 6, "merged": 6}
    first, second, whole = (account["norms"][name] for name in ("first", "second", "merged"))
    assert whole**2 == pytest.approx(first**2 + second**2 + 2 * account["cosine"] * first * second, rel=1e-5)
    assert account["feature"]["layer"] == 1

    vector = read_expert(out, "helpful", Path("base"))
    assert {part.rank for part in vector.parts.values()} == {4}
    assert vector.base_hash == hash_weights(Path("base"))


def test_the_feature_is_the_experts_own_and_measured_as_peft_computes() -> None:
    out = train(own=settings(layer=2))
    found = read_feature(out)
    assert (found.layer, found.n) == (2, 6)
    model, tokenizer = context().load()
    examples = rows("helpful")

    def shift(of: Any) -> torch.Tensor:
        before, after = (
            prompt_states(of, context().encode(tokenizer, those), layer=2, pad_id=0)
            for those in (examples, [injected(row, TEXT) for row in examples])
        )
        return (after.double() - before.double()).mean(0).float()

    base_alone = shift(model)
    with unwarned():
        expert = PeftModel.from_pretrained(model, str(out)).merge_and_unload()
    torch.testing.assert_close(found.phi, shift(expert), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found.phi, base_alone, rtol=1e-3, atol=1e-5)


def test_a_rank_recompresses_and_says_what_was_lost() -> None:
    out = train(own=settings(rank=3))
    account = read(out, "injection.json")
    assert account["ranks"]["merged"] == 3
    assert set(account["errors"]) == set(read_expert(out, "helpful", Path("base")).parts)
    assert 0 < account["error"] < 1
    assert min(account["errors"].values()) <= account["error"] <= max(account["errors"].values())


FIRST, SECOND = "  training out, pass 1 of 2", "  training out, pass 2 of 2 (injected)"


@pytest.mark.parametrize(
    ("stop", "kept", "said", "steps"),
    [
        (2, ["part-1/step-1"], [f"{FIRST}: going on after step 1 of 3"], [1, 2, 3, 1, 2, 3, 4, 5]),
        (  # only the second pass has a fourth step; the first is not trained again
            4,
            ["part-1/step-3", "part-2/step-3"],
            [f"{FIRST}: going on after step 3 of 3", f"{SECOND}: going on after step 3 of 5"],
            [3, 4, 5],
        ),
    ],
)
def test_a_stopped_expert_ends_as_one_that_was_not(
    world: Path, stop: int, kept: list[str], said: list[str], steps: list[int]
) -> None:
    place = Path(".out.checkpoint")
    with pytest.raises(KeyboardInterrupt):
        train(own=settings(1), progress=Watcher(stop))
    assert not Path("out").exists()
    assert sorted(path.relative_to(place).as_posix() for path in place.glob("part-*/step-*")) == kept
    watcher = Watcher()
    train(own=settings(1), progress=watcher)
    assert watcher.said == said
    assert watcher.steps == steps
    assert not place.exists()
    train("whole")
    assert outcome(Path("out")) == outcome(Path("whole"))
    assert not [name for name in names(world) if "checkpoint" in name]


def test_what_is_finished_is_skipped_and_what_differs_is_not() -> None:
    watcher = Watcher()
    train()
    train(own=settings(2), progress=watcher)  # how often it is saved changes no result
    assert watcher.said == ["out: finished before, skipped"]
    changed = (settings(texts={"helpful": "Aid."}), settings(rank=3), settings(layer=2), settings(fit={"steps": 4}))
    for own in changed:
        said = Watcher()
        pipeline.train(Context(context().base, 0, said, dry=True), rows("helpful"), Path("out"), own)
        assert said.said == ["out: to do"]


def test_the_built_in_texts_are_part_of_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    short = {"axis": {"helpful": "Aid."}, "chain_of_thought": {"": "Think."}}
    monkeypatch.setattr("triune.method_settings.INJECTED", short)
    train(own=settings(texts={}))
    assert read_record(Path("out"))["settings"]["texts"] == {"helpful": "Aid."}
    train("other", settings(texts={}, style="chain_of_thought"))
    assert read(Path("other"), "injection.json")["texts"] == {"helpful": "Think."}
    assert outcome(Path("other")) != outcome(Path("out"))


def test_a_plain_experts_record_does_not_know_of_injections() -> None:
    pipeline.train(context(), rows("helpful"), Path("out"), Train(fit=Fit(steps=1)))
    assert set(read_record(Path("out"))["settings"]["train"]) == {"lora", "fit"}
    assert not Path("out/injection.json").exists()


def test_rows_of_several_axes_have_each_their_text() -> None:
    both = settings(texts={"helpful": TEXT, "honest": "No lies."})
    pipeline.train(context(), rows("helpful", "honest"), Path("out"), both)
    account = read(Path("out"), "injection.json")
    assert account["texts"] == {"helpful": TEXT, "honest": "No lies."}
    assert account["rows"]["both"] == 12


def test_what_does_not_fit_is_said_and_counted() -> None:
    watcher = Watcher()
    base = Base(path="base", template="plain", max_length=32)
    with Path("helpful.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "a prompt that is rather long?", "response": "yes"}) + "\n")
    pipeline.train(Context(base, progress=watcher), rows("helpful"), Path("out"), settings())
    assert "  1 of 7 rows do not fit with the injected text: left out of pass 2" in watcher.said
    found = read(Path("out"), "injection.json")["rows"]
    assert (found["given"], found["plain"], found["injected"], found["both"]) == (7, 7, 6, 6)
    assert not [line for line in watcher.said if "unknown" in line]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"layer": 3}, "layer is 3; this base has 1 to 2"),
        ({"texts": {"helpful": "x" * 60}}, "none of 6 examples fits in 32 tokens with the injected text"),
    ],
)
def test_what_would_fail_after_the_first_pass_is_refused_before_it(
    world: Path, own: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(*_args: Any) -> None:
        raise AssertionError("something was trained")

    monkeypatch.setattr(injecting, "train_passes", trained)
    before = names(world)
    with pytest.raises(InputError, match=message):
        train(own=settings(**own))
    assert names(world) == before


def test_an_axis_without_a_text_is_refused_before_the_base_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "load", None)
    strangers = [row.__class__("curious", row.prompt, row.response) for row in rows("helpful")]
    with pytest.raises(InputError, match=r"no text for \['curious'\]"):
        pipeline.train(context(), strangers, Path("out"), settings())
    with pytest.raises(InputError, match=r"train_injected needs settings\.injection"):
        injecting.train_injected(context(), rows("helpful"), Path("out"), Train())


def test_the_command_line_takes_the_settings_as_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train", "--base", "base", "--data", "helpful=helpful.jsonl", "--out", "out", "--template", "plain"]
    words += ["--max-length", "32"]
    words += ["fit.steps=1", "injection.style=axis", "injection.texts.helpful=Aid.", "injection.fit.steps=2"]
    monkeypatch.setattr("sys.argv", ["triune", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code in (0, None)
    assert [row["pass"] for row in read(Path("out"), "curve.json")] == [1, 2, 2]
    assert read_record(Path("out"))["settings"]["train"]["injection"]["style"] == "axis"
    assert settings_from(Train, ["injection={}"]).injection is not None


def test_words_of_the_text_that_the_tokenizer_does_not_have_are_said() -> None:
    build_tokenizer(["helpful", "honest", "answer", "Help", *map(str, range(6))]).save_pretrained("base")
    watcher = Watcher()
    train(own=settings(texts={"helpful": "Help me now"}), progress=watcher)
    wanted = (
        "  2 of 3 tokens of the text for 'helpful' are unknown to the tokenizer; set injection.texts.helpful in words"
    )
    assert [line for line in watcher.said if line.startswith(wanted)]


def test_the_passes_draw_from_seeds_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one seed both would begin with the same A, and half of the sum's rank would be wasted at the start."""
    seeds: list[tuple[int, int]] = []

    def seen(_model: Any, _lora: Any, passes: Passes, *_rest: Any) -> None:
        seeds.append((passes.first.seed, passes.second.seed))
        raise InputError("that is enough")

    monkeypatch.setattr(injecting, "train_passes", seen)
    for seed in (0, 0, 1):
        with pytest.raises(InputError, match="that is enough"):
            pipeline.train(Context(context().base, seed), rows("helpful"), Path("out"), settings())
    assert [first for first, _ in seeds] == [0, 0, 1]
    assert len({*seeds[0], *seeds[1], *seeds[2]}) == 4
    assert all(0 <= seed < 2**32 for pair in seeds for seed in pair)
