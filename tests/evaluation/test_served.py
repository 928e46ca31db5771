"""A server's answers: the recipe's template, retries, and never an empty text for an answer that failed."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from tests.judges.chat_server import Answer, served
from triune.errors import InputError, TriuneError
from triune.evaluation.answering import Asking, answer
from triune.evaluation.served import check_server, served_subject
from triune.models.generation import Decoding
from triune.models.tiny import build_tokenizer
from triune.progress import SILENT
from triune.recipe import Base
from triune.served_settings import Served, served_from
from triune.types import BenchmarkPrompt

pytest.importorskip("openai")
BASE = Base(path="x", template="dialogue")
Request = dict[str, Any]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer(["a", "b", "c", "user", "bot", ":"])


def says(text: str | None, finish: str | None = "stop") -> Answer:
    return Answer(body={"model": "m", "choices": [{"index": 0, "text": text, "finish_reason": finish}]})


def chats(text: str | None, finish: str = "stop") -> Answer:
    message = {"role": "assistant", "content": text}
    return Answer(body={"model": "m", "choices": [{"index": 0, "message": message, "finish_reason": finish}]})


def settings(base_url: str, **own: Any) -> Served:
    return Served(**{"base_url": base_url, "model": "m", "retries": 2, "timeout": 20.0, "backoff": 0.5, **own})


class Waits:
    """A clock that only counts."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def ask(
    served_by: Served, tokenizer: PreTrainedTokenizerBase, prompts: list[str], waits: Waits | None = None, **how: Any
) -> tuple[list[str], dict[int, str]]:
    heard: dict[int, str] = {}
    subject = served_subject(served_by, BASE, tokenizer, Waits() if waits is None else waits)
    texts = subject.respond(prompts, Decoding(**{"max_new_tokens": 7, "heard": heard.__setitem__, **how}), 8, SILENT)
    return texts, heard


def test_the_template_is_the_recipes(tokenizer: PreTrainedTokenizerBase) -> None:
    with served(lambda request, before: says(f" {request['prompt'][-5:]} ")) as seen:
        texts, heard = ask(settings(seen.base_url), tokenizer, ["a b", "c"])
    assert heard == {0: "stopped", 1: "stopped"}
    by_prompt = {request["prompt"]: request for request in seen.requests}
    assert len(by_prompt) == 2
    prompt = next(p for p in by_prompt if "a b" in p)
    assert prompt.startswith("user")
    assert texts[0] == prompt[-5:].strip()
    sent = by_prompt[prompt]
    assert sent["path"] == "/v1/completions"
    assert {name: sent[name] for name in ("model", "max_tokens", "temperature", "top_p")} == {
        "model": "m",
        "max_tokens": 7,
        "temperature": 0.0,
        "top_p": 1.0,
    }


def test_tokens_and_chat(tokenizer: PreTrainedTokenizerBase) -> None:
    with served(lambda request, before: says("yes")) as seen:
        assert ask(settings(seen.base_url, api="tokens"), tokenizer, ["a"])[0] == ["yes"]
    ids = seen.requests[0]["prompt"]
    assert tokenizer.convert_tokens_to_ids("a") in ids
    with served(lambda request, before: chats("yes", "length")) as seen:
        assert ask(settings(seen.base_url, api="chat"), tokenizer, ["a"]) == (["yes"], {0: "cut"})
    assert seen.requests[0]["path"] == "/v1/chat/completions"
    assert seen.requests[0]["messages"] == [{"role": "user", "content": "a"}]


def test_seeds_are_the_prompts_own(tokenizer: PreTrainedTokenizerBase) -> None:
    with served(lambda request, before: says("yes")) as seen:
        ask(settings(seen.base_url), tokenizer, ["a", "b"], temperature=1.0, seed=5)
        ask(settings(seen.base_url), tokenizer, ["b"], temperature=1.0, seed=5, numbers=(1,))
        ask(settings(seen.base_url), tokenizer, ["b"], temperature=1.0, seed=6, numbers=(1,))
    seeds = {(request["prompt"], request["seed"]) for request in seen.requests}
    assert len(seen.requests) == 4
    assert len(seeds) == 3


def once(bad: Answer) -> Callable[[Request, int], Answer]:
    return lambda request, before: bad if before == 0 else says("yes")


@pytest.mark.parametrize(
    "bad",
    [Answer(status=500), Answer(status=429), Answer(body="no json"), Answer(body={}), Answer(body="{", claimed=50)],
    ids=["500", "429", "text", "no choices", "broken off"],
)
def test_a_failure_that_passes_is_tried_again(bad: Answer, tokenizer: PreTrainedTokenizerBase) -> None:
    waits = Waits()
    with served(once(bad)) as seen:
        assert ask(settings(seen.base_url), tokenizer, ["a"], waits) == (["yes"], {0: "stopped"})
    assert len(seen.requests) == 2
    assert len(waits.seconds) == 1
    assert 0.25 <= waits.seconds[0] <= 0.5


def test_the_server_says_how_long_to_wait(tokenizer: PreTrainedTokenizerBase) -> None:
    waits = Waits()
    with served(once(Answer(status=429, headers={"retry-after": "3"}))) as seen:
        assert ask(settings(seen.base_url), tokenizer, ["a"], waits)[0] == ["yes"]
    assert len(waits.seconds) == 1
    assert 2.5 < waits.seconds[0] <= 3


@pytest.mark.parametrize(
    ("bad", "n_calls"),
    [
        (Answer(status=500), 3),
        (Answer(status=400), 1),
        (says(None), 1),
        (says("", "length"), 1),
        (says("half", "content_filter"), 1),
        (Answer(status=429, headers={"retry-after": "900"}), 1),
    ],
    ids=["500", "400", "null", "nothing", "filtered", "a long wait"],
)
def test_what_stays_bad_is_no_answer(bad: Answer, n_calls: int, tokenizer: PreTrainedTokenizerBase) -> None:
    with served(lambda request, before: bad if "b" in request["prompt"].split() else says("yes")) as seen:
        by = settings(seen.base_url, concurrency=1)
        assert ask(by, tokenizer, ["a", "b", "c"]) == (["yes", "", "yes"], {0: "stopped", 1: "failed", 2: "stopped"})
        assert len(seen.requests) == 2 + n_calls
        with pytest.raises(TriuneError, match="did not answer 1 of 3"):
            ask(by, tokenizer, ["a", "b", "c"], heard=None)
        rows = {"x": [BenchmarkPrompt("x", text) for text in ("a", "b")]}
        subject = served_subject(by, BASE, tokenizer, Waits())
        done = answer("m", subject.respond, rows, Asking(Decoding(7), 8))
    assert done.unanswered == {1: "whoever was asked gave no answer"}


def test_an_empty_answer_that_ended_by_itself_is_one(tokenizer: PreTrainedTokenizerBase) -> None:
    with served(lambda request, before: says("")) as seen:
        assert ask(settings(seen.base_url), tokenizer, ["a"]) == ([""], {0: "stopped"})


def test_a_server_that_is_away_stops_the_run(tokenizer: PreTrainedTokenizerBase) -> None:
    with served(lambda request, before: Answer(hangs=True)) as seen:
        with pytest.raises(TriuneError, match=r"did not answer 2 of 2 prompts \(2 x timeout\)"):
            ask(settings(seen.base_url, timeout=0.2, retries=0), tokenizer, ["a", "b"])
        url = seen.base_url
    with pytest.raises(TriuneError, match="connection broken"):
        ask(settings(url), tokenizer, ["a"])


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_server_is_bad_input(status: int, tokenizer: PreTrainedTokenizerBase) -> None:
    with (
        served(lambda request, before: Answer(status=status, body="the key sk-1 is wrong")) as seen,
        pytest.raises(InputError, match=f"refuses .*HTTP {status}") as caught,
    ):
        ask(settings(seen.base_url), tokenizer, ["a"])
    assert "sk-1" not in str(caught.value)


def test_a_server_that_goes_away_amid_a_batch_stops_the_run_and_a_bad_prompt_does_not(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    broken = Answer(body="{", claimed=50)
    with served(lambda request, before: says("yes") if before < 1 else broken) as seen:
        with pytest.raises(TriuneError, match=r"did not answer 2 of 3 prompts \(2 x connection broken\)"):
            ask(settings(seen.base_url, retries=0, concurrency=1), tokenizer, ["a", "b", "c"])
        assert (seen.requests[-1]["prompt"], seen.requests[-1]["max_tokens"]) == ("Hello", 1)
    with served(lambda request, before: broken if "b" in request["prompt"].split() else says("yes")) as seen:
        found = ask(settings(seen.base_url, retries=0), tokenizer, ["a", "b", "c"])
    assert found == (["yes", "", "yes"], {0: "stopped", 1: "failed", 2: "stopped"})


@pytest.mark.parametrize("api", ["completions", "tokens", "chat"])
def test_a_server_is_asked_for_one_token(api: str) -> None:
    reply = chats if api == "chat" else says
    for answer_ in (reply("a"), reply(" ", "length"), Answer(status=429)):
        with served(lambda request, before, answer_=answer_: answer_) as seen:
            check_server(settings(seen.base_url, api=api))
        assert [request["max_tokens"] for request in seen.requests] == [1]
        assert [request["path"] for request in seen.requests] == [
            "/v1/chat/completions" if api == "chat" else "/v1/completions"
        ]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Answer(status=404), r"refuses a request for one token \(HTTP 404\); mend base_url, the model's name"),
        (Answer(status=400), r"refuses a request for one token \(HTTP 400\)"),
        (Answer(status=503), r"is not ready \(HTTP 503\); wait"),
        (Answer(body="<html>"), r"is not ready \(invalid JSON\)"),
        (Answer(hangs=True), r"does not answer \(timeout\); start it"),
    ],
    ids=["404", "400", "503", "a web page", "hangs"],
)
def test_a_server_that_will_not_answer_is_refused(bad: Answer, message: str) -> None:
    with served(lambda request, before: bad) as seen, pytest.raises(InputError, match=message) as caught:
        check_server(settings(f"{seen.base_url}?key=sk-1", timeout=0.2 if bad.hangs else 20.0))
    assert "sk-1" not in str(caught.value)
    with pytest.raises(InputError, match=r"does not answer \(connection broken\)"):
        check_server(settings(seen.base_url))


def test_half_a_character_is_replaced(tokenizer: PreTrainedTokenizerBase) -> None:
    with served(lambda request, before: says("a \ud83d b")) as seen:
        assert ask(settings(seen.base_url), tokenizer, ["a"])[0] == ["a \ufffd b"]


def test_requests_run_at_once(tokenizer: PreTrainedTokenizerBase) -> None:
    import threading

    together = threading.Barrier(3, timeout=20)

    def behaviour(request: Request, before: int) -> Answer:
        together.wait()
        return says(request["prompt"].split()[2])

    with served(behaviour) as seen:
        texts, _ = ask(settings(seen.base_url, concurrency=3), tokenizer, ["a", "b", "c"])
    assert seen.most_at_once == 3
    assert len(set(texts)) == 3


def test_keys_and_stop_tokens(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    by = settings("http://127.0.0.1:9/v1", key_env="NO_SUCH_KEY")
    with pytest.raises(InputError, match="NO_SUCH_KEY is not set"):
        served_subject(by, BASE, tokenizer)
    monkeypatch.setenv("NO_SUCH_KEY", "sk-2")
    with served(lambda request, before: says("yes")) as seen:
        ask(settings(seen.base_url, key_env="NO_SUCH_KEY"), tokenizer, ["a"])
        assert seen.keys == ["Bearer sk-2"]
        with pytest.raises(InputError, match="stop_at"):
            ask(settings(seen.base_url), tokenizer, ["a"], stop_at=(1,))


def test_served_from_an_option() -> None:
    found = served_from("http://localhost:8000/v1#org/model-7b")
    assert found == Served(base_url="http://localhost:8000/v1", model="org/model-7b")
    assert served_from("runs/demo") is None
    for text in ("http://localhost:8000/v1", "http://#m", "http://me:secret@host/v1#m"):
        with pytest.raises(InputError, match="http://host:port/v1#MODEL") as caught:
            served_from(text)
        assert "secret" not in str(caught.value)
