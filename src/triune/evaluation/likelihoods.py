"""Benchmarks that need no answer: how probable a model finds given ones."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from triune.data.templates import render
from triune.errors import InputError
from triune.models.encoding import Encoded, encode_pair, pad_id
from triune.models.likelihood import answer_log_likelihoods
from triune.recipe import Base
from triune.types import Example, Preference, Question, Sample

Values = list[float | None]


@dataclass(frozen=True)
class Scorer:
    """A model with what is needed to ask it for likelihoods."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    base: Base
    batch_size: int

    def encode(self, prompt: str, answer: str) -> Encoded | None:
        """The row that is scored; None where the prompt leaves no room for an answer."""
        text = render(self.base.template, prompt, self.tokenizer)
        return encode_pair(self.tokenizer, text, answer, self.base.max_length)

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]], *, whole: bool = False) -> tuple[Values, list[int]]:
        """Σ log p of each answer's tokens given its prompt (nats), and the number of tokens; None where no room.

        An answer that is too long is scored by its beginning, or not at all where `whole` asks for whole ones.
        """
        rows = [self.encode(prompt, answer) for prompt, answer in pairs]
        if whole:
            rows = [None if row is None or row.truncated else row for row in rows]
        known = [row for row in rows if row is not None]
        if pairs and not known:
            raise InputError(
                f"none of {len(pairs)} rows fits in max_length {self.base.max_length} with the template "
                f"{self.base.template!r}; raise base.max_length or choose a shorter template"
            )
        sums, counts = answer_log_likelihoods(
            self.model, known, batch_size=self.batch_size, pad_id=pad_id(self.tokenizer)
        )
        found = iter(zip(sums.tolist(), counts.tolist(), strict=True))
        both = [(None, 0) if row is None else next(found) for row in rows]
        return [value for value, _ in both], [count for _, count in both]


def answer_nll(scorer: Scorer, examples: Sequence[Example]) -> Values:
    """Negative log-likelihood per answer token of each example, in nats; None where not one token of it fits."""
    sums, counts = scorer.log_likelihoods([(row.prompt, row.response) for row in examples])
    return _per_token(sums, counts, sign=-1.0)


def preference_log_probs(scorer: Scorer, pairs: Sequence[Preference]) -> tuple[Values, Values]:
    """Mean log-probability per token of the chosen and of the rejected answers, in nats; None where no token fits.

    Per token, because a sum would prefer the shorter answer whatever it says.
    """
    asked = [(pair.prompt, pair.chosen) for pair in pairs] + [(pair.prompt, pair.rejected) for pair in pairs]
    means = _per_token(*scorer.log_likelihoods(asked))
    return means[: len(pairs)], means[len(pairs) :]


def choice_log_probs(scorer: Scorer, questions: Sequence[Question]) -> list[list[float] | None]:
    """Σ log p of every choice of each question (TruthfulQA's MC1 and MC2 take sums); None where one does not fit.

    A choice that is cut would be a sum over fewer tokens than its own, and win.
    """
    asked = [(question.prompt, choice) for question in questions for choice in question.choices]
    sums, _ = scorer.log_likelihoods(asked, whole=True)
    values = iter(sums)
    rows = [[next(values) for _ in question.choices] for question in questions]
    return [None if None in row else [value for value in row if value is not None] for row in rows]


def own_log_probs(scorer: Scorer, samples: Sequence[Sample]) -> Values:
    """Σ log p of each answer that a model gave, end of text included (nats): greedy, the probability of its answer.

    None where the answer is empty, or it and its end do not fit.
    """
    given = [(sample.prompt, sample.response) for sample in samples if sample.response.strip()]
    if not given:
        return [None] * len(samples)
    found = iter(scorer.log_likelihoods(given, whole=True)[0])
    return [next(found) if sample.response.strip() else None for sample in samples]


def _per_token(sums: Values, counts: Sequence[int], sign: float = 1.0) -> Values:
    return [None if total is None or not n else sign * total / n for total, n in zip(sums, counts, strict=True)]
