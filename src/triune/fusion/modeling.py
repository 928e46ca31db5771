"""`TriuneForCausalLM`: any gated-FFN decoder of transformers with each layer's `mlp` swapped for a mixture."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache

from triune.errors import InputError
from triune.fusion import prompt_passes
from triune.fusion.borrowed import load_whole, save_beside
from triune.fusion.configuration import TriuneConfig
from triune.fusion.mixture import MixtureFFN
from triune.fusion.output_calibration import OutputCalibration
from triune.fusion.prompt_router import PromptRoute, PromptRouter, TriuneOutput, check_routing, last_tokens
from triune.fusion.router import Router
from triune.models.preflight import SUPPORTED


class TriuneForCausalLM(PreTrainedModel, GenerationMixin):
    """A causal language model whose feed-forward blocks are exact factored mixtures of aligned experts.

    Keys of the base's weights are those of the base checkpoint; the mixture adds, per layer, `mlp.router.weight`
    [E, d] and the factors `mlp.{gate,up,down}_{a,b}` [r_1 + … + r_E, ·], the experts' rows one below the other.
    With `config.routing` "prompt" there is one `prompt_router` instead; see `triune.fusion.prompt_passes`.
    `generate`, `save_pretrained`, `from_pretrained`, `device_map`, gradient checkpointing, Trainer and PEFT work as
    on any model.

    Raises InputError where the base is not a supported gated-FFN decoder.
    """

    config_class = TriuneConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["router", "prompt_router"]  # noqa: RUF012  (a bfloat16 model keeps its routers whole)
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: TriuneConfig) -> None:
        super().__init__(config)
        text = config.get_text_config()
        if text.model_type not in SUPPORTED:
            raise InputError(f"a base of type {text.model_type!r} cannot be fused; supported: {', '.join(SUPPORTED)}")
        check_routing(config)
        self.model = AutoModel.from_config(text, trust_remote_code=False)
        for index, layer in enumerate(self.model.layers):
            layer.mlp = MixtureFFN(layer.mlp, config, index)
        self.vocab_size = text.vocab_size
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.prompt_router = PromptRouter(config) if config.routing == "prompt" else None
        self.beside: dict[str, Any] | None = None  # of a quantised base: what config.json says of it (borrowed.beside)
        self._listeners: list[list[Tensor]] = []  # of the prompt router's logits; see `listening`
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Routers and factors start at zero (the fused model is then the base); the rest as its own class does."""
        if isinstance(module, OutputCalibration):
            module.start()
        elif isinstance(module, MixtureFFN | Router | PromptRouter):
            for parameter in module.parameters(recurse=False):
                nn.init.zeros_(parameter)
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any = None, *model_args: Any, **kwargs: Any) -> Any:
        """As of any model; a folder that names its base instead of holding it gets the rest of its weights there.

        Raises InputError where that base is not found or has other weights; see `triune.fusion.borrowed`.
        """
        return load_whole(super().from_pretrained, pretrained_model_name_or_path, model_args, kwargs)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As of any model; on a quantised base the experts' factors and the routers alone, and the base's name.

        Raises InputError for options on a quantised base, which has one form.
        """
        if self.beside is None:
            super().save_pretrained(save_directory, *args, **kwargs)
        elif args or kwargs:
            got = [*map(str, args), *sorted(kwargs)]
            raise InputError(
                f"a model on a quantised base is saved without options, and here are {got}; leave them out"
            )
        else:
            save_beside(self, self.beside, Path(save_directory))

    def mixtures(self) -> list[MixtureFFN]:
        """The mixture of each layer, in order."""
        return [layer.mlp for layer in self.model.layers]

    def calibrate_routing(self, temperatures: Sequence[float], biases: Sequence[Sequence[float]] | None) -> None:
        """Route by softmax(z / T_l + log γ + b_l) from now on, also once saved: T and b of each router."""
        self.config.calibrate(temperatures, biases)
        for mixture, temperature, bias in zip(
            self.mixtures()[: self.config.num_routers],
            temperatures,
            self.config.biases or [None] * len(temperatures),
            strict=True,
        ):
            mixture.temperature, mixture._kept_bias = temperature, None
            mixture.bias = None if bias is None else tuple(bias)

    @contextmanager
    def fixed_routing(self, weights: Float[Tensor, "*batch experts"]) -> Iterator[None]:
        """Within the context every layer mixes with these weights, [experts] or [batch, experts], not its router's."""
        n_experts = self.config.num_experts
        if weights.ndim not in (1, 2) or weights.shape[-1] != n_experts:
            raise InputError(
                f"routing weights of shape {tuple(weights.shape)}; wanted [{n_experts}] or [batch, {n_experts}]"
            )
        for mixture in self.mixtures():
            mixture.fixed = weights
        try:
            yield
        finally:
            for mixture in self.mixtures():
                mixture.fixed = None

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_router_logits: bool = False,
        routing_position: Tensor | None = None,
        prompt_route: PromptRoute | None = None,
        **kwargs: Any,
    ) -> TriuneOutput:
        """As any causal language model; `output_router_logits` adds one [batch, tokens, experts] tensor a router.

        Where prompts are routed as a whole, `routing_position` [batch] says where each ends in this pass, if an answer
        follows (else `labels` do, else it is the last token); `prompt_route` is one that was found before.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
            **kwargs,
        }
        with self.listening(output_router_logits) as heard:
            outputs, route = self._run(prompt_passes.Call(inputs, routing_position, labels, prompt_route))
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.vocab_size, **kwargs)
        return TriuneOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=tuple(heard) if output_router_logits else None,
            prompt_route=route,
        )

    def _run(self, call: prompt_passes.Call) -> tuple[Any, PromptRoute | None]:
        """The base's output and, where prompts are routed as a whole, the route, which the cache keeps."""
        if self.prompt_router is None or self.mixtures()[0].fixed is not None:
            return self.model(**call.inputs), None
        with prompt_passes.routed(self, call) as found:
            outputs = self.model(**call.inputs)
        if outputs.past_key_values is not None:
            setattr(outputs.past_key_values, prompt_passes.KEPT, found[0])
        n_tokens = outputs.last_hidden_state.shape[1]
        for heard in self._listeners:
            heard.append(found[0].logits.unsqueeze(1).expand(-1, n_tokens, -1))
        return outputs, found[0]

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As of any model; the first pass is told where each prompt ends, which its own mask may not say any more."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        told, mask = kwargs.get("prompt_route") or kwargs.keys() & {"routing_position"}, kwargs.get("attention_mask")
        if self.prompt_router is not None and not told and isinstance(mask, Tensor):
            inputs["routing_position"] = last_tokens(mask, mask.shape, mask.device)
        return inputs

    def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: Any, *args: Any, **kwargs: Any) -> Any:
        """The route of the first pass holds for the whole answer, with or without a cache."""
        if self.prompt_router is not None:
            model_kwargs["prompt_route"] = outputs.prompt_route
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)

    def _assisted_decoding(self, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """The first pass of assisted decoding has guessed tokens behind the prompt."""
        if self.prompt_router is not None:
            ends = last_tokens(kwargs.get("attention_mask"), input_ids.shape, input_ids.device)
            kwargs.setdefault("routing_position", ends)
        return super()._assisted_decoding(input_ids, *args, **kwargs)  # type: ignore[misc]

    def _prefill(self, input_ids: Any, generation_config: Any, *args: Any, **kwargs: Any) -> Any:
        if self.prompt_router is not None and generation_config.prefill_chunk_size is not None:
            raise InputError("a prompt that is routed as a whole is read in one pass: leave prefill_chunk_size out")
        return super()._prefill(input_ids, generation_config, *args, **kwargs)  # type: ignore[misc]

    @contextmanager
    def listening(self, wanted: bool = True) -> Iterator[list[Tensor]]:
        """Within the context, every router's logits are appended to the list, layer by layer, pass by pass.

        The one router of whole prompts is heard in every pass, a prompt's logits at each of its tokens.
        (A gradient checkpoint runs the layer again in the backward pass; by then `forward`'s own hooks are gone.)
        """
        heard: list[Tensor] = []
        routers = [mixture.router for mixture in self.mixtures() if wanted and mixture.router is not None]
        hooks = [own.register_forward_hook(lambda _module, _args, logits: heard.append(logits)) for own in routers]
        if wanted and self.prompt_router is not None:
            self._listeners.append(heard)
        try:
            yield heard
        finally:
            for hook in hooks:
                hook.remove()
            self._listeners[:] = [own for own in self._listeners if own is not heard]
