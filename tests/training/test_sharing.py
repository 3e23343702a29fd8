"""What ranks compare of their adapters, and what is told of the worst of them."""

import pytest
import torch

from mathrl.training import sharing
from mathrl.training.sharing import (
    DivergedError,
    Elsewhere,
    adapter_hash,
    agree_on_adapter,
    all_groups,
    tell,
    worst,
)
from mathrl.types import Adapter, Completion, Group, Problem, Score


def adapter(**changes) -> Adapter:
    tensors = {"a": torch.arange(4.0).reshape(2, 2), "b": torch.zeros(3)} | changes
    return Adapter({}, tensors)


def test_a_hash_changes_with_any_bit_and_with_nothing_else() -> None:
    known = adapter_hash(adapter())
    assert known == adapter_hash(Adapter({"r": 8}, dict(reversed(adapter().tensors.items()))))
    assert known == adapter_hash(adapter(a=torch.arange(4.0).reshape(2, 2).T.contiguous().T))
    nearly = torch.arange(4.0).reshape(2, 2).nextafter(torch.tensor(9.0))
    others = [adapter(a=nearly), adapter(b=-torch.zeros(3)), Adapter({}, {"a": adapter().tensors["a"]})]
    assert len({known, *map(adapter_hash, others)}) == 4


def test_ranks_with_other_weights_are_told_of_by_their_number(monkeypatch) -> None:
    assert agree_on_adapter(adapter(), "step 4") == {}
    monkeypatch.setattr(sharing, "world_size", lambda: 3)
    monkeypatch.setattr(sharing, "gather", lambda own: [own] * 3)
    metrics = agree_on_adapter(adapter(), "step 4")
    assert metrics == {"ranks/adapter_hash": float(adapter_hash(adapter()) % (1 << 52))}
    monkeypatch.setattr(sharing, "gather", lambda own: [own, own, own + 1])
    with pytest.raises(DivergedError, match=r"^step 4: the adapter of rank 2 "):
        agree_on_adapter(adapter(), "step 4")


def test_of_several_engines_the_worst_is_told_with_its_own_error() -> None:
    first = {"sync/gap_mean": 0.1, "sync/arrived": 0.9, "sync/arrived_error": 0.2}
    second = {"sync/gap_mean": 0.3, "sync/arrived": 0.4, "sync/arrived_error": 0.1}
    assert worst([first, second]) == {"sync/gap_mean": 0.3, "sync/arrived": 0.4, "sync/arrived_error": 0.1}
    assert worst([{"sync/gap_mean": 0.1}]) == {"sync/gap_mean": 0.1}


def group(number: int) -> Group:
    completions = tuple(
        Completion(tuple(range(number, number + n)), f"{number} {n}", reason, (-0.5,) * n)
        for n, reason in ((1, "stop"), (4, "length"))
    )
    scores = (Score(1.0, "correct"), Score(0.0, "wrong", "3"))
    return Group(Problem(str(number), "q", "1"), (7,) * (number + 1), completions, 5, scores)


@pytest.mark.parametrize("whole", [0, 1, 3, 5, None])
def test_of_other_ranks_groups_the_first_are_told_whole_and_of_the_rest_lengths_and_scores(
    monkeypatch, whole
) -> None:
    groups = [group(number) for number in range(5)]
    told = {r: [tell(g, whole is None or int(g.problem.id) < whole) for g in groups[r::2]] for r in range(2)}
    monkeypatch.setattr(sharing, "world_size", lambda: 2)
    monkeypatch.setattr(sharing, "rank", lambda: 1)
    sent = []
    monkeypatch.setattr(sharing, "gather", lambda own: sent.append(own) or [told[0], told[1]])
    heard = all_groups([g.problem for g in groups], groups[1::2], whole)
    assert sent == [told[1]]
    for number, (got, expected) in enumerate(zip(heard, groups, strict=True)):
        if number % 2 or whole is None or number < whole:
            assert got == expected
            continue
        assert (got.problem, got.policy_version, got.scores) == (expected.problem, 5, expected.scores)
        assert len(got.prompt_ids) == number + 1
        assert [len(c.token_ids) for c in got.completions] == [1, 4]
        assert [(c.finish_reason, c.text) for c in got.completions] == [("stop", ""), ("length", "")]
        with pytest.raises(TypeError, match="4 tokens are on the rank that sampled them"):
            list(got.completions[1].token_ids)
    assert len(Elsewhere(3)) == 3
