"""What a forward pass does in a model whose prompts are routed as a whole: find the route, or take it up again.

One pass: the layers before the routing layer run the fixed mixture `prior_weights`; a hook before the routing layer
reads its input at every prompt's last token, and the layers from there on run that prompt's own mixture. So one
prefill routes and fills the KV cache. Two passes: a first one, which ends at the routing layer, finds the route, and a
second runs every layer with it. The router reads the same in both, and so gives the same.

The route is kept with the KV cache, so decoding never touches the router, and generations that take turns on one
model do not mix. A cache keeps the route of the prompt that it began with, also where more text is added to it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from triune.errors import InputError
from triune.fusion import router
from triune.fusion.prompt_router import PromptRoute, checked_ends, last_tokens
from triune.models.likelihood import answer_starts

KEPT = "prompt_route"  # the attribute of a cache


@dataclass(frozen=True)
class Call:
    """A forward pass: what the base is called with, where prompts end (None: see `_ends`), and a route that is known.

    Answers that follow the prompts are told by `labels`, where no position is given.
    """

    inputs: Mapping[str, Any]
    position: Tensor | None = None
    labels: Tensor | None = None
    route: PromptRoute | None = None


class _Found(Exception):
    """Ends a first pass at the routing layer."""


@contextmanager
def routed(model: Any, call: Call) -> Iterator[list[PromptRoute]]:
    """Within the context the base runs by prompt; yields where the route lies once the base has run.

    Raises InputError for an empty prompt, a pass that does not hold a prompt's end, and a cache without a route.
    """
    known, two = _known(call), model.config.routing_passes == 2
    if known is None and two:
        known = _first_pass(model, call)
    before, after = _parts(model)
    hooks = []
    if known is None:
        found: list[PromptRoute] = []
        _place(before, _prior(model))

        def go_on(h: Tensor) -> None:
            found.append(route(model, h))
            _place(after, found[-1].weights)

        hooks.append(_hooked(model, call, go_on))
    else:
        _check_rows(known, call)
        found = [known]
        _place(before, known.weights if two else _prior(model))
        _place(after, known.weights)
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        # A gradient checkpoint runs the layers again in the backward pass: their weights must still be there.
        if not (torch.is_grad_enabled() and model.training and _checkpointed(model)):
            _place(model.mixtures(), None)


def _checkpointed(model: Any) -> bool:
    return any(getattr(layer, "gradient_checkpointing", False) for layer in model.model.layers)


def _parts(model: Any) -> tuple[list[Any], list[Any]]:
    """The mixtures before the routing layer, and those from it on."""
    mixtures, layer = model.mixtures(), model.config.routing_layer
    return mixtures[:layer], mixtures[layer:]


def _prior(model: Any) -> Tensor:
    return torch.tensor(model.config.prior_weights, dtype=torch.float64)


def _place(mixtures: Sequence[Any], weights: Tensor | None) -> None:
    for mixture in mixtures:
        mixture.routed = weights


def _known(call: Call) -> PromptRoute | None:
    """The route that was found before: given, or the one that a filled cache keeps."""
    if call.route is not None:
        return call.route
    cache = call.inputs.get("past_key_values")
    if cache is None or int(cache.get_seq_length()) == 0:
        return None
    kept: PromptRoute | None = getattr(cache, KEPT, None)
    if kept is None:
        raise InputError(
            "this KV cache was not filled by a pass that routes its prompt, so there is no route to go on with; "
            "begin with an empty cache"
        )
    return kept


def _check_rows(route: PromptRoute, call: Call) -> None:
    n_rows = _shape(call)[0]
    if len(route.weights) != n_rows:
        raise InputError(f"the route is of {len(route.weights)} prompts and the batch has {n_rows} rows; begin anew")


def _first_pass(model: Any, call: Call) -> PromptRoute:
    """The route alone: the base up to the routing layer, nothing cached."""
    read: list[Tensor] = []

    def stop(h: Tensor) -> None:
        read.append(h)
        raise _Found

    _place(_parts(model)[0], _prior(model))
    hook = _hooked(model, call, stop)
    try:
        with torch.no_grad():
            mask = _cropped(call.inputs.get("attention_mask"), _shape(call)[1])
            model.model(**{**call.inputs, "attention_mask": mask, "past_key_values": None, "use_cache": False})
    except _Found:
        pass
    finally:
        hook.remove()
        _place(_parts(model)[0], None)
    return route(model, read[0])


def _cropped(mask: Any, n_tokens: int) -> Any:
    """The mask for a pass without a cache: a static cache's is [batch, 1, tokens, places of the cache]."""
    if isinstance(mask, dict):
        return {name: _cropped(own, n_tokens) for name, own in mask.items()}
    return mask[..., :n_tokens] if isinstance(mask, Tensor) and mask.ndim == 4 else mask


def _hooked(model: Any, call: Call, then: Callable[[Tensor], None]) -> Any:
    """A hook before the routing layer: `then` gets h of every prompt's last token, [batch, d].

    Without gradient: the anchors lie where the layers before put their prompts, so the routing must not move those.
    """

    def read(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = (args[0] if args else kwargs["hidden_states"]).detach()
        then(hidden[torch.arange(len(hidden), device=hidden.device), _ends(call).to(hidden.device)])

    return model.model.layers[model.config.routing_layer].register_forward_pre_hook(read, with_kwargs=True)


def route(model: Any, h: Tensor) -> PromptRoute:
    """The logits and weights of prompts with these states [batch, d]; T, bias and k are the model's."""
    logits = model.prompt_router(h)
    probs = router.layer_probabilities([logits], model.config)[0]
    first = model.mixtures()[0]
    return PromptRoute(logits, router.top_k_weights(probs, first.top_k, renormalise=first.renormalise))


def _shape(call: Call) -> tuple[int, int]:
    ids = call.inputs.get("input_ids")
    rows = ids if ids is not None else call.inputs["inputs_embeds"]
    return int(rows.shape[0]), int(rows.shape[1])


def _ends(call: Call) -> Tensor:
    """The place of each prompt's last token: as given, else before the first label that counts, else the last."""
    mask, shape = call.inputs.get("attention_mask"), _shape(call)
    ids = call.inputs.get("input_ids")
    device = (ids if ids is not None else call.inputs["inputs_embeds"]).device
    if call.position is not None:
        return checked_ends(call.position.to(device), mask, shape)
    ends = last_tokens(mask, shape, device)
    if call.labels is None:
        return ends
    starts = answer_starts(call.labels.to(device))
    return checked_ends(torch.where(starts < shape[1], starts - 1, ends), mask, shape)
