"""Answers from a server: vLLM, llama-server or any OpenAI-compatible endpoint in the place of a model in memory.

A prompt that is not answered is asked again, then it is told as not answered (FAILED) and its text is empty; an answer
that is empty because a call failed does not exist. A server that answers nothing of a batch is an error: the run stops
and goes on from there later.
"""

import hashlib
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from triune.baselines.subject import Subject
from triune.data.templates import render
from triune.errors import InputError, TriuneError
from triune.judges.endpoint_calls import Fault, Pace, Sleep, called
from triune.models.encoding import encode_prompt
from triune.models.generation import CUT, FAILED, STOPPED, Decoding, generator_for
from triune.progress import Progress
from triune.recipe import Base
from triune.served_settings import Served

WRONG_SERVER = frozenset({401, 403, 404, 405})  # no key, no such model, no such API: every other call fails too
UNREADABLE = frozenset({400, 413, 422})  # this prompt, not the server: too long for its context
AWAY = frozenset({"connection broken", "timeout"})  # the server, or what one prompt does to it


NO_TEXT = "no text"
HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair


@dataclass(frozen=True, slots=True)
class Said:
    """An answer and how it ended."""

    text: str
    ended: str


Payload = dict[str, Any]
Ask = Callable[[Payload], Said | Fault]


def served_subject(
    served: Served, base: Base, tokenizer: PreTrainedTokenizerBase, sleep: Sleep = time.sleep
) -> Subject:
    """A server's model as a subject without likelihoods; the tokenizer is the base's, for template and lengths.

    Raises InputError where the package openai or the key is missing.
    """
    ask = asking(served)

    def alive() -> bool:
        said = ask(_trial(served))
        return isinstance(said, Said) or said.reason not in AWAY

    def respond(questions: Sequence[str], decoding: Decoding, batch_size: int, progress: Progress) -> list[str]:
        payloads = [_payload(served, base, tokenizer, question) for question in questions]
        numbers = range(len(questions)) if decoding.numbers is None else decoding.numbers
        asked = [{**p, **_options(decoding, number)} for p, number in zip(payloads, numbers, strict=True)]
        rngs = [generator_for(decoding.seed, number) for number in numbers]
        found = _all(served, ask, asked, rngs, progress, sleep)
        _check(served, found, decoding, alive, progress)
        for number, one in zip(numbers, found, strict=True):
            if decoding.heard is not None:
                decoding.heard(number, one.ended if isinstance(one, Said) else FAILED)
        return [one.text if isinstance(one, Said) else "" for one in found]

    return Subject(tokenizer, respond, None, ())


def check_server(served: Served) -> None:
    """Ask for one token, once. Raises InputError where the server is not there, or refuses, and as `asking`."""
    said = asking(served)(_trial(served))
    # One token may be white space, and a limit of rate is none of the run's length.
    if isinstance(said, Said) or said.reason in {NO_TEXT, "HTTP 429"}:
        return
    place = f"the server of {served.model!r} at {served.base_url.partition('?')[0]}"
    if said.reason in AWAY:
        raise InputError(
            f"{place} does not answer ({said.reason}); start it (vllm serve, llama-server, transformers serve), or "
            "mend base_url"
        )
    if said.again:
        raise InputError(f"{place} is not ready ({said.reason}); wait until it is, or look at its log")
    raise InputError(
        f"{place} refuses a request for one token ({said.reason}); mend base_url, the model's name, api or key_env"
    )


def _trial(served: Served) -> Payload:
    return {"model": served.model, **TRIALS[served.api], "max_tokens": 1, "temperature": 0.0}


TRIALS: Mapping[str, Payload] = {
    "completions": {"prompt": "Hello"},
    "tokens": {"prompt": [1]},
    "chat": {"messages": [{"role": "user", "content": "Hello"}]},
}


def _payload(served: Served, base: Base, tokenizer: PreTrainedTokenizerBase, question: str) -> Payload:
    return {"model": served.model, **PROMPTS[served.api](base, tokenizer, question)}


def _text(base: Base, tokenizer: PreTrainedTokenizerBase, question: str) -> Payload:
    text = render(base.template, question, tokenizer)
    bos = tokenizer.bos_token_id
    # The server's tokenizer puts a BOS before every text; one that the template writes would be a second.
    doubled = bos is not None and list(tokenizer(text, verbose=False)["input_ids"])[:2] == [bos, bos]
    return {"prompt": text.removeprefix(str(tokenizer.bos_token)) if doubled else text}


def _tokens(base: Base, tokenizer: PreTrainedTokenizerBase, question: str) -> Payload:
    return {"prompt": encode_prompt(tokenizer, render(base.template, question, tokenizer))}


def _chat(base: Base, tokenizer: PreTrainedTokenizerBase, question: str) -> Payload:
    return {"messages": [{"role": "user", "content": question}]}


PROMPTS: Mapping[str, Callable[[Base, PreTrainedTokenizerBase, str], Payload]] = {
    "completions": _text,
    "tokens": _tokens,
    "chat": _chat,
}


def _options(decoding: Decoding, number: int) -> Payload:
    if decoding.stop_at is not None:
        raise InputError("stop_at is given as token ids, which a server does not take; leave it out")
    digest = hashlib.sha256(f"{decoding.seed}:{number}".encode()).digest()
    return {
        "max_tokens": decoding.max_new_tokens,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "seed": int.from_bytes(digest[:4], "little") >> 1,
    }


def asking(served: Served) -> Ask:
    """A function that makes one call, safe to share between threads. Raises InputError without key or client."""
    try:
        import openai
    except ImportError as error:
        raise InputError(
            "a served model needs the package openai; install it: pip install 'triune[judges]'"
        ) from error

    # No retries of the client's own: they would not wait with our clock.
    client = openai.OpenAI(api_key=_key(served), base_url=served.base_url, timeout=served.timeout, max_retries=0)
    api: Any = client.chat.completions if served.api == "chat" else client.completions

    def ask(payload: Payload) -> Said | Fault:
        return called(partial(api.with_raw_response.create, **payload), _read, WRONG_SERVER)

    return ask


def _key(served: Served) -> str:
    if not served.key_env:
        return "none"
    key = os.environ.get(served.key_env, "").strip()
    if not key:
        raise InputError(f"the environment variable {served.key_env} is not set; set it, or key_env='' to send no key")
    return key


def _read(body: Any) -> Said | Fault:
    """The answer in a response's JSON; a fault for any other shape, and for an answer that was held back."""
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return Fault("no choices", again=True)
    message, finish = choices[0].get("message"), choices[0].get("finish_reason")
    text = message.get("content") if isinstance(message, dict) else choices[0].get("text")
    if finish not in {"stop", "length"}:
        return Fault(f"ended by {finish!r:.40}")
    if not isinstance(text, str) or (not text.strip() and finish == "length"):
        return Fault(NO_TEXT)
    # JSON can hold half of a character, which no file of ours and no judge can be given.
    return Said(HALF.sub("\ufffd", text.strip()), STOPPED if finish == "stop" else CUT)


def _all(
    served: Served,
    ask: Ask,
    asked: Sequence[Payload],
    rngs: Sequence[torch.Generator],
    progress: Progress,
    sleep: Sleep,
) -> list[Said | Fault]:
    pace = Pace(math.inf, sleep, time.monotonic)
    found: list[Said | Fault] = []
    pool = ThreadPoolExecutor(max_workers=served.concurrency, thread_name_prefix="served")
    try:
        with progress.task(f"asking {served.model}", len(asked)) as advance:
            for one in pool.map(lambda payload, rng: _patiently(served, ask, payload, rng, pace), asked, rngs):
                found.append(one)
                advance()
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def _patiently(served: Served, ask: Ask, payload: Payload, rng: torch.Generator, pace: Pace) -> Said | Fault:
    """One prompt, tried again after waits of backoff · 2ⁿ · (½ + u/2), or as long as the server asks."""
    for attempt in range(served.retries + 1):
        pace.wait()
        said = ask(payload)
        if isinstance(said, Said) or not said.again or attempt == served.retries:
            break
        jitter = float(torch.rand((), generator=rng))
        wait = said.wait
        if wait is not None and wait > served.longest_wait:
            return Fault(f"{said.reason}, asks for a wait of {wait:.0f} s")
        if wait is not None:
            pace.pause(wait)  # the server asks all of us, not this call
        else:
            pace.sleep(min(served.backoff * 2.0**attempt * (0.5 + jitter / 2), served.longest_wait))
    return said


def _check(
    served: Served, found: Sequence[Said | Fault], decoding: Decoding, alive: Callable[[], bool], progress: Progress
) -> None:
    """Say what was not answered, and why; raise where the server, and not a prompt, is the reason."""
    faults = [one for one in found if isinstance(one, Fault)]
    if not faults:
        return
    reasons = ", ".join(f"{n} x {reason}" for reason, n in Counter(fault.reason for fault in faults).most_common())
    if any(fault.last for fault in faults):
        raise InputError(
            f"the server of {served.model!r} refuses ({reasons}); check base_url, the model's name, api and key_env"
        )
    server = not any(isinstance(one, Said) or one.reason in {f"HTTP {code}" for code in UNREADABLE} for one in found)
    # A server that went away amid a batch had answered some of it.
    server = server or (any(fault.reason in AWAY for fault in faults) and not alive())
    if server or decoding.heard is None:
        raise TriuneError(
            f"the server of {served.model!r} did not answer {len(faults)} of {len(found)} prompts ({reasons}); "
            "answers so far are kept, and the same command goes on from there when the server is back"
        )
    progress.say(f"  {served.model} did not answer {len(faults)} of {len(found)} prompts: {reasons}")
