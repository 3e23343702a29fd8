"""Training while sampling: a group trains as soon as it is judged, while others of its step are sampled.

The step is the same as one after the other. Nothing moves before all groups have trained, so that all are of
one policy; and a gradient is a sum over groups, which may be formed in any order. What the loss is divided by
is known with the last group: parts are added up with totals of 1, and their sum is scaled once, before it is
clipped. Only what a group knows by itself can train so (``Algorithm.needs_whole_step``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from mathrl.algorithms.losses import Totals
from mathrl.algorithms.table import Algorithm
from mathrl.config import Config
from mathrl.distributed.agreement import any_rank
from mathrl.distributed.group import alone
from mathrl.errors import NonFiniteError
from mathrl.rewards.scorer import RewardScorer, could_be_judged
from mathrl.rollout.base import Engine
from mathrl.rollout.group_stream import GroupStream
from mathrl.training.batch import collate, merge_shares
from mathrl.training.objective import Meter
from mathrl.training.pace import Pace
from mathrl.training.update_rule import Made, Update
from mathrl.types import Batch, Group, Problem

if TYPE_CHECKING:
    from mathrl.policy.model import Policy

_ENOUGH = 16384  # tokens that are worth a pass of their own: fewer leave a fast GPU waiting for launches


def why_in_turn(
    config: Config, algorithm: Algorithm, engine: Engine, rewards: RewardScorer, policy: Policy
) -> str:
    """Why groups train only after all of them are sampled; empty where they can train meanwhile."""
    if config.train.overlap == "off":
        return "train.overlap says so"
    if config.train.overlap == "auto" and policy.device.type != "cuda":
        return "on a CPU both take the same cores"
    if algorithm.needs_whole_step:
        return algorithm.needs_whole_step
    if rewards.asks_whole_step:
        return f"reward function {rewards.asks_whole_step} is given all completions of a step at once"
    if not engine.streams:
        return f"engine {engine.name} tells of completions at the end, or samples from the trained model"
    return ""


@dataclass
class Overlap:
    """What has trained of the step under way: ``begin``, ``sample`` for each refill, ``finish``.

    Args:
        prepare: adds to a batch what the update asks for, but for what other groups have to say.
    """

    config: Config
    algorithm: Algorithm
    engine: Engine
    rewards: RewardScorer
    policy: Policy
    update: Update
    prepare: Callable[[Batch], Batch]
    pace: Pace | None = field(init=False)  # None: every step overlaps

    def __post_init__(self) -> None:
        self.pace = Pace() if self.config.train.overlap == "auto" else None

    @property
    def on(self) -> bool:
        """Whether the step under way trains while it samples."""
        return self.pace is None or self.pace.overlaps

    def begin(self) -> None:
        """Forget the step before."""
        for parameter in self.update.parameters:
            parameter.grad = None
        self._loss = torch.zeros((), dtype=torch.float64, device=self.policy.device)
        self._meter = Meter()
        self._parts: list[tuple[list[Group], Batch]] = []
        self._tokens = self._tokens_meanwhile = 0
        self._sampling_s = 0.0
        self._failed = False

    def sample(
        self, problems: Sequence[Problem], seed: int, clock: Callable[[str], AbstractContextManager[None]]
    ) -> list[Group]:
        """Scored groups of the problems, in order; those that the algorithm selects have trained.

        The clock's "rollout" is what training waits for; nothing here asks other ranks.

        Raises:
            UserError: of the engine, or a completion does not fit in memory; the sampling is broken off.
        """
        scored: dict[int, Group] = {}
        waiting: list[Group] = []
        group_size = self.config.rollout.group_size
        with alone(), GroupStream(self.engine, problems, group_size, seed, self.rewards.submit) as stream:
            arrivals = iter(stream)
            while True:
                with clock("rollout"):
                    arrived = next(arrivals, None)
                if arrived is None:
                    break
                with clock("verify"):
                    judged = self.rewards.score([group for _, group in arrived])
                scored.update(zip((p for p, _ in arrived), judged, strict=True))
                waiting += self.algorithm.select(could_be_judged(judged))
                while sum(map(_size, waiting)) >= min(_ENOUGH, self._most):
                    self._train(self._taken(waiting), clock, meanwhile=stream.sampling)
            while waiting:
                self._train(self._taken(waiting), clock, meanwhile=stream.sampling)
        self._sampling_s += stream.seconds
        return [scored[p] for p in range(len(problems))]

    def finish(self, selected: Sequence[Group], own: Sequence[bool]) -> Made | None:
        """The gradient of the step's groups; None where none has been made.

        So it is where a loss was not finite on any rank: what is wrong shows again one after the other.

        Args:
            selected: all that train in this step, the same list on every rank.
            own: of each group whether it is this rank's.
        """
        if not self.on or any_rank(self._failed):
            return None
        first, num_places = {}, 0
        for group in selected:
            first[id(group)] = num_places
            num_places += len(group.completions)
        trained = [group for groups, _ in self._parts for group in groups]
        assert {id(g) for g in trained} == {id(g) for g, mine in zip(selected, own, strict=True) if mine}
        with alone():
            parts = self._parts or [([], self._batch([]))]
        shares = []
        for groups, batch in parts:
            places = [first[id(g)] + i for g in groups for i in range(len(g.completions))]
            on_device = torch.tensor(places, dtype=torch.long, device=self.policy.device)
            shares.append(replace(batch, places=on_device))
        order = torch.cat([share.places for share in shares if share.places is not None]).sort().values
        batch = merge_shares(shares) if len(order) else shares[0]
        return Made(self.policy, replace(batch, places=order, num_places=num_places), self._loss, self._meter)

    def metrics(self) -> dict[str, float]:
        """Seconds of sampling, and the share of the trained tokens whose training began within them."""
        if not self.on:
            return {}
        share = self._tokens_meanwhile / max(self._tokens, 1)
        return {"overlap/sampling_s": self._sampling_s, "overlap/trained_frac": share}

    @property
    def _most(self) -> int:
        return self.update.loss.micro_batches.max_tokens

    def _taken(self, waiting: list[Group]) -> list[Group]:
        """The first groups, of a micro-batch's tokens together or one; ``waiting`` loses them."""
        taken = [waiting.pop(0)]
        size = _size(taken[0])
        while waiting and size + _size(waiting[0]) <= self._most:
            size += _size(waiting[0])
            taken.append(waiting.pop(0))
        return taken

    def _train(
        self, groups: list[Group], clock: Callable[[str], AbstractContextManager[None]], *, meanwhile: bool
    ) -> None:
        if self._failed:
            return
        with clock("forward"):
            batch = self._batch(groups)
        try:
            with clock("update"):
                self._loss += self.update.loss.backward(self.policy, batch, self._meter, Totals(1.0, 1.0))
        except NonFiniteError:  # the rest is sampled, and the whole step tells whose fault it is
            self._failed = True
            return
        self._parts.append((groups, batch))
        self._tokens += batch.num_tokens
        self._tokens_meanwhile += batch.num_tokens * meanwhile

    def _batch(self, groups: Sequence[Group]) -> Batch:
        return self.prepare(collate(groups, self.policy.pad_id).to(self.policy.device))


def _size(group: Group) -> int:
    """Tokens of a micro-batch that a group takes, its prompt counted once."""
    return len(group.prompt_ids) + sum(len(c.token_ids) for c in group.completions)
