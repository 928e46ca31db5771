"""Adapters, bases, fused models, routers, stored judges, verdict caches and run folders of any content."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from tests.fusion.serving_world import tiny
from tests.fuzz.fuzzing import HUGE, TEXTS, Target, damaged, documents, fast, json_bytes, long_all, spoiled, written
from tests.report.fake_run import RECIPE, fake_files, write_folder
from tests.spoiling import make_world
from triune.errors import InputError
from triune.experts.adapters import read_adapter
from triune.experts.checkpoint import FORMAT, NUMBERS, read
from triune.experts.kinds import read_expert
from triune.fusion.opening import check_model, open_fused
from triune.fusion.router_file import OWN, read_router
from triune.judges.cache import Entry, read_entries, verdict_key, write_entries
from triune.judges.features import NUMBERS as SEEN
from triune.judges.features import VIEWS, Block, Features
from triune.judges.judge import Case, Judge
from triune.judges.linear import Fitted
from triune.judges.stored import StoredJudge, code_version, load_judge, save_judge
from triune.models.loading import load_base
from triune.models.preflight import check_base, read_config, read_tokenizer
from triune.models.store import INDEX_FILE, SINGLE_FILE, weight_files
from triune.recipe import Base
from triune.record import digest
from triune.report.folder import load_run
from triune.types import Agreement, Score, Verdict

# Libraries warn of strange settings that they take; only what is raised counts here.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with two adapters; a fused model that routes prompts, exported with its router."""
    place = tmp_path_factory.mktemp("sound")
    (place / "world").mkdir()
    make_world(place / "world")
    tiny(place / "tiny").exported(place / "router")
    return place


def _file(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def adapter_configs(sound: Path, place: Path) -> Target:
    folder = Path(shutil.copytree(sound / "world" / "helpful", place / "helpful"))
    config = _file(folder, "adapter_config.json")
    full = {**config, "modules_to_save": None, "exclude_modules": None, "layers_pattern": None, "use_rslora": False}

    def read() -> None:
        read_adapter(folder, "helpful", sound / "world" / "base")
        read_expert(folder, "helpful", sound / "world" / "base")

    odd = {
        "r": (0, -1, HUGE, 1e400, True, "2", None),
        "lora_alpha": (1e400, "x"),
        "target_modules": ("(", "(a+)+$", 3),
    }
    odd |= {"rank_pattern": ([], {"(": 2}, {"": None}), "modules_to_save": (3, [3]), "peft_type": ([], None)}
    odd |= {"layers_to_transform": ("x", [HUGE]), "exclude_modules": (3, "(")}
    found = [json_bytes({**config, name: value}) for name, values in odd.items() for value in values]
    return Target(documents(full), written(folder / "adapter_config.json", read), [*found, *TEXTS], json_bytes(full))


def adapter_weights(sound: Path, place: Path) -> Target:
    folder = Path(shutil.copytree(sound / "world" / "helpful", place / "helpful"))
    path = folder / "adapter_model.safetensors"
    content = path.read_bytes()

    def call(made: bytes) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(made)
        read_adapter(folder, "helpful", sound / "world" / "base")

    return Target(damaged(content), call, (), content)


def base_configs(sound: Path, place: Path) -> Target:
    folder = Path(shutil.copytree(sound / "world" / "base", place / "base"))
    config = _file(folder, "config.json")
    odd = {
        "num_hidden_layers": (10**7, 10**12, -1, 0, "2", 1e9),
        "num_labels": (10**9,),
        "hidden_size": (HUGE, 2**40, 0, -16, 17),
        "num_attention_heads": (0, -1, 3, HUGE),
        "num_key_value_heads": (0, 3),
        "vocab_size": (0, -1, HUGE),
        "architectures": (3, [3], [None], "x", {"a": 1}),
        "id2label": ([], {"a": 1}, 3),
        "rope_parameters": ([], {"rope_type": "x"}, {"rope_type": "yarn"}, 3),
        "model_type": ([], {}, None, "nonsense"),
        "dtype": ("nonsense", 3),
        "torch_dtype": ("nonsense",),
        "hidden_act": ("nonsense", 3),
        "auto_map": ({"AutoConfig": "x.Y"}, 3),
        "layer_types": (["x"], 3),
        "pad_token_id": (10**6, -1, "x"),
        "head_dim": (0, 2**40),
    }
    found = [json_bytes({**config, name: value}) for name, values in odd.items() for value in values]
    path = folder / "config.json"

    def look() -> None:
        read_config(folder)
        check_base(folder, scan=False)
        load_base(folder, scan=False)

    return Target(documents(config), written(path, look), [*found, *TEXTS], json_bytes(config))


def base_others(sound: Path, place: Path) -> Target:
    """generation_config.json, tokenizer.json, tokenizer_config.json and the index of shards."""
    folder = Path(shutil.copytree(sound / "world" / "base", place / "base"))
    tokenizer = _file(folder, "tokenizer.json")
    tokenizer["model"]["vocab"] = dict(list(tokenizer["model"]["vocab"].items())[:3])
    tokenizer["model"]["merges"] = []
    index = {"metadata": {}, "weight_map": {"model.norm.weight": SINGLE_FILE}}
    kinds = {
        "generation_config.json": _file(folder, "generation_config.json"),
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": _file(folder, "tokenizer_config.json"),
        INDEX_FILE: index,
    }
    before = {name: (folder / name).read_bytes() if (folder / name).is_file() else b"" for name in kinds}

    def call(made: tuple[str, bytes]) -> None:
        name, content = made
        (folder / name).write_bytes(content)
        try:
            if name == INDEX_FILE:
                (folder / SINGLE_FILE).rename(folder / "other.safetensors")
                weight_files(folder)
            elif name == "generation_config.json":
                load_base(folder, scan=False)
            else:
                read_tokenizer(folder)
        finally:
            (folder / name).write_bytes(before[name])
            if (folder / "other.safetensors").is_file():
                (folder / "other.safetensors").rename(folder / SINGLE_FILE)

    made = st.sampled_from(sorted(kinds)).flatmap(lambda name: st.tuples(st.just(name), documents(kinds[name])))
    ways = ("../x.safetensors", "/etc/passwd", "..", "", "a/b", "a\x00b", "\ud800", 3, None, [])
    found = [(INDEX_FILE, json_bytes({"weight_map": {"a": way}})) for way in ways]
    found += [(name, text) for name in kinds for text in TEXTS[:8]]
    return Target(made, call, found)


def fused_configs(sound: Path, place: Path) -> Target:
    folder = Path(shutil.copytree(sound / "tiny" / "fused", place / "fused"))
    config = _file(folder, "config.json")
    text = config["text_config"]
    odd: list[dict[str, Any]] = [{"text_config": {**text, name: value}} for name, value in ODD_TEXT]
    odd += [
        {"expert_names": names} for names in (["../a", "b", "c"], ["a", "a", "b"], 3, [], ["a", "b"], [[], "b", "c"])
    ]
    odd += [{"num_experts_per_tok": k} for k in (0, 4, HUGE, True, "1")]
    odd += [{"routing": value} for value in ([], {}, "x", None)]
    odd += [{"routing_layer": value} for value in (0, -1, HUGE, "x", None, 99)]
    odd += [{"expert_ranks": {"gate": [HUGE] * 3, "up": [1] * 3, "down": [1] * 3}}, {"expert_ranks": []}]
    odd += [{"latent_size": value} for value in (0, -1, 2**40, "x")]
    odd += [{"prior_weights": value} for value in ([], [1e308] * 3, 3, ["x"] * 3)]
    odd += [{"anchor_counts": value} for value in ([-1] * 3, [HUGE] * 3, 3)]
    odd += [{"calibrator_lambdas": value} for value in ([], ["x", 1], 3)]
    found = [json_bytes({**config, **change}) for change in odd]

    def look() -> None:
        check_model(folder, Base(path=str(folder)))
        open_fused(folder)

    return Target(documents(config), written(folder / "config.json", look), [*found, *TEXTS], json_bytes(config))


ODD_TEXT = [
    *(("num_hidden_layers", value) for value in (10**12, 0, -1, "4", 5)),
    *(("hidden_size", value) for value in (2**40, 0, 17)),
    *(("intermediate_size", value) for value in (2**40, 10**7, 0)),
    *(("num_attention_heads", value) for value in (0, 3)),
    *(("vocab_size", value) for value in (10**9, 0)),
    *(("model_type", value) for value in ([], {}, "gpt2")),
]


def routers(sound: Path, place: Path) -> Target:
    folder = Path(shutil.copytree(sound / "router", place / "router"))
    settings = _file(folder, "router.json")
    settings.pop(OWN)
    text = read_config(sound / "tiny" / "base")

    def signed(made: Any) -> bytes:
        """As one who changes the file on purpose would leave it."""
        return json_bytes({**made, OWN: digest(made)} if isinstance(made, dict) else made)

    def read() -> None:
        read_router(folder).config(text)

    ways = (["../helpful", "harmless", "honest"], ["helpful"], [], 3, ["helpful", "helpful", "honest"], [3, 4, 5])
    found = [signed({**settings, "expert_names": names}) for names in ways]
    found += [signed({**settings, "expert_ranks": value}) for value in (True, 3, {"up": 3}, {"up": HUGE})]
    found += [signed({**settings, "router_sha256": value}) for value in (True, 10**290)]
    lists, none = ("prior_weights", "calibrator_lambdas", "anchor_counts"), ({"a": 1, "b": 2}, "ab", ["a", None], 7)
    found += [signed({**settings, name: value}) for name in lists for value in none]
    found += [
        signed({**settings, name: value}) for name in ("adapters_sha256", "router_sha256") for value in (3, [], None)
    ]
    found += [signed({name: value for name, value in settings.items() if name != lost}) for lost in settings]
    clean = spoiled(settings).filter(_can_be_signed).map(signed)
    return Target(
        clean | documents(settings), written(folder / "router.json", read), [*found, *TEXTS], signed(settings)
    )


def _can_be_signed(made: Any) -> bool:
    try:
        digest(made)
    except TypeError:  # no JSON form
        return False
    return True


def router_weights(sound: Path, place: Path) -> Target:
    folder = Path(shutil.copytree(sound / "router", place / "router"))
    path = folder / "router.safetensors"
    content = path.read_bytes()

    def call(made: bytes) -> None:
        path.unlink()
        path.write_bytes(made)
        read_router(folder)

    return Target(damaged(content), call, (), content)


def judges(sound: Path, place: Path) -> Target:
    folder = place / "judge"
    folder.mkdir()
    features = Features((Block(next(iter(VIEWS)), buckets=8),), (next(iter(SEEN)),), 1.0)
    fitted = Fitted(features, (np.ones(8),), np.ones(9), 0.5)
    score = Score("accuracy", 90.0, 10, 80.0, 95.0, "higher", "%", "j")
    made = StoredJudge("harm", code_version(), fitted, Agreement(0.9, 10, "l", (score,)), {}, {"train": 3})
    save_judge(folder, made)
    told = _file(folder, "judge.json")
    huge = [
        {"intercept": 10**290},
        {"slope": HUGE},
        {"features": {**told["features"], "scale": 10**290}},
        {"gate": told},
    ]
    found = [json_bytes({**told, **change}) for change in huge]
    return Target(
        documents(told), written(folder / "judge.json", lambda: load_judge(folder)), [*found, *TEXTS], json_bytes(told)
    )


def caches(sound: Path, place: Path) -> Target:
    judge = Judge("j", "1", "is good", "nothing", lambda cases: [])
    cases = [Case(f"p{n}", response="r") for n in range(30)]
    keys = [verdict_key(judge, case) for case in cases]
    origin = place / "sound.sqlite"
    write_entries(origin, judge, {key: Entry(Verdict(0.5, "why" * 9), {"a": 1}) for key in keys})
    content = origin.read_bytes()
    path = place / "verdicts.sqlite"

    def call(made: bytes) -> None:
        for left in place.glob("verdicts.sqlite*"):
            left.unlink()
        path.write_bytes(made)
        read_entries(path, keys)
        write_entries(path, judge, {keys[0]: Entry(Verdict(1.0, "x"))})

    at = [n for n in range(0, len(content), 97) if content[n]]
    torn = st.tuples(st.sampled_from(at), st.binary(min_size=1, max_size=8))
    patched = torn.map(lambda hit: content[: hit[0]] + hit[1] + content[hit[0] + len(hit[1]) :])
    not_utf8 = content.replace(b"whywhywhy", b"why\xff\xfewhy\xff")
    bad_json = content.replace(b'{"a": 1}', b"[[[[[[[[")
    return Target(
        patched | damaged(content), call, [not_utf8, bad_json, b"SQLite format 3\x00", content[:1000], b"x"], content
    )


def checkpoints(sound: Path, place: Path) -> Target:
    folder = place / "step-1"
    folder.mkdir()
    manifest = {"job": "j", "files": {NUMBERS: "0" * 64}, "format": FORMAT}
    ways = [{"job": "j", "files": {name: "x"}} for name in ("../x", "a\x00", "/etc/passwd", "")]
    found = [json_bytes(way) for way in (*ways, {"job": "j", "files": []}, {"job": "j", "files": 3})]
    read_it = written(folder / "checkpoint.json", lambda: read(folder, "j"))
    return Target(documents(manifest), read_it, [*found, *TEXTS])


def run_folders(sound: Path, place: Path) -> Target:
    """Every file that a report reads, fusion.json too."""
    files = fake_files() | {"fusion.json": FUSION}
    files["curves.json"] = {"base": [{"step": 1, "loss": 2.0}], "fused": [{"step": 1, "loss": 2.0, "gating": 0.1}]}
    files["scores.json"] = list(files["scores.json"])[:3]  # type: ignore[call-overload]
    files["breakdown.json"] = list(files["breakdown.json"])[:3]  # type: ignore[call-overload]
    files["drift.json"] = {**files["drift.json"], "points": []}  # type: ignore[dict-item]
    folder = write_folder(place / "run", files, RECIPE)

    def call(made: tuple[str, bytes]) -> None:
        name, content = made
        before = (folder / name).read_bytes()
        try:
            (folder / name).write_bytes(content)
            load_run(folder)
        finally:
            (folder / name).write_bytes(before)

    made = st.sampled_from(sorted(files)).flatmap(lambda name: st.tuples(st.just(name), documents(files[name])))
    found = [(name, text) for name in ("scores.json", "fusion.json", "recipe.yaml") for text in TEXTS]
    found += [("scores.json", json_bytes([{**files["scores.json"][0], "value": 10**290}]))]  # type: ignore[index]
    return Target(made, call, found)


FUSION = {
    "weights": {"helpful": 1.0},
    "importance": {"helpful": 1.2},
    "similarities": {"helpful": 0.3},
    "importance_settings": {"similarity": "cosine", "reference": "base", "temperature": 1.0},
}
MAKE: dict[str, Callable[[Path, Path], Target]] = {
    "adapter config": adapter_configs,
    "adapter weights": adapter_weights,
    "base config": base_configs,
    "base others": base_others,
    "fused config": fused_configs,
    "router": routers,
    "router weights": router_weights,
    "judge": judges,
    "cache": caches,
    "checkpoint": checkpoints,
    "run folder": run_folders,
}


@pytest.mark.parametrize("name", MAKE)
def test_any_folder(name: str, sound: Path, tmp_path: Path) -> None:
    fast(MAKE[name](sound, tmp_path))


@pytest.mark.slow
def test_any_folder_long(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = {}
    for number, (name, make) in enumerate(MAKE.items()):
        (tmp_path / str(number)).mkdir()
        targets[name] = make(sound, tmp_path / str(number))
    long_all(targets, 0.5, capsys)


def test_memory_of_a_fused_model_is_that_of_its_weights(sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound / "tiny" / "fused", tmp_path / "fused"))
    config = _file(folder, "config.json")
    config["text_config"]["intermediate_size"] = 10**9
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="of another shape"):
        open_fused(folder)
