"""The settings of a model that another program serves: vLLM, llama-server, or any OpenAI-compatible endpoint."""

from collections.abc import Collection, Sequence
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from triune.data_settings import NAME, Benchmark, Generative, MiniatureTests
from triune.errors import InputError
from triune.settings import Count, NotNegative, Positive, Settings, Whole

Api = Literal["completions", "tokens", "chat"]


class Served(Settings):
    """A model behind a server, which answers in the place of one in memory."""

    base_url: str = Field(description="the server's address with its /v1, as in http://localhost:8000/v1")
    model: str = Field(min_length=1, description="the name that the server knows the model by")
    api: Api = Field(
        "completions",
        description="completions: the prompt in the recipe's template, as text; tokens: the same as token ids; chat: "
        "the question alone, in the server's own template",
    )
    key_env: str = Field("", description="environment variable that holds the key; empty sends none")
    concurrency: Count = Field(16, description="requests at once")
    retries: Whole = Field(5, description="tries after the first")
    timeout: Positive = Field(300.0, description="seconds for one answer")
    backoff: NotNegative = Field(1.0, description="seconds of the first wait; every further one is twice as long")
    longest_wait: NotNegative = Field(60.0, description="seconds; a longer wait is not waited")

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
            raise ValueError("wanted http(s)://host:port/v1, without a user or password in it")
        return value


def check_served(names: Collection[str], compare: Collection[str], evaluate: Sequence[Benchmark]) -> None:
    """Raise ValueError for names that no folder can have, a row without models, models without the row `served`.

    And as `check_asked`.
    """
    odd = [name for name in names if not NAME.fullmatch(name)]
    if odd:
        raise ValueError(f"served names {odd}; a name is letters, digits, - and _ (folders are named after it)")
    if "served" in compare and not names:
        raise ValueError("compare asks for served, but served is empty; name some, or leave the row out")
    if names and "served" not in compare:
        raise ValueError(f"served has {list(names)}, but compare has no row served; add it, or leave them out")
    check_asked(names, evaluate)


def check_asked(names: Collection[str], evaluate: Sequence[Benchmark]) -> None:
    """Raise InputError for served models where no benchmark asks for answers: a server gives nothing else."""
    if names and not any(isinstance(own, Generative | MiniatureTests) for own in evaluate):
        raise InputError(
            f"the served models {list(names)} can only answer, and no benchmark of evaluate asks for answers "
            "(generative, miniature); add one, or leave them out"
        )


def served_from(text: str) -> Served | None:
    """`http://host:port/v1#model` as settings; None for a text that is no web address.

    Raises InputError where the model's name is missing or the address is not complete.
    """
    if not text.startswith(("http://", "https://")):
        return None
    address, _, model = text.partition("#")
    try:
        return Served(base_url=address, model=model)
    except ValueError:
        # Not from pydantic's own error, which repeats the address: a password may stand in it.
        raise InputError(
            "a served model is http://host:port/v1#MODEL, with the server's address (no user or password in it) and "
            "the name that the server knows the model by (GET /v1/models lists them)"
        ) from None
