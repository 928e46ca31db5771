"""Recipes, rows of data, annotations and records of any content."""

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from tests.fuzz.fuzzing import TEXTS, Target, damaged, documents, fast, json_bytes, long_all, spoiled, values, written
from triune.data.benchmark_prompts import PROMPTS, read_prompts
from triune.data.files import read_file
from triune.data.formats import FORMATS, read_examples
from triune.data.labelled import LABELLED_FORMATS, read_labelled
from triune.data.preferences import PREFERENCE_FORMATS, read_preferences
from triune.data.questions import read_questions
from triune.data.rows import load_rows
from triune.data.sources import read_rows
from triune.errors import InputError
from triune.judges.annotations import read_annotations
from triune.parsing import MAX_YAML, parse_json, parse_yaml
from triune.recipe import Slice, Train
from triune.recipe_file import load_recipe, settings_from
from triune.record import Step, finished, identify, read_record
from triune.types import BenchmarkPrompt, Example, Preference, Question, Sample

# Libraries warn of strange settings that they take; only what is raised counts here.
pytestmark = pytest.mark.filterwarnings("ignore")
RECIPE: dict[str, Any] = {
    "title": "t",
    "seed": 3,
    "base": {"path": "base", "template": "plain", "max_length": 32},
    "axes": {
        "helpful": {"train": {"source": "a.jsonl", "stop": 0.5}, "test": {"source": "a.jsonl", "start": 0.5}},
        "honest": {"train": {"source": "b.jsonl"}},
    },
    "train": {"fit": {"steps": 3}, "lora": {"rank": 2, "targets": ["up_proj"]}},
    "fuse": {"top_k": 2, "weights": {"helpful": 1.0}},
    "align": {"gating": 0.01},
    "evaluate": [{"kind": "nll"}],
    "quick": {"train.fit.steps": 1},
}
BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9))
YAMLS = [
    BOMB,
    MERGES,
    "a: &a [*a]\n",
    "a: &a {b: *a}\n",
    "&a [*a, *a]: 1\n",
    "[" * 3000,
    "- " * 3000 + "x",
    "a: " * 200,
    "".join(f"{' ' * n}a:\n" for n in range(400)),
    'seed: !!int ""',
    'seed: !!float ""',
    "seed: !!bool x",
    "seed: !!timestamp x",
    "seed: 2024-13-45",
    "seed: 0x" + "f" * 5000,
    "seed: " + "1:" * 3000 + "1",
    "seed: " + "9" * 5000,
    "seed: 1" + "_" * 5000,
    "seed: !!python/object/apply:os.system [true]",
    "? [a, b]\n: 1",
    "? {a: b}\n: 1",
    "<<: 3",
    "<<: [1]",
    '"\\ud800": 1',
    '"\\UFFFFFFFF": 1',
    "\x00",
    "\ufeffseed: 1",
    "seed: 1\nseed: 2",
    "---\na: 1\n---\nb: 2",
    "%YAML 9.9\n---\na: 1",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!binary x",
    "a: !!binary '='",
    "1: 2",
    "null: 1",
    "quick: {a.b: 1, 3: 4, '': 1, '.': 2}",
    "axes: {'../x': {train: {source: a}}}",
    "x" * (MAX_YAML + 1),
]


def recipes(path: Path) -> Target:
    def call(made: bytes) -> None:
        path.write_bytes(made)
        load_recipe(path, quick=True, overrides=["align.gating=0.1"])

    dumped = spoiled(RECIPE).map(lambda made: yaml.safe_dump(made, sort_keys=False).encode(errors="replace"))
    whole = yaml.safe_dump(RECIPE, sort_keys=False).encode()
    found = [text.encode(errors="surrogatepass") for text in YAMLS]
    found += [made.encode() + b"\n" + whole for made in YAMLS[:5]]
    return Target(dumped | damaged(whole) | spoiled(RECIPE).map(json_bytes), call, [*found, *TEXTS], whole)


def overrides() -> Target:
    names = st.sampled_from(
        ["fit.steps", "lora.rank", "", ".", "a..b", "fit", "preset", "lora.targets.0", "fit.steps.x"]
    )
    texts = st.sampled_from([text for text in YAMLS if len(text) < 10_000]) | values().map(repr) | st.text()
    made = st.tuples(names, texts).map(lambda pair: f"{pair[0]}={pair[1]}")
    return Target(made, lambda text: settings_from(Train, [text]), [f"fit.steps={text}" for text in YAMLS[:-1]])


def cards(folder: Path) -> Target:
    """The heads of data cards."""
    (folder / "a.jsonl").write_text('{"prompt": "p", "response": "r"}\n')
    sound = {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "a.jsonl"}]}]}

    def call(made: str) -> None:
        (folder / "README.md").write_bytes(f"---\n{made}\n---\n".encode(errors="surrogatepass"))
        read_rows(folder)

    found = [
        *YAMLS[:-1],
        "configs: 3",
        "configs: [3]",
        "configs: ['*']",
        "configs: [null]",
        "configs: [{data_files: [{split: 1, path: '../x'}]}]",
    ]
    found += ["configs: ['*']", "configs: [null]"]
    found += ["configs: [{data_files: 3}]", "configs: [{config_name: [], data_files: ''}]"]
    found += ["configs: [{data_files: '**/..'}]", "configs: [{data_files: 'a\\0'}]", "configs: [{data_files: '***'}]"]
    return Target(spoiled(sound).map(lambda made: json.dumps(made)), call, found, json.dumps(sound))


ROWS: dict[str, Any] = {
    "prompt": "p",
    "response": ["good", "bad"],
    "response_0": "a",
    "response_1": "b",
    "is_response_0_safe": True,
    "is_response_1_safe": False,
    "safer_response_id": 0,
    "is_safe": 1,
    "instruction": "i",
    "input": "",
    "output": "o",
    "messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}],
    "Question": "q?",
    "Best Answer": "a",
    "Correct Answers": "a; b",
    "question": "q?",
    "best_answer": "a",
    "correct_answers": ["a"],
    "chosen": "c",
    "rejected": "r",
    "mc1_targets": {"a": 1, "b": 0},
    "mc2_targets": {"choices": ["a", "b"], "labels": [1, 0]},
    "type": "contrast_x",
    "completion": "c",
    "final_label": "1_full_compliance",
    "label": 1,
    "output_1": "a",
    "output_2": "b",
    "preference": 1.5,
    "category": {"x": True},
    "dataset": "d",
    "goal": "g",
    "text": "t",
}
READERS: dict[str, Callable[[Path], object]] = {
    **{f"examples {name}": lambda path, name=name: read_examples(path, name, "helpful") for name in FORMATS},
    **{f"preferences {name}": lambda path, name=name: read_preferences(path, name) for name in PREFERENCE_FORMATS},
    **{f"labelled {name}": lambda path, name=name: read_labelled(path, name) for name in LABELLED_FORMATS},
    **{f"prompts {name}": lambda path, name=name: read_prompts(Slice(source=str(path)), name) for name in PROMPTS},
    "questions": read_questions,
}


def rows(folder: Path) -> Target:
    """A row in every format at once; each reader takes its own fields of it."""

    def call(made: tuple[str, str, bytes]) -> None:
        reader, suffix, content = made
        path = folder / f"rows{suffix}"
        path.write_bytes(content)
        READERS[reader](path)

    row = spoiled(ROWS)
    lines = st.lists(row, min_size=1, max_size=2).map(lambda made: b"\n".join(map(json_bytes, made)))
    files = st.tuples(st.sampled_from([".jsonl", ".ndjson"]), lines | documents(ROWS))
    files |= st.tuples(st.just(".json"), row.map(lambda made: json_bytes([made])) | documents([ROWS]))
    sheet = ",".join(f'"{name}"' for name in ROWS) + "\n" + ",".join('"1"' for _ in ROWS) + "\n"
    files |= st.tuples(st.just(".csv"), damaged(sheet.encode()))
    made = st.tuples(st.sampled_from(sorted(READERS)), files).map(lambda pair: (pair[0], *pair[1]))
    found = [("examples rows", suffix, text) for suffix in (".json", ".jsonl", ".csv") for text in TEXTS]
    found += [
        ("questions", ".json", json_bytes([{**ROWS, "mc1_targets": value}])) for value in ([], {"a": []}, 10**290)
    ]
    return Target(made, call, found)


def packed_files(folder: Path) -> Target:
    """Archives, parquet and arrow, damaged."""
    import pyarrow
    from datasets import Dataset
    from pyarrow import parquet

    table = [{"prompt": "p" * 30, "response": f"r{n}"} for n in range(20)]
    parquet.write_table(pyarrow.Table.from_pylist(table), folder / "sound.parquet")
    Dataset.from_list(table).save_to_disk(folder / "saved")
    arrow = next((folder / "saved").glob("*.arrow")).read_bytes()
    text = b"\n".join(map(json_bytes, table))
    sound = {
        ".jsonl.gz": gzip.compress(text),
        ".jsonl.xz": lzma.compress(text),
        ".parquet": (folder / "sound.parquet").read_bytes(),
        ".arrow": arrow,
    }

    def call(made: tuple[str, bytes]) -> None:
        suffix, content = made
        path = folder / f"packed{suffix}"
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        read_file(path)

    made = st.sampled_from(sorted(sound)).flatmap(lambda name: st.tuples(st.just(name), damaged(sound[name])))
    # What datasets writes beside the schema for itself, and texts that are no UTF-8.
    bad = [arrow.replace(b'"string"', b'"{tring"'), arrow.replace(b'{"info"', b'{,info"'), b"ARROW1"]
    bad += [arrow.replace(b"pppp", b"p\xffpp"), arrow.replace(b'{"info"', b'\xff"info"')]
    bombs = [(".jsonl.gz", gzip.compress(b" " * (80 << 20))), (".jsonl.xz", lzma.compress(b" " * (80 << 20)))]
    found = [*bombs, *((".arrow", content) for content in bad)]
    return Target(made, call, found, (".parquet", sound[".parquet"]))


def prepared(path: Path) -> Target:
    kinds = (Example, Preference, Question, BenchmarkPrompt, Sample)
    sound = {
        "axis": "a",
        "prompt": "p",
        "response": "r",
        "source": "",
        "kind": "",
        "benchmark": "b",
        "accepted": ["x"],
    }

    def call(made: tuple[Any, bytes]) -> None:
        path.write_bytes(made[1])
        load_rows(path, made[0])

    files = st.tuples(st.sampled_from(kinds), documents(sound))
    return Target(files, call, [(kind, text) for kind in kinds[:2] for text in TEXTS])


ANNOTATION = {
    "instruction": "i",
    "output_1": "a",
    "output_2": "b",
    "generator_1": "r",
    "generator_2": "m",
    "annotator": "x",
    "preference": 1.0,
    "price_per_example": 0.1,
}


def annotations(path: Path) -> Target:
    def read() -> object:
        return [row.verdict for row in read_annotations(path, instructions=["i", "j"]).rows]

    odd = [
        json_bytes([{**ANNOTATION, "preference": value}]) for value in (1e400, -0.0, 10**290, float("nan"), True, "1")
    ]
    return Target(
        documents([ANNOTATION, {**ANNOTATION, "instruction": "j"}]),
        written(path, read),
        [*TEXTS, *odd],
        json_bytes([ANNOTATION]),
    )


def records(folder: Path) -> Target:
    sound = {"verb": "train", "identity": "0" * 64, "settings": {"a": 1}, "inputs": {}, "seed": 0}

    def read() -> None:
        read_record(folder)
        identify(folder)
        finished(Step(folder, "train", {}))

    return Target(documents(sound), written(folder / "record.json", read), TEXTS, json_bytes(sound))


MAKE: dict[str, Callable[[Path], Target]] = {
    "recipe": lambda place: recipes(place / "my.yaml"),
    "overrides": lambda place: overrides(),
    "data card": cards,
    "rows": rows,
    "packed": packed_files,
    "prepared": lambda place: prepared(place / "rows.jsonl"),
    "annotations": lambda place: annotations(place / "annotations.json"),
    "record": records,
}


@pytest.mark.parametrize("name", MAKE)
def test_any_text(name: str, tmp_path: Path) -> None:
    fast(MAKE[name](tmp_path))


@pytest.mark.slow
def test_any_text_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {name: tmp_path / str(number) for number, name in enumerate(MAKE)}
    for place in places.values():
        place.mkdir()
    long_all({name: MAKE[name](place) for name, place in places.items()}, 0.35, capsys)


def test_bounds_of_json() -> None:
    assert parse_json("[" * 100 + "]" * 100)
    with pytest.raises(ValueError, match="nested deeper than 100"):
        parse_json("[" * 101 + "]" * 101)
    assert parse_json(str(2**1024 - 1)) == 2**1024 - 1
    with pytest.raises(ValueError, match="a whole number of 309 digits"):
        parse_json(str(2**1024))
    with pytest.raises(ValueError, match="invalid"):
        parse_json(b'"\xff"')


def test_bounds_of_yaml() -> None:
    # 10 leaves 10 times 10 times: 1 + 10 + 100 + ... nodes, all of them made only where they are few.
    small = "a: &a [1, 2, 3]\nb: [*a, *a]\n"
    assert parse_yaml(small) == {"a": [1, 2, 3], "b": [[1, 2, 3], [1, 2, 3]]}
    for text, message in (
        (BOMB, "stand for over 200,000 values"),
        (MERGES, "stand for over 200,000 values"),
        ("a: &a [*a]", "contains itself"),
        ("[" * 101 + "]" * 101, "nested deeper than 100"),
        ("0x" + "f" * 300, "a whole number of 1,200 bits"),
        ("x" * (MAX_YAML + 1), "500,001 characters"),
    ):
        with pytest.raises(yaml.YAMLError, match=message):
            parse_yaml(text)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "p", "response": "r"}\n' * (1 << 22)))
    with pytest.raises(InputError, match=r"damaged archive \([\d,]+ bytes that unpack to over [\d,]+\)"):
        read_file(path)
