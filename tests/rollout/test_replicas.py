"""Engines side by side behave as one: on made-up engines; on real ones: test_vllm_training.py."""

import threading
from types import SimpleNamespace

import pytest

from mathrl.errors import UserError
from mathrl.rollout.replicas import Replicas
from mathrl.types import Completion, Group, Problem, derive_seed

PROBLEMS = [Problem(f"p{i}", "", "1") for i in range(7)]


class Echo:
    """Its completions tell the problem, the seed and the version; it waits until all replicas sample."""

    name, exact_logprobs = "echo", False

    def __init__(self, barrier: threading.Barrier | None = None) -> None:
        self.barrier, self.version, self.closed, self.asked = barrier, 0, 0, 0

    def sample(self, problems, group_size, sampling=None, *, seed=0, on_completion=None):
        if self.barrier:
            self.barrier.wait(timeout=10)
        self.asked += len(problems)
        groups = []
        for p, problem in enumerate(problems):
            made = [
                Completion((derive_seed(seed, problem.id, i),), problem.id, "stop") for i in range(group_size)
            ]
            for i, completion in enumerate(made):
                on_completion(p, i, completion)
            groups.append(Group(problem, (1,), tuple(made), policy_version=self.version))
        return groups

    def score_with_next(self, prompts, continuations):
        self.owes = len(prompts)
        return SimpleNamespace(result=lambda: self.score(prompts, continuations))

    def score(self, prompts, continuations):
        return [[float(p[0] + t) for t in tokens] for p, tokens in zip(prompts, continuations, strict=True)]

    def write(self, adapter):
        self.written = f"where {adapter} lies"
        return self.written

    def load(self, adapter, version, *, written=None):
        self.version, self.loaded = version, written
        self.sync_metrics = {"sync/engine_s": float(self.asked)}

    def close(self):
        self.closed += 1


def test_tokens_under_way_are_those_of_all_replicas():
    replicas, told = Replicas(lambda _: Echo(), 3), []
    replicas.on_tokens = told.append
    for index, tokens in ((0, 5), (2, 7), (0, 6)):
        replicas.engines[index].on_tokens(tokens)
    assert told == [5, 12, 13]


@pytest.mark.parametrize("num", [2, 3, 8])
def test_they_sample_what_one_would(num):
    barrier = threading.Barrier(min(num, len(PROBLEMS)))
    replicas = Replicas(lambda _: Echo(barrier), num)
    told = []
    groups = replicas.sample(PROBLEMS, 3, seed=5, on_completion=lambda p, i, c: told.append((p, i, c)))
    alone: list = []
    expected = Echo().sample(PROBLEMS, 3, seed=5, on_completion=lambda p, i, c: alone.append((p, i, c)))
    assert groups == expected
    assert sorted(told, key=lambda t: t[:2]) == alone
    shares = [engine.asked for engine in replicas.engines]
    assert sum(shares) == len(PROBLEMS)
    assert max(shares) - min(shares) <= 1
    prompts, continuations = [[10 * n] for n in range(5)], [[1] * n for n in range(5)]
    assert replicas.score(prompts, continuations) == Echo().score(prompts, continuations)
    owed = replicas.score_with_next(prompts, continuations)
    assert [engine.owes for engine in replicas.engines] == [len(prompts[r::num]) for r in range(num)]
    assert owed.result() == Echo().score(prompts, continuations)


def test_all_are_loaded_and_closed():
    replicas = Replicas(lambda _: Echo(), 2)
    replicas.sample(PROBLEMS, 1)
    replicas.load(None, 4)
    assert [engine.version for engine in replicas.engines] == [4, 4]
    assert replicas.version == 4
    assert replicas.sync_metrics == {"sync/engine_s": 4.0}  # the slowest
    replicas.close()
    assert [engine.closed for engine in replicas.engines] == [1, 1]


def test_an_adapter_is_written_once_for_all():
    replicas = Replicas(lambda _: Echo(), 3)
    replicas.load("a", 1)
    assert [engine.loaded for engine in replicas.engines] == ["where a lies"] * 3
    assert [hasattr(engine, "written") for engine in replicas.engines] == [True, False, False]
    replicas.load("b", 2, written=replicas.write("b"))
    assert [engine.loaded for engine in replicas.engines] == ["where b lies"] * 3
    replicas.engines[0].written = "no more"
    replicas.load("b", 3, written="where b lies")
    assert replicas.engines[0].written == "no more"
    replicas.load(None, 0)
    assert [engine.loaded for engine in replicas.engines] == [None] * 3
    replicas.close()


def test_one_that_does_not_start_closes_the_others():
    engines = [Echo(), Echo()]

    def start(index):
        if index == 1:
            raise UserError("no room")
        return engines[index // 2]

    with pytest.raises(UserError, match="no room"):
        Replicas(start, 3)
    assert [engine.closed for engine in engines] == [1, 1]


def test_an_error_of_one_is_raised_when_all_have_ended():
    class Failing(Echo):
        def sample(self, problems, *args, **kwargs):
            if problems[0].id == "p0":
                raise RuntimeError("the core died")
            return super().sample(problems, *args, **kwargs)

    replicas = Replicas(lambda _: Failing(), 2)
    with pytest.raises(RuntimeError, match="the core died"):
        replicas.sample(PROBLEMS, 1)
    assert [engine.asked for engine in replicas.engines] == [0, 3]
