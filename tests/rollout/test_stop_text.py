"""Completions that end where a text appears: their tokens, logprobs and texts."""

import pytest

from mathrl.rollout.stop_text import StopText, with_stop
from mathrl.types import Completion, Group, Problem

WORDS = ["it is", " 4", ".", "\nQues", "tion: What", " else?", "<end>"]


class Words:
    """A tokenizer whose token i is the word i."""

    def decode(self, ids, *, skip_special_tokens):
        assert skip_special_tokens
        return "".join(WORDS[i] for i in ids if WORDS[i] != "<end>")


class Fixed:
    """An engine that says what it is told to, and notes how it was asked."""

    name, version, exact_logprobs = "fixed", 3, True
    sync_metrics = {"x": 1.0}

    def __init__(self, *completions):
        self.completions = completions
        self.closed = False

    def sample(self, problems, group_size, sampling=None, *, seed=0, on_completion=None):
        self.asked = (group_size, sampling, seed)
        for i in range(len(problems)):
            for k, completion in enumerate(self.completions):
                if on_completion:
                    on_completion(i, k, completion)
        return [Group(p, (7,), self.completions, self.version) for p in problems]

    def load(self, adapter, version):
        self.version = version

    def close(self):
        self.closed = True


def completion(*ids, reason="length", logprobs=True):
    return Completion(
        ids,
        Words().decode(ids, skip_special_tokens=True),
        reason,
        tuple(-float(i) for i in ids) if logprobs else None,
    )


def test_a_completion_keeps_the_tokens_that_complete_the_text():
    whole, ended, other = completion(0, 1, 2, 3, 4, 5), completion(0, 1, 2, 6, reason="stop"), completion(3)
    heard = []
    engine = StopText(Fixed(whole, ended, other), "\nQuestion:", Words())
    (group,) = engine.sample(
        [Problem("p", "?", "4")], 3, seed=5, on_completion=lambda i, k, c: heard.append((i, k, c))
    )
    assert engine.engine.asked == (3, None, 5)
    cut = group.completions[0]
    assert cut.token_ids == (0, 1, 2, 3, 4)
    assert cut.sampling_logprobs == (-0.0, -1.0, -2.0, -3.0, -4.0)
    assert cut.text == "it is 4."
    assert cut.finish_reason == "stop"
    assert group.completions[1:] == (ended, other)  # nothing to cut
    assert heard == [(0, k, c) for k, c in enumerate(group.completions)]
    assert group.prompt_ids == (7,)


def test_without_logprobs_there_are_none():
    assert (
        StopText(Fixed(), "\nQuestion:", Words()).cut(completion(3, 4, logprobs=False)).sampling_logprobs
        is None
    )


def test_the_rest_is_the_engines_own():
    inner = Fixed()
    engine = StopText(inner, "x", Words())
    engine.load(None, 9)
    assert (engine.name, engine.version, engine.exact_logprobs, engine.sync_metrics) == (
        "fixed",
        9,
        True,
        {"x": 1.0},
    )
    assert getattr(engine, "score", None) is None  # what the sentinel asks
    engine.close()
    assert inner.closed
    with pytest.raises(AttributeError):
        _ = engine.nothing
    assert with_stop(inner, "", Words()) is inner
