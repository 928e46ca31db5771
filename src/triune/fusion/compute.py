"""How long a fused model takes to be trained and served: operations and bytes from the base's shape.

Operations are floating-point multiplications and additions of matrix products, as torch counts them; what is done
entry by entry (norms, activations, softmax) is left out. docs/scale.md sets the formulas beside measured runs
(`benchmarks/scale_time.py`).
"""

from dataclasses import dataclass

from triune.fusion.memory import Fused, Shape, Stage2, key_values


@dataclass(frozen=True, slots=True)
class Operations:
    """Of one token of a row of T tokens, all layers together.

    projections q, k, v and the attention's output; attention its scores and its mixture of values, over all T places
    (a kernel that skips the masked half does half of it); block the three wide products; narrow those of the experts'
    factors, where all experts work (the largest it can be); routing; logits.
    """

    projections: int
    attention: int
    block: int
    narrow: int
    routing: int
    logits: int

    @property
    def layers(self) -> int:
        """All but the logits."""
        return self.projections + self.attention + self.block + self.narrow + self.routing

    @property
    def total(self) -> int:
        """All."""
        return self.layers + self.logits


def forward(model: Fused, tokens: int) -> Operations:
    """Of a forward pass, a token of a row of T = `tokens`.

    projections  L · 4 d d_h (h + h_kv)
    attention    L · 4 T h d_h
    block        L · 6 d f
    narrow       L · 6 E r (d + f)
    routing      L · 2 E d
    logits       2 d V
    """
    base = model.base
    return Operations(
        projections=base.layers * 4 * base.d * base.head * (base.heads + base.kv_heads),
        attention=base.layers * 4 * tokens * base.heads * base.head,
        block=base.layers * 6 * base.d * base.f,
        narrow=2 * model.factors,
        routing=2 * model.routers,
        logits=2 * base.d * base.vocabulary,
    )


def stage2(model: Fused, how: Stage2) -> int:
    """Operations of a step of stage 2, over B T tokens: forward, backward and, with checkpointing, the layers again.

    Backward, a frozen matrix costs what it cost going forward (the gradient of its input), one that learns twice
    that; the attention's products have two gradients each. Nothing before the first layer's block learns, so that
    neither its attention nor its block's input has a gradient: 4 d f + 4 E r d + 2 E d less (with checkpointing
    transformers asks for it all the same). For many tokens the layer makes the experts' narrow products again going
    back, which is not counted.
    """
    base, once = model.base, forward(model, how.tokens)
    backward = once.logits + once.projections + 2 * once.attention + once.block
    backward += (2 if how.experts else 1) * once.narrow + 2 * once.routing
    first = (once.projections + 2 * once.attention) // base.layers
    first += 4 * base.d * base.f + 4 * model.experts * model.rank * base.d + 2 * model.experts * base.d
    return how.rows * how.tokens * (once.total + backward + (once.layers if how.checkpointing else -first))


def dense_forward(base: Shape, rows: int, tokens: int) -> int:
    """Operations of the base's own forward pass over B T tokens."""
    once = forward(Fused(base, experts=0, rank=0), tokens)
    return rows * tokens * once.total


def decoding_bytes(model: Fused, rows: int, tokens: int, stored: int = 2) -> int:
    """Bytes that one decoding step reads, for `rows` rows that have `tokens` tokens each: the weights once (but for
    the table of embeddings, of which it reads a row each), and every row's keys and values.

    Divided by a device's bandwidth it is the least time a step can take; while rows are few it is what counts.
    """
    table = 0 if model.base.tied else model.base.vocabulary * model.base.d * model.stored
    return model.weights - table + key_values(model.base, rows * tokens, stored)
