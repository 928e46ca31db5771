"""Answers to benchmark prompts: one a prompt, in order, each under its benchmark."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from triune.baselines.subject import Respond, of_model
from triune.data.rows import load_rows
from triune.data.templates import render
from triune.errors import TriuneError
from triune.evaluation.answering import Asking, answer, ask_part, read_unanswered
from triune.evaluation.likelihoods import Scorer
from triune.models.generation import Decoding, generate
from triune.models.tiny import build_tokenizer, tiny_llama
from triune.progress import SILENT, Advance, Progress
from triune.recipe import Base
from triune.types import BenchmarkPrompt, Sample

WORDS = [f"w{index}" for index in range(30)] + ["user", "bot", ":"]


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return make_scorer()


def make_scorer() -> Scorer:
    model = tiny_llama(len(WORDS) + 4, seed=0, hidden_size=16, n_layers=1, intermediate_size=24, n_heads=2)
    rng = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6, generator=rng)
    return Scorer(model.eval(), build_tokenizer(WORDS), Base(path="x", template="dialogue"), batch_size=2)


def respond(scorer: Scorer) -> Respond:
    assert isinstance(scorer.model, PreTrainedModel)
    return of_model(scorer.model, scorer.tokenizer, scorer.base).respond


class Recorder:
    """A watcher that counts."""

    done = 0

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Advance]:
        def advance(steps: int = 1, note: str = "") -> None:
            self.done += steps

        yield advance

    def say(self, text: str) -> None: ...


def test_every_prompt_gets_its_own_answer_in_order(scorer: Scorer) -> None:
    texts = ["w1 w2 w3 w4", "w5", "w6 w7", "w8 w9 w10", "w11"]
    rows = {
        "helpful": [BenchmarkPrompt("helpful", text) for text in texts[:3]],
        "honest": [BenchmarkPrompt("honest", text) for text in texts[3:]],
    }
    watcher = Recorder()
    done = answer("fused", respond(scorer), rows, Asking(Decoding(5, stop_at=()), 2), watcher)
    samples = done.samples
    assert (done.endings, done.unanswered) == (["cut"] * 5, {})
    assert [sample.prompt for sample in samples] == texts
    assert [sample.benchmark for sample in samples] == ["helpful"] * 3 + ["honest"] * 2
    assert [sample.index for sample in samples] == list(range(5))
    assert {sample.model for sample in samples} == {"fused"}
    assert watcher.done == 5
    for sample in samples:
        alone = generate(
            scorer.model,
            scorer.tokenizer,
            [render("dialogue", sample.prompt)],
            Decoding(5, stop_at=()),
            batch_size=1,
        )
        assert alone == [sample.response]
        assert 0 < len(sample.response.split()) <= 5
    assert len({sample.response for sample in samples}) > 1


def test_sampled_answers_come_from_the_seed(scorer: Scorer) -> None:
    rows = {"helpful": [BenchmarkPrompt("helpful", "w1")] * 4}

    def responses(seed: int) -> list[str]:
        decoding = Decoding(6, temperature=2.0, seed=seed, stop_at=())
        return [sample.response for sample in answer("a", respond(scorer), rows, Asking(decoding, 2), SILENT).samples]

    assert responses(0) == responses(0)
    assert responses(0) != responses(1)
    assert len(set(responses(0))) > 1


def test_no_prompts_no_answers(scorer: Scorer) -> None:
    assert answer("a", respond(scorer), {}, Asking(Decoding(5), 2)).samples == []


class Teller(Recorder):
    """A watcher that remembers what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def prompts_of(lengths: Sequence[int]) -> dict[str, list[BenchmarkPrompt]]:
    return {
        "helpful": [BenchmarkPrompt("helpful", " ".join(["w1", "w2", "w3"][i % 3] for i in range(n))) for n in lengths]
    }


def count_words(text: str) -> int:
    return len(text.split())


class Asked:
    """Passes batches on to a model, and notes them; `limit` is how many prompts the memory holds at once."""

    def __init__(self, respond: Respond, limit: int = 1000, calls: int = 1000) -> None:
        self.respond, self.limit, self.calls = respond, limit, calls
        self.batches: list[list[str]] = []

    def __call__(self, questions: Sequence[str], decoding: Decoding, batch_size: int, progress: Progress) -> list[str]:
        if len(self.batches) == self.calls:
            raise KeyboardInterrupt
        self.batches.append(list(questions))
        if len(questions) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.respond(questions, decoding, batch_size, progress)


def test_the_longest_come_first(scorer: Scorer) -> None:
    asked = Asked(respond(scorer))
    answer("a", asked, prompts_of([1, 5, 2, 4, 3]), Asking(Decoding(2), 2, count_words))
    assert [[count_words(text) for text in batch] for batch in asked.batches] == [[5, 4], [3, 2], [1]]


WAYS = {"greedy": Decoding(6, stop_at=()), "sampled": Decoding(6, temperature=2.0, seed=3, stop_at=())}
LENGTHS = [3, 1, 7, 2, 2, 5, 4]


@pytest.mark.parametrize("way", WAYS)
def test_an_interruption_changes_nothing_and_only_what_is_missing_is_asked(
    scorer: Scorer, way: str, tmp_path: Path
) -> None:
    whole = Asked(respond(scorer))
    expected = answer("a", whole, prompts_of(LENGTHS), Asking(WAYS[way], 2, count_words))
    asking = Asking(WAYS[way], 2, count_words, tmp_path / "kept" / "answers.jsonl", "model 1")
    first, second, third = Asked(respond(scorer), calls=2), Asked(respond(scorer)), Asked(respond(scorer))
    with pytest.raises(KeyboardInterrupt):
        answer("a", first, prompts_of(LENGTHS), asking)
    watcher = Teller()
    assert answer("a", second, prompts_of(LENGTHS), asking, watcher) == expected
    assert first.batches + second.batches == whole.batches
    assert watcher.done == len(LENGTHS)
    assert watcher.lines[0] == "  4 answers were kept by an interrupted run; only the others are asked"
    assert answer("a", third, prompts_of(LENGTHS), asking) == expected
    assert third.batches == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_parts_ask_the_batches_of_the_whole_between_them(scorer: Scorer, way: str, n: int, tmp_path: Path) -> None:
    """Seven prompts in four batches; the third of two parts' batches is lost, and asked by the whole."""
    whole, prompts = Asked(respond(scorer)), prompts_of(LENGTHS)
    expected = answer("a", whole, prompts, Asking(WAYS[way], 2, count_words))
    files = tuple(tmp_path / f"part-{i}.jsonl" for i in range(n))
    asking = Asking(WAYS[way], 2, count_words, tmp_path / "answers.jsonl", "model 1", kept_by=files)
    asked: list[list[list[str]]] = []
    for i, file in enumerate(files):
        own = Asked(respond(scorer))
        ask_part("a", own, prompts, replace(asking, keep=file, kept_by=()), (i, n))
        asked.append(own.batches)
    assert asked == [whole.batches[i::n] for i in range(n)]
    third = Asked(respond(scorer))
    assert answer("a", third, prompts, asking) == expected
    assert third.batches == []
    kept = files[0].read_text().splitlines()
    files[0].write_text("\n".join(kept[:-1]) + "\n")  # as if it had been killed in its last batch
    (tmp_path / "answers.jsonl").unlink()
    fourth, watcher = Asked(respond(scorer)), Teller()
    assert answer("a", fourth, prompts, asking, watcher) == expected
    assert fourth.batches == [asked[0][-1]]
    assert watcher.done == len(LENGTHS)
    assert not any("interrupted" in line for line in watcher.lines)


def test_a_part_of_another_job_is_not_used(scorer: Scorer, tmp_path: Path) -> None:
    asking = Asking(WAYS["greedy"], 2, count_words, tmp_path / "part.jsonl", "model 1")
    ask_part("a", Asked(respond(scorer)), prompts_of(LENGTHS), asking, (0, 2))
    other, watcher = Asked(respond(scorer)), Teller()
    mine = replace(asking, keep=tmp_path / "mine.jsonl", kept_by=(tmp_path / "part.jsonl",), identity="model 2")
    answer("a", other, prompts_of(LENGTHS), mine, watcher)
    assert len(other.batches) == 4
    assert watcher.lines[0].endswith(
        "part.jsonl has the answers of another model, other prompts or settings, and is not used"
    )


def test_a_line_cut_in_two_is_asked_again_and_another_job_from_the_start(scorer: Scorer, tmp_path: Path) -> None:
    asking = Asking(WAYS["greedy"], 2, count_words, tmp_path / "answers.jsonl", "model 1")
    expected = answer("a", respond(scorer), prompts_of(LENGTHS), asking)
    text = asking.keep.read_text() if asking.keep else ""
    assert len(text.splitlines()) == 5
    for cut, n_batches in ((1, 0), (2, 1), (len(text.splitlines()[-1]) + 20, 2), (len(text), 4)):
        (tmp_path / "answers.jsonl").write_text(text[:-cut])
        asked = Asked(respond(scorer))
        assert answer("a", asked, prompts_of(LENGTHS), asking) == expected
        assert len(asked.batches) == n_batches
        assert (tmp_path / "answers.jsonl").read_text() == text
    watcher = Teller()
    for other in (
        replace(asking, identity="model 2"),
        replace(asking, decoding=Decoding(5, stop_at=())),
        replace(asking, decoding=WAYS["sampled"]),
    ):
        asked = Asked(respond(scorer))
        answer("a", asked, prompts_of(LENGTHS), other, watcher)
        assert len(asked.batches) == 4
        assert "is not used" in watcher.lines[0]
    asked = Asked(respond(scorer))
    answer("a", asked, prompts_of([*LENGTHS, 1]), other)
    assert len(asked.batches) == 4


def test_another_batch_size_keeps_what_is_there(scorer: Scorer, tmp_path: Path) -> None:
    asking = Asking(WAYS["greedy"], 2, count_words, tmp_path / "answers.jsonl")
    with pytest.raises(KeyboardInterrupt):
        answer("a", Asked(respond(scorer), calls=2), prompts_of(LENGTHS), asking)
    asked = Asked(respond(scorer))
    done = answer("a", asked, prompts_of(LENGTHS), replace(asking, batch_size=3))
    assert [len(batch) for batch in asked.batches] == [3]
    assert done == answer("a", respond(scorer), prompts_of(LENGTHS), Asking(WAYS["greedy"], 7))


def test_out_of_memory_halves_the_batches_and_says_it(scorer: Scorer, tmp_path: Path) -> None:
    asking = Asking(WAYS["greedy"], 5, count_words, tmp_path / "answers.jsonl")
    watcher, asked = Teller(), Asked(respond(scorer), limit=2, calls=3)
    with pytest.raises(KeyboardInterrupt):
        answer("a", asked, prompts_of(LENGTHS), asking, watcher)
    assert watcher.lines == ["  out of GPU memory with 5 prompts at once; going on with 2"]
    assert [len(batch) for batch in asked.batches] == [5, 2, 2]
    rest = Asked(respond(scorer), limit=2)
    done = answer("a", rest, prompts_of(LENGTHS), asking, watcher)
    assert [len(batch) for batch in rest.batches] == [2, 1]
    assert watcher.done == len(LENGTHS) + 4
    assert done.samples == answer("a", respond(scorer), prompts_of(LENGTHS), Asking(WAYS["greedy"], 7)).samples
    with pytest.raises(TriuneError, match="does not hold one prompt"):
        answer("b", Asked(respond(scorer), limit=0), prompts_of(LENGTHS), asking)


def test_cut_answers_are_counted_and_prompts_without_room_are_no_answers(scorer: Scorer, tmp_path: Path) -> None:
    context = int(scorer.model.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]
    watcher = Teller()
    rows = prompts_of([2, context + 5, 3])
    done = answer("a", respond(scorer), rows, Asking(Decoding(4, stop_at=()), 2, count_words), watcher)
    assert done.endings == ["cut", "too long", "cut"]
    assert done.unanswered == {1: "its prompt fills the context"}
    assert [bool(sample.response) for sample in done.samples] == [True, False, True]
    assert watcher.lines == [
        "  2 of 3 answers of a are cut at 4 new tokens",
        "  1 of 3 prompts have no answer of a: its prompt fills the context",
    ]
    assert read_unanswered(tmp_path) == {}
    assert done.write(tmp_path) == done.samples == load_rows(tmp_path / "samples.jsonl", Sample)
    assert read_unanswered(tmp_path) == done.unanswered
    counts = json.loads((tmp_path / "endings.json").read_text())["counts"]
    assert counts == {"stopped": 0, "cut": 2, "no tokens": 0, "too long": 1, "failed": 0}


def test_a_full_disk_is_said(scorer: Scorer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TriuneError, match="cannot keep answers"):
        answer("a", respond(scorer), prompts_of([1]), Asking(Decoding(2), 2, keep=tmp_path / "file" / "x"))


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.evaluation import test_answering as here
scorer = here.make_scorer()
keep = Path(sys.argv[2])
passed = here.respond(scorer)
def respond(questions, decoding, batch_size, progress):
    if keep.read_text().count("\\n") == 3:  # the head and two batches
        os.kill(os.getpid(), signal.SIGKILL)
    return passed(questions, decoding, batch_size, progress)
asking = here.Asking(here.WAYS[sys.argv[3]], 2, here.count_words, keep)
here.answer("a", respond, here.prompts_of(here.LENGTHS), asking)
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_killed_process_loses_no_batch(scorer: Scorer, way: str, tmp_path: Path) -> None:
    root, keep = Path(__file__).parents[2], tmp_path / "answers.jsonl"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(root), str(keep), way],
        env={**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    asked = Asked(respond(scorer))
    done = answer("a", asked, prompts_of(LENGTHS), Asking(WAYS[way], 2, count_words, keep))
    assert [len(batch) for batch in asked.batches] == [2, 1]
    assert done == answer("a", respond(scorer), prompts_of(LENGTHS), Asking(WAYS[way], 2, count_words))
