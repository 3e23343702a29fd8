"""Rows of completions that only decode, by hand: when one is due, when it ends, what leaves it."""

from types import SimpleNamespace

import numpy as np

from mathrl.rollout.core.decode_rows import DecodeRows


def request(name: str, *, prompt: int = 4, known: int = 1, most: int = 3) -> SimpleNamespace:
    """One whose ``known`` tokens are sampled, and the last of them not computed yet."""
    return SimpleNamespace(
        request_id=name,
        num_prompt_tokens=prompt,
        num_computed_tokens=prompt + known - 1,
        num_output_tokens=known,
        max_tokens=most,
    )


def test_a_row_is_due_until_its_last_token_is_under_way():
    rows = DecodeRows(4, max_model_len=10)
    rows.enter(request("a", most=3), 16, [])
    rows.enter(request("b", most=4, known=2), 16, [])
    rows.enter(request("c", prompt=7, most=50), 16, [])  # the model's context leaves it 3
    assert rows.most[rows.active].tolist() == [3, 4, 3]
    due, names = rows.due()
    assert names == ["a", "b", "c"]
    assert rows.scheduled(due).tolist() == [1, 2, 1]
    for expected in (["a", "b", "c"], []):  # tokens 2 and 3, or 3 and 4
        rows.computed[due] += 1
        due, names = rows.due()
        assert names == expected


def test_a_token_ends_its_own_row_and_the_limit_ends_any():
    rows = DecodeRows(3, max_model_len=10)
    rows.enter(request("a", most=9), 16, [5])
    rows.enter(request("b", most=9), 16, [6, 7, 8])  # more than any before it
    rows.enter(request("c", most=2), 16, [])
    assert rows.ended_by(rows.active, np.array([5, 8, 1])).tolist() == [True, True, True]
    assert rows.ended_by(rows.active, np.array([7, 5, -2])).tolist() == [False, False, True]
    rows.leave(rows.row_of["b"])
    rows.enter(request("d", most=9), 16, [5])  # into the row of b
    assert rows.ended_by(rows.active, np.array([1, 1, 7])).tolist() == [False, True, False]
    assert rows.ended_by(rows.active, np.array([1, 1, 5])).tolist() == [False, True, True]


def test_what_leaves_a_row_is_what_it_sampled_there_and_a_late_token_is_known_by_its_stay():
    rows = DecodeRows(1, max_model_len=10)
    rows.enter(request("a", known=2, most=9), 16, [])
    here, stay = rows.active, rows.stays.copy()
    rows.add(here, np.array([30]), np.array([-0.5], np.float32), np.array([1]))
    rows.add(here, np.array([31]), np.array([-0.25], np.float32), np.array([2]))
    assert (rows.num_tokens, rows.received.tolist()) == (2, [4])
    given = rows.leave(0)
    assert given.tokens == [30, 31]
    assert given.logprobs.tolist() == [-0.5, -0.25]
    assert given.ranks.tolist() == [1, 2]
    rows.enter(request("b", known=3), 16, [])
    assert rows.row_of == {"b": 0}
    assert rows.stays[0] != stay[0]
    assert rows.leave(0).tokens == []
