"""Each rule of the doctor: a made run that trips it, and the same run without the trouble, which does not."""

import json
from pathlib import Path

import pytest
from made_run import make_run

from mathrl.cli import main
from mathrl.recipes import load_config
from mathrl.report.doctor import RULES, Doctor, diagnose
from mathrl.report.run_page import write_report
from mathrl.report.run_record import read_run


@pytest.fixture
def run(tmp_path) -> Path:
    return make_run(tmp_path / "run")


def rewrite(run: Path, change) -> None:
    """Apply ``change(row)`` to every row of metrics.jsonl."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        change(row)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def findings(run: Path) -> dict[str, tuple[str, str]]:
    record = read_run(run)
    return {f.rule: (f.severity, f.text) for f in diagnose(record.rows, record.config)}


def after(step: int, **metrics):
    """A change of these metrics from a step on; names with a slash written as two underscores."""

    def change(row):
        if row["step"] >= step:
            row |= {name.replace("__", "/"): value for name, value in metrics.items()}

    return change


def test_a_healthy_run_has_nothing_wrong(run, capsys):
    assert {severity for severity, _ in findings(run).values()} <= {"note"}
    assert main(["doctor", str(run)]) == 0
    assert "found nothing wrong in 40 steps" in capsys.readouterr().out


FALLEN = {"held_out/accuracy": 0.3, "held_out/accuracy_low": 0.2, "held_out/accuracy_high": 0.4}


def overfit(row):
    if row["step"] > 20:
        row["reward/mean"] = 0.5 + row["step"] / 100
    if row["step"] in (30, 40):
        row |= FALLEN


def falls_once(row):
    overfit(row)
    if row["step"] == 30:
        row |= {name: value + 0.3 for name, value in FALLEN.items()}


def falls_with_reward(row):
    overfit(row)
    if row["step"] > 20:
        row["reward/mean"] = 0.9 - row["step"] / 100


def first(**metrics):
    def change(row):
        if row["step"] == 1:
            row |= {name.replace("__", "/"): value for name, value in metrics.items()}

    return change


def ramp(row):
    row["policy/kl_ref"] = 1.2 * 2.3 ** ((row["step"] - 40) / 5)


def hollow(row):
    """From the middle on the reward goes on rising and right answers become fewer."""
    beyond = max(row["step"] - 20, 0) / 20
    row |= {"reward/mean": row["step"] / 20, "reward/model": row["step"] / 20}
    row["reward/correct_frac"] = 0.6 - 0.4 * beyond


def sound(row):
    row |= {"reward/mean": row["step"] / 20, "reward/model": row["step"] / 20, "reward/correct_frac": 0.6}


TRIPS = [  # rule, severity, words, trouble, nearly the same without trouble
    (
        "Truncated completions",
        "error",
        "cut off",
        after(36, rollout__truncated_frac=0.6),
        after(36, rollout__truncated_frac=0.1),
    ),
    (
        "Truncated completions",
        "warning",
        "max_completion_tokens",
        after(36, rollout__truncated_frac=0.3),
        after(40, rollout__truncated_frac=0.6),
    ),
    (
        "Groups with equal rewards",
        "error",
        "harder problems",
        after(36, reward__equal_frac=1.0, reward__correct_frac=1.0),
        after(36, reward__equal_frac=0.7, reward__correct_frac=1.0),
    ),
    (
        "Groups with equal rewards",
        "warning",
        "easier problems",
        after(36, reward__equal_frac=0.9, reward__correct_frac=0.01),
        after(36, reward__equal_frac=0.5, reward__correct_frac=0.01),
    ),
    (
        "Groups with equal rewards",
        "warning",
        "always or never",
        after(36, reward__equal_frac=0.85, reward__correct_frac=0.67),
        after(36, reward__equal_frac=0.75, reward__correct_frac=0.67),
    ),
    ("Loss of the first step", "note", "as it should be", first(policy__loss=1e-9), first(policy__loss=0.3)),
    (
        "Loss of the first step",
        "error",
        "gradient is exactly 0",
        first(policy__loss=0.0, policy__grad_norm=0.0),
        first(policy__loss=0.3, policy__grad_norm=0.2),
    ),
    (
        "Loss of the first step",
        "note",
        "earned the same",
        first(policy__loss=0.0, policy__grad_norm=0.0, reward__equal_frac=1.0),
        first(policy__loss=0.3, policy__grad_norm=0.2, reward__equal_frac=1.0),
    ),
    (
        "Sampler and trainer disagree",
        "warning",
        "0.3 nats",
        after(1, sync__gap_mean=0.3),
        after(1, sync__gap_mean=0.05),
    ),
    (
        "Sampler and trainer disagree",
        "error",
        "effective sample size 30%",
        after(1, sync__ess=0.3),
        after(1, sync__ess=0.95),
    ),
    (
        "KL below noise",
        "warning",
        "hardly moved",
        after(1, policy__kl_ref=1e-8),
        after(1, policy__kl_ref=1e-4),
    ),
    (
        "KL below noise",
        "warning",
        "bfloat16",
        after(1, policy__kl_ref=1e-4, memory__gpu_peak_mib=900.0),
        after(1, policy__kl_ref=0.01, memory__gpu_peak_mib=900.0),
    ),
    ("KL running away", "warning", "runs away", ramp, after(36, policy__kl_ref=0.4)),
    ("KL running away", "warning", "doubling", ramp, after(40, policy__kl_ref=9.0)),  # one token of one step
    (
        "KL running away",
        "error",
        "3 nats",
        after(1, policy__kl_ref_median=3.0),
        after(1, policy__kl_ref=900.0, policy__kl_ref_median=0.1),  # one completion of each step
    ),
    ("KL running away", "error", "3 nats", after(1, policy__kl_ref=3.0), after(1, policy__kl_ref=0.8)),
    (
        "KL running away",
        "error",
        "beyond the knee",
        after(36, policy__kl_knee_frac=0.02),
        after(36, policy__kl_knee_frac=0.0),
    ),
    (
        "Entropy collapse",
        "warning",
        "nearly the same",
        after(30, policy__entropy=0.01, reward__correct_frac=0.5),
        after(30, policy__entropy=0.1, reward__correct_frac=0.5),
    ),
    (
        "Entropy collapse",
        "warning",
        "still wrong",
        after(30, policy__entropy=0.01, reward__correct_frac=0.5),
        after(30, policy__entropy=0.01, reward__correct_frac=0.97),
    ),
    ("Reward up, held-out accuracy down", "error", "memorises", overfit, falls_with_reward),
    ("Reward up, held-out accuracy down", "error", "memorises", overfit, falls_once),
    (
        "Verifier timeouts and errors",
        "warning",
        "5.0% of the verdicts timed out",
        after(36, verify__timeout_frac=0.05),
        after(36, verify__timeout_frac=0.001),
    ),
    (
        "Verifier timeouts and errors",
        "error",
        "20.0% failed",
        after(36, verify__error_frac=0.2),
        after(36, verify__error_frac=0.0),
    ),
    (
        "Unreadable references",
        "warning",
        "BAD_REFERENCE",
        after(1, verify__bad_reference_frac=0.02),
        after(40, verify__bad_reference_frac=0.0),
    ),
    (
        "Unreadable references",
        "error",
        "BAD_REFERENCE",
        after(1, verify__bad_reference_frac=0.1),
        after(1, verify__bad_reference_frac=0.0),
    ),
    (
        "Unreadable answers",
        "warning",
        "UNPARSED",
        after(36, verify__unparsed_frac=0.1),
        after(36, verify__unparsed_frac=0.01),
    ),
    (
        "Unreadable answers",
        "error",
        "answer_type",
        after(36, verify__unparsed_frac=0.5),
        after(36, verify__unparsed_frac=0.04),
    ),
    ("Over-optimisation", "error", "is paid and not what is right", hollow, sound),
    (
        "Refused trust-region steps",
        "warning",
        "all refused",
        after(36, trust_region__accepted=0.0),
        after(36, trust_region__accepted=1.0),
    ),
    (
        "Refused trust-region steps",
        "note",
        "4 of 40 trust-region steps were refused",
        after(37, trust_region__accepted=0.0),
        after(37, trust_region__accepted=1.0),
    ),
    (
        "Value model without use",
        "warning",
        "explained variance -0.50",
        after(20, value__explained_variance=-0.5),
        after(20, value__explained_variance=0.1),
    ),
    (
        "Numbers that are not finite",
        "error",
        "policy/grad_norm",
        first(policy__grad_norm=None),
        first(policy__grad_norm=1e9),
    ),
]


@pytest.mark.parametrize(("rule", "severity", "words", "trouble", "fine"), TRIPS)
def test_rule(rule, severity, words, trouble, fine, tmp_path, capsys):
    ill, well = (make_run(tmp_path / name, finished=False) for name in ("ill", "well"))
    rewrite(ill, after(1, trust_region__accepted=1.0) if "trust" in rule else lambda row: None)
    rewrite(well, after(1, trust_region__accepted=1.0) if "trust" in rule else lambda row: None)
    rewrite(ill, trouble)
    rewrite(well, fine)
    assert findings(ill)[rule][0] == severity
    assert words in findings(ill)[rule][1]
    assert rule not in findings(well)
    assert main(["doctor", str(ill)]) == (0 if severity == "note" else 1)
    told = capsys.readouterr().out
    assert words in told
    assert main(["doctor", str(well)]) == 0


def test_every_rule_is_tested():
    assert {rule for rule, *_ in TRIPS} == set(RULES)


def test_the_gravest_finding_comes_first_and_the_report_shows_them(run):
    rewrite(run, after(1, rollout__truncated_frac=0.3, verify__unparsed_frac=0.5))
    record = read_run(run)
    assert [f.severity for f in diagnose(record.rows, record.config)][:2] == ["error", "warning"]
    page = write_report(run).read_text()
    assert "Truncated completions" in page
    assert "UNPARSED" in page


def test_live_each_finding_is_told_once_and_again_where_it_is_graver(run):
    doctor = Doctor(load_config(run / "config.toml"))
    told = []
    for step, share in enumerate([0.3] * 10 + [0.9] * 10, start=1):
        told += [(f.severity, step) for f in doctor.observe(step, {"rollout/truncated_frac": share})]
    assert [severity for severity, _ in told] == ["warning", "error"]
    assert told[0][1] == 5  # as soon as there are enough steps for a mean
    assert 11 < told[1][1] <= 15


def shortened(run: Path, steps: int, **metrics) -> None:
    rewrite(run, after(1, **metrics))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:steps]))


ALL_WRONG = {"reward__mean": 0.0, "reward__equal_frac": 1.0, "rollout__truncated_frac": 1.0}


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_what_shows_at_once_is_said_at_once(run, steps, capsys):
    """All rewards 0, all groups equal, all completions cut off: no five steps are needed to see that."""
    shortened(run, steps, **ALL_WRONG, reward__correct_frac=0.0, verify__unparsed_frac=1.0)
    found = findings(run)
    assert {"Truncated completions", "Groups with equal rewards", "Unreadable answers"} <= set(found)
    assert "of the first" in found["Truncated completions"][1]
    assert "easier problems" in found["Groups with equal rewards"][1]
    assert main(["doctor", str(run)]) == 1
    told = capsys.readouterr().out
    assert f"rules found something wrong in {steps} step" in told
    assert "the others have too few steps to judge" in told
    doctor = Doctor(load_config(run / "config.toml"))
    row = {name.replace("__", "/"): value for name, value in ALL_WRONG.items()}
    assert {f.rule for f in doctor.observe(1, row)} >= {"Truncated completions", "Groups with equal rewards"}


def test_a_few_steps_are_too_few_to_judge(run, capsys):
    shortened(run, 4, rollout__truncated_frac=0.9, reward__equal_frac=0.95)
    assert not {s for s, _ in findings(run).values()} & {"warning", "error"}
    assert main(["doctor", str(run)]) == 0
    told = capsys.readouterr().out
    assert "Too few steps to judge" in told
    assert "nothing wrong" not in told
    page = write_report(run).read_text()
    assert "too few steps to judge" in page
    assert "saw nothing wrong" not in page


def test_two_groups_alike_are_chance(run):
    config = load_config(run / "config.toml")
    few = config.model_copy(update={"rollout": config.rollout.model_copy(update={"problems_per_step": 3})})
    rows = [{"step": step, "reward/equal_frac": 1.0, "reward/correct_frac": 0.5} for step in (1, 2, 3, 4)]
    assert not diagnose(rows, few)
    assert [f.rule for f in diagnose(rows, config)] == ["Groups with equal rewards"]
    rows[1]["reward/equal_frac"] = 0.9
    assert not diagnose(rows, config)


def test_a_run_without_steps_has_no_findings(run, capsys):
    (run / "metrics.jsonl").write_text("")
    assert main(["doctor", str(run)]) == 0
    assert "Too few steps to judge" in capsys.readouterr().out
    assert main(["doctor", str(run / "nothing")]) == 2
    assert "not a run folder" in capsys.readouterr().err
