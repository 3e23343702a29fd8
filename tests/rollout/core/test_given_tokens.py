"""One column of log-probabilities for every request of a step, on a stand-in for vLLM's scheduler."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from mathrl.rollout.core.given_tokens import GivenTokens


class Lists(NamedTuple):
    """As vLLM's."""

    logprob_token_ids: np.ndarray
    logprobs: np.ndarray
    sampled_token_ranks: np.ndarray
    cu_num_generated_tokens: list[int] | None = None


class Base:
    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        return model_runner_output.logprobs


class Scheduler(GivenTokens, Base):
    def __init__(self, **given: list[int] | None) -> None:
        self.requests = {
            name: SimpleNamespace(sampling_params=SimpleNamespace(logprob_token_ids=tokens))
            for name, tokens in given.items()
        }


def output(logprobs: Any, *names: str) -> SimpleNamespace:
    return SimpleNamespace(logprobs=logprobs, req_id_to_index={name: i for i, name in enumerate(names)})


IDS = np.array([[3, 0], [4, 40], [5, 0], [6, 60]])
VALUES = np.array([[-0.3, -np.inf], [-0.4, -4.0], [-0.5, -np.inf], [-0.6, -6.0]])
SCHEDULER = Scheduler(sampled=None, given=[40], other=None)


@pytest.mark.parametrize("starts", [None, [0, 1, 2, 3]])
def test_a_request_has_the_column_of_the_token_that_it_asks_about(starts):
    """A cancelled request is no longer known; its row says nothing to anyone."""
    found = SCHEDULER.update_from_output(
        None, output(Lists(IDS, VALUES, np.arange(4), starts), "sampled", "given", "other", "cancelled")
    )
    assert found.logprob_token_ids.tolist() == [[3], [40], [5], [6]]
    assert found.logprobs.tolist() == [[-0.3], [-4.0], [-0.5], [-0.6]]
    assert found.sampled_token_ranks.tolist() == [0, 1, 2, 3]
    assert IDS[1].tolist() == [4, 40]  # what vLLM holds is as it was


def test_rows_are_found_where_requests_have_several():
    lists = Lists(IDS, VALUES, np.arange(4), [0, 3])
    found = SCHEDULER.update_from_output(None, output(lists, "sampled", "given"))
    assert found.logprobs.tolist() == [[-0.3], [-0.4], [-0.5], [-6.0]]


@pytest.mark.parametrize("logprobs", [None, Lists(IDS[:, :1], VALUES[:, :1], np.arange(4))])
def test_a_step_without_given_tokens_is_left_alone(logprobs):
    assert SCHEDULER.update_from_output(None, output(logprobs, "sampled")) is logprobs
