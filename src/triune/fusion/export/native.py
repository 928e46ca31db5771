"""The fused model as a mixture that transformers knows: Mixtral, Qwen3-MoE for Qwen3 bases, or gpt-oss.

Every expert is written out whole, W_a = W + B_a A_a. The routing temperature goes into the gate: softmax(W_r x / T) =
softmax((W_r / T) x). Constants that are added to the experts' logits (importance, biases) need a gate with a bias,
which gpt-oss alone has; it is taken only where they are.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triune.errors import InputError
from triune.fusion.export.families import MIXTRAL, QWEN3_MOE, Family
from triune.fusion.export.gpt_oss import GPT_OSS
from triune.fusion.export.source import Options, Source, check_tokens_routed
from triune.models.carrying import carry
from triune.models.shards import Planned, cast, write_shards
from triune.parsing import parse_json
from triune.progress import SILENT, Progress
from triune.record import write_json

# What a base and its mixture call the same and mean the same.
CONFIG = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "tie_word_embeddings",
    "rope_parameters",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
SERVE = """\
- transformers, without Triune: `transformers serve {out}`, or `AutoModelForCausalLM.from_pretrained("{out}")`
- vLLM (not where the class is GptOssForCausalLM, see the limits): `vllm serve {out}`
- llama.cpp (as vLLM): `python convert_hf_to_gguf.py {out} --outfile model.gguf`, then `llama-server -m model.gguf`"""


# By the base's model type, the first that can: gpt-oss is for transformers only, so it comes last.
FAMILIES = {"llama": (MIXTRAL, GPT_OSS), "mistral": (MIXTRAL, GPT_OSS), "qwen3": (QWEN3_MOE,)}


def check(source: Source, options: Options) -> None:
    """Raise InputError, with the reason and the format that can, for what no mixture class can express."""
    check_tokens_routed(source, "native")
    kind = source.text.model_type
    if kind not in FAMILIES:
        raise InputError(
            f"--format native cannot express {source.folder}: transformers has no mixture class whose attention and "
            f"blocks are those of its base, {kind} (native takes {', '.join(FAMILIES)}); use --format compact, which "
            "can"
        )
    faults = _faults(source)
    if all(faults.values()):
        # A fault that several classes have is said once.
        found = list(dict.fromkeys(fault for each in faults.values() for fault in each))
        raise InputError(
            f"--format native cannot express {source.folder}: {'; '.join(found)}; use --format compact, which can"
        )


def _faults(source: Source) -> dict[str, list[str]]:
    """Why each class that comes into question cannot express the model."""
    always = []
    if source.config.post_norm:
        always.append("its mixtures' outputs are layer-normalised (post_norm), which no mixture class does")
    if source.config.output_calibration is not None:
        always.append("its mixtures' outputs are corrected (output_calibration), which no mixture class does")
    return {each.architecture: [*always, *each.faults(source)] for each in FAMILIES[source.text.model_type]}


def family(source: Source) -> Family:
    """The class for a checked model."""
    faults = _faults(source)
    return next(each for each in FAMILIES[source.text.model_type] if not faults[each.architecture])


def write(source: Source, options: Options, folder: Path, progress: Progress = SILENT) -> None:
    """Weights, configuration, generation configuration and tokenizer; as `shards.write_shards` for interruptions.

    Raises InputError where a number does not fit in the dtype, or the disk has no room.
    """
    dtype = options.dtype or source.dtype
    carry(source.folder, folder)
    write_shards(plan(source, dtype), folder, options.max_shard_bytes, progress)
    write_json(folder / "config.json", native_config(source, dtype))


def what(source: Source) -> str:
    """One line for the model card."""
    chosen = family(source)
    readers = "transformers" if chosen is GPT_OSS else "transformers, vLLM and llama.cpp"
    return f"A checkpoint of the class {chosen.architecture} with all experts written out, for {readers}."


def limits(source: Source, options: Options) -> list[str]:
    """What the mixture class, or a program that serves it, does differently: sentences for the model card."""
    found = ["Every expert is written out whole, so the file is larger than the fused model it was made from."]
    if (options.dtype or source.dtype).itemsize < 4:
        found.append(
            "The routers are stored in half precision, Triune keeps them in float32: a token whose experts are nearly "
            "tied may be sent elsewhere."
        )
    return [*found, *family(source).limits(source)]


def native_config(source: Source, dtype: torch.dtype) -> dict[str, Any]:
    """The content of config.json."""
    chosen, text = family(source), source.text
    settings = {name: getattr(text, name) for name in CONFIG}
    settings |= {"num_experts_per_tok": source.config.num_experts_per_tok, **chosen.settings(source, dtype)}
    config = chosen.config(**settings, architectures=[chosen.architecture], dtype=dtype)
    # Written under both names: which of the two a reader of Qwen3-MoE knows depends on its version of transformers.
    both = {"num_experts": source.n_experts} if "num_experts" in settings else {}
    return {**parse_json(config.to_json_string()), **both}


def plan(source: Source, dtype: torch.dtype) -> list[Planned]:
    """Every tensor of the export, layer by layer; nothing is read before its turn."""
    chosen = family(source)
    return [
        planned
        for name in sorted(source.base_names(), key=_natural)
        if not (name == "lm_head.weight" and source.text.tie_word_embeddings)
        for planned in _parts(source, chosen, name, dtype)
    ]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


_BLOCK = re.compile(r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\.weight")


def _parts(source: Source, chosen: Family, name: str, dtype: torch.dtype) -> Iterator[Planned]:
    """What becomes of one of the base's tensors: itself, or (of one of its three matrices) a layer's whole mixture."""
    found = _BLOCK.fullmatch(name)
    if found is None:
        yield Planned(name, dtype, source.infos[name].shape, partial(_own, source, name, dtype))
    elif found[2] == "gate":
        yield from chosen.block(source, int(found[1]), dtype)


def _own(source: Source, name: str, dtype: torch.dtype) -> Tensor:
    return cast(source.tensor(name), dtype, name)
