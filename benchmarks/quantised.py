"""A fused model on a packed base (bitsandbytes) against the same on float weights: bytes, and speed where a GPU is.

    python benchmarks/quantised.py --base /work/shared/models/babyllama105-hf --text stories.txt
    python benchmarks/quantised.py --hidden 4096 --intermediate 11008 --layers 4 --dtype bfloat16   # on a GPU

Without `--base` a random Llama of these sizes is made. Reported, of each kind of packing: the bytes of the base's
linear layers measured and by the formula, those of the whole model against float weights, and the answer likelihood of
the lines of `--text` under the base (with what the codes stand for in float32, so that the arithmetic of a CPU's int8
or a GPU's kernels does not count). On a GPU also the median seconds of one decoded token and of one training step of
routers and factors, kinds in turn in one process, as ratios to float weights: below 1 is faster. A CPU's speed says
nothing of a GPU's, so there it is not measured.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from triune.experts.lowrank import LowRank
from triune.experts.task_vector import TaskVector
from triune.fusion import borrowed
from triune.fusion.modeling import TriuneForCausalLM
from triune.fusion.writing import blank, fusion, write_fused
from triune.models.loading import quiet
from triune.models.quantised import BLOCK, model_bytes, packed_bytes, quantised_layers
from triune.quantised_settings import Quantised
from triune.recipe import FFN, Fuse

KINDS: dict[str, Quantised] = {
    "nf4": Quantised(),
    "nf4, scales whole": Quantised(double_quant=False),
    "fp4": Quantised(quant_type="fp4"),
    "int8": Quantised(quant_type="int8"),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", type=Path)
    parser.add_argument("--text", type=Path, help="lines whose likelihood under the base is measured")
    parser.add_argument("--lines", type=int, default=200)
    for name, value in {"hidden": 256, "intermediate": 704, "layers": 2, "vocabulary": 512, "rank": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--tokens", type=int, default=1024, help="of a training step")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def random_base(args: argparse.Namespace, folder: Path) -> Path:
    config = LlamaConfig(
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        vocab_size=args.vocabulary,
        num_attention_heads=max(1, args.hidden // 64),
        num_key_value_heads=max(1, args.hidden // 64),
    )
    torch.manual_seed(0)
    with quiet():
        AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.dtype)).save_pretrained(folder)
    return folder


def write(base: Path, out: Path, args: argparse.Namespace) -> Path:
    """A fused folder of three random experts that borrows the base."""
    origin, rng = blank(base, getattr(torch, args.dtype)), torch.Generator().manual_seed(0)
    experts = []
    for axis in ("helpful", "harmless", "honest"):
        parts = {}
        for name, info in origin.weights.infos.items():
            module = name.removesuffix(".weight")
            if module.rsplit(".", 1)[-1] in FFN:
                n_out, n_in = info.shape
                b = torch.randn(n_out, args.rank, generator=rng) * 0.01
                parts[module] = LowRank(b, torch.randn(args.rank, n_in, generator=rng) * 0.01)
        experts.append(TaskVector(axis, parts))
    config: Any = origin.config
    routers = [torch.randn(3, config.hidden_size, generator=rng) for _ in range(config.num_hidden_layers)]
    out.mkdir()
    told = borrowed.beside(base, str(base), origin.dtype, Quantised())
    write_fused(fusion(origin, experts, Fuse(), routers), out, beside=told)
    return out


def opened(folder: Path, kind: str) -> TriuneForCausalLM:
    """The fused model packed so, or on float weights; on the GPU where there is one."""
    place = folder / "config.json"
    settings = json.loads(place.read_text(encoding="utf-8"))
    if kind in KINDS:
        settings[borrowed.QUANTISED] = KINDS[kind].model_dump()
        place.write_text(json.dumps(settings), encoding="utf-8")
    with quiet():
        dtype = getattr(torch, settings[borrowed.DTYPE])
        options = {} if kind in KINDS else {"base_quantised": False, "dtype": dtype}
        model: Any = TriuneForCausalLM.from_pretrained(folder, **options)
    if kind not in KINDS and torch.cuda.is_available():
        model.cuda()
    found: TriuneForCausalLM = model.eval()
    return found


def measured_bytes(model: TriuneForCausalLM, kind: str) -> dict[str, float]:
    layers = quantised_layers(model)
    formula = sum(packed_bytes(layer.out_features, layer.in_features, KINDS[kind]) for _, layer in layers)
    n = sum(layer.out_features * layer.in_features for _, layer in layers)
    kept = sum(p.nbytes for name, p in model.named_parameters() if not name.endswith("_proj.weight"))
    return {"bytes_a_weight": (model_bytes(model) - kept) / n, "formula": formula / n, "model": model_bytes(model)}


def codes_of(weight: Tensor, how: Quantised) -> Tensor:
    """What a weight becomes when it is packed and unpacked."""
    from bitsandbytes import functional

    if how.quant_type == "int8":
        codes, scales, _ = functional.int8_vectorwise_quant(weight.half())
        return codes.float() * (scales.float() / 127).unsqueeze(1)
    options: dict[str, Any] = {"quant_type": how.quant_type, "compress_statistics": how.double_quant}
    row = weight.reshape(1, -1)  # blocks run on over the rows; as one row a CPU unpacks it rightly
    packed, state = functional.quantize_4bit(row, blocksize=BLOCK, **options)
    return functional.dequantize_4bit(packed, state).view_as(weight).float()


@torch.no_grad()
def perplexity(base: Path, lines: list[str], how: Quantised | None) -> float:
    """exp of the mean negative log-likelihood of a token, each line by itself from its second token on."""
    with quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    if how is not None:
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.weight"):
                parameter.copy_(codes_of(parameter, how))
    total, n = 0.0, 0
    for line in lines:
        ids = torch.tensor(tokenizer(line)["input_ids"])[None, : model.config.max_position_embeddings]
        scores = model(ids).logits[0, :-1].double().log_softmax(-1)
        total, n = total - float(scores.gather(1, ids[0, 1:, None]).sum()), n + ids.shape[1] - 1
    return math.exp(total / n)


def seconds(run: Callable[[], Any], repeats: int) -> float:
    run()
    found = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def speeds(model: TriuneForCausalLM, args: argparse.Namespace) -> dict[str, float]:
    ids = torch.randint(3, model.config.vocab_size, (1, args.tokens), device="cuda")
    for name, parameter in model.named_parameters():
        added = ".mlp." in name and "_proj." not in name
        parameter.requires_grad_(added and parameter.is_floating_point())

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        model.zero_grad()

    with torch.no_grad():
        decode = seconds(lambda: model(ids[:, :1]), args.repeats)
    model.train()
    train = seconds(step, args.repeats)
    model.eval()
    return {"decode": decode, "train": train}


def main() -> None:
    args = parse()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        base = args.base or random_base(args, Path(scratch) / "base")
        folder = write(base, Path(scratch) / "fused", args)
        lines = args.text.read_text(encoding="utf-8").splitlines()[: args.lines] if args.text else []
        for kind in ("float", *KINDS):
            row: dict[str, float] = {"perplexity": perplexity(base, lines, KINDS.get(kind))} if lines else {}
            try:
                model = opened(folder, kind)
            except ValueError as error:  # widths that a CPU unpacks wrongly
                print(f"{kind}: {error}")
            else:
                row |= measured_bytes(model, kind) if kind in KINDS else {"model": model_bytes(model)}
                row |= speeds(model, args) if torch.cuda.is_available() else {}
                del model
            found[kind] = row
            whole = found["float"]
            ratios = {f"{k} / float": row[k] / whole[k] for k in ("model", "decode", "train") if k in row}
            shown = {**row, **ratios}
            print(kind, ", ".join(f"{name} {value:.5g}" for name, value in shown.items()), sep=": ")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
