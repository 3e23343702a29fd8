"""Over-optimisation is told where reward and verified accuracy part beyond noise, and nowhere else."""

import json
import math
import random
from pathlib import Path

import pytest

from mathrl.config import Config
from mathrl.report.doctor import diagnose
from mathrl.report.over_optimisation import find_drift


def rows(num, accuracy, reward, noise=0.03, seed=0, model=True):
    """Metrics of a run: accuracy and reward as functions of the step, each with noise."""
    rng = random.Random(seed)
    found = []
    for step in range(1, num + 1):
        right = accuracy(step) + rng.gauss(0, noise)
        paid = reward(step) + rng.gauss(0, noise)
        row = {"step": step, "reward/correct_frac": right, "reward/mean": paid, "reward/answer": 0.0}
        found.append(row | ({"reward/model": paid, "reward/std": 9.0 + step} if model else {}))
    return found


def up(step):
    return 0.2 + 0.5 * min(step, 30) / 30


def hill(step):
    return 0.2 + 0.5 * min(step, 30) / 30 - 0.3 * max(step - 30, 0) / 30


def rising(step):
    return step / 20


def test_a_reward_that_rises_while_accuracy_falls():
    drift = find_drift(rows(60, hill, rising))
    assert drift is not None
    assert 25 <= drift.step <= 40
    assert drift.accuracy == pytest.approx((0.67, 0.45), abs=0.05)
    assert drift.reward == pytest.approx((1.6, 2.8), abs=0.25)
    assert drift.part == "model"  # not the spread of rewards, which rose by more
    assert drift.part_values == pytest.approx(drift.reward)


@pytest.mark.parametrize("seed", range(12))
def test_noise_alone_and_healthy_runs_are_no_drift(seed):
    assert find_drift(rows(60, up, rising, seed=seed)) is None  # both rise
    assert find_drift(rows(60, lambda s: 0.5, lambda s: 1.0, noise=0.06, seed=seed)) is None  # neither moves
    assert find_drift(rows(60, lambda s: 0.5, rising, noise=0.06, seed=seed)) is None  # the reward alone
    assert find_drift(rows(60, hill, lambda s: hill(s) * 2, seed=seed)) is None  # they fall together


def test_a_reward_that_rose_before_and_holds_while_accuracy_falls():
    """As a real run has it: the reward is at its height when accuracy is, and stays there."""
    drift = find_drift(rows(80, hill, lambda s: min(s, 25) / 20 + s / 400))
    assert drift is not None
    assert drift.reward[1] > drift.reward[0]


def test_a_run_with_a_reward_model_alone_is_named():
    kept = json.loads(Path(__file__).with_name("over_optimised_run.json").read_text())
    names = ("reward/mean", "reward/correct_frac")
    run = [
        {"step": step, **dict(zip(names, values, strict=True)), "reward/model": values[0]}
        for step, values in enumerate(zip(*map(kept.get, names), strict=True), 1)
    ]
    drift = find_drift(run)
    assert drift is not None
    assert drift.accuracy == pytest.approx((0.601, 0.221), abs=0.001)
    assert drift.reward == pytest.approx((0.691, 0.813), abs=0.001)
    (found,) = (f for f in diagnose(run, Config()) if f.rule == "Over-optimisation")
    assert found.severity == "error"
    right = [row | {"reward/mean": row["reward/correct_frac"]} for row in run]
    assert (
        find_drift(right) is None
    )  # by the verifier's reward it would be a collapse, and no over-optimisation


def test_few_steps_and_missing_numbers_say_nothing():
    assert find_drift(rows(15, lambda s: 1 - s / 15, rising)) is None
    assert find_drift([{"step": s, "reward/mean": 1.0} for s in range(40)]) is None
    broken = rows(60, hill, rising)
    for row in broken[::7]:
        row["reward/correct_frac"] = math.nan
    assert find_drift(broken) is not None


def test_the_doctor_names_it_and_what_to_do():
    said = {f.rule: f for f in diagnose(rows(60, hill, rising), Config())}
    finding = said["Over-optimisation"]
    assert finding.severity == "error"  # a quarter of the best accuracy is gone
    for word in ("reward/model from", "verified accuracy fell from", "algorithm.kl_coef", "--trained"):
        assert word in finding.text
    mild = rows(60, lambda s: up(s) - 0.1 * max(s - 30, 0) / 30, rising, noise=0.01)
    assert {f.rule: f.severity for f in diagnose(mild, Config())}["Over-optimisation"] == "warning"
    assert "Over-optimisation" not in {f.rule for f in diagnose(rows(60, up, rising), Config())}
