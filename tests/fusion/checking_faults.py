"""What can be wrong with a base or an expert: damages, what is to be said of each, and whether fusing refuses it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.fusion.checking_world import UP, edit, edit_tensors, random_vector, write
from tests.models.conftest import byte_level
from triune.experts.adapters import WEIGHTS, stamp, write_adapter
from triune.experts.lowrank import LowRank
from triune.experts.task_vector import TaskVector
from triune.fusion.checking_results import Severity
from triune.models.store import hash_weights

Damage = Callable[[Path], object]
FACTOR = f"base_model.model.{UP}.lora_A.weight"


def remade(**changes: Any) -> Damage:
    """A fine-tune of another configuration, with its own random weights."""

    def damage(folder: Path) -> None:
        config = {**AutoConfig.from_pretrained(folder).to_dict(), **changes, "architectures": None}
        with torch.random.fork_rng():
            torch.manual_seed(1)
            other = AutoConfig.for_model(config.pop("model_type"), **config)
            AutoModelForCausalLM.from_config(other).save_pretrained(folder)

    return damage


def add_tokens(folder: Path) -> None:
    byte_level(adds="<s> $A").save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|tool|>"], special_tokens=True)
    tokenizer.save_pretrained(folder)


def other_special(folder: Path) -> None:
    byte_level(adds="<s> $A", eos="<s>").save_pretrained(folder)


def other_vocabulary(folder: Path) -> None:
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    words = found["model"]["vocab"]
    special = {"<s>", "</s>"}
    texts = [text for text in words if text not in special]
    ids = [words[text] for text in texts]
    found["model"]["vocab"] = {**words, **dict(zip(texts, ids[1:] + ids[:1], strict=True))}
    path.write_text(json.dumps(found), encoding="utf-8")


def renamed_token(folder: Path) -> None:
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    words = found["model"]["vocab"]
    words["ÿÿ"] = words.pop("ÿ")  # a byte that no text here holds
    path.write_text(json.dumps(found), encoding="utf-8")


def panicking(folder: Path) -> None:
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    found["post_processor"]["special_tokens"] = {}
    path.write_text(json.dumps(found), encoding="utf-8")


def attention_adapter(folder: Path) -> None:
    """The adapter with o_proj of layer 1 beside its feed-forward factors."""
    base = folder.parent / "base"
    parts = dict(random_vector(folder.name, base, 2, (0,)).parts)
    parts |= random_vector(folder.name, base, 2, (1,), kinds=("q_proj", "o_proj")).parts
    write_adapter(TaskVector(folder.name, parts, hash_weights(base)), folder, "the/base")


def only_attention(folder: Path) -> None:
    base = folder.parent / "base"
    vector = random_vector(folder.name, base, 2, (0, 1, 2), hash_weights(base), kinds=("v_proj",))
    write_adapter(vector, folder, "the/base")


def alien(module: str, n_out: int, n_in: int) -> Damage:
    def damage(folder: Path) -> None:
        vector = TaskVector("x", {module: LowRank(torch.ones(n_out, 2), torch.ones(2, n_in))})
        write_adapter(vector, folder, "other")

    return damage


def untrained(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor.zero_()


def poison(name: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name][0, :2] = torch.tensor([torch.nan, torch.inf])

    return change


def unrelated(folder: Path) -> None:
    """Another model of the same shapes: trained apart from the base."""
    remade()(folder)


def far(tensors: dict[str, Tensor]) -> None:
    rng = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        tensors[name] = tensor + 0.7 * tensor.norm() / tensor.numel() ** 0.5 * torch.randn(tensor.shape, generator=rng)


def back_to_base(folder: Path) -> None:
    shutil.copyfile(folder.parent / "base" / "model.safetensors", folder / "model.safetensors")


def to(dtype: torch.dtype) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors |= {name: tensor.to(dtype) for name, tensor in tensors.items()}

    return change


def huge(tensors: dict[str, Tensor]) -> None:
    tensors[FACTOR] *= 1e6


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


MODEL = "model.safetensors"
ROPE = {"rope_theta": 500_000.0, "rope_type": "default"}
# Faults of one expert: (whose folder, damage, severity, what is said, whether fusing refuses it too).
FAULTS: dict[str, tuple[str, Damage, Severity, str, bool]] = {
    # not an expert
    "no folder": ("helpful", shutil.rmtree, "refused", "is not there -> give a folder with", True),
    "nothing in it": ("helpful", lambda f: [p.unlink() for p in f.iterdir()], "refused", "holds no expert", True),
    "an adapter and a model": (
        "harmless",
        write("adapter_config.json", "{}"),
        "refused",
        "one of them would be",
        True,
    ),
    "a fused model": ("harmless", edit("config.json", model_type="triune"), "refused", "holds a fused Triune", True),
    "a pickle": ("helpful", pickled, "refused", "a pickle, which Triune never reads", True),
    # adapters
    "another method": ("helpful", edit("adapter_config.json", peft_type="IA3"), "refused", "is a IA3 adapter", True),
    "DoRA": ("helpful", edit("adapter_config.json", use_dora=True), "refused", "use_dora=True, which a fused", True),
    "not JSON": ("helpful", write("adapter_config.json", "{"), "refused", "is not valid JSON", True),
    "truncated": (
        "helpful",
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]),
        "refused",
        "truncated or not a safetensors file",
        True,
    ),
    "another rank": ("helpful", edit("adapter_config.json", r=5), "refused", "says rank 5", True),
    "another module": (
        "helpful",
        alien("model.layers.7.mlp.up_proj", 24, 16),
        "refused",
        "layers.7.mlp.up_proj",
        True,
    ),
    "another shape": ("helpful", alien(UP, 30, 16), "refused", r"\(30, 16\)", True),
    "NaN in a factor": (
        "helpful",
        edit_tensors(WEIGHTS, poison(FACTOR)),
        "refused",
        rf"NaN or infinite values in {FACTOR} \(2\)",
        True,
    ),
    "another base's hash": (
        "helpful",
        lambda f: stamp(f, "0123456789abcdef" * 4),
        "refused",
        "another base: trained on weights of sha256 0123456789ab; this base has",
        True,
    ),
    "no hash": (
        "helpful",
        lambda f: stamp(f, ""),
        "warning",
        "does not say which weights; its name says 'the/base'",
        False,
    ),
    "untrained": ("helpful", edit_tensors(WEIGHTS, untrained), "warning", "it changes nothing: B A = 0", False),
    "beyond float16": ("helpful", edit_tensors(WEIGHTS, huge), "warning", "float16 ends at 65,504", False),
    "attention": (
        "helpful",
        attention_adapter,
        "refused",
        r"changes layer 1: q_proj, o_proj, of norm [\d.]+: fuse.shared=refuse stops there -> choose fuse.shared: base",
        True,
    ),
    "attention alone": ("helpful", only_attention, "warning", "changes nothing in the feed-forward matrices", True),
    "in another dtype": (
        "helpful",
        edit_tensors(WEIGHTS, to(torch.bfloat16)),
        "fact",
        "stored in bfloat16, the base",
        False,
    ),
    # full fine-tunes
    "quantised": ("harmless", edit("config.json", quantization_config={"a": 1}), "refused", "are quantised", True),
    "the base itself": ("harmless", back_to_base, "refused", "all its weights are the base's", True),
    "NaN in a fine-tune": (
        "harmless",
        edit_tensors(MODEL, poison(f"{UP}.weight")),
        "refused",
        rf"NaN or infinite values in {UP}.weight \(2\)",
        True,
    ),
    "a tensor missing": (
        "harmless",
        edit_tensors(MODEL, lambda t: t.pop(f"{UP}.weight")),
        "refused",
        f"it lacks {UP}",
        True,
    ),
    "a tensor more": (
        "harmless",
        edit_tensors(MODEL, lambda t: t.update({"model.new.weight": torch.ones(2)})),
        "refused",
        "it has model.new.weight, which the base does not have",
        True,
    ),
    "a tensor of integers": (
        "harmless",
        edit_tensors(MODEL, lambda t: t.update({f"{UP}.weight": torch.ones(24, 16, dtype=torch.int8)})),
        "refused",
        "quantised or no floats",
        True,
    ),
    "trained apart": (
        "harmless",
        unrelated,
        "refused",
        "another base: its matrices differ .* models trained apart",
        False,
    ),
    "far away": ("harmless", edit_tensors(MODEL, far), "warning", "base unlikely: ", False),
    "another width": (
        "harmless",
        remade(intermediate_size=32),
        "refused",
        "intermediate_size is 24 in the base and 32",
        True,
    ),
    "another architecture": (
        "harmless",
        remade(model_type="qwen3"),
        "refused",
        "model_type is llama .* qwen3 here",
        True,
    ),
    "more words": ("harmless", remade(vocab_size=330), "refused", "vocabulary was grown to 330 rows", True),
    "other positions": ("harmless", edit("config.json", rope_parameters=ROPE), "refused", "RoPE: .*500000", True),
    "other heads": (
        "harmless",
        edit("config.json", num_attention_heads=2, num_key_value_heads=1, head_dim=8),
        "refused",
        "attention: num_attention_heads is 4 in the base and 2 here",
        True,
    ),
    "another activation": (
        "harmless",
        edit("config.json", hidden_act="gelu"),
        "refused",
        "block: hidden_act is silu",
        True,
    ),
    "layers without end": (
        "harmless",
        edit("config.json", num_hidden_layers=10**12),
        "refused",
        "num_hidden_layers is 1e\\+12; allowed: up to 1,000",
        True,
    ),
    "another window": (
        "harmless",
        edit("config.json", sliding_window=7),
        "refused",
        "attention: sliding_window is None in the base and 7 here",
        True,
    ),
    "another epsilon": ("harmless", edit("config.json", rms_norm_eps=0.1), "refused", "block: rms_norm_eps", True),
    "another context": (
        "harmless",
        edit("config.json", max_position_embeddings=128),
        "warning",
        "context: max_position_embeddings is 64 in the base and 128 here",
        False,
    ),
    # texts and tokens, of either kind
    "tokens added": (
        "honest",
        add_tokens,
        "warning",
        r"added tokens: it has 302 '<\|tool\|>', which the base lacks",
        False,
    ),
    "tokens added to a fine-tune": ("harmless", add_tokens, "warning", "splits the former into pieces", False),
    "another end token": (
        "honest",
        other_special,
        "warning",
        r"eos_token is '</s>' \(1\) in the base and '<s>' \(0\)",
        False,
    ),
    "another tokenizer": (
        "honest",
        other_vocabulary,
        "refused",
        "vocabulary: .* was trained on another tokenizer",
        False,
    ),
    "another token": ("honest", renamed_token, "warning", "vocabulary: 1 ids stand for other texts", False),
    "another beginning": (
        "honest",
        lambda f: byte_level(adds="$A </s>").save_pretrained(f),
        "warning",
        "splitting: post_processor of the tokenizer differ",
        False,
    ),
    "a chat template": (
        "honest",
        write("chat_template.jinja", "{{ messages }}"),
        "warning",
        "chat template: the expert brings a chat template and the base has none",
        False,
    ),
    "a tokenizer that fails in the library": (
        "honest",
        edit("tokenizer_config.json", eos_token=[1, "a"]),
        "warning",
        "not compared: .* the tokenizer cannot be read: Special token eos_token has to be",
        False,
    ),
    "a tokenizer that panics": ("honest", panicking, "warning", "not compared: .*PanicException", False),
    "stop tokens that are none": (
        "harmless",
        edit("generation_config.json", eos_token_id="x"),
        "warning",
        "not compared: .*eos_token_id is 'x' -> give an id",
        False,
    ),
    "no tokenizer that can be read": ("honest", write("tokenizer.json", "{}"), "warning", "not compared: ", False),
    "other stop tokens": (
        "harmless",
        edit("generation_config.json", eos_token_id=[1, 7]),
        "warning",
        "this expert stops at 1 '</s>', 7 .* it may run on",
        False,
    ),
    "other sampling": (
        "harmless",
        edit("generation_config.json", temperature=0.3),
        "fact",
        "temperature is None in the",
        False,
    ),
}

EVERYWHERE = {"trained apart", "far away"}  # these also change what is not refused only with another fuse.shared

BASE_FAULTS: dict[str, tuple[Damage, str]] = {
    "no folder": (shutil.rmtree, "no such folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "another architecture": (edit("config.json", model_type="gpt2"), "model_type 'gpt2'"),
    "layers that are not there": (
        edit("config.json", num_hidden_layers=10**12),
        "num_hidden_layers is 1e\\+12; allowed: up to 1,000",
    ),
    "a setting that the library fails on": (
        edit("config.json", hidden_act="wonder"),
        "config.json describes no model \\(KeyError: 'wonder'\\)",
    ),
    "stop tokens that are none": (
        edit("generation_config.json", eos_token_id=[1, "x"]),
        "eos_token_id is \\[1, 'x'\\]",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
    "NaN": (edit_tensors(MODEL, poison(f"{UP}.weight")), rf"NaN or infinite values in {UP}.weight \(2\)"),
    "truncated": (lambda f: (f / MODEL).write_bytes((f / MODEL).read_bytes()[:-9]), "truncated or not"),
    "a broken template": (write("tokenizer_config.json", "["), "cannot be read|is not JSON"),
}
