"""What is drawn and scored by the project's kernel, and what stays vLLM's."""

from typing import NamedTuple

import pytest
import torch

from mathrl.rollout.core.drawing import Drawing


class Tensors(NamedTuple):
    ids: torch.Tensor
    logprobs: torch.Tensor
    ranks: torch.Tensor
    counts: object = None


def drawing():
    """Draws token 5 everywhere with log-probability −1; vLLM's own answers are words."""

    def draw(logits, places, temperature, seeds, positions):
        return torch.full((len(logits),), 5), torch.full((len(logits),), -1.0)

    return Drawing(draw, lambda *args, **kwargs: "vLLM's", lambda *args, **kwargs: "scored by vLLM", Tensors)


def arguments(rows=3):
    return torch.randn(rows, 11), torch.arange(rows), torch.ones(rows), torch.zeros(rows), torch.zeros(rows)


def test_drawn_tokens_come_with_the_log_probabilities_of_the_same_pass():
    own = drawing()
    logits, *others = arguments()
    tokens = own.sample(logits, *others, apply_temperature=False, use_fp64=False)
    assert tokens.tolist() == [5, 5, 5]
    scored = own.score(logits, 0, tokens, None, logprob_token_ids_state=object(), max_per_req_token_ids=0)
    assert scored.ids.tolist() == [[5]] * 3
    assert scored.logprobs.tolist() == [[-1.0]] * 3
    assert scored.counts is None


@pytest.mark.parametrize(
    "case",
    [
        {"num_logprobs": 2},
        {"max_per_req_token_ids": 1},
        {"logits_mode": True},
        {"cu_num_logits": [0, 1]},
        {"logits": True},
        {"tokens": True},
    ],
)
def test_other_scores_are_vllms(case):
    own = drawing()
    logits, *others = arguments()
    tokens = own.sample(logits, *others, apply_temperature=False)
    asked = {"num_logprobs": 0, "cu_num_logits": None} | case
    of = logits.clone() if asked.pop("logits", False) else logits
    drawn = tokens.clone() if asked.pop("tokens", False) else tokens
    assert own.score(of, asked.pop("num_logprobs"), drawn, **asked) == "scored by vLLM"


@pytest.mark.parametrize(
    "case",
    [
        {"apply_temperature": True},
        {"apply_temperature": False, "use_fp64": True},
        {"apply_temperature": False, "output_processed_logits": torch.zeros(1)},
    ],
)
def test_other_ways_to_sample_are_vllms(case):
    own = drawing()
    logits, *others = arguments()
    before = own.sample(logits, *others, apply_temperature=False)
    assert own.sample(logits, *others, **case) == "vLLM's"
    assert (
        own.score(logits, 0, before) == "scored by vLLM"
    )  # nothing of an earlier step is taken for this one's
