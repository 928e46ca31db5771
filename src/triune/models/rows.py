"""Examples to token rows through a template."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from triune.data.templates import render
from triune.errors import InputError
from triune.models.encoding import Encoded, encode_pair
from triune.types import Example


def encode_examples(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], template: str, max_length: int
) -> list[Encoded]:
    """One row an example; those whose prompt leaves no room for an answer, or with an empty answer, are left out.

    Raises InputError where none is left, for an unknown template, and for a template that the tokenizer does not have.
    """
    if not examples:
        raise InputError("there are no examples to encode; give at least one")
    rows = [encode_example(tokenizer, example, template=template, max_length=max_length) for example in examples]
    known = [row for row in rows if row is not None]
    if not known:
        raise InputError(
            f"none of {len(examples)} examples fits in {max_length} tokens with the template {template!r}; "
            "raise max_length or choose a shorter template"
        )
    return known


def encode_example(
    tokenizer: PreTrainedTokenizerBase, example: Example, *, template: str, max_length: int
) -> Encoded | None:
    """One example's row; None where its prompt leaves no room for an answer, or the answer is empty."""
    prompt = render(template, example.prompt, tokenizer)
    return encode_pair(tokenizer, prompt, example.response, max_length, axis=example.axis)
