"""The stream, token by token, on an example small enough to write down."""

import pytest
import torch

from mathrl.policy.packing import pack, spans
from mathrl.types import Batch

CPU = torch.device("cpu")


def example(**changes: torch.Tensor) -> Batch:
    fields = {
        "prompts": (torch.tensor([10, 11, 12]), torch.tensor([20, 21]), torch.tensor([30])),
        "group_ids": torch.tensor([1, 0, 1, 0, 2]),
        "completion_ids": torch.tensor([[41, 42, 43], [51, 0, 0], [61, 62, 0], [71, 72, 73], [81, 82, 83]]),
        # row 1 has one token, row 3 a hole, row 4 trains nowhere
        "loss_mask": torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 1], [0, 0, 0]], dtype=torch.bool),
        "rewards": torch.zeros(5),
        "truncated": torch.zeros(5, dtype=torch.bool),
    }
    return Batch(**(fields | changes))


def test_shared_stream_is_each_prompt_once_then_its_completions_without_their_last_token():
    layout = pack(example(), CPU)
    #                                      prompt 0    row 3   prompt 1  row 0   row 2 (row 1: none)
    assert layout.input_ids[0].tolist() == [10, 11, 12, 71, 72, 20, 21, 41, 42, 61]
    assert layout.position_ids[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 2]
    assert layout.segments.start.tolist() == [0, 3, 5, 7, 9]
    assert layout.segments.length.tolist() == [3, 2, 2, 2, 1]
    assert layout.segments.prefix_start[1:].tolist() == [0, 5, 5, 5]
    assert layout.segments.prefix_length.tolist() == [0, 3, 0, 2, 2]
    assert layout.target.tolist() == [41, 42, 43, 51, 61, 62, 71, 73]
    assert layout.predictor.tolist() == [6, 7, 8, 2, 6, 9, 2, 4]
    assert layout.slot.tolist() == [0, 1, 2, 3, 6, 7, 9, 11]


def test_unshared_stream_repeats_the_prompt_for_every_completion():
    layout = pack(example(), CPU, share_prompts=False)
    #                                       row 0           row 1       row 2       row 3
    assert layout.input_ids[0].tolist() == [20, 21, 41, 42, 10, 11, 12, 20, 21, 61, 10, 11, 12, 71, 72]
    assert layout.position_ids[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 4]
    assert layout.segments.prefix_length.tolist() == [0, 0, 0, 0]
    assert layout.predictor.tolist() == [1, 2, 3, 6, 8, 9, 12, 14]
    assert layout.target.tolist() == pack(example(), CPU).target.tolist()


@pytest.mark.parametrize("share", [True, False])
def test_nothing_that_trains_is_an_empty_stream(share: bool):
    layout = pack(example(loss_mask=torch.zeros(5, 3, dtype=torch.bool)), CPU, share_prompts=share)
    assert layout.input_ids.shape == (1, 0)
    assert layout.slot.numel() == 0


def test_an_empty_prompt_is_refused_by_its_place():
    prompts = (torch.tensor([10]), torch.tensor([], dtype=torch.long), torch.tensor([30]))
    with pytest.raises(ValueError, match="prompt 1 .* no tokens"):
        pack(example(prompts=prompts), CPU)


def test_spans():
    import numpy as np

    assert spans(np.array([5, 0, 7]), np.array([2, 0, 3])).tolist() == [5, 6, 7, 8, 9]
