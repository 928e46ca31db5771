"""How much memory a fused model needs to be trained, exported and served: arithmetic from the base's shape.

Every function gives bytes. What it leaves out: the program itself, and what an allocator holds beyond what is asked of
it. docs/scale.md sets the formulas beside measured runs (`benchmarks/scale_memory.py`).
"""

from dataclasses import dataclass
from typing import Any

WIDE = 4  # bytes of a float32: of what learns, its gradient, each of AdamW's two averages, the routers, the loss
CHUNK = 1 << 20  # numbers of an expert's matrix that an export has in float64 at once (triune.models.shards)


@dataclass(frozen=True, slots=True)
class Shape:
    """A base: L layers of width d, feed-forward width f, h heads and h_kv key heads of width d_h, V tokens."""

    layers: int
    d: int
    f: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    tied: bool = False

    @property
    def layer(self) -> int:
        """Parameters of a layer: 2 d d_h (h + h_kv) + 3 d f + 2 d."""
        return 2 * self.d * self.head * (self.heads + self.kv_heads) + 3 * self.d * self.f + 2 * self.d

    @property
    def parameters(self) -> int:
        """Of the base: L · layer + d + V d, or 2 V d where the embeddings are not tied."""
        return self.layers * self.layer + self.d + self.vocabulary * self.d * (1 if self.tied else 2)


@dataclass(frozen=True, slots=True)
class Fused:
    """A fused model: E experts with increments of rank r in all three matrices; weights of `stored` bytes each."""

    base: Shape
    experts: int = 3
    rank: int = 8
    stored: int = 2

    @property
    def factors(self) -> int:
        """Numbers of the experts' factors: 3 L E r (d + f)."""
        return 3 * self.base.layers * self.experts * self.rank * (self.base.d + self.base.f)

    @property
    def routers(self) -> int:
        """Numbers of the routers: L E d."""
        return self.base.layers * self.experts * self.base.d

    @property
    def weights(self) -> int:
        """Of all that is stored: stored (P + factors) + 4 routers."""
        return self.stored * (self.base.parameters + self.factors) + WIDE * self.routers


@dataclass(frozen=True, slots=True)
class Stage2:
    """How stage 2 is run in one process: B rows of T tokens, `computed` bytes a number in the forward pass.

    `experts` is whether the factors learn beside the routers. `shards` is W of FSDP2, 1 where every process has the
    whole model. `answers` is the share of tokens that the loss is taken of.
    """

    rows: int
    tokens: int
    computed: int = 2
    checkpointing: bool = True
    experts: bool = True
    shards: int = 1
    answers: float = 1.0


def shape_of(config: Any) -> Shape:
    """The shape of a transformers configuration of a gated decoder."""
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = (text.num_attention_heads, text.num_key_value_heads, head)
    tied = bool(text.tie_word_embeddings)
    return Shape(text.num_hidden_layers, text.hidden_size, text.intermediate_size, *heads, text.vocab_size, tied)


def stage2(model: Fused, how: Stage2) -> dict[str, int]:
    """Peak bytes of a process in stage 2 by part; their sum is `total`.

    weights      (stored (P + frozen factors) + 4 learning) / W, and, sharded, one layer whole
    gradients    4 learning / W
    optimizer    8 learning / W: AdamW's two averages
    activations  see `activations`
    logits       see `logits`
    learning = routers, or routers + factors.

    The logits' peak and that of the last layer's backward pass do not fall together: the larger one counts.
    """
    learning = model.routers + (model.factors if how.experts else 0)
    frozen = model.base.parameters + (0 if how.experts else model.factors)
    whole = model.stored * frozen + WIDE * learning
    # FSDP2 has one layer whole and the next one on its way.
    gathered = 0 if how.shards == 1 else 2 * model.stored * model.base.layer
    kept, once = activations(model, how)
    parts = {
        "weights": whole // how.shards + gathered,
        "gradients": WIDE * learning // how.shards,
        "optimizer": 2 * WIDE * learning // how.shards,
        "activations": kept + max(0, once - logits(model.base, how)),
        "logits": logits(model.base, how),
    }
    return {**parts, "total": sum(parts.values())}


def activations(model: Fused, how: Stage2) -> tuple[int, int]:
    """(what all layers keep for the backward pass, what the layer at work has beside it); b = `computed`, n = B T.

    A layer keeps, a token: the two norms' inputs in float32, 2 · 4 d; the mixture's input, b d; q, k, v and the
    attention's output, b d_h (2 h + 2 h_kv); G x and U x, 2 b f; the narrow products and the routing, 4 E (3 r + 4).
    With checkpointing: its input alone, b d; then the layer at work has all of the above.
    Going back, the layer at work also has the gradients of G x, U x and Σ p h and the hidden state once more, 4 b f,
    and four of the residual stream's size, 4 b d.
    """
    base, b, n = model.base, how.computed, how.rows * how.tokens
    attention = b * base.head * (2 * base.heads + 2 * base.kv_heads)
    narrow = WIDE * model.experts * (3 * model.rank + 4)
    layer = 2 * WIDE * base.d + b * base.d + attention + 2 * b * base.f + narrow
    work = 4 * b * (base.f + base.d)
    if how.checkpointing:
        return n * base.layers * b * base.d, n * (layer + work)
    return n * base.layers * layer, n * work


def logits(base: Shape, how: Stage2) -> int:
    """Peak of the loss: every token's logits, and the answers' in float32 twice going forward, three times going back.

    max(n V b + 2 · 4 a n V, 3 · 4 a n V), a the share of tokens that the loss is of.
    """
    every = how.rows * how.tokens * base.vocabulary
    answers = WIDE * round(how.answers * every)
    return max(every * how.computed + 2 * answers, 3 * answers)


def native_size(model: Fused, out: int = 2) -> int:
    """Bytes of a native export: all experts whole, out (P + (E − 1) 3 L d f + routers)."""
    more = (model.experts - 1) * 3 * model.base.layers * model.base.d * model.base.f
    return out * (model.base.parameters + more + model.routers)


def export_peak(model: Fused, out: int = 2) -> int:
    """Peak of an export, which has one tensor at a time: (stored + out) max(V d, d f), and three chunks in float64."""
    largest = max(model.base.vocabulary, model.base.f) * model.base.d
    return (model.stored + out) * largest + 3 * 8 * min(CHUNK, largest)


def key_values(base: Shape, tokens: int, stored: int = 2) -> int:
    """Bytes of the keys and values of `tokens` tokens (of all rows together): 2 L h_kv d_h stored a token."""
    return 2 * base.layers * base.kv_heads * base.head * stored * tokens
