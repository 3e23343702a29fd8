"""The loop: sample, verify, weigh, update, hand the new adapter to the engine; and nothing else."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from mathrl.algorithms.table import Algorithm
from mathrl.clock import Clock
from mathrl.config import Config
from mathrl.data.stream import ProblemStream
from mathrl.distributed.agreement import any_rank, on_rank_0, together
from mathrl.distributed.collectives import gather, own_share, sum_ranks, world_size
from mathrl.distributed.group import alone
from mathrl.distributed.timing import forget_calls, seconds_away, seconds_by_rank, step_metrics
from mathrl.errors import NonFiniteError, UserError
from mathrl.policy.model import Policy
from mathrl.rewards.scorer import RewardScorer, Terms, could_be_judged, rollout_metrics
from mathrl.rollout.base import Engine
from mathrl.training.annotate import annotate
from mathrl.training.batch import collate_share, without_truncated
from mathrl.training.blame import explain
from mathrl.training.compiled import compile_where_it_pays
from mathrl.training.dry_run import dry_step
from mathrl.training.micro_batching import MicroBatches
from mathrl.training.overlap import Overlap, why_in_turn
from mathrl.training.sentinel import Sentinel
from mathrl.training.sharing import all_groups, worst
from mathrl.training.update import Update
from mathrl.training.update_rule import Made
from mathrl.types import Batch, Completion, Group, Problem, derive_seed

Metrics = dict[str, float]


@contextmanager
def short_collections() -> Iterator[None]:
    """Keep Python's garbage collector from walking what lives already.

    With torch and vLLM that is most of a million objects, half a second again and again.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def rollout_seed(run_seed: int, step: int, refill: int) -> int:
    """The seed of a step's rollout, and others of its refills: they may ask the same problems again."""
    again = ("refill", refill) if refill else ()
    return derive_seed(run_seed, "rollout", step, *again)


@dataclass(frozen=True)
class Hooks:
    """Where something plugs into the loop; each is called after a step, with the number of steps done."""

    after_step: Callable[[int, Metrics, Sequence[Group]], None] = lambda done, metrics, groups: None
    should_stop: Callable[[int], bool] = lambda done: False
    on_batch: Callable[[int, Batch], None] = lambda index, batch: None  # just before the update
    say: Callable[[str], None] = lambda sentence: None  # to the user; nothing where it is empty
    stopping: Callable[[], bool] = lambda: False  # whether the run has been told to end, after this step
    interruptible: Callable[[], AbstractContextManager[None]] = nullcontext  # around what changes nothing
    reads: int | None = None  # a step's first groups, whose completions after_step reads; None: all


@dataclass
class Trainer:
    """One policy, one engine, one update rule; ``run`` goes from ``steps_done`` to the recipe's last step."""

    config: Config
    algorithm: Algorithm
    problems: ProblemStream
    engine: Engine
    rewards: RewardScorer
    policy: Policy
    update: Update
    hooks: Hooks = field(default_factory=Hooks)
    sentinel: Sentinel | None = None  # proves that new weights have reached the engine
    steps_done: int = 0
    seconds: float = 0.0  # that these steps took
    forward_parts: MicroBatches = field(init=False)  # cuts the forward passes before the update
    overlap: Overlap | None = field(init=False)  # trains groups while others are sampled
    why_in_turn: str = field(init=False)  # why there is no overlap
    rank_seconds: list[dict[str, float]] = field(default_factory=list)  # of the last step, by rank and phase
    _proof: Metrics = field(default_factory=dict, init=False)  # of the engine's weights, for the step's row
    _noted: tuple[list[int], dict[str, Any], Metrics] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.forward_parts = MicroBatches(self.config.update.micro_batch_tokens)
        of = (self.config, self.algorithm, self.engine, self.rewards, self.policy)
        self.why_in_turn = why_in_turn(*of)
        self.overlap = None if self.why_in_turn else Overlap(*of, self.update, self._prepare)

    def run(self) -> None:
        """Step until the recipe's last step, its time limit, or a hook says stop.

        On a GPU the longest possible micro-batch comes first; what does not fit fails at once.
        """
        with together("the first checks"), alone():
            if self.policy.device.type == "cuda" and not self.ended:
                done, seconds = self.steps_done, self.seconds
                self.hooks.say(compile_where_it_pays(self.config, self.policy, done, seconds))
                of = (self.config, self.algorithm, self.policy, self.update, self.forward_parts)
                self.hooks.say(dry_step(*of))
            if self.sentinel and not self.sentinel.waits:
                self.sentinel.begin()  # what later moves of the policy are measured from
        self._note({})
        with short_collections():
            while not (self.ended or any_rank(self.hooks.should_stop(self.steps_done))):
                metrics, groups = self.step(self.steps_done)
                self.steps_done += 1
                self.seconds += metrics["time/step_s"]
                self._note(metrics)
                self.hooks.after_step(self.steps_done, metrics, groups)
        with together("proving the last weights"):
            if not self.hooks.stopping():  # else nothing is sampled any more, and the engine may be gone
                self._prove()

    @property
    def ended(self) -> bool:
        """Whether the recipe's steps are made, or their time is spent."""
        limits = self.config.train
        return self.steps_done >= limits.num_steps or 0 < limits.max_seconds <= self.seconds

    def step(self, index: int) -> tuple[Metrics, list[Group]]:
        """Sample, verify, weigh, update once. Afterwards the engine samples from the newest policy.

        That it did so in this step has been proved before anything is changed (``Sentinel``).
        """
        policy = self.policy
        clock = Clock(synchronize=policy.device.type == "cuda", away=seconds_away)
        forget_calls()

        if self.overlap:
            self.overlap.begin()

        # P problems -> P groups of G scored completions; those that train, and which of them are sampled here
        with self._given_back():
            groups, selected, own = self._rollout(index, clock)
        metrics = rollout_metrics(could_be_judged(groups))  # before any selection: what the policy did
        metrics |= self.problems.observe(could_be_judged(groups))
        metrics["verify/bad_reference_frac"] = 1.0 - len(could_be_judged(groups)) / len(groups)
        if not selected:  # every group had equal rewards: nothing to learn from
            self.update.skip()
            return self._conclude(metrics | {"update/skipped": 1.0}, {}, clock), groups

        made = self.overlap.finish(selected, own) if self.overlap else None
        if made is not None:  # they have trained while others were sampled
            batch = made.batch
        else:
            batch = collate_share(selected, own, policy.pad_id).to(policy.device)
            with clock("forward"):
                batch = self._prepare(batch)
        if self.config.reward.mask_truncated and not sum_ranks(batch.loss_mask.sum()):
            self.update.skip()  # every completion was cut: nothing to learn from
            return self._conclude(metrics | {"update/skipped": 1.0}, {}, clock), groups
        self.hooks.on_batch(index, batch)
        with clock("update"):  # first order, or trust region (TRPO)
            metrics |= self._update(batch, made, selected, index)
        policy.version = index + 1
        self._note(metrics, index + 1)
        synced: Metrics = {}
        with together("handing over the weights"), clock("sync"):
            if not self.hooks.stopping():  # as above
                self._hand_over()
                synced |= getattr(self.engine, "sync_metrics", {})
        return self._conclude(metrics, synced, clock), groups

    def _hand_over(self) -> None:
        """From now on the engine samples from the policy as it is; the next ``_prove`` shows that it does."""
        adapter = self.policy.adapter()
        load = partial(self.engine.load, adapter, version=self.policy.version)
        write = getattr(self.engine, "write", None)
        if write is not None:  # here: two threads that run Python would wait for each other
            load = partial(load, written=write(adapter))
        if self.sentinel:
            self.sentinel.begin(load)
        else:
            load()

    def prove(self) -> None:
        """Call it before anything is made of what others have sampled from the trainer's engine.

        Raises:
            SyncError: on all ranks; the engine of one does not sample from the trained weights.
        """
        with together("proving the weights"):
            self._prove()

    def _prove(self) -> None:
        if self.sentinel:
            self._proof |= self.sentinel.finish()

    @contextmanager
    def _given_back(self) -> Iterator[None]:
        """Problems that are taken inside, where it is broken off: nothing else has changed by then."""
        cursor = self.problems.state()
        try:
            yield
        except BaseException:
            self.problems.restore(cursor)
            raise

    def _rollout(self, index: int, clock: Clock) -> tuple[list[Group], list[Group], list[bool]]:
        """All scored groups, those that the algorithm selects, and of these whether they are this rank's own.

        Dropped groups are refilled within the recipe's budget.
        """
        cfg = self.config
        groups: list[Group] = []
        selected: list[Group] = []
        own: set[int] = set()  # ids of this rank's groups
        wanted = cfg.rollout.problems_per_step
        for refill in range(1 + (cfg.algorithm.max_refills if self.algorithm.refills else 0)):
            problems = self.problems.take(wanted - len(selected))
            scored = self._sample(problems, rollout_seed(cfg.run.seed, index, refill), clock)
            groups += scored
            own |= {id(group) for group in own_share(scored)}
            selected += self.algorithm.select(could_be_judged(scored))
            if len(selected) == wanted:
                break
        if not could_be_judged(groups):
            raise UserError(
                f"step {index + 1}: no reference of this step's problems can be read by its verifier"
            )
        return groups, selected, [id(group) in own for group in selected]

    def _sample(self, problems: Sequence[Problem], seed: int, clock: Clock) -> list[Group]:
        """Scored groups of the problems, in order; every rank samples and judges its share of them."""
        own = own_share(problems)
        with together("sampling"), self.hooks.interruptible():
            if self.overlap and self.overlap.on:
                scored = self.overlap.sample(own, seed, clock)
            else:
                with clock("rollout"):
                    sampled = self.engine.sample(
                        own,
                        self.config.rollout.group_size,
                        seed=seed,
                        on_completion=partial(self._judge, own),
                    )
                with clock("verify"):  # a hung answer costs one worker, not the run
                    scored = self.rewards.score(sampled)
            with clock("sync"):
                self._prove()
        if world_size() > 1 and self.rewards.compares_all:
            with clock("verify"):
                return self._compare_all(all_groups(problems, scored))
        return all_groups(problems, scored, self.hooks.reads)

    def _compare_all(self, scored: Sequence[Group]) -> list[Group]:
        """The groups with what functions say that are given all completions of a step: rank 0 asks them."""

        def ask() -> list[Terms]:
            with self.hooks.interruptible():
                return self.rewards.compare_all(scored)

        told = gather(on_rank_0("the reward functions", ask))[0]
        assert told is not None
        return self.rewards.with_terms(scored, told)

    def _judge(self, problems: Sequence[Problem], index: int, _: int, completion: Completion) -> None:
        """Start judging a completion while others are still being sampled."""
        self.rewards.submit(problems[index], completion)

    @torch.no_grad()
    def _prepare(self, batch: Batch) -> Batch:
        """The batch with what the algorithm asks for, and no more: log-probabilities, values, advantages."""
        algorithm = self.algorithm
        with together("the forward passes"):
            batch = annotate(
                self.policy,
                batch,
                self.forward_parts,
                old=algorithm.needs_old,
                reference=algorithm.needs_reference,
                values=algorithm.needs_values,
            )
        batch = algorithm.advantages(batch, kl_coef=self.update.kl_coef)
        return without_truncated(batch) if self.config.reward.mask_truncated else batch

    def _update(self, batch: Batch, made: Made | None, groups: Sequence[Group], index: int) -> Metrics:
        try:
            return self.update(self.policy, batch, made)
        except NonFiniteError as error:
            raise explain(error, self.policy, self.update, groups, index + 1) from error

    def _conclude(self, metrics: Metrics, synced: Metrics, clock: Clock) -> Metrics:
        """The step's metrics with the worst of what each rank measured of its engine, and with its times."""
        if self.overlap:
            synced = synced | self.overlap.metrics()  # before the pace decides on the next step
        synced, self._proof = synced | self._proof, {}
        self.rank_seconds = seconds_by_rank(clock.phases)
        metrics = metrics | worst(gather(synced)) | step_metrics(self.rank_seconds)
        metrics["tokens/per_s"] = metrics["tokens/sampled"] / max(metrics["time/step_s"], 1e-9)
        if self.overlap and self.overlap.pace and "update/skipped" not in metrics:
            said = self.overlap.pace.note(metrics["time/step_s"], metrics["tokens/sampled"])
            self.hooks.say(said)
        return metrics

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, besides the configuration."""
        return self._state_beside_adapter() | {"adapter": self.policy.adapter()}

    def _state_beside_adapter(self) -> dict[str, Any]:
        return {
            "steps_done": self.steps_done,
            "seconds": self.seconds,
            "version": self.policy.version,
            "update": self.update.state_dict(),
            "problems": self.problems.state(),
        }

    def _note(self, metrics: Metrics, steps_done: int | None = None) -> None:
        """Remember that a step is whole, as far as the policy goes, for ``last_whole``.

        Only of several ranks: a single process has nobody to save what it leaves.
        """
        if world_size() > 1:
            state = self._state_beside_adapter() | {"steps_done": steps_done or self.steps_done}
            self._noted = (self._versions(), state, dict(metrics))

    def last_whole(self) -> tuple[dict[str, Any], Metrics] | None:
        """``state()`` after the last whole step and that step's metrics, whenever it is asked, by any thread.

        None where the step under way has begun to change the policy.
        """
        if self._noted is None or self._noted[0] != self._versions():
            return None
        versions, state, metrics = self._noted
        adapter = self.policy.adapter()
        return ({**state, "adapter": adapter}, metrics) if versions == self._versions() else None

    def _versions(self) -> list[int]:
        """How often each trained tensor has been written to, as torch counts it."""
        critic = self.update.critic
        parameters = [*self.update.parameters, *(critic.model.parameters if critic else ())]
        return [parameter._version for parameter in parameters]

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state()``; the engine gets the restored adapter."""
        self.steps_done, self.seconds = state["steps_done"], state.get("seconds", 0.0)
        self.policy.load_adapter(state["adapter"])
        self.policy.version = state.get("version", self.steps_done)
        self.update.load_state_dict(state["update"])
        self.problems.restore(state["problems"])
        self._hand_over()
