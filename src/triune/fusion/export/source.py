"""A fused folder, read tensor by tensor: what every export starts from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from torch import Tensor

from triune.errors import InputError
from triune.experts.lowrank import LowRank
from triune.fusion import borrowed
from triune.fusion.configuration import TriuneConfig
from triune.fusion.modeling import TriuneForCausalLM
from triune.fusion.opening import check_model, is_fused
from triune.fusion.prompt_router import PROMPT_ROUTER
from triune.models.preflight import complain
from triune.models.store import TensorInfo, folder_header, read_header, weight_files
from triune.parsing import parse_json
from triune.recipe import Base
from triune.record import RECORD, read_record

MATRICES = ("gate", "up", "down")
ROUNDING = 1e-12  # of sums of two numbers of about 1 in float64, and more
FACTORS = tuple(f"{which}_{side}" for which in MATRICES for side in "ab")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller chooses. dtype: None is the dtype that the base is stored in; base: how a format that needs the
    base to be found elsewhere calls it (a hub name or a path; "" where none is given); tokenizer: whether a format
    that keeps the tokenizer inside its own file writes it there.
    """

    dtype: torch.dtype | None = None
    max_shard_bytes: int = 5_000_000_000  # decimal GB, the hub's own limit for comfortable downloads
    base: str = ""
    tokenizer: bool = True


@dataclass(frozen=True)
class Source:
    """A checked fused model on disk. Nothing is held in memory: `tensor` reads one at a time.

    infos: every stored tensor's dtype and shape, sorted by name; files: the safetensors file that each is in.
    record: record.json of `fuse` or `align` (empty where there is none).
    """

    folder: Path
    config: TriuneConfig
    infos: Mapping[str, TensorInfo]
    files: Mapping[str, Path]
    record: Mapping[str, Any]

    @property
    def text(self) -> Any:
        """The base's own configuration."""
        return self.config.get_text_config()

    @property
    def n_experts(self) -> int:
        """E."""
        return self.config.num_experts

    @property
    def dtype(self) -> torch.dtype:
        """What the base's weights are stored in."""
        return self.infos["model.embed_tokens.weight"].dtype

    @property
    def added(self) -> list[str]:
        """Which settings add different constants to the experts' logits; none where the sums are alike.

        A constant that all experts of a layer share cancels in the softmax.
        """
        if all(max(row) - min(row) <= ROUNDING for row in self.config.biases or []):
            return []
        rows = {"expert_importance": [self.config.expert_importance], "router_bias": self.config.router_bias}
        return [name for name, found in rows.items() if any(row and max(row) > min(row) for row in found or [])]

    def tensor(self, name: str) -> Tensor:
        """One tensor, as stored, on the CPU."""
        # Opened each time: what is mapped counts as memory for as long as the file is open.
        with safe_open(self.files[name], "pt") as file:
            return file.get_tensor(name)

    def base_names(self) -> list[str]:
        """The base's own tensors: its checkpoint's keys (attention changes are merged into them)."""
        return [name for name in self.infos if not is_added(name)]

    def ranks(self, which: str) -> tuple[int, ...]:
        """Every expert's rank in the matrix `which` (gate, up or down); 0 leaves the matrix alone."""
        return tuple((self.config.expert_ranks or {})[which])

    def factors(self, layer: int, which: str) -> tuple[LowRank, ...]:
        """ΔW of `which` (gate, up or down) in one layer, one an expert: b [out, r], a [r, in], LoRA scale in b."""
        prefix, ranks = f"model.layers.{layer}.mlp.{which}", list(self.ranks(which))
        a, b = self.tensor(f"{prefix}_a").split(ranks), self.tensor(f"{prefix}_b").split(ranks)
        return tuple(LowRank(own_b.T, own_a) for own_a, own_b in zip(a, b, strict=True))

    def router(self, layer: int) -> Tensor:
        """W_r of one layer, [E, d] in float32; the probabilities are softmax(W_r x / T + c)."""
        return self.tensor(f"model.layers.{layer}.mlp.router.weight")


def is_added(name: str) -> bool:
    """Whether a tensor is the mixture's (a router, its layer norm or a factor) and not one of the base's."""
    return is_routing(name) or (".mlp." in name and name.rsplit(".", 1)[-1] in FACTORS)


def is_routing(name: str) -> bool:
    """Whether a tensor belongs to the mixture as a whole, not to an expert: a router, what its output goes through."""
    if name.startswith(PROMPT_ROUTER) or ".mlp.output_calibration." in name:
        return True
    return name.endswith((".mlp.router.weight", ".mlp.post_norm.weight", ".mlp.post_norm.bias"))


def check_tokens_routed(source: Source, name: str) -> None:
    """Raise InputError for a model that routes whole prompts, which the format `name` cannot express."""
    if source.config.routing == "prompt":
        raise InputError(
            f"{source.folder} routes whole prompts (routing: prompt), which {name} cannot express; export it with "
            "--format compact, or fuse without prompt_routing"
        )


def open_source(folder: Path) -> Source:
    """Check a fused folder, all its numbers included, and open it for export. No tensor stays in memory.

    Raises InputError where the folder holds no fused model, k > E, ranks that are no numbers or all zero, a weight
    file is missing or truncated, a tensor is missing, strange, or of a shape that the base does not have (said with
    its name, got and wanted), or holds NaN or infinite values (said with its name and their number).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; give the folder of a fused model")
    if not is_fused(folder):
        raise InputError(f"{folder} holds no fused model; export takes the folder that `fuse`, `align` or `run` wrote")
    told = _read_json(folder / "config.json")
    borrowed_from = told.get(borrowed.NAME)
    if told.get(borrowed.QUANTISED):
        raise InputError(
            f"{folder} was made on {borrowed_from!r} quantised, and exports are made of float weights; write the same "
            "factors and routers on the float base first, and export that folder: AutoModelForCausalLM."
            f"from_pretrained({str(folder)!r}, {borrowed.QUANTISED}=False).save_pretrained(NEW), with its tokenizer"
        )
    if borrowed_from:
        raise InputError(
            f"{folder} borrows its base from {borrowed_from!r}, and an export starts from a whole model; give the "
            "folder that `fuse`, `align` or `run` wrote, or export that one with --format compact and no --base"
        )
    _check_router_size(folder)
    check_model(folder, Base(path=str(folder)))
    config = _config(folder)
    _check_ranks(folder, config)
    infos = folder_header(folder)
    _check_tensors(folder, config, infos)
    files = {name: path for path in weight_files(folder) for name in read_header(path)}
    record = read_record(folder) if (folder / RECORD).is_file() else {}
    return Source(folder, config, infos, files, record)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(parse_json(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not a JSON object ({error}); fuse again, or delete it") from error


def _check_router_size(folder: Path) -> None:
    raw = _read_json(folder / "config.json")
    names, k = raw.get("expert_names"), raw.get("num_experts_per_tok")
    n_experts = len(names) if isinstance(names, list) else 0
    if type(k) is not int or not 1 <= k <= n_experts:
        raise InputError(
            f"{folder}: config.json says num_experts_per_tok={k!r} with {n_experts} experts ({names}); allowed: 1 to "
            f"{n_experts}; correct it, or fuse again"
        )


def _check_ranks(folder: Path, config: TriuneConfig) -> None:
    if not any(map(sum, (config.expert_ranks or {}).values())):
        raise InputError(
            f"{folder}: all ranks are 0, so every expert is the base itself; export the base, or fuse experts that "
            "change the feed-forward blocks"
        )


def _config(folder: Path) -> TriuneConfig:
    try:
        return TriuneConfig.from_pretrained(folder)
    except (StrictDataclassError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{folder / 'config.json'}: {' '.join(str(error).split())}; fuse again") from error


def _check_tensors(folder: Path, config: TriuneConfig, infos: Mapping[str, TensorInfo]) -> None:
    """The stored tensors must be those of the model that `config` describes, shape by shape."""
    with torch.device("meta"):
        model = TriuneForCausalLM(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    optional = set(model.all_tied_weights_keys)
    reshaped = [
        f"{name} is {list(info.shape)}, wanted {list(wanted[name])}"
        for name, info in infos.items()
        if name in wanted and info.shape != wanted[name]
    ]
    complain(
        folder,
        {
            "missing": [name for name in wanted if name not in infos and name not in optional],
            "unexpected": [name for name in infos if name not in wanted],
            "of another shape": reshaped,
        },
    )
