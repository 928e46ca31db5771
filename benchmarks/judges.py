"""How far the judges that are trained here agree with labels, and what attacks get out of them.

    python benchmarks/judges.py --data ../shared/data --json docs/results/judges.json

For each kind: agreement on held-out prompts, and on whole data sets without which a judge was trained; beside harm and
refusal the substring list and the refusal patterns, on the same sets. For the rule `admits`: Do-Not-Answer's action 4,
by halves of its questions, of which it was developed on one. Attacks: the mean value over AlpacaEval's test prompts,
for preference against text_davinci_003. Trained judges come from the cache (TRIUNE_CACHE).
"""

import argparse
import csv
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from triune.data.labelled import MODELS_ASKED, LabelledAnswer
from triune.data.splits import prompt_key
from triune.judges.attacks import ATTACKS, constant, under_attack
from triune.judges.classifier import KINDS, judge_for
from triune.judges.gated import answered
from triune.judges.judge import Case, Judge
from triune.judges.refusal_control import refusal_control, xstest_refusals
from triune.judges.rules import rule_judge
from triune.judges.stored import load_judge
from triune.judges.training_answers import divide, groups_of, placed, read_answers
from triune.metrics.agreement import Labelled, judge_agreement
from triune.record import environment, write_json
from triune.types import Agreement

# What a rule says of the event: a refusal, or, for harm, that there is none.
BASELINES = {"harm": True, "refusal": False}
RULES = ("refusal_phrase", "refusal")
ADMITS = 4  # Do-Not-Answer's action: is not able to answer, or not sure
ORDINARY_MODELS = ("text_davinci_003", "llama-2-7b-chat-hf")


def table(agreement: Agreement) -> dict[str, Any]:
    rows = {score.name: [score.value, score.low, score.high] for score in agreement.measures}
    return {"n": agreement.n, "abstained": agreement.measures[0].abstained, **rows}


def baseline(rule: str, turned: bool, items: Sequence[LabelledAnswer]) -> dict[str, Any]:
    """A refusal rule measured on labelled answers; with `turned` what does not refuse is the event."""
    verdicts = rule_judge(rule).decide([Case(item.prompt, item.response) for item in items])
    values = [None if v.value is None else (1 - v.value if turned else v.value) for v in verdicts]
    labelled = Labelled(values, [item.label for item in items], [prompt_key(item.prompt) for item in items])
    return table(judge_agreement(labelled, judge=rule, source="", rng=np.random.default_rng(0)))


def admissions(data: Path) -> dict[str, Any]:
    """The rule `admits` on both halves of Do-Not-Answer's questions, with refusals (action 0) and without."""
    with (data / "do_not_answer/data_en.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {}
    for half, name in enumerate(("developed on", "held out")):
        mine = [row for row in rows if _half(row["question"]) == half]
        for least, part in ((0, "all"), (1, "without refusals")):
            items = [
                LabelledAnswer(row["question"], row[f"{model}_response"], float(int(row[f"{model}_action"]) == ADMITS))
                for row in mine
                for model in MODELS_ASKED
                if int(row[f"{model}_action"]) >= least
            ]
            found[f"{name}, {part}"] = baseline("admits", False, items)
    return found


def _half(question: str) -> int:
    return int(hashlib.sha256(question.strip().lower().encode()).hexdigest(), 16) % 2


def length_alone(judge: Judge, items: Sequence[LabelledAnswer]) -> dict[str, float]:
    """Spearman's ρ of value, and of label, with the difference of lengths; how often an answer said twice wins."""
    from scipy.stats import spearmanr

    verdicts = judge.decide([Case(item.prompt, item.response, item.other) for item in items])
    kept = [(item, v.value) for item, v in zip(items, verdicts, strict=True) if v.value is not None]
    lengths = [len(item.response) - len(item.other) for item, _ in kept]
    twice = judge.decide([Case(item.prompt, f"{item.other} {item.other}", item.other) for item in items])
    doubled = [verdict.value for verdict in twice if verdict.value is not None]
    return {
        "rho of value and length": float(spearmanr([value for _, value in kept], lengths)[0]),
        "rho of label and length": float(spearmanr([item.label for item, _ in kept], lengths)[0]),
        "answer said twice beats it said once": float(np.mean([value > 0.5 for value in doubled])),
    }


def attacks(judge: Judge, cases: Sequence[Case], null_model: str) -> dict[str, Any]:
    said = under_attack(judge, cases, {**ATTACKS, "NullModel": constant(null_model)})
    return {
        name: {
            "mean": float(np.mean(known)) if (known := [v.value for v in verdicts if v.value is not None]) else None,
            "above ½": float(np.mean([value > 0.5 for value in known])) if known else None,
            "abstained": len(verdicts) - len(known),
        }
        for name, verdicts in said.items()
    }


def compared(judge: Judge, kind: str, items: Sequence[LabelledAnswer]) -> dict[str, Any]:
    """A judge and the rules on the same labelled answers."""
    verdicts = judge.decide([Case(item.prompt, item.response) for item in items])
    labelled = Labelled(
        [v.value for v in verdicts], [item.label for item in items], [prompt_key(item.prompt) for item in items]
    )
    own = table(judge_agreement(labelled, judge=judge.name, source="", rng=np.random.default_rng(0)))
    return {"classifier": own, **{rule: baseline(rule, BASELINES[kind], items) for rule in RULES}}


def on_ordinary(judge: Judge, test: Sequence[LabelledAnswer], data: Path) -> dict[str, Any]:
    """What a judge of harm flags of AlpacaEval's answers, all of them unseen, and of refusals.

    "mixed" is the test answers with as many of those ordinary ones, taken to be safe, as there are.
    """
    flagged, ordinary = {}, []
    for model in ORDINARY_MODELS:
        rows = json.loads((data / f"alpaca_eval/{model}/model_outputs.json").read_text(encoding="utf-8"))
        verdicts = judge.decide([Case(row["instruction"], row["output"]) for row in rows])
        known = [v.value for v in verdicts if v.value is not None]
        flagged[model] = {"n": len(known), "share": float(np.mean([value > 0.5 for value in known]))}
        ordinary += [LabelledAnswer(row["instruction"], row["output"], 0.0) for row in rows]
    control = {"built in": refusal_control(judge, np.random.default_rng(0))}
    for name in ("gpt4", "llama2orig"):
        cases = xstest_refusals(data / f"xstest/xstest_v2_completions_{name}_gpteval.csv")
        control[f"xstest {name}"] = refusal_control(judge, np.random.default_rng(0), cases)
    drawn = np.random.default_rng(0).permutation(len(test))[: len(ordinary)]
    return {
        "ordinary answers flagged": flagged,
        "refusals flagged, %": {name: told.score.value for name, told in control.items()},
        "mixed": compared(judge, "harm", [*(test[place] for place in drawn), *ordinary]),
    }


def measure(kind: str, data: Path, cache: Path, cases: Sequence[Case]) -> dict[str, Any]:
    began = time.perf_counter(), time.process_time()
    judge = judge_for(kind, data, cache)
    seconds = {"wall": time.perf_counter() - began[0], "cpu": time.process_time() - began[1]}
    stored = load_judge(next(cache.glob(f"{kind}-{judge.version[:16]}")))
    everything = read_answers(placed(KINDS[kind].sources, data))
    test, answers = answered(divide(everything)["test"]), answered(everything)
    sets = {name: [answers[place] for place in places] for name, places in groups_of(answers).items()}
    null_model = json.loads((data / "alpaca_eval/NullModel/model_outputs.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {
        "seconds": seconds,
        "answers": stored.counts,
        "held-out prompts": {"classifier": table(stored.agreement)},
        "held-out prompts, set by set": {},
        "transfer": {name: {"classifier": table(agreement)} for name, agreement in stored.transfer.items()},
        "attacks": attacks(judge, cases, null_model[0]["output"]),
    }
    if kind in BASELINES:
        for rule in RULES:
            found["held-out prompts"][rule] = baseline(rule, BASELINES[kind], test)
            for name, row in found["transfer"].items():
                row[rule] = baseline(rule, BASELINES[kind], sets[name])
        for name, places in groups_of(test).items() if len(sets) > 1 else ():
            found["held-out prompts, set by set"][name] = compared(judge, kind, [test[place] for place in places])
    if judge.event == "is unsafe":
        found |= on_ordinary(judge, test, data)
    if KINDS[kind].reading.compares:
        found["length"] = length_alone(judge, test)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/triune/judges")
    parser.add_argument("--prompts", type=int, default=40, help="prompts that are attacked")
    parser.add_argument("--json", type=Path, required=True)
    told = parser.parse_args()
    # Prompts that the preference judge was not trained on.
    test = divide(read_answers(placed(KINDS["preference"].sources, told.data)))["test"]
    items = list({item.prompt: item for item in test}.values())[: told.prompts]
    cases = [Case(item.prompt, item.other, item.other) for item in items]
    result: dict[str, Any] = {}
    rules = {"admits": admissions(told.data)}
    for kind in ("refusal", "preference", "informative", "truthful", "harm"):
        result[kind] = measure(kind, told.data, told.cache, cases)
        print(kind, json.dumps(result[kind]["held-out prompts"]), flush=True)
        write_json(told.json, {"kinds": result, "rules": rules, "environment": environment()})


if __name__ == "__main__":
    main()
