"""Every fault of a base or an expert is found, named with its severity, and hides no other."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.fusion.checking_faults import (
    BASE_FAULTS,
    EVERYWHERE,
    FACTOR,
    FAULTS,
    MODEL,
    ROPE,
    attention_adapter,
    poison,
)
from tests.fusion.checking_world import (
    CONFIG,
    NAMES,
    edit,
    edit_tensors,
    look,
    make_fine_tune,
    make_world,
    of,
    random_vector,
    said,
    write,
)
from tests.models.conftest import byte_level
from triune.errors import InputError
from triune.experts import task_vector
from triune.experts.adapters import WEIGHTS, read_adapter, stamp, write_adapter
from triune.experts.full import _FUNCTION, Weights
from triune.experts.kinds import read_expert
from triune.experts.lowrank import dense
from triune.experts.task_vector import TaskVector
from triune.fusion.building import check_experts
from triune.fusion.checking_results import CheckResult, Severity
from triune.fusion.checking_settings import SETTINGS, compare_configs
from triune.fusion.checking_weights import ranges, spans
from triune.models.store import folder_header, hash_weights, load_tensors
from triune.recipe import Base, Fuse, Importance
from triune.record import write_json
from triune.report.check_page import check_text


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    world = tmp_path_factory.mktemp("checking")
    make_world(world)
    return world


@pytest.fixture(scope="session")
def unspoilt(sound: Path) -> CheckResult:
    return look(sound)


@pytest.fixture
def world(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "world"))


def test_a_sound_world_can_be_fused(sound: Path, unspoilt: CheckResult, tmp_path: Path) -> None:
    result = unspoilt
    assert (result.fusable, result.scanned, result.findings) == (True, True, ())
    assert result.base is not None
    assert result.base.sha256 == hash_weights(sound / "base")
    assert (result.base.n_layers, result.base.n_parameters, result.base.stops) == (3, 16_112, (1,))
    assert (result.base.attention.kv_heads, result.base.attention.head_dim, result.base.attention.biases) == (2, 4, ())
    helpful, harmless, honest = result.experts
    assert [expert.kind for expert in result.experts] == ["adapter", "full", "adapter"]
    assert [expert.same_base.state for expert in result.experts] == ["yes", "likely", "yes"]
    assert helpful.touches == ("layers 0-2: gate_proj, up_proj, down_proj",)
    assert harmless.touches == ("layers 1-2: gate_proj, up_proj, down_proj",)
    assert honest.touches == ("layers 0, 2: gate_proj, up_proj, down_proj",)
    assert (helpful.ranks, harmless.ranks) == (dict.fromkeys(("gate_proj", "up_proj", "down_proj"), 2), None)
    assert [outcome.exact for outcome in result.outcomes] == [False, True, True]
    write_json(tmp_path / "result.json", result)
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["fusable"] is True
    assert len(written["experts"]) == 3


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([weights[name].double().flatten() for name in sorted(weights)])


def changes(world: Path) -> dict[str, dict[str, Tensor]]:
    """Every expert's whole ΔW, made slowly."""
    base = load_tensors(world / "base" / "model.safetensors")
    full = load_tensors(world / "harmless" / "model.safetensors")
    found = {"harmless": {name: full[name] - base[name] for name in base}}
    for name in ("helpful", "honest"):
        parts = read_adapter(world / name, name).parts
        found[name] = {n: dense(parts[m]) if (m := n.removesuffix(".weight")) in parts else 0 * base[n] for n in base}
    return found


def test_norms_and_cosines_are_those_of_dense_arithmetic(sound: Path, unspoilt: CheckResult) -> None:
    result, deltas = unspoilt, changes(sound)
    whole = load_tensors(sound / "base" / MODEL)
    matrices = flat({name: tensor for name, tensor in whole.items() if tensor.ndim > 1})
    touched = flat({name: tensor for name, tensor in whole.items() if ".mlp." in name})
    for expert in result.experts:
        assert expert.norm == pytest.approx(float(flat(deltas[expert.name]).norm()), rel=1e-6)
    assert result.experts[0].relative_norm == pytest.approx(
        float(flat(deltas["helpful"]).norm() / touched.norm()), 1e-6
    )
    assert result.experts[1].relative_norm == pytest.approx(
        float(flat(deltas["harmless"]).norm() / matrices.norm()), 1e-6
    )
    assert [(pair.first, pair.second) for pair in result.pairs] == [NAMES[:2], NAMES[::2], NAMES[1:]]
    for pair in result.pairs:
        x, y = flat(deltas[pair.first]), flat(deltas[pair.second])
        assert pair.cosine == pytest.approx(float(x @ y / x.norm() / y.norm()), rel=1e-5)
        for layer, value in pair.layers.items():
            own = [
                flat({n: t for n, t in deltas[e].items() if f"layers.{layer}." in n})
                for e in (pair.first, pair.second)
            ]
            if all(part.norm() for part in own):
                assert value == pytest.approx(float(own[0] @ own[1] / own[0].norm() / own[1].norm()), rel=1e-5)
                assert pair.low <= value <= pair.high
            else:
                assert value != value  # NaN: one of them leaves the layer alone


def test_weights_are_read_once(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, str]] = []
    tensor = Weights.tensor

    def counted(self: Weights, name: str) -> Tensor:
        read.append((self.folder.name, name))
        return tensor(self, name)

    monkeypatch.setattr(Weights, "tensor", counted)
    look(sound)
    wanted = [(folder, name) for folder in ("base", "harmless") for name in folder_header(sound / folder)]
    assert sorted(read) == sorted(wanted)


def test_without_the_scan_nothing_is_read_and_it_is_said(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: Weights, name: str) -> Tensor:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(Weights, "tensor", never)
    result = look(sound, scan=False)
    assert result.fusable
    assert not result.scanned
    assert "weights not checked: no hash" in said(result, "warning", "base")
    for name in NAMES:
        assert "base not checked: " in said(result, "warning", f"expert {name}")
    helpful, harmless, _ = result.experts
    assert (harmless.norm, harmless.nonfinite, harmless.touches) == (None, None, ())
    assert helpful.norm is not None
    assert [(pair.first, pair.second) for pair in result.pairs] == [("helpful", "honest")]
    assert "the weights were not read" in check_text(result)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_one_expert_is_named(name: str, world: Path, unspoilt: CheckResult) -> None:
    who, damage, severity, what, refused = FAULTS[name]
    damage(world / who)
    settings = Fuse(shared="base" if name in EVERYWHERE else "refuse")
    result = look(world, settings)
    assert_said(result, severity, f"expert {who}", what)
    others = {finding.where for finding in result.findings} - {f"expert {who}"}
    assert others <= {"experts"}, "a fault of one expert is said of another"
    assert [e.same_base.state for e in result.experts if e.name != who] == [
        e.same_base.state for e in unspoilt.experts if e.name != who
    ]
    assert result.fusable == (not said(result, "refused", f"expert {who}"))
    assert fusing_refuses(world, who, settings) == refused


def assert_said(result: CheckResult, severity: Severity, where: str, what: str) -> None:
    """The finding is there, and the page says it in full."""
    found = said(result, severity, where)
    assert re.search(what, found), f"{severity} of {where}: {found or 'nothing'}"
    page = " ".join(check_text(result, 100).split())
    for finding in of(result, where):
        words = "".join(finding.what.split())
        assert words in "".join(page.split()), f"the page does not say: {finding.what}"
    assert ("CANNOT BE FUSED" in page) == (not result.fusable)


def fusing_refuses(world: Path, who: str, settings: Fuse) -> bool:
    """Whether reading the expert and putting it beside a sound one raises an error, as `triune fuse` would."""
    from triune.fusion.opening import check_base_hash

    try:
        vector = read_expert(world / who, who, world / "base")
        check_base_hash(vector, Base(path=str(world / "base")))
        other = TaskVector("other", random_vector("other", world / "base", 1, (0,)).parts)
        check_experts(AutoModelForCausalLM.from_pretrained(world / "base"), [vector, other], settings)
        for name in vector.others:
            _ = vector.others[name]
    except InputError:
        return True
    return False


def test_every_setting_that_refuses_a_fine_tune_is_compared() -> None:
    by_tensors = {"attention_bias", "mlp_bias"}
    assert set(_FUNCTION) - by_tensors <= SETTINGS.keys()


@pytest.mark.parametrize("name", BASE_FAULTS)
def test_a_fault_of_the_base_is_named_and_experts_are_still_looked_at(name: str, world: Path) -> None:
    damage, what = BASE_FAULTS[name]
    damage(world / "base")
    (world / "helpful" / "adapter_config.json").write_text("{")
    result = look(world)
    assert not result.fusable
    assert_said(result, "refused", "base", what)
    assert_said(result, "refused", "expert helpful", "not valid JSON")
    assert [expert.kind for expert in result.experts] == ["adapter", "full", "adapter"]
    assert result.experts[2].norm is not None


def test_all_faults_of_all_experts_are_said_together(world: Path) -> None:
    edit("adapter_config.json", use_dora=True, bias="none")(world / "helpful")
    edit_tensors(WEIGHTS, poison(FACTOR))(world / "helpful")
    edit("config.json", rope_parameters=ROPE, hidden_act="gelu")(world / "harmless")
    shutil.rmtree(world / "honest")
    result = look(world, Fuse(top_k=3, shared="nobody"))
    for name, what in (
        ("expert helpful", "use_dora"),
        ("expert helpful", "NaN or infinite"),
        ("expert harmless", "RoPE: "),
        ("expert harmless", "block: hidden_act"),
        ("expert honest", "is not there"),
        ("experts", "fuse.shared is 'nobody' -> allowed: refuse, base, average, ties, helpful, harmless, honest"),
    ):
        assert_said(result, "refused", name, what)


# The set and the settings


def test_one_expert_is_no_fusion(sound: Path) -> None:
    result = look(sound, helpful=sound / "helpful")
    assert "a fusion needs two or more" in said(result, "refused", "experts")
    assert "fuse.top_k is 2, but there are only 1 experts" in said(result, "refused", "experts")
    assert not look(sound, Fuse(top_k=1), helpful=sound / "helpful").fusable


def test_weights_and_the_reference_are_checked_as_fusing_does(sound: Path) -> None:
    negative = Fuse(weights={"honest": -1})
    assert "are below 0" in said(look(sound, negative), "refused", "experts")
    allowed = look(sound, Fuse(weights={"honest": -1}, allow_negated=True))
    assert allowed.fusable
    assert "the expert 'honest' is subtracted (weight -1)" in said(allowed, "warning", "experts")
    wrong = look(sound, Fuse(weights={"kind": 2}, importance=Importance(reference="no/where")))
    assert_said(wrong, "refused", "experts", r"fuse.weights names \['kind'\], which are no experts")
    assert_said(wrong, "refused", "experts", "fuse.importance.reference is 'no/where', which is no folder")


def test_an_expert_given_twice_is_noticed(sound: Path) -> None:
    result = look(sound, helpful=sound / "helpful", again=sound / "helpful", honest=sound / "honest")
    assert result.fusable
    assert "helpful and again change the base in the same way (cosine 1.0000)" in said(result, "warning", "experts")


def test_experts_of_different_bases_are_refused(world: Path) -> None:
    stamp(world / "helpful", "0" * 64)
    result = look(world, scan=False)
    assert "trained on different base weights (helpful: 000000000000, honest: " in said(result, "refused", "experts")


def test_experts_with_different_templates_are_noticed(world: Path) -> None:
    write("chat_template.jinja", "{{ messages }}")(world / "honest")
    write("chat_template.jinja", "{{ messages[0] }}")(world / "harmless")
    found = said(look(world), "warning", "experts")
    assert "harmless, honest bring different chat templates" in found


@pytest.mark.parametrize(
    ("shared", "severity", "what"),
    [
        ("base", "warning", "fuse.shared=base discards it"),
        ("average", "fact", "gives all experts the mean"),
        ("ties", "fact", "merged by TIES"),
        ("helpful", "fact", "fuse.shared=helpful gives it to all experts"),
        ("honest", "warning", "fuse.shared=honest discards it and takes that of honest"),
    ],
)
def test_what_becomes_of_attention(shared: str, severity: Severity, what: str, world: Path) -> None:
    attention_adapter(world / "helpful")
    result = look(world, Fuse(shared=shared))
    assert result.fusable
    assert_said(result, severity, "expert helpful", what)
    outside = result.experts[0].outside
    assert outside is not None
    rest = {n: p for n, p in read_adapter(world / "helpful", "x").parts.items() if "self_attn" in n}
    assert outside.norm == pytest.approx(task_vector.norm(TaskVector("x", rest)), rel=1e-9)
    assert outside.touches == ("layer 1: q_proj, o_proj",)


def test_whole_modules_of_an_adapter_count_as_its_change(world: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["up_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(world / "base"), config)
    change = torch.randn(320, 16, generator=torch.Generator().manual_seed(0))
    model.base_model.model.lm_head.modules_to_save.default.weight.data += change
    model.save_pretrained(str(world / "helpful"))
    result = look(world, Fuse(shared="helpful"))
    helpful = result.experts[0]
    assert helpful.touches == ("layers 0-2: up_proj", "lm_head")
    assert helpful.norm == pytest.approx(float(change.norm()), rel=1e-5)  # B is zero, as before training
    assert helpful.features["whole modules"] == "lm_head"
    assert helpful.outside is not None
    assert helpful.outside.touches == ("lm_head",)


def test_native_is_said_to_be_impossible_where_the_export_refuses(world: Path) -> None:
    edit("config.json", mlp_bias=True)(world / "base")
    result = look(world, Fuse(renormalise=False))
    assert not result.fusable  # the weights have no biases
    edit("config.json", mlp_bias=False)(world / "base")
    refused = {outcome.form: outcome.refused for outcome in look(world, Fuse(renormalise=False)).outcomes}
    assert "weights are not renormalised" in refused["native"]
    assert refused["compact"] == refused["merged"] == ""
    assert {outcome.refused for outcome in look(world).outcomes} == {""}


# Words and numbers


def test_ranges() -> None:
    names = [f"model.layers.{i}.mlp.{kind}.weight" for kind in ("up_proj", "gate_proj") for i in (0, 1, 2, 11)]
    names += ["model.layers.4.self_attn.q_proj.bias", "lm_head.weight", "model.norm.weight"]
    assert ranges(names) == ("layers 0-2, 11: gate_proj, up_proj", "layer 4: q_proj.bias", "lm_head", "norm")
    assert ranges([]) == ()
    assert spans([3]) == "3"
    assert spans([0, 1, 3, 4, 5, 9]) == "0-1, 3-5, 9"


def test_rope_scaling_makes_the_context_part_of_the_function(sound: Path) -> None:
    from transformers import LlamaConfig

    scaled = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}
    base, other = (LlamaConfig(**{**CONFIG, **scaled, "max_position_embeddings": n}) for n in (64, 128))
    (found,) = [one for one in compare_configs(base, other) if one.state == "different"]
    assert (found.aspect, found.severity) == ("context", "refused")


def test_a_tied_base_and_a_fine_tune_with_a_head_of_its_own(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**{**CONFIG, "tie_word_embeddings": True})).save_pretrained(tmp_path / "base")
    byte_level(adds="<s> $A").save_pretrained(tmp_path / "base")
    for name in ("harmless", "honest"):
        make_fine_tune(tmp_path / "base", tmp_path / name)
    head = torch.ones(320, 16)
    edit_tensors(MODEL, lambda t: t.update({"lm_head.weight": head}))(tmp_path / "honest")
    edit_tensors(MODEL, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))(
        tmp_path / "harmless"
    )
    result = look(tmp_path, harmless=tmp_path / "harmless", honest=tmp_path / "honest")
    assert of(result, "expert harmless") == []
    assert_said(result, "refused", "expert honest", "stores an output layer of its own")
    assert fusing_refuses(tmp_path, "honest", Fuse(shared="base"))


def test_real_models(shared: Path, tmp_path: Path) -> None:
    base = shared / "models" / "stories260K-hf"
    for name, rank in (("helpful", 8), ("honest", 4)):
        vector = random_vector(name, base, rank, (0, 1, 2, 3, 4), hash_weights(base))
        write_adapter(vector, tmp_path / name, "stories260K")
    folders = {name: tmp_path / name for name in ("helpful", "honest")}
    from triune.fusion.checking import check_fusion

    result = check_fusion(str(base), folders, Fuse())
    assert (result.fusable, result.findings) == (True, ())
    other = check_fusion(str(shared / "models" / "babyllama105-hf"), folders, Fuse())
    assert not other.fusable
    assert "which the base" in said(other, "refused", "expert helpful") or "shape" in said(
        other, "refused", "expert helpful"
    )
