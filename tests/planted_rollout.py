"""Doubles of engine and scorer for a trainer whose completions are planted, told one by one in a thread."""

import threading
from concurrent.futures import Future
from dataclasses import replace

from mathrl.types import Completion, Group, Score, derive_seed


class PlantedEngine:
    """Completions of random tokens, told one by one in an order of their own.

    before: called with the number of completions told so far, in the sampling thread.
    """

    name, exact_logprobs, streams, version = "planted", False, True, 0

    def __init__(self, before=lambda told: None, vocabulary=61, longest=12):
        self.vocabulary, self.longest = vocabulary, longest
        self.before, self.on_tokens, self.told, self.threads = before, None, 0, set()

    def encode(self, problem):
        return self._tokens("prompt", problem.id, length=3 + int(problem.id) % 5)

    def sample(self, problems, group_size, sampling=None, *, seed=0, on_completion=None):
        self.threads.add(threading.current_thread())
        self.told = 0
        places = [(p, i) for p in range(len(problems)) for i in range(group_size)]
        done = {
            place: self._completion(derive_seed(seed, problems[place[0]].id, place[1])) for place in places
        }
        for p, i in sorted(places, key=lambda place: derive_seed("order", *place)):
            self.before(self.told)
            on_completion(p, i, done[p, i])
            self.told += 1
            if self.on_tokens:
                self.on_tokens(self.told)
        return [
            Group(problem, self.encode(problem), tuple(done[p, i] for i in range(group_size)))
            for p, problem in enumerate(problems)
        ]

    def load(self, adapter, *, version):
        self.version = version

    def _completion(self, seed):
        tokens = self._tokens(seed, length=1 + seed % self.longest)
        values = tuple(-0.5 - (t % 7) / 3 for t in tokens)
        return Completion(tokens, "", "length" if len(tokens) == self.longest else "stop", values)

    def _tokens(self, *of, length):
        return tuple(2 + derive_seed(*of, t) % (self.vocabulary - 2) for t in range(length))


class OddRewards:
    """Whether the sum of the tokens is odd; verdicts come at once, or by another thread a moment later."""

    asks_whole_step = ""

    def __init__(self, later=False):
        self.later = later

    def submit(self, problem, completion):
        future = Future()
        if self.later:
            threading.Timer(0.001 * (len(completion.token_ids) % 3), future.set_result, [None]).start()
        else:
            future.set_result(None)
        return future

    def score(self, groups):
        odd = [[float(sum(c.token_ids) % 2) for c in g.completions] for g in groups]
        return [
            replace(g, scores=tuple(Score(r, "correct" if r else "wrong") for r in row))
            for g, row in zip(groups, odd, strict=True)
        ]
