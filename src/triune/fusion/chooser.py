"""Which adapter a prompt belongs to, for servers that hold a fused model's experts as separate LoRA adapters.

A fused model that routes whole prompts to one expert each is "pick one LoRA per request". `open_chooser` opens what
the export `peft` writes of such a model and picks: it holds the base's embedding and its first l layers, the experts'
factors in them, and the router, and nothing behind layer l. It reads a prompt as the fused model does: see
`triune.fusion.prompt_passes`.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from triune.data.templates import render
from triune.errors import InputError
from triune.experts import task_vector
from triune.experts.adapters import read_adapter
from triune.fusion import router
from triune.fusion.building import layer_parts
from triune.fusion.configuration import TriuneConfig
from triune.fusion.mixture import MixtureFFN
from triune.fusion.prompt_passes import route
from triune.fusion.prompt_router import PromptRoute, PromptRouter
from triune.fusion.router_file import SETTINGS, SHARED, RouterFile, read_router
from triune.models.encoding import Encoded, by_length, collate, pad_id
from triune.models.generation import prompt_row
from triune.models.hub import locate
from triune.models.likelihood import inference
from triune.models.loading import load_tokenizer
from triune.models.preflight import TOKENIZER_FILES, read_config
from triune.models.shards import cast
from triune.models.store import hash_weights, read_header, weight_files

Prompt = str | Sequence[int]  # a text, which the template is put around, or ready token ids


@dataclass(frozen=True, slots=True)
class Choice:
    """What one prompt is given.

    adapter: the expert of the largest probability. probabilities: p of the softmax, by expert. weights: p̂, what the
    fused model mixes the experts with: 1 for the adapter and 0 elsewhere, unless the export says that the two differ.
    """

    adapter: str
    probabilities: Mapping[str, float]
    weights: Mapping[str, float]


class PromptReader(nn.Module):
    """The part of a fused model that finds a prompt's route: the layers before `routing_layer`, and the router.

    config: the whole fused model's. The layers run `prior_weights`, as they do there while the router's input is
    computed.
    """

    def __init__(self, config: TriuneConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        text: Any = first_layers(config.get_text_config(), int(config.routing_layer or 0))
        with no_init_weights():  # every number is loaded
            self.model = AutoModel.from_config(text, dtype=dtype, trust_remote_code=False)
        self.model.norm = nn.Identity()  # what is wanted is the residual stream
        prior = torch.tensor(config.prior_weights, dtype=torch.float64)
        for index, layer in enumerate(self.model.layers):
            layer.mlp = MixtureFFN(layer.mlp, config, index)
            layer.mlp.routed = prior
        self.prompt_router = PromptRouter(config)

    def mixtures(self) -> list[MixtureFFN]:
        """The mixture of each layer that is held."""
        return [layer.mlp for layer in self.model.layers]

    def forward(
        self, input_ids: Int[Tensor, "batch tokens"], attention_mask: Int[Tensor, "batch tokens"]
    ) -> PromptRoute:
        """Logits and weights of prompts that are padded on the right."""
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        return route(self, out[torch.arange(len(out), device=out.device), attention_mask.sum(1) - 1])


@dataclass(frozen=True)
class Chooser:
    """Picks an adapter for a prompt; made by `open_chooser`.

    tokenizer, template: None where the export has none; then prompts are given as token ids.
    """

    reader: PromptReader
    tokenizer: PreTrainedTokenizerBase | None = None
    template: str | None = None

    @property
    def adapters(self) -> list[str]:
        """The names to choose from."""
        return list(self.reader.config.expert_names or [])

    def token_ids(self, prompt: Prompt) -> list[int]:
        """What the prompt is read as, and what the server is to be given: the template's text, encoded.

        Raises InputError for an empty prompt, one that leaves no room in the base's context, ids that the base does
        not have, and a text where tokenizer or template are not known.
        """
        return list(self._row(prompt, "the prompt").input_ids)

    def route(self, prompt: Prompt) -> str:
        """The adapter of one prompt. Raises InputError as `token_ids`."""
        return self.route_all([prompt])[0].adapter

    def route_all(self, prompts: Sequence[Prompt], *, batch_size: int = 16) -> list[Choice]:
        """The choice for each prompt, in the order given; the batch size changes the numbers by rounding only.

        Raises InputError as `token_ids`, with the prompt's number, before any is read.
        """
        if isinstance(prompts, str):
            raise InputError("prompts is one string; give a list of prompts, [prompt] for a single one")
        rows = [self._row(prompt, f"prompt {index}") for index, prompt in enumerate(prompts)]
        filler = 0 if self.tokenizer is None else pad_id(self.tokenizer)
        found: dict[int, Choice] = {}
        with inference(self.reader) as device:
            for indices in by_length(rows, batch_size):
                batch = collate([rows[index] for index in indices], filler)
                routes = self.reader(batch["input_ids"].to(device), batch["attention_mask"].to(device))
                found.update(zip(indices, self._choices(routes), strict=True))
        return [found[index] for index in range(len(rows))]

    def _choices(self, routes: PromptRoute) -> list[Choice]:
        names = self.adapters
        probs = router.layer_probabilities([routes.logits], self.reader.config)[0]
        # The same function as the fused model's choice, so that ties fall alike.
        chosen = router.strongest(router.top_k_weights(probs, 1)).tolist()
        return [
            Choice(names[own], dict(zip(names, p, strict=True)), dict(zip(names, w, strict=True)))
            for own, p, w in zip(chosen, probs.tolist(), routes.weights.tolist(), strict=True)
        ]

    def _row(self, prompt: Prompt, name: str) -> Encoded:
        if isinstance(prompt, str):
            return self._text_row(prompt, name)
        ids, config = tuple(prompt), self.reader.config
        if not 1 <= len(ids) < config.max_position_embeddings:
            raise InputError(
                f"{name} has {len(ids):,} tokens; allowed: 1 to {config.max_position_embeddings - 1:,} (the base's "
                "context less one, for the answer)"
            )
        strange = [token for token in ids if not 0 <= token < config.vocab_size]
        if strange:
            raise InputError(f"{name} has the token id {strange[0]}; the base has 0 to {config.vocab_size - 1:,}")
        return Encoded(ids, len(ids))

    def _text_row(self, prompt: str, name: str) -> Encoded:
        if not prompt.strip():
            raise InputError(f"{name} is empty; there is nothing to route by: give it some text")
        if self.tokenizer is None:
            raise InputError(f"{name} is a text, and the export has no tokenizer; give token ids")
        if self.template is None:
            raise InputError("the export does not say which template its prompts take; open it with template=")
        return prompt_row(self.reader, self.tokenizer, render(self.template, prompt, self.tokenizer), name)


def open_chooser(
    folder: Path | str,
    base: Path | str | None = None,
    *,
    template: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Chooser:
    """What picks the adapters of an exported model, on the CPU (`chooser.reader.to(device)` moves it).

    Loaded: the base's embedding and its first l layers in `dtype`, the experts' factors in these layers, and the
    router in float32. The base's other weights are read once from the disk for their hash and not kept. base: where
    it is, if not where the export says; template: which one prompts take, if not the one that the export says.
    Raises InputError as `read_router`, and where the base is not to be had or is another one.
    """
    file = read_router(Path(folder))
    place = _base(file, base)
    config = file.config(read_config(place))
    reader = PromptReader(config, dtype)
    _load(reader.prompt_router, file.tensors, file)
    _load(reader.model, _shared(reader, file, place, dtype) | _factors(config, file, dtype), file)
    tokenizer = load_tokenizer(file.folder) if _has_tokenizer(file.folder) else None
    own = "chat" if tokenizer is not None and tokenizer.chat_template else None
    return Chooser(reader.eval(), tokenizer, template or file.settings["template"] or own)


def first_layers(text: PreTrainedConfig, n_layers: int) -> PreTrainedConfig:
    """A base's configuration with its first layers only."""
    fields = text.to_dict()
    kinds = fields.get("layer_types")  # one a layer, where a family has several
    return type(text).from_dict(
        {**fields, "num_hidden_layers": n_layers, **({"layer_types": kinds[:n_layers]} if kinds else {})}
    )


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def _base(file: RouterFile, base: Path | str | None) -> Path:
    """The base's folder, if its weights are those that the export belongs to."""
    name, wanted = base or file.settings["base_model_name_or_path"], file.settings["base_sha256"]
    try:
        folder = locate(name)
    except InputError as error:
        raise InputError(f"{file.folder} belongs to a base that is not to be had: {error}; give base=") from error
    found = hash_weights(folder)
    if found != wanted:
        raise InputError(
            f"{file.folder} belongs to a base with sha256 {wanted[:12]}, and {folder} has {found[:12]}; give the one "
            "that the model was fused from (base=)"
        )
    return folder


def _shared(reader: PromptReader, file: RouterFile, base: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of the layers that are held: the base's, or what shared.safetensors has instead."""
    files = {name: path for path in weight_files(base) for name in read_header(path)}
    changed = file.folder / SHARED
    if changed.is_file():
        files |= dict.fromkeys(read_header(changed), changed)
    wanted = [f"model.{name}" for name in reader.model.state_dict()]
    with ExitStack() as stack:
        handles = {path: stack.enter_context(safe_open(path, "pt")) for path in sorted(set(files.values()))}
        return {
            name.removeprefix("model."): cast(handles[files[name]].get_tensor(name), dtype, name)
            for name in wanted
            if name in files  # else it is a factor, or missed by `_load`
        }


def _factors(config: TriuneConfig, file: RouterFile, dtype: torch.dtype) -> dict[str, Tensor]:
    """The experts' factors of the layers before `routing_layer`, as the fused model stores them."""
    vectors = [read_adapter(file.adapter(name), name) for name in file.names]
    d, f = config.hidden_size, config.intermediate_size
    found: dict[str, Tensor] = {}
    for layer in range(int(config.routing_layer or 0)):
        for which, ranks in (config.expert_ranks or {}).items():
            shape = (d, f) if which == "down" else (f, d)
            a, b = task_vector.stacked(layer_parts(vectors, layer, which), ranks, shape, dtype)
            found |= {f"layers.{layer}.mlp.{which}_a": a, f"layers.{layer}.mlp.{which}_b": b}
    return found


def _load(module: nn.Module, tensors: Mapping[str, Tensor], file: RouterFile) -> None:
    """Put every number in its place. Raises InputError where one is missing, too many, misshapen, NaN or infinite."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    if wrong:
        name = wrong[0]
        raise InputError(
            f"{file.folder}: {name} has the shape {found.get(name)}, and by {SETTINGS} it is {wanted.get(name)} "
            f"({len(wrong)} tensors are wrong; None: it is not there); export again"
        )
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise InputError(f"{file.folder}: NaN or infinite numbers in {', '.join(broken[:3])}; get these weights again")
    module.load_state_dict(dict(tensors), assign=True)
