"""Groups -> Batch, and its cuts."""

import pytest
import torch

from mathrl.training.batch import by_tokens, collate, micro_batches, minibatches, padded
from mathrl.types import Completion, Group, Problem, Score, derive_seed


def make_group(name: str, prompt: list[int], lengths: list[int]) -> Group:
    completions = tuple(
        Completion(
            tuple(range(1, n + 1)), "", "stop" if n < 9 else "length", tuple(-0.5 * t for t in range(n))
        )
        for n in lengths
    )
    scores = tuple(Score(float(n), "correct") for n in lengths)
    return Group(Problem(name, "q", "1"), tuple(prompt), completions, scores=scores)


@pytest.fixture
def batch():
    return collate([make_group("a", [7, 8], [2, 3]), make_group("b", [9] * 5, [1, 9, 4])], pad_id=99)


def test_collate_pads_right_and_keeps_order(batch):
    assert batch.completion_ids.shape == (5, 9)
    assert batch.completion_ids[0].tolist() == [1, 2] + [99] * 7
    assert batch.loss_mask.sum(1).tolist() == [2, 3, 1, 9, 4]
    assert batch.group_ids.tolist() == [0, 0, 1, 1, 1]
    assert batch.rewards.tolist() == [2, 3, 1, 9, 4]
    assert batch.truncated.tolist() == [False, False, False, True, False]
    assert batch.sampling_logprobs[1].tolist() == [0.0, -0.5, -1.0] + [0.0] * 6
    assert (batch.num_tokens, batch.num_completions) == (19, 5)


def test_padded_rows_and_which_places_are_their_own():
    ids, valid = padded([(5, 6, 7), (), [8]], 9)
    assert ids.tolist() == [[5, 6, 7], [9, 9, 9], [8, 9, 9]]
    assert valid.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    assert [x.shape for x in padded([], 0)] == [(0, 0), (0, 0)]


def test_items_are_asked_for_their_tokens_a_fixed_number_of_times_however_many_there_are():
    asked = []

    class Item:
        @property
        def num_tokens(self):
            asked.append(self)
            return 3

    items = [Item() for _ in range(100)]
    assert [len(part) for part in by_tokens(items, 120)] == [40, 40, 20]
    assert len(asked) <= 2 * len(items)
    assert [len(part) for part in by_tokens(items, 2)] == [1] * 100


def test_rows_cut_width_and_prompts(batch):
    part = batch.rows([4, 2])
    assert part.completion_ids.tolist() == [[1, 2, 3, 4], [1, 99, 99, 99]]
    assert [p.tolist() for p in part.prompts] == [[9] * 5]
    assert part.group_ids.tolist() == [0, 0]
    mixed = batch.rows([4, 0])
    assert [p.tolist() for p in mixed.prompts] == [[7, 8], [9] * 5]
    assert mixed.group_ids.tolist() == [1, 0]


def test_micro_batches_hold_every_row_once_within_the_budget(batch):
    for budget in (1, 8, 12, 14, 1000):
        parts = [part.tolist() for part in micro_batches(batch, budget)]
        assert sorted(sum(parts, [])) == [0, 1, 2, 3, 4]
        for part in parts:
            prompts = sum(len(batch.prompts[g]) for g in set(batch.group_ids[part].tolist()))
            assert len(part) == 1 or prompts + int(batch.loss_mask[part].sum()) <= budget
    assert [part.tolist() for part in micro_batches(batch, 13)] == [[0, 1, 2], [3], [4]]
    assert len(list(micro_batches(batch, 26))) == 1  # 2 + 5 prompt tokens, counted once a group, and 19


@pytest.mark.parametrize(
    ("lengths", "budget", "expected"),
    [
        ([10] * 10, 48, [3, 4, 3]),  # not 4, 4 and 2
        ([10] * 64, 180, [13, 13, 13, 13, 12]),  # not 15, 15, 15, 15 and 4
        ([30, 1, 1, 1, 1, 1, 30], 47, [4, 3]),
        ([28, 8, 38, 8], 40, [2, 1, 1]),  # by even shares there would be one more
    ],
)
def test_micro_batches_are_as_few_as_fit_and_even(lengths, budget, expected):
    groups = [make_group(f"p{i}", [1, 2], [length]) for i, length in enumerate(lengths)]
    parts = [part.tolist() for part in micro_batches(collate(groups, 99), budget)]
    assert [len(part) for part in parts] == expected
    assert sum(parts, []) == list(range(len(lengths)))


@pytest.mark.parametrize(
    ("groups", "prompt", "lengths", "budget", "expected"),
    [
        (64, 128, [256] * 8, 32768, [104, 104, 104, 104, 96]),  # whole groups, not 120, 120, 120, 120 and 32
        (4, 2, [10] * 3, 100, [6, 6]),  # not 9 and 3
        (3, 2, [10] * 4, 66, [6, 6]),  # whole groups would be three
        (1, 2, [10] * 9, 60, [5, 4]),  # a group that no part holds is cut as evenly
        (2, 2, [10] * 9, 80, [6, 6, 6]),  # and two of them, one's end beside the other's beginning
        (1, 20, [10] * 9, 60, [3, 3, 3]),  # its prompt is computed three times
        (2, 2, [20, 1, 1], 30, [3, 3]),
    ],
)
def test_groups_stay_whole_where_that_takes_no_more_parts(groups, prompt, lengths, budget, expected):
    whole = collate([make_group(f"p{i}", [1] * prompt, lengths) for i in range(groups)], 99)
    parts = [part.tolist() for part in micro_batches(whole, budget)]
    assert [len(part) for part in parts] == expected
    assert sum(parts, []) == list(range(groups * len(lengths)))
    for part in parts:
        prompts = prompt * len(set(whole.group_ids[part].tolist()))
        assert int(whole.loss_mask[part].sum()) + prompts <= budget


def test_masks_with_holes(batch):
    """Tokens that do not train (of a tool, say) take their place in the forward, and end no completion."""
    mask = batch.loss_mask.clone()
    mask[3] = torch.tensor([1, 1, 0, 0, 0, 0, 0, 0, 1], dtype=torch.bool)
    mask[4] = torch.tensor([0, 0, 0, 1, 0, 0, 0, 0, 0], dtype=torch.bool)
    holes = batch.add(loss_mask=mask)
    assert holes.lengths.tolist() == [2, 3, 1, 3, 1]
    assert holes.num_tokens == 10
    part = holes.rows([4, 2])
    assert part.completion_ids.tolist() == [[1, 2, 3, 4], [1, 99, 99, 99]]  # up to the last that trains
    assert part.loss_mask.tolist() == [[False, False, False, True], [True, False, False, False]]
    assert holes.rows([3]).completion_ids.shape == (1, 9)
    # row 3 costs its nine places, not its three tokens
    assert [rows.tolist() for rows in micro_batches(holes, 13)] == [[0, 1, 2], [3], [4]]
    assert [rows.tolist() for rows in micro_batches(holes, 18)] == [[0, 1, 2], [3, 4]]


def test_minibatches_split_rows_at_random_but_from_the_seed(batch):
    def split(seed):
        return [part.tolist() for part in minibatches(batch, 2, torch.Generator().manual_seed(seed))]

    assert sorted(sum(split(0), [])) == [0, 1, 2, 3, 4]
    assert [len(part) for part in split(0)] == [3, 2]
    assert split(0) == split(0)
    assert any(split(seed) != split(0) for seed in range(1, 9))


def test_seeds_differ_where_any_part_differs():
    seeds = {derive_seed(*parts) for parts in [(1, 2), (2, 1), (12,), ("1", 2), (1, "2"), (1, 2, "")]}
    assert len(seeds) == 6
    assert derive_seed(0, 3, "p") == derive_seed(0, 3, "p")
    assert 0 <= derive_seed(0) < 2**63
