"""The dry step does a real step's passes over the longest rows and leaves nothing behind."""

import pytest
import torch

from mathrl.algorithms.table import resolve_algorithm
from mathrl.config import Config
from mathrl.errors import UserError
from mathrl.policy.model import Policy
from mathrl.policy.scratch import build_base
from mathrl.training.dry_run import dry_step, longest_batch
from mathrl.training.micro_batching import MicroBatches
from mathrl.training.update import make_update


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    model, tokenizer = build_base(Config().model.model_copy(update={"num_layers": 1, "hidden_size": 32}), 0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def make(folder):
    def make(**update):
        rollout = {
            "problems_per_step": 3, "group_size": 4, "max_prompt_tokens": 30, "max_completion_tokens": 20,
        }  # fmt: skip
        config = Config.model_validate({"model": {"path": folder}, "rollout": rollout, "update": update})
        algorithm = resolve_algorithm(config.algorithm, config.rollout, config.update)
        policy = Policy.from_pretrained(folder, config)
        return config, algorithm, policy, make_update(config, algorithm, policy)

    return make


@pytest.mark.parametrize(("tokens", "groups"), [(8192, 3), (111, 2), (110, 1), (16, 1)])
def test_the_rows_are_as_long_as_the_recipe_allows_and_fill_a_micro_batch(make, tokens: int, groups: int):
    config, _, policy, _ = make(micro_batch_tokens=tokens)
    batch = longest_batch(config, policy)
    assert [len(p) for p in batch.prompts] == [30] * groups
    assert batch.lengths.tolist() == [20] * 4 * groups


def test_lengths_stop_at_the_models_context(make):
    config, _, policy, _ = make()
    policy.model.config.max_position_embeddings = 40
    batch = longest_batch(config, policy)
    assert batch.prompts[0].shape == (20,)
    assert batch.completion_ids.shape == (12, 20)


def test_a_dry_step_changes_nothing(make):
    config, algorithm, policy, update = make()
    before = {name: t.clone() for name, t in policy.adapter().tensors.items()}
    seen = []
    logprobs = policy.logprobs

    def counted(batch, **how):
        seen.append((batch.num_tokens, torch.is_grad_enabled(), bool(how.get("reference"))))
        return logprobs(batch, **how)

    policy.logprobs = counted
    dry_step(config, algorithm, policy, update, MicroBatches(8192))
    assert seen == [(240, False, True), (240, True, False)]  # the reference pass, then the update's
    assert all(torch.equal(t, before[name]) for name, t in policy.adapter().tensors.items())
    assert all(p.grad is None for p in policy.trainable_parameters())
    assert update.optimizer.state_dict()["state"] == {}


def test_what_does_not_fit_is_halved_before_the_first_step_or_refused(make):
    config, algorithm, policy, update = make()
    logprobs, room = policy.logprobs, 100

    def tight(batch, **how):
        if batch.num_tokens > room:
            raise torch.OutOfMemoryError("planted")
        return logprobs(batch, **how)

    policy.logprobs = tight
    parts = MicroBatches(8192)
    dry_step(config, algorithm, policy, update, parts)
    assert parts.max_tokens == 128
    assert update.loss.micro_batches.max_tokens == 128  # 30 + 4 · 20 and no second group
    room = 10
    with pytest.raises(UserError, match="single completion of 50 tokens"):
        dry_step(config, algorithm, policy, update, parts)
