"""The dry step does a real step's passes over the longest rows and leaves nothing behind."""

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

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


def fails_when_called(forward, **_):
    """What torch.compile returns where it cannot compile: that shows at the first call."""

    def compiled(*_, **__):
        raise BackendCompilerFailed(forward, RuntimeError("Failed to find C compiler\nand much more"), None)

    return compiled


def as_on_cuda(policy):
    """The policy with compiled layers, which it has on CUDA alone."""
    policy.compiled = True
    policy.trunk.compile(True)


def test_a_run_goes_on_as_it_is_where_torch_cannot_compile(make, monkeypatch):
    config, algorithm, policy, update = make()
    batch = longest_batch(config, policy)
    before = policy.logprobs(batch).logprobs
    monkeypatch.setattr(torch, "compile", fails_when_called)
    as_on_cuda(policy)
    with pytest.raises(BackendCompilerFailed):
        policy.logprobs(batch)
    parts = MicroBatches(8192)
    said = dry_step(config, algorithm, policy, update, parts)
    assert said == "training: layers not compiled, for torch.compile fails here (Failed to find C compiler)"
    assert not policy.compiled
    assert torch.equal(policy.logprobs(batch).logprobs, before)
    assert all(p.grad is None for p in policy.trainable_parameters())
    assert dry_step(config, algorithm, policy, update, parts) == ""
    assert parts.max_tokens == 8192


def test_a_recipe_that_says_compile_is_told_in_a_sentence(make, monkeypatch):
    config, algorithm, policy, update = make(compile=True)
    monkeypatch.setattr(torch, "compile", fails_when_called)
    as_on_cuda(policy)
    with pytest.raises(
        UserError, match=r"torch.compile fails here \(Failed to find C compiler\): take --update"
    ):
        dry_step(config, algorithm, policy, update, MicroBatches(8192))


def test_what_fails_uncompiled_as_well_is_not_said_of_the_compiler(make, monkeypatch):
    config, algorithm, policy, update = make()
    monkeypatch.setattr(torch, "compile", lambda forward, **_: forward)
    as_on_cuda(policy)
    policy.logprobs = lambda *_, **__: 1 / 0
    with pytest.raises(ZeroDivisionError):
        dry_step(config, algorithm, policy, update, MicroBatches(8192))


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
