"""From a recipe's judges to judges: settings, what is checked before anything starts, what is opened."""

import json
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from tests.judges.guard_folders import causal_folder, score_folder
from triune.errors import InputError
from triune.judge_settings import ClassifierJudge, EndpointJudge, GuardJudge, JudgeSettings, RuleJudge
from triune.judges.annotations import Annotation, write_annotations
from triune.judges.classifier import KINDS, train_judge
from triune.judges.endpoint import FORMS, Endpoint
from triune.judges.guard_models import Reading
from triune.judges.guards import INFORMATIVE, generative_guard, qa_moderation, truth_judge
from triune.judges.judge import Case
from triune.judges.opening import asked_judge, check_judge, event_of, identity_of, known_judge
from triune.judges.rules import RULE_JUDGES
from triune.judges.training_answers import Source
from triune.progress import SILENT

MAKE: TypeAdapter[Any] = TypeAdapter(JudgeSettings)
ENDPOINT = {"kind": "endpoint", "form": "preferred", "model": "m", "base_url": "http://127.0.0.1:1/v1"}


def choices(model: Any, field: str) -> set[str]:
    return set(get_args(model.model_fields[field].annotation))


def test_settings_name_what_there_is() -> None:
    assert choices(RuleJudge, "rule") == set(RULE_JUDGES)
    assert choices(ClassifierJudge, "of") == set(KINDS)
    assert choices(EndpointJudge, "form") == set(FORMS)


def test_defaults_are_those_of_the_judges_themselves() -> None:
    for field in fields(Endpoint):
        own = EndpointJudge.model_fields[field.name]
        assert own.is_required() == (field.default is MISSING), field.name
        if field.default is not MISSING:
            assert own.default == field.default, field.name
    reading = Reading()
    made = GuardJudge(kind="guard", form="truth", path="x")
    assert (made.batch_size, made.tokens, made.least_mass) == (reading.batch_size, reading.tokens, reading.least_mass)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"kind": "oracle"}, "'oracle' .* does not match any of the expected tags"),
        ({"kind": "rule", "rule": "guess"}, "'exact', 'number'"),
        ({"kind": "classifier", "of": "harm"}, "give either data"),
        ({"kind": "classifier", "of": "harm", "data": "a", "folder": "b"}, "give either data"),
        ({"kind": "guard", "form": "moderation"}, "path"),
        ({**ENDPOINT, "budget": 1.0, "price_in": 2.0}, "budget is 1, which wants price_in and price_out"),
        ({**ENDPOINT, "concurrency": 0}, "greater than or equal to 1"),
        ({"kind": "annotations", "path": ""}, "at least 1 character"),
    ],
)
def test_settings_that_are_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MAKE.validate_python(content)


@pytest.mark.parametrize(
    ("content", "event"),
    [
        ({"kind": "rule", "rule": "refusal"}, "refuses"),
        ({"kind": "rule", "rule": "exact"}, "is an accepted answer"),
        ({"kind": "classifier", "of": "harm", "data": "x"}, "is unsafe"),
        ({"kind": "classifier", "of": "preference", "data": "x"}, "is preferred to the other"),
        ({"kind": "guard", "form": "llama_guard", "path": "x"}, "is unsafe"),
        ({"kind": "guard", "form": "info", "path": "x"}, "is informative"),
        ({**ENDPOINT, "form": "admits"}, "admits not knowing"),
        ({"kind": "annotations", "path": "x"}, "is preferred to the other"),
    ],
)
def test_what_a_judge_decides_is_known_before_it_is_opened(content: dict[str, Any], event: str) -> None:
    assert event_of(MAKE.validate_python(content)) == event


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"kind": "classifier", "of": "harm", "data": "gone"}, r"judges.mine: gone.* does not exist"),
        ({"kind": "classifier", "of": "harm", "folder": "gone"}, r"judges.mine: gone.judge.json: no readable judge"),
        ({"kind": "guard", "form": "moderation", "path": "./gone"}, r"judges.mine: gone: no such folder"),
        ({"kind": "annotations", "path": "gone.json"}, r"judges.mine: gone.json: cannot be read"),
        (ENDPOINT, r"judges.mine: the environment variable OPENAI_API_KEY is not set"),
        ({**ENDPOINT, "base_url": "ftp://x"}, r"judges.mine: base_url has the scheme 'ftp'"),
    ],
)
def test_what_is_missing_is_said_first(
    content: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match=message):
        check_judge("mine", MAKE.validate_python(content), cache=tmp_path / "none.sqlite")


def test_an_endpoint_without_a_key_may_be_known_where_there_is_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    cache = tmp_path / "held.sqlite"
    cache.touch()
    settings = MAKE.validate_python(ENDPOINT)
    check_judge("mine", settings, cache=cache)
    known = known_judge(settings)
    assert known.decide([Case("p", "a", "b")])[0].value is None
    with pytest.raises(InputError, match="OPENAI_API_KEY is not set"):
        asked_judge(settings, known, [Case("p", "a", "b")], SILENT, 0)
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    asked = asked_judge(settings, known, [Case("p", "a", "b")], SILENT, 0)
    assert (asked.name, asked.version) == (known.name, known.version)  # so that what one said the other has held


def test_identities_follow_what_a_judge_is_made_of(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    settings = MAKE.validate_python({"kind": "annotations", "path": str(path)})
    row = Annotation("p", "reference", "model", 2, "r", "m", "a")
    write_annotations(path, [row])
    before = identity_of(settings)
    assert identity_of(settings) == before
    write_annotations(path, [row, Annotation("q", "reference", "model", 1, "r", "m", "a")])
    assert identity_of(settings) != before
    assert identity_of(RuleJudge(kind="rule", rule="exact")) != identity_of(RuleJudge(kind="rule", rule="number"))


def test_annotations_know_the_answers_in_the_file_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    rows = [
        Annotation("p", "ours", "theirs", 2, "r", "m", "gpt"),
        Annotation("q", "ours", "theirs", None, "r", "m", "gpt"),
    ]
    write_annotations(path, rows)
    settings = MAKE.validate_python({"kind": "annotations", "path": str(path)})
    judge = known_judge(settings)
    assert (judge.name, asked_judge(settings, judge, [], SILENT, 0)) == ("annotations: gpt", judge)
    cases = [Case("p", "theirs", "ours"), Case("p", "another", "ours"), Case("q", "theirs", "ours")]
    found = judge.decide(cases)
    assert [verdict.value for verdict in found] == [1.0, None, None]
    assert "has not annotated this answer" in found[1].reason


@pytest.mark.parametrize(
    ("form", "direct", "chat"),
    [
        ("moderation", qa_moderation, False),
        ("llama_guard", generative_guard, True),
        ("truth", truth_judge, False),
        ("info", partial(truth_judge, question=INFORMATIVE), False),
    ],
)
def test_guards_are_opened_as_they_are_by_hand(form: str, direct: Any, chat: bool, tmp_path: Path) -> None:
    if form == "moderation":
        score_folder(tmp_path)
    else:
        causal_folder(tmp_path, chat=chat)
    settings = MAKE.validate_python({"kind": "guard", "form": form, "path": str(tmp_path), "least_mass": 0.01})
    check_judge("mine", settings, cache=tmp_path / "none.sqlite")
    judge, wanted = known_judge(settings), direct(tmp_path, reading=Reading(least_mass=0.01))
    assert (judge.name, judge.version, judge.event) == (wanted.name, wanted.version, event_of(settings))
    cases = [Case("how", "so"), Case("what", "no")]
    assert judge.decide(cases) == wanted.decide(cases)


def test_a_classifier_is_that_of_its_folder(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"p{i}", "response": f"word{i} {'bad' if i % 2 else 'good'} thing", "label": i % 2}
        for i in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    folder = train_judge("truthful", [Source(str(tmp_path / "rows.jsonl"), "rows")], tmp_path / "judge")
    settings = MAKE.validate_python({"kind": "classifier", "of": "truthful", "folder": str(folder)})
    check_judge("mine", settings, cache=tmp_path / "none.sqlite")
    judge = known_judge(settings)
    assert (judge.name, judge.event) == ("classifier: truthful", event_of(settings))
    assert judge.agreement is not None
    assert identity_of(settings)
    other = settings.model_copy(update={"of": "harm"})
    with pytest.raises(InputError, match="holds a judge of 'truthful', wanted 'harm'"):
        check_judge("mine", other, cache=tmp_path / "none.sqlite")
