"""GSM8K scored by lm-evaluation-harness and by us on the same completions; each difference with its reason.

    python -m benchmarks.lm_eval_agreement --peer-python PEER/bin/python [--completions FILE] [--store]

PEER is an environment with `pip install lm-eval==0.4.13`; GSM8K's files come from MATHRL_DATA_DIR. The
completions are the 1,319 reference solutions rewritten in the forms that models answer in, right and wrong
(seeded), and those of a model where FILE is given (completions.jsonl of ``mathrl eval``). The harness's
strict-match is held against our rule ``gsm8k``, its flexible-extract against ``auto``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, describe, store
from mathrl.commands.judge import judge
from mathrl.evaluation.benchmark_sets import known_benchmarks
from mathrl.evaluation.saved_completions import read_saved
from mathrl.run.json_lines import read_rows

RULES = {"strict-match": "gsm8k", "flexible-extract": "auto"}
PEER = Path(__file__).with_name("lm_eval_peer.py")


@dataclass(frozen=True)
class Difference:
    """A completion that one accepts and the other does not."""

    problem: int  # line of GSM8K's test file, from 0
    form: str  # how the completion was written
    filter: str  # the harness's
    reference: str
    ends: str  # the completion's last characters
    theirs: str  # what the harness read
    ours: str | None
    accepted_by: str
    reason: str = ""


def main() -> None:
    """Score, compare, explain; ``--store`` writes results/lm_eval_agreement.*."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer-python", required=True, help="interpreter that has lm-eval")
    parser.add_argument("--data", type=Path, default=os.environ.get("MATHRL_DATA_DIR"), help="real data sets")
    parser.add_argument("--completions", type=Path, help="completions.jsonl of a model on GSM8K's test file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", action="store_true")
    options = parser.parse_args()
    if options.data is None:
        sys.exit("set MATHRL_DATA_DIR to the folder of real data sets")
    rows = [row for _, row in read_rows(options.data / "gsm8k" / "test.jsonl")]
    sets = {"rewritten references": rewritten(rows, options.seed)}
    if options.completions:
        sets["a model's"] = of_model(options.completions)
    result: dict[str, Any] = describe(("sympy",))
    result["command"] = "python -m benchmarks.lm_eval_agreement --peer-python PEER/bin/python" + (
        " --completions FILE" if options.completions else ""
    )
    differences: list[Difference] = []
    for name, completions in sets.items():
        scores, found = compare(options, rows, completions)
        result.setdefault("lm-eval", scores.pop("version"))
        result[name] = scores
        differences += found
        print(name, json.dumps(scores, indent=2))
    result["differences"] = summary(differences)
    print(table(differences))
    if options.store:
        store("lm_eval_agreement", result)
        lines = [json.dumps(asdict(d), ensure_ascii=False) for d in differences]
        (RESULTS / "lm_eval_agreement.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (RESULTS / "lm_eval_agreement.md").write_text(page(result, list(sets), differences), encoding="utf-8")


def compare(
    options: argparse.Namespace, rows: Sequence[dict[str, Any]], completions: dict[str, tuple[str, str]]
) -> tuple[dict[str, Any], list[Difference]]:
    """Scores of both on the same texts (as the harness cut them), and where they differ."""
    gsm8k = options.data / "gsm8k"
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder, "completions.json")
        texts.write_text(json.dumps({question: text for question, (_, text) in completions.items()}))
        words = [options.peer_python, str(PEER), str(gsm8k / "train.jsonl"), str(gsm8k / "test.jsonl")]
        done = subprocess.run([*words, str(texts), folder], check=True, capture_output=True, text=True)
        theirs = json.loads(done.stdout.strip().splitlines()[-1])
        (samples,) = Path(folder).rglob("samples_gsm8k_*.jsonl")
        saved = read_saved(samples, known_benchmarks()["gsm8k"])
        judged = {name: judge(saved, rule).records for name, rule in RULES.items()}
        their_rows = {(row["filter"], row["doc_id"]): row for _, row in read_rows(samples)}
    found = []
    scores: dict[str, Any] = {"n": len(rows), "version": theirs["version"]}
    for name, records in judged.items():
        agreed = 0
        for number, record in enumerate(records):
            row = their_rows[name, number]
            accepted = bool(row["exact_match"])
            agreed += accepted == record.greedy.correct
            if accepted != record.greedy.correct:
                difference = Difference(
                    number,
                    completions[rows[number]["question"]][0],
                    name,
                    record.problem.answer,
                    record.greedy.text[-90:],
                    row["filtered_resps"][0],
                    record.greedy.extracted,
                    "lm-eval" if accepted else "ours",
                )
                found.append(explained(difference, record.greedy.text))
        scores[name] = {
            "lm-eval": theirs["strict" if name == "strict-match" else "flexible"],
            f"ours ({RULES[name]})": sum(r.greedy.correct for r in records) / len(records),
            "same verdict": agreed / len(records),
        }
    return scores, found


def of_model(path: Path) -> dict[str, tuple[str, str]]:
    """question -> (form, text) of an evaluation's greedy completions."""
    rows = (row for _, row in read_rows(path))
    return {row["question"]: ("a model's", row["completion"]) for row in rows if row["kind"] == "greedy"}


# --- the forms that models answer in ------------------------------------------------------------------------

Form = Callable[[str, str, random.Random], str]
FORMS: dict[str, tuple[float, Form]] = {  # name -> (weight, (working, answer, rng) -> text)
    "#### 18": (40, lambda w, a, r: f"{w}\n#### {a}"),
    "#### $18": (3, lambda w, a, r: f"{w}\n#### ${a}"),
    "#### 18 dollars": (3, lambda w, a, r: f"{w}\n#### {a} {r.choice(['dollars', 'eggs', 'hours'])}"),
    "#### 18.00": (3, lambda w, a, r: f"{w}\n#### {a}.00"),
    "#### 18.": (3, lambda w, a, r: f"{w}\n#### {a}."),
    "#### **18**": (3, lambda w, a, r: f"{w}\n#### **{a}**"),
    "####18": (3, lambda w, a, r: f"{w}\n####{a}"),
    "#### 20 - 2 = 18": (3, lambda w, a, r: f"{w}\n#### {int(a.replace(',', '')) + 2} - 2 = {a}"),
    "#### x = 18": (2, lambda w, a, r: f"{w}\n#### x = {a}"),
    "#### 18, then more": (3, lambda w, a, r: f"{w}\n#### {a}\n\nQuestion: What is 2 + 3?\nAnswer: #### 5"),
    "#### 18, then a remark": (2, lambda w, a, r: f"{w}\n#### {a}\n\nThis took {r.randint(2, 9)} steps."),
    "#### twice": (3, lambda w, a, r: f"{w}\n#### {a}\n#### {r.randint(2, 99)}"),
    "corrects itself": (
        3,
        lambda w, a, r: f"{w}\n#### {r.randint(2, 99)}\nWait, that is not right.\n#### {a}",
    ),
    r"\boxed{18}": (3, lambda w, a, r: rf"{w}" + "\n" + rf"The final answer is $\boxed{{{a}}}$."),
    "the answer is 18": (4, lambda w, a, r: f"{w}\nThe answer is {a}."),
    "the answer is $18 for 3": (
        3,
        lambda w, a, r: f"{w}\nSo the answer is ${a}, which is what {r.randint(2, 9)} people pay.",
    ),
    "Therefore, 18": (3, lambda w, a, r: f"{w}\nTherefore, she has **{a}** left."),
    "A: 18": (2, lambda w, a, r: f"{w}\nA: {a}"),
    "only 18": (3, lambda w, a, r: a),
    "cut off": (6, lambda w, a, r: w[: r.randint(len(w) // 3, len(w))]),
}


def rewritten(rows: Sequence[dict[str, Any]], seed: int) -> dict[str, tuple[str, str]]:
    """question -> (form, text); a third of them with another number than the reference."""
    rng = random.Random(seed)
    names, weights = list(FORMS), [weight for weight, _ in FORMS.values()]
    made = {}
    for row in rows:
        working, answer = (part.strip() for part in row["answer"].split("####"))
        if rng.random() < 0.7:
            working = re.sub(r"<<[^>]*>>", "", working)  # without the calculator's notes
        if rng.random() < 1 / 3:
            answer = str(int(answer.replace(",", "")) + rng.choice([-10, -1, 1, 2, 10, 100]))
        elif rng.random() < 0.5:
            answer = answer.replace(",", "")
        name = rng.choices(names, weights)[0]
        made[row["question"]] = (name, FORMS[name][1](working, answer, rng))
    return made


# --- why they differ ----------------------------------------------------------------------------------------


def explained(d: Difference, text: str) -> Difference:
    """The difference with its reason."""
    return Difference(**{**asdict(d), "reason": reason(d, text)})


def reason(d: Difference, text: str) -> str:
    """One sentence on a difference, from what both read; "unexplained" where no known reason holds."""
    after = text.rpartition("####")[2]
    if _value(d.theirs) is not None and _value(d.theirs) == _value(d.reference) and d.accepted_by == "ours":
        return "the harness compares texts: 18.00 is not 18"
    if d.filter == "strict-match":
        if text.count("####") > 1:
            return "after several ####, the harness takes the first and we take the last"
        if "####" not in text and re.search(r"^A:", text, re.MULTILINE) and d.accepted_by == "ours":
            return "a last line 'A: 18' has no ####, which alone the harness reads"
        if d.theirs == "[invalid]" and after and d.accepted_by == "ours":
            if not after.startswith(" "):
                return "no space after ####, which the harness wants"
            return "a sign or word stands between #### and the number, where the harness wants a digit"
        if "=" in after and after.strip().startswith(d.theirs) and d.accepted_by == "ours":
            return "of '20 - 2 = 18' the harness reads the first number, we read what it equals"
    elif not any(c.isdigit() for c in d.theirs) and d.accepted_by == "ours":
        return "the harness's pattern also matches signs without a digit: it reads the '$.' after \\boxed{18}"
    elif d.accepted_by == "ours" and d.theirs == _last_number(text):
        return "the harness takes the text's last number, which comes after the answer was given"
    elif d.theirs == _last_number(text):
        return "the harness takes the text's last number, though no answer was given or another one was"
    return "unexplained"


def _value(text: str) -> float | None:
    try:
        return float(text.replace(",", "").replace("$", "").rstrip("."))
    except ValueError:
        return None


def _last_number(text: str) -> str | None:
    """What the harness's flexible pattern finds last."""
    found = re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)
    return next(filter(None, found[-1])).strip() if found else None


def summary(differences: Sequence[Difference]) -> dict[str, dict[str, int]]:
    """Filter -> accepted by, reason -> how many."""
    out: dict[str, dict[str, int]] = {}
    for (name, by, why), count in Counter((d.filter, d.accepted_by, d.reason) for d in differences).items():
        out.setdefault(name, {})[f"accepted by {by}: {why}"] = count
    return out


def page(result: dict[str, Any], sets: Sequence[str], differences: Sequence[Difference]) -> str:
    """The result as Markdown."""
    scores = [
        f"| {name} | {rule} | {result[name][rule]['lm-eval']:.2%} | "
        f"{result[name][rule][f'ours ({RULES[rule]})']:.2%} | {result[name][rule]['same verdict']:.2%} |"
        for name in sets
        for rule in RULES
    ]
    unexplained = sum(d.reason == "unexplained" for d in differences)
    return "\n".join(
        [
            f"# GSM8K by lm-evaluation-harness {result['lm-eval']} and by us, on the same completions",
            "",
            f"{result['date']}, commit {result['commit'][:12]}, `{result['command']}`.",
            "",
            "1,319 completions a set: the reference solutions rewritten in twenty forms of answers that",
            "models give, a third with another number; and the greedy completions of the quickstart's small",
            "model, which never saw GSM8K. The harness's strict-match beside our rule `gsm8k`, its",
            "flexible-extract beside `auto`.",
            "",
            "| completions | harness's filter | lm-eval | ours | same verdict |",
            "|---|---|---|---|---|",
            *scores,
            "",
            "In the forms that never differ, by either rule, are "
            f"{', '.join(f'`{form}`' for form in FORMS if form not in {d.form for d in differences})}.",
            "",
            f"All {len(differences)} differences, one by one in lm_eval_agreement.jsonl, {unexplained} of",
            "them unexplained:",
            "",
            "| filter | accepted by | count | why | example |",
            "|---|---|---|---|---|",
            table(differences),
            "",
        ]
    )


def table(differences: Sequence[Difference]) -> str:
    """The same as lines of Markdown, with an example each."""
    lines = []
    for name in RULES:
        for (by, why), count in Counter(
            (d.accepted_by, d.reason) for d in differences if d.filter == name
        ).most_common():
            d = next(d for d in differences if (d.filter, d.accepted_by, d.reason) == (name, by, why))
            example = d.ends.rsplit("\n", 1)[-1][-60:]
            lines.append(f"| {name} | {by} | {count} | {why} | `{example}` (reference {d.reference}) |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
