"""What is wrong with a run, in words: rules over its metrics, live on the console and after the fact.

A rule looks at the steps so far and says nothing, or what it saw and what to do. ``mathrl doctor RUN`` and
the report apply the same rules to a run on disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Literal

from rich.console import Console

from mathrl.config import Config
from mathrl.report.over_optimisation import find_drift
from mathrl.report.steps_so_far import WINDOW, StepsSoFar

Severity = Literal["note", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule has to say; a note is nothing to worry about."""

    severity: Severity
    rule: str  # a title in words
    text: str
    step: int  # the last step it looked at


def diagnose(rows: Sequence[Mapping[str, Any]], config: Config) -> list[Finding]:
    """All findings about steps (rows of metrics.jsonl, by step), the gravest first."""
    if not rows:
        return []
    steps = StepsSoFar(rows, config)
    found = []
    for title, rule in RULES.items():
        for severity, text in rule(steps):
            found.append(Finding(severity, title, text, 1 if rule is first_loss else steps.step))
    return sorted(found, key=lambda f: ("error", "warning", "note").index(f.severity))


class Doctor:
    """The rules beside a run: each finding is told once, and again where it has become graver."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.rows: list[dict[str, Any]] = []
        self._told: set[tuple[str, str]] = set()

    def observe(self, step: int, metrics: Mapping[str, float]) -> list[Finding]:
        """New findings after a step."""
        self.rows.append({"step": step, **metrics})
        new = [f for f in diagnose(self.rows, self.config) if (f.rule, f.severity) not in self._told]
        self._told |= {(f.rule, f.severity) for f in new}
        return new


Said = Iterator[tuple[Severity, str]]


def truncated(h: StepsSoFar) -> Said:
    share = h.recent("rollout/truncated_frac")
    if h.plain("rollout/truncated_frac") and share > 0.2:
        limit = h.config.rollout.max_completion_tokens
        yield (
            "error" if share > 0.5 else "warning",
            f"{share:.0%} of the completions{h.so_far} are cut off at rollout.max_completion_tokens = "
            f"{limit}, most of them before an answer: raise the limit, or let a shorter style pay "
            "(algorithm.overlong_buffer, reward.length).",
        )


def equal_rewards(h: StepsSoFar) -> Said:
    share = h.recent("reward/equal_frac")
    if not h.plain("reward/equal_frac") or share <= 0.8:
        return
    right = h.recent("reward/correct_frac")
    if right > 0.9:
        why = "almost all answers are right: take harder problems"
    elif right < 0.1:
        why = "almost no answer is right: take easier problems, more SFT, or a larger rollout.group_size"
    else:
        why = (
            "most problems are solved always or never: raise rollout.temperature or rollout.group_size, or "
            "take problems in between"
        )
    yield (
        "error" if share > 0.98 else "warning",
        f"In {share:.0%} of the groups{h.so_far} all completions earned the same, so nothing can be learned "
        f"from them; {why}.",
    )


def first_loss(h: StepsSoFar) -> Said:
    row = h.first()
    if row is None or row.get("policy/loss") is None or row.get("policy/grad_norm") is None:
        return
    if row["policy/grad_norm"] == 0 and row.get("reward/equal_frac", 1.0) < 1:
        yield (
            "error",
            "The first step's gradient is exactly 0 although rewards differ: nothing can be learned. Is the "
            "loss mask empty, or the adapter frozen?",
        )
    elif row["policy/grad_norm"] == 0:
        yield (
            "note",
            "Loss and gradient of the first step are 0: in every group all completions earned the same.",
        )
    elif abs(row["policy/loss"]) < 1e-4 * max(1.0, row["policy/grad_norm"]):
        yield (
            "note",
            "The loss of the first step is 0, as it should be: new and old policy are the same there and "
            f"advantages have mean 0. Its gradient is not 0 (norm {row['policy/grad_norm']:.3g}).",
        )


def sampler_mismatch(h: StepsSoFar) -> Said:
    gap, ess = h.recent("sync/gap_mean"), h.recent("sync/ess", 1.0)
    row = h.first()
    if row is not None and len(h.rows) < WINDOW:  # the very first update already tells
        gap, ess = row.get("sync/gap_mean") or 0.0, row.get("sync/ess") or 1.0
    cut = h.config.rollout.top_p < 1 or h.config.rollout.top_k > 0
    if gap <= (0.5 if cut else 0.1) and ess >= 0.8:
        return
    why = "top_p or top_k make the sampler another distribution than the trainer's" if cut else (
        "does the engine hold the newest adapter, and the same temperature and precision?"
    )  # fmt: skip
    yield (
        "error" if gap > 1.0 or ess < 0.5 else "warning",
        f"Sampler and trainer disagree by {gap:.2g} nats a token (effective sample size {ess:.0%}) before "
        f"the policy has moved, where their ratio should be 1: {why}",
    )


def kl_below_noise(h: StepsSoFar) -> Said:
    values = h.values("policy/kl_ref")
    if len(values) < 2 * WINDOW:
        return
    half = h.config.model.dtype == "bfloat16" or (
        h.config.model.dtype == "auto" and bool(h.values("memory/gpu_peak_mib"))
    )
    noise, now = (2e-3 if half else 1e-6), h.recent("policy/kl_ref")
    if now < noise:
        yield (
            "warning",
            f"After {h.step} steps the KL to the reference is {now:.1g} nats a token, which rounding alone "
            f"gives in {'bfloat16' if half else 'float32'} (about {noise:g}): the policy has hardly moved. "
            "Raise update.learning_rate or lower algorithm.kl_coef.",
        )


def kl_running_away(h: StepsSoFar) -> Said:
    # medians, over completions and over steps: a single unlikely token can make most of a step's mean
    values = h.values("policy/kl_ref_median") or h.values("policy/kl_ref")
    if len(values) < WINDOW:
        return
    now, beyond = median(values[-WINDOW:]), h.recent("policy/kl_knee_frac")
    before = median(values[-2 * WINDOW : -WINDOW]) if len(values) >= 2 * WINDOW else math.inf
    growing = now > 0.5 and now > 2 * before
    if now > 2.0 or growing or beyond > 0.01:
        far = f", and {beyond:.1%} of the tokens are beyond the knee" if beyond > 0 else ""
        yield (
            "error" if now > 2.0 or beyond > 0.01 else "warning",
            f"The KL to the reference is {now:.2g} nats a token{' and doubling' if growing else ''}{far}: "
            "the policy runs away from what it could do. Raise algorithm.kl_coef (or set kl_target), or "
            "lower update.learning_rate.",
        )


def entropy_collapse(h: StepsSoFar) -> Said:
    values = h.values("policy/entropy")
    if len(values) < 2 * WINDOW:
        return
    start, now = fmean(values[:WINDOW]), h.recent("policy/entropy")
    if now < 0.1 * start and h.recent("reward/correct_frac", 1.0) < 0.9:
        yield (
            "warning",
            f"The entropy fell from {start:.2g} to {now:.2g} nats a token while many answers are still "
            "wrong: the completions of a group are nearly the same, and little is left to learn from. Raise "
            "algorithm.clip_high or rollout.temperature, or lower update.learning_rate.",
        )


def held_out_falls(h: StepsSoFar) -> Said:
    rows = [r for r in h.rows if isinstance(r.get("held_out/accuracy"), int | float)]
    if len(rows) < 2:
        return
    best, last = max(rows, key=lambda r: r["held_out/accuracy"]), rows[-1]
    # twice in a row: the best of many looks is lucky, and a policy at a high learning rate goes up and down
    if any(r.get("held_out/accuracy_high", 1.0) >= best["held_out/accuracy"] for r in rows[-2:]):
        return
    then = fmean(_window(h.rows, best["step"]))
    now = fmean(_window(h.rows, last["step"]))
    if now > then:
        yield (
            "error",
            f"The training reward rose from {then:.2f} to {now:.2f} after step {best['step']:.0f} while "
            f"held-out accuracy fell from {best['held_out/accuracy']:.1%} to "
            f"{last['held_out/accuracy']:.1%}: the policy memorises or exploits the reward. Keep the best "
            "checkpoint (mathrl export --which best), look at samples.jsonl, use more problems.",
        )


def _window(rows: Sequence[Mapping[str, Any]], step: float) -> list[float]:
    """Training rewards of the WINDOW steps up to this one."""
    return [r["reward/mean"] for r in rows if step - WINDOW < r["step"] <= step and "reward/mean" in r] or [
        0.0
    ]


def over_optimisation(h: StepsSoFar) -> Said:
    drift = find_drift(h.rows)
    if drift is None:
        return
    (was, now), (before, after) = drift.accuracy, drift.reward
    low, high = drift.part_values
    part = f" (reward/{drift.part} from {low:.2f} to {high:.2f})" if drift.part else ""
    yield (
        "error" if now < 0.75 * was else "warning",
        f"Since step {drift.step} verified accuracy fell from {was:.1%} to {now:.1%} while the reward went "
        f"from {before:.2f} to {after:.2f}{part}: over-optimisation, the policy finds what "
        "is paid and not what is right. Keep the best checkpoint (mathrl export --which best), raise "
        "algorithm.kl_coef, give the verifier more weight (reward.correct), or train the reward model on "
        "answers of this policy (mathrl pairs RUN --trained).",
    )


def verifier_trouble(h: StepsSoFar) -> Said:
    late, broken = h.recent("verify/timeout_frac"), h.recent("verify/error_frac")
    if late + broken > 0.01:
        yield (
            "error" if late + broken > 0.1 else "warning",
            f"{late:.1%} of the verdicts timed out and {broken:.1%} failed: these answers earned the reward "
            "of a wrong one whatever they were. Raise reward.timeout_s or reward.num_workers; mathrl judge "
            "shows which.",
        )


def bad_references(h: StepsSoFar) -> Said:
    values = h.values("verify/bad_reference_frac")
    share = fmean(values) if values else 0.0
    if share > 0:
        yield (
            "error" if share > 0.05 else "warning",
            f"{share:.1%} of the completions were sampled for problems whose reference answer no verifier "
            "can read (BAD_REFERENCE); they never train. Check data.answer_field and data.answer_type.",
        )


def unparsed_answers(h: StepsSoFar) -> Said:
    share = h.recent("verify/unparsed_frac")
    if h.plain("verify/unparsed_frac") and share > 0.05:
        yield (
            "error" if share > 0.3 else "warning",
            f"{share:.0%} of the answers{h.so_far} were found but could not be read (UNPARSED) and count as "
            f"wrong: is data.answer_type right? Some of them are in samples.jsonl.",
        )


def refused_steps(h: StepsSoFar) -> Said:
    values = h.values("trust_region/accepted")
    if len(values) >= WINDOW and not any(values[-WINDOW:]):
        yield (
            "warning",
            f"The last {WINDOW} trust-region steps were all refused, so the policy stands still: raise "
            "algorithm.cg_damping or algorithm.line_search_steps, or sample more completions a step.",
        )
    elif 0.0 in values:
        yield (
            "note",
            f"{values.count(0.0)} of {len(values)} trust-region steps were refused: no multiple was better "
            "within the KL that a step may move, so the old weights were kept.",
        )


def useless_critic(h: StepsSoFar) -> Said:
    values = h.values("value/explained_variance")
    if len(values) >= 2 * WINDOW and h.recent("value/explained_variance") < -0.1:
        yield (
            "warning",
            f"The value model predicts returns worse than their mean does (explained variance "
            f"{h.recent('value/explained_variance'):.2f}): raise algorithm.value_warmup_steps or "
            "value_epochs, or lower value_learning_rate.",
        )


def not_finite(h: StepsSoFar) -> Said:
    names = sorted({n for row in h.rows for n, v in row.items() if v is None or v != v or abs(v) == math.inf})
    if names:
        yield "error", f"These metrics were not finite at some step: {', '.join(names[:6])}."


RULES: dict[str, Callable[[StepsSoFar], Said]] = {
    "Numbers that are not finite": not_finite,
    "Truncated completions": truncated,
    "Groups with equal rewards": equal_rewards,
    "Loss of the first step": first_loss,
    "Sampler and trainer disagree": sampler_mismatch,
    "KL below noise": kl_below_noise,
    "KL running away": kl_running_away,
    "Entropy collapse": entropy_collapse,
    "Reward up, held-out accuracy down": held_out_falls,
    "Over-optimisation": over_optimisation,
    "Verifier timeouts and errors": verifier_trouble,
    "Unreadable references": bad_references,
    "Unreadable answers": unparsed_answers,
    "Refused trust-region steps": refused_steps,
    "Value model without use": useless_critic,
}


def last_word(wrong: int, steps: int, where: str) -> str:
    """How many rules found something wrong, and whether there was enough to look at."""
    seen = f"{steps} step{'s' * (steps != 1)} of {where}"
    if wrong:
        few = "; the others have too few steps to judge" if steps < WINDOW else ""
        return f"{wrong} of {len(RULES)} rules found something wrong in {seen}{few}."
    if steps < WINDOW:
        return f"Too few steps to judge: nothing shows at once in {seen}, and most rules look at {WINDOW}."
    return f"{len(RULES)} rules found nothing wrong in {seen}."


def tell(console: Console, finding: Finding) -> None:
    """One finding in a line."""
    colour = {"note": "dim", "warning": "yellow", "error": "red"}[finding.severity]
    console.print(
        f"[{colour}]{finding.severity}[/] {finding.rule} (step {finding.step}): {finding.text}",
        soft_wrap=True,
    )
