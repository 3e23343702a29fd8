"""The sentinel's two tests on made-up engines; on a real one: tests/rollout/test_vllm_training.py."""

import math

import pytest
import torch

from mathrl.training.sentinel import NUM_PROBLEMS, NUM_TOKENS, Sentinel, SyncError, measure_move
from mathrl.types import Completion, Group, Problem, TokenOutputs

VOCAB = 50
PROBLEMS = [Problem(f"p{i}", str(i), "1") for i in range(20)]


def shifted(logprobs: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Log-probabilities whose log-odds are larger ``by`` so much: what rounding and training move."""
    odds = logprobs - torch.log(-torch.expm1(logprobs))
    return torch.nn.functional.logsigmoid(odds + by)


class Table:
    """A policy whose log-probabilities are a table: (problem, place) -> nats. Rounding is of log-odds."""

    pad_id, version = 0, 0

    def __init__(self, rounding: float = 0.0) -> None:
        self.rounding = rounding
        self.generator = torch.Generator().manual_seed(0)
        self.values = -4.0 * (1 - torch.rand(NUM_PROBLEMS, NUM_TOKENS, generator=self.generator).double())

    def read(self) -> torch.Tensor:
        noise = torch.randn(self.values.shape, generator=self.generator, dtype=torch.float64)
        return shifted(self.values, self.rounding * noise) if self.rounding else self.values

    def move(self, size: float) -> None:
        noise = torch.randn(self.values.shape, generator=self.generator, dtype=torch.float64)
        self.values = shifted(self.values, size * noise)
        self.version += 1

    def logprobs(self, batch, *, temperature=None):
        assert temperature == 1.0
        assert [len(p) for p in batch.prompts] == [i + 1 for i in range(NUM_PROBLEMS)]
        return TokenOutputs(torch.where(batch.loss_mask, self.read()[:, : batch.loss_mask.shape[1]], 0.0))


class Copy:
    """An engine with a copy of the policy's table, of its latest sync."""

    def __init__(self, policy: Table, lengths=None) -> None:
        self.policy = policy
        self.lengths = lengths or [NUM_TOKENS] * NUM_PROBLEMS
        self.sync()

    def sync(self) -> None:
        self.values = self.policy.values.clone()

    def sample(self, problems, group_size, sampling=None, *, seed=0, on_completion=None):
        assert (sampling.temperature, group_size) == (0.0, 1)
        return [
            Group(p, tuple(range(i + 1)), (Completion((7,) * self.lengths[i], "", "length"),))
            for i, p in enumerate(problems)
        ]

    def score(self, prompts, completions):
        noise = self.policy.rounding * torch.randn(
            self.values.shape, generator=self.policy.generator, dtype=torch.float64
        )
        table = (shifted(self.values, noise) if self.policy.rounding else self.values).tolist()
        return [row[: len(tokens)] for row, tokens in zip(table, completions, strict=True)]


def make(rounding: float = 0.0, max_gap: float = 0.25):
    policy = Table(rounding)
    engine = Copy(policy)
    return policy, engine, Sentinel(engine, policy, PROBLEMS, max_gap)


def test_equal_weights_have_no_gap_and_no_move():
    _, _, sentinel = make()
    for _ in range(2):
        found = sentinel.check()
        assert found.keys() == {"sync/sentinel_gap", "sync/sentinel_s", "sync/sentinel_trainer_s"}
        assert found["sync/sentinel_gap"] == 0.0


def test_the_gap_is_the_worst_problems_mean():
    policy, engine, sentinel = make()
    engine.values[3, :4] += 0.5  # 4 of 16 tokens
    engine.values[5, 0] -= 0.2
    assert sentinel.check()["sync/sentinel_gap"] == pytest.approx(0.5 * 4 / NUM_TOKENS)
    engine.values[3] += 0.2
    policy.version = 41
    with pytest.raises(SyncError, match=r"version 41 .* differ by 0\.325 nats a token on problem 'p3'"):
        sentinel.check()


def test_short_completions_count_their_own_tokens():
    policy = Table()
    engine = Copy(policy, [1, 2] * (NUM_PROBLEMS // 2))
    sentinel = Sentinel(engine, policy, PROBLEMS, max_gap=0.25)
    engine.values += 0.125
    assert sentinel.check()["sync/sentinel_gap"] == pytest.approx(0.125)


def test_the_gap_of_a_short_completion_is_not_spread_over_the_longest():
    policy = Table()
    lengths = [NUM_TOKENS, 1, 5, *[NUM_TOKENS] * (NUM_PROBLEMS - 3)]
    engine = Copy(policy, lengths)
    sentinel = Sentinel(engine, policy, PROBLEMS, max_gap=0.25)
    assert sentinel.check()["sync/sentinel_gap"] == 0.0  # each token beside its own
    engine.values[1, 0] += 0.2  # of one token
    engine.values[2, 4] += 0.6  # one of five
    engine.values[0, 3] += 1.6  # one of sixteen
    engine.values[1, 1:] += 9.0  # beyond its end
    assert sentinel.check()["sync/sentinel_gap"] == pytest.approx(0.2)
    engine.values[1, 0] += 0.1
    with pytest.raises(SyncError, match=r"differ by 0\.3 nats a token on problem 'p1'"):
        sentinel.check()


def test_a_gap_that_is_no_number_is_refused():
    _, engine, sentinel = make()
    engine.values[2, 2] = math.nan
    with pytest.raises(SyncError, match="'p2'"):
        sentinel.check()


def test_an_engine_that_shares_the_model_is_not_checked():
    assert Sentinel(object(), Table(), PROBLEMS, max_gap=0.25).check() == {}


def test_the_move_formula():
    """Log-odds move by (1, 2, 2), the engine's by half of it plus (2, -1, 0), orthogonal to it."""
    before = torch.tensor([-0.5, -1.0, -3.0], dtype=torch.float64)
    move, off = torch.tensor([1.0, 2.0, 2.0]).double(), torch.tensor([2.0, -1.0, 0.0]).double()
    found = measure_move(shifted(before, move / 2 + off), before, shifted(before, move))
    assert found.arrived == pytest.approx(0.5)
    # without the first token the others give (0 + 2) / 8, without the second (2.5 + 2) / 5, the third 2.5 / 5
    left_out = torch.tensor([2.5 - 0.25 * 1, 0.0 - 0.9 * 2, 1.0 - 0.5 * 2]).double()
    assert found.error == pytest.approx(float((move * left_out).square().sum()) ** 0.5 / 9)
    assert found.size == pytest.approx(math.sqrt(3))
    assert not found.proved
    assert not found.refuted


def test_one_token_decides_nothing():
    """An unlikely token moves far and rounding takes the engine's the other way; the others hardly move."""
    generator = torch.Generator().manual_seed(1)

    def noise():
        return 0.01 * torch.randn(64, generator=generator, dtype=torch.float64)

    odds, move, engine = 3.0 + 100 * noise(), torch.zeros(64, dtype=torch.float64), noise()
    odds[0], move[0], engine[0] = -12.0, 0.4, -0.3 * 0.4
    read = torch.nn.functional.logsigmoid
    found = measure_move(read(odds + engine), read(odds + noise()), read(odds + move + noise()))
    assert found.arrived == pytest.approx(-0.3, abs=0.05)
    assert not found.refuted


def test_sure_and_unlikely_tokens_weigh_alike():
    """Log-odds from -12 to 15, rounded by 0.1, 64 tokens: no false alarm, and a stale engine is caught."""
    generator = torch.Generator().manual_seed(0)

    def normal(size):
        return size * torch.randn(64, generator=generator, dtype=torch.float64)

    read, caught = torch.nn.functional.logsigmoid, 0
    for draw in range(500):
        odds, move = normal(5.0) + 2.0, normal(0.1 * (0.3, 1.0, 4.0)[draw % 3])
        before, now = read(odds + normal(0.1)), read(odds + move + normal(0.1))
        assert not measure_move(read(odds + move + normal(0.1)), before, now).refuted
        caught += draw % 3 == 2 and measure_move(read(odds + normal(0.1)), before, now).refuted
    assert caught > 0.95 * 166


def test_a_good_sync_is_proved_step_by_step():
    policy, engine, sentinel = make(rounding=0.01)
    sentinel.check()
    for _ in range(5):
        policy.move(0.05)
        engine.sync()
        metrics = sentinel.check()
        assert abs(metrics["sync/arrived"] - 1) < 0.1
        assert 0 in sentinel._proved
        assert (
            float((sentinel._proved[0] - policy.values.flatten()).abs().mean()) < 0.03
        )  # today's, not an older one


def test_a_stale_engine_is_caught_far_under_the_bound_of_the_gap():
    policy, _, sentinel = make(rounding=0.01)
    sentinel.check()
    policy.move(0.05)
    with pytest.raises(SyncError, match=r"only -?\d% ± \d% of the policy's move .*by 0\.05"):
        sentinel.check()


def test_moves_under_the_rounding_add_up_until_they_tell():
    """Each step moves a fifth of the rounding; an engine that never follows is caught within 40 of them."""
    policy, _, sentinel = make(rounding=0.05)
    sentinel.check()
    caught = 0
    for step in range(1, 41):
        policy.move(0.01)
        try:
            sentinel.check()
        except SyncError:
            caught = step
            break
    assert 3 < caught < 40


def test_no_false_alarm_in_a_thousand_syncs_under_rounding():
    policy, engine, sentinel = make(rounding=0.05)
    sentinel.check()
    for step in range(1000):
        policy.move(0.2 * 10 ** (-(step % 5)))  # from four times the rounding to far under it
        engine.sync()
        sentinel.check()


class Pair(Copy):
    """Two replicas: odd rows are scored by one that is ``behind`` or not."""

    num_replicas = 2

    def sync(self, behind: bool = False) -> None:
        fresh = self.policy.values.clone()
        if behind:
            fresh[1::2] = self.values[1::2]
        self.values = fresh


def test_one_stale_replica_is_caught_far_under_the_bound_of_the_gap():
    policy = Table(rounding=0.02)
    engine = Pair(policy)
    sentinel = Sentinel(engine, policy, PROBLEMS, 0.25)
    sentinel.check()
    policy.move(0.05)
    engine.sync()
    assert sentinel.check()["sync/arrived"] > 0.8
    policy.move(0.05)
    engine.sync(behind=True)
    with pytest.raises(SyncError, match="still samples from older weights"):
        sentinel.check()
