"""Proof that the engine samples from the trained weights: both score the same tokens after every sync.

The proof costs a step next to nothing. The trainer scores while the engine loads; the engine scores beside
the first completions that it samples from the new weights (``score_with_next``). So it is whole when they
are, and before anything is made of them: until then nothing that they change has moved.

Two tests, because rounding hides small moves. The *gap* test compares engine and trainer directly and finds
what is grossly wrong: an adapter without its scaling, a prompt whose keys and values are another version's.
A policy that moves by 0.01 nats a step under rounding of 0.05 nats passes it for long with weights that
never arrive. The *move* test therefore asks which trainer the engine is nearer to: today's or that of the
last sync that was proved. With t₀, t₁ the trainer's log-odds of the tokens then and now and e₁ the engine's,

    arrived = <e₁ − t₀, t₁ − t₀> / ‖t₁ − t₀‖²

is 1 where the move arrived and 0 where it did not, up to rounding, which pulls both towards ½ by the same
amount; its standard error falls with the number of tokens. A move too small to tell stays open, and is added
to the next.

Log-odds, log p − log(1 − p), because rounding moves all logits alike: a sure token's log-probability hardly
shows it and an unlikely one's shows all of it, so that one or two of them would decide the test. The standard
error is that of leaving out one token at a time (HC3: MacKinnon and White 1985, Journal of Econometrics 29),
which no single token can make small.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from mathrl.errors import NonFiniteError, UserError
from mathrl.rollout.base import Engine
from mathrl.training.batch import padded
from mathrl.types import Batch, Problem, Sampling, TokenOutputs

NUM_PROBLEMS = 16
NUM_TOKENS = 16  # of each problem's completion
_SIGMAS = 5.0  # certainty of the move test: one false alarm in millions of syncs


_ADVICE = (
    "the last checkpoint is good: resume from it, with --rollout.engine transformers if this comes again"
)


class SyncError(UserError):
    """The engine does not sample from the weights that are trained."""


class TrainerSide(Protocol):
    """What scores tokens for the trainer: ``mathrl.policy.model.Policy``."""

    pad_id: int
    version: int

    def logprobs(self, batch: Batch, *, temperature: float | None = None) -> TokenOutputs: ...


@dataclass(frozen=True, slots=True)
class Move:
    """How much of the policy's move since the last proof the engine has followed."""

    arrived: float  # 1: all of it, 0: none
    error: float  # standard error
    size: float  # root mean square over the tokens, of log-odds

    @property
    def proved(self) -> bool:
        return self.arrived - _SIGMAS * self.error > 0.5

    @property
    def refuted(self) -> bool:
        return self.arrived + _SIGMAS * self.error < 0.5


def measure_move(engine: Tensor, before: Tensor, now: Tensor) -> Move:
    """(n,) log-probabilities: the engine's, the trainer's at the last proof and the trainer's now."""
    engine, before, now = (_log_odds(logprobs) for logprobs in (engine, before, now))
    move, followed = now - before, engine - before
    squares = float(move.square().sum())
    if squares == 0.0:
        return Move(math.nan, math.inf, 0.0)
    arrived = float((followed * move).sum()) / squares
    share = move.square() / squares  # a token's part in the fit
    left_out = (followed - arrived * move) / (1.0 - share).clamp_min(1e-12)
    error = float((move * left_out).square().sum()) ** 0.5 / squares
    return Move(arrived, error if len(move) > 1 else math.inf, math.sqrt(squares / len(move)))


def _log_odds(logprobs: Tensor) -> Tensor:
    """log p − log(1 − p), with p at most 1 − 10⁻⁶: nearer to 1 float32 has no digits left."""
    logprobs = logprobs.double().clamp_max(-1e-6)
    return logprobs - torch.log(-torch.expm1(logprobs))


@dataclass(slots=True)
class _Begun:
    """A sync whose proof is under way."""

    version: int
    logprobs: Tensor  # (n, T) the trainer's, float64
    scores: Callable[[], list[list[float]]]  # the engine's
    metrics: dict[str, float]


class Sentinel:
    """Proves each sync of an engine, always on the same tokens: ``begin`` loads, ``finish`` tells.

    An engine that shares the policy's model object (no ``score``) has nothing to prove and is not checked.
    One that has ``score`` alone, and no ``score_with_next``, is asked as soon as it has loaded.

    Args:
        engine: holds the policy's weights when this is made; it samples the tokens once. Each of its
            replicas scores a share of them and is tested by itself.
        policy: the trainer.
        problems: the first 16 are used.
        max_gap: nats; largest mean |engine − trainer| over the tokens of one problem.
    """

    def __init__(
        self, engine: Engine, policy: TrainerSide, problems: Sequence[Problem], max_gap: float
    ) -> None:
        self.max_gap, self.policy = max_gap, policy
        self._score = getattr(engine, "score", None)
        self._score_with_next = getattr(engine, "score_with_next", None)
        self._replicas = getattr(engine, "num_replicas", 1)  # replica r scores rows r, r + N, …
        self._proved: dict[int, Tensor] = {}  # replica -> (n,) trainer's log-probabilities at its last proof
        self._begun: _Begun | None = None
        self._found: dict[str, float] = {}  # of an engine that was asked at once
        if self._score is None:
            return
        self._problems = list(problems[:NUM_PROBLEMS])
        greedy = Sampling(temperature=0.0, max_completion_tokens=NUM_TOKENS, logprobs=False)
        groups = engine.sample(self._problems, 1, greedy)
        self._prompts = [group.prompt_ids for group in groups]
        self._completions = [group.completions[0].token_ids for group in groups]
        self._batch = _batch(self._prompts, self._completions, policy.pad_id)

    @property
    def waits(self) -> bool:
        """Whether a sync has begun whose proof has not been finished, or failed."""
        return self._begun is not None

    def begin(self, load: Callable[[], None] = lambda: None) -> None:
        """Hand new weights to the engine, and begin to prove that it samples from them.

        Args:
            load: gives the policy's weights to the engine; called in a thread, while the trainer scores here.

        Raises:
            NonFiniteError: the trainer's own numbers are not finite.
            SyncError: as ``finish``, where the engine can be asked at once alone.
            Exception: what ``load`` raises.
        """
        self._begun, self._found = None, {}  # of weights that are no longer there
        if self._score is None:
            load()
            return
        start = time.perf_counter()
        logprobs, trained, loaded = self._load_and_score(load)
        if not bool(logprobs.isfinite().all()):
            raise NonFiniteError(
                f"after the update to version {self.policy.version} the trainer's log-probabilities are "
                "not finite: the weights have overflowed, no engine is to blame; go back to a checkpoint, "
                "with a lower update.learning_rate"
            )
        if self._score_with_next is None:
            scores = partial(self._score, self._prompts, self._completions)
        else:
            scores = self._score_with_next(self._prompts, self._completions).result
        seconds = {
            "sync/sentinel_s": time.perf_counter() - start - loaded,
            "sync/sentinel_trainer_s": trained,
        }
        self._begun = _Begun(self.policy.version, logprobs, scores, seconds)
        if self._score_with_next is None:
            self._found = self.finish()

    def finish(self) -> dict[str, float]:
        """Compare engine and trainer, after the sampling that follows ``begin``, or without any.

        Nothing may be made of what the engine sampled before this has returned. Where it has raised it raises
        again, until a new ``begin``.

        Returns:
            ``sync/sentinel_gap`` (nats, the worst problem's mean); where the policy has moved,
            ``sync/arrived`` and ``sync/arrived_error``; ``sync/sentinel_s``, seconds that the proof was
            waited for; ``sync/sentinel_trainer_s``, that the trainer took to score. Empty where it has been
            told.

        Raises:
            SyncError: the gap is above the bound or no number, or the policy's move did not arrive.
        """
        if self._begun is None:
            found, self._found = self._found, {}
            return found
        start, begun = time.perf_counter(), self._begun
        metrics = self._compare(begun.version, begun.logprobs, begun.scores())
        self._begun = None
        waited = begun.metrics["sync/sentinel_s"] + time.perf_counter() - start
        return begun.metrics | {"sync/sentinel_s": waited} | metrics

    def check(self) -> dict[str, float]:
        """``begin`` and ``finish``: compare the two as they are, now."""
        self.begin()
        return self.finish()

    def _load_and_score(self, load: Callable[[], None]) -> tuple[Tensor, float, float]:
        """The trainer's (n, T) log-probabilities; seconds that it took, and that the engine took to load."""

        def timed() -> float:
            start = time.perf_counter()
            load()
            return time.perf_counter() - start

        with ThreadPoolExecutor(1, thread_name_prefix="loading") as engine_side:
            loading = engine_side.submit(timed)
            start = time.perf_counter()
            try:
                with torch.no_grad():
                    logprobs = self.policy.logprobs(self._batch, temperature=1.0).logprobs.double().cpu()
            except Exception:
                loading.result()  # an engine that has ended comes first: a run can go on from that by itself
                raise
            trained = time.perf_counter() - start
            return logprobs, trained, loading.result()

    def _compare(self, version: int, logprobs: Tensor, scores: Sequence[Sequence[float]]) -> dict[str, float]:
        mask = self._batch.loss_mask
        engine = torch.zeros_like(logprobs)
        engine[mask] = torch.tensor([value for row in scores for value in row], dtype=torch.float64)
        gaps = (engine - logprobs).abs().sum(dim=1) / mask.sum(dim=1)
        worst = int(gaps.nan_to_num(nan=math.inf).argmax())
        gap = float(gaps[worst])
        if not gap <= self.max_gap:
            raise SyncError(
                f"after the sync to version {version} engine and trainer differ by {gap:.3g} "
                f"nats a token on problem {self._problems[worst].id!r} (bound: rollout.max_sync_gap "
                f"{self.max_gap:g}): the engine does not sample from the trained weights; {_ADVICE}"
            )
        moves = []
        for replica in range(min(self._replicas, len(mask))):
            rows = slice(replica, None, self._replicas)
            own = mask[rows]
            moves.append(self._check_move(version, replica, engine[rows][own], logprobs[rows][own]))
        least = min(moves, key=lambda m: m.get("sync/arrived", math.inf))
        return {"sync/sentinel_gap": gap} | least

    def _check_move(self, version: int, replica: int, engine: Tensor, now: Tensor) -> dict[str, float]:
        if replica not in self._proved:
            self._proved[replica] = now
            return {}
        move = measure_move(engine, self._proved[replica], now)
        if move.refuted:
            raise SyncError(
                f"after the sync to version {version} only {move.arrived:.0%} ± {move.error:.0%} "
                f"of the policy's move since the last proved sync (log-odds by {move.size:.2g}) has "
                f"arrived at the engine: it still samples from older weights; {_ADVICE}"
            )
        if move.proved:
            self._proved[replica] = now
        if move.size == 0.0:
            return {}
        return {"sync/arrived": move.arrived, "sync/arrived_error": move.error}


def _batch(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int) -> Batch:
    """One completion a prompt; only what log-probabilities need."""
    ids, mask = padded(completions, pad_id)
    return Batch(
        prompts=tuple(torch.tensor(prompt) for prompt in prompts),
        group_ids=torch.arange(len(prompts)),
        completion_ids=ids,
        loss_mask=mask,
        rewards=torch.zeros(len(prompts)),
        truncated=torch.zeros(len(prompts), dtype=torch.bool),
    )
