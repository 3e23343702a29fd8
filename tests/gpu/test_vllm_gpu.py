"""The vLLM engine on CUDA: bfloat16, captured graphs, prepared-ahead steps, per-completion seeds."""

import os
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec

import psutil
import pytest
import torch
from noisy_model import encode, gaps, ids, move, problem, write_model

from mathrl.config import Config, ModelConfig
from mathrl.memory.plan import Limits
from mathrl.policy.model import Policy
from mathrl.rollout.core import graphs_in_vllm
from mathrl.rollout.engine_choice import make_engine
from mathrl.rollout.vllm_settings import graph_sizes
from mathrl.training.sentinel import Sentinel, SyncError
from mathrl.types import Adapter, Group, Sampling

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed"),
]


def is_tried() -> bool:
    try:
        return metadata.version("vllm").startswith(graphs_in_vllm.TRIED)
    except metadata.PackageNotFoundError:
        return False


LIMIT = 48
GROUP = 8
# with 2 key heads as many programs as attention by rows wants (core/attention_by_rows.py)
PROBLEMS = [problem(f"problem {i}", 20 + 3 * i) for i in range(32)]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    folder = tmp_path_factory.mktemp("model")
    sizes = ModelConfig(
        hidden_size=256, num_layers=4, num_heads=4, num_kv_heads=2, intermediate_size=512, context_length=512
    )
    path = write_model(folder, sizes, 0.08, torch.bfloat16)
    rollout = {
        "engine": "auto",
        "problems_per_step": len(PROBLEMS),
        "group_size": GROUP,
        "max_prompt_tokens": 128,
        "max_completion_tokens": LIMIT,
    }
    return Config.model_validate(
        {"model": {"path": path}, "lora": {"rank": 16, "alpha": 32.0}, "rollout": rollout}
    )


def make_policy(config: Config, seed: int = 1) -> Policy:
    policy = Policy.from_pretrained(config.model.path, config)
    move(policy, seed, 0.05)
    return policy


@pytest.fixture(scope="module")
def policy(config):
    return make_policy(config)


@pytest.fixture(scope="module")
def engine(config, policy):
    engine, reason = make_engine(config, policy, encode)
    assert engine.name == "vllm"
    assert "vLLM" in reason
    assert "CUDA" in reason
    yield engine
    processes = [psutil.Process(process.pid) for process in engine.client.processes]
    assert processes
    engine.close()
    engine.close()
    assert not any(process.is_running() for process in processes)


@pytest.fixture
def synced(engine, policy):
    engine.load(policy.adapter(), policy.version)
    return engine


def mean_gap(policy: Policy, groups: list[Group], **how) -> float:
    return float(gaps(policy, groups, **how).mean())


def test_the_core_is_forked_from_a_process_that_has_not_started_cuda(engine):
    (core,) = engine.client.processes
    server = psutil.Process(core.pid).parent()
    assert server.pid != os.getpid()  # where the core was spawned, and a sentence has said why
    assert server.ppid() == os.getpid()


def test_sampling_logprobs_are_the_trainers_up_to_rounding(synced, policy):
    groups = synced.sample(PROBLEMS, GROUP, seed=1)
    assert mean_gap(policy, groups) < 0.05
    assert mean_gap(policy, groups, reference=True) > 0.3  # what a wrong adapter would look like
    warm = synced.sample(PROBLEMS, GROUP, Sampling(0.7, 1.0, 0, LIMIT), seed=1)
    assert mean_gap(policy, warm, temperature=0.7) < 0.05 < mean_gap(policy, warm, temperature=1.0)


def test_seeds_reproduce_and_differ(synced):
    first = synced.sample(PROBLEMS, GROUP, seed=7)
    again = synced.sample(PROBLEMS, GROUP, seed=7)
    same = sum(a == b for a, b in zip(ids(first), ids(again), strict=True))
    assert same >= 0.95 * len(ids(first))  # the rest: bfloat16 sums that depend on the step's batch
    other = synced.sample(PROBLEMS, GROUP, seed=8)
    assert sum(a == b for a, b in zip(ids(first), ids(other), strict=True)) == 0
    assert all(len(set(row)) == GROUP for row in ([c.token_ids for c in g.completions] for g in first))


def test_the_frequencies_of_first_tokens_are_the_policys(synced, policy):
    """2,048 seeds of one prompt against the trainer's probabilities: chi-square over the likeliest."""
    (group,) = synced.sample(PROBLEMS[:1], 2048, Sampling(1.0, 1.0, 0, 1), seed=5)
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([group.prompt_ids], device="cuda")).logits[0, -1].float()
    probs = logits.softmax(-1).cpu()
    top = probs.topk(10).indices.tolist()
    seen = [c.token_ids[0] for c in group.completions]
    observed = torch.tensor(
        [*(seen.count(t) for t in top), sum(t not in top for t in seen)], dtype=torch.float64
    )
    expected = torch.tensor([*probs[top].tolist(), 1 - float(probs[top].sum())], dtype=torch.float64) * 2048
    chi_square = float(((observed - expected) ** 2 / expected).sum())
    assert chi_square < 35  # 10 degrees of freedom: 1 in 8,000 by chance


@pytest.mark.skipif(not is_tried(), reason="this version of vLLM decodes its own way")
def test_decoding_steps_are_replayed_as_graphs(synced):
    synced.sample(PROBLEMS, GROUP, seed=3)
    (kinds,) = synced.client._core.collective_rpc("num_decode_graphs", None, (), {})
    assert kinds > 0


def test_logprobs_only_where_asked_for(synced):
    groups = synced.sample(PROBLEMS[:2], 2, Sampling(1.0, 1.0, 0, LIMIT, logprobs=False), seed=1)
    assert all(c.sampling_logprobs is None for g in groups for c in g.completions)


def test_an_adapter_change_takes_effect(engine, config, policy):
    engine.load(policy.adapter(), 5)
    first = engine.sample(PROBLEMS, 2, seed=1)
    other = make_policy(config, seed=2)
    engine.load(other.adapter(), 6)
    second = engine.sample(PROBLEMS, 2, seed=1)
    assert mean_gap(policy, first) < 0.05 < 0.3 < mean_gap(other, first)
    assert mean_gap(other, second) < 0.05 < 0.3 < mean_gap(policy, second)
    engine.load(None, 0)  # the graphs are those with an adapter: its slot must hold zeros by now
    bare = engine.sample(PROBLEMS, 2, seed=1)
    assert mean_gap(policy, bare, reference=True) < 0.05 < 0.3 < mean_gap(other, bare)
    engine.load(policy.adapter(), 7)
    assert mean_gap(policy, engine.sample(PROBLEMS, 2, seed=1)) < 0.05


@pytest.mark.skipif(not is_tried(), reason="this version of vLLM captures its own way")
def test_each_size_is_captured_once(synced):
    (graphs,) = synced.client._core.collective_rpc("num_model_graphs", None, (), {})
    assert graphs == len(graph_sizes(synced.limits.max_num_seqs))


def test_score_agrees_with_sampling(synced):
    groups = synced.sample(PROBLEMS, 1, seed=1)
    scores = synced.score([g.prompt_ids for g in groups], [g.completions[0].token_ids for g in groups])
    gaps = [
        abs(a - b)
        for group, row in zip(groups, scores, strict=True)
        for a, b in zip(row, group.completions[0].sampling_logprobs, strict=True)
    ]
    assert sum(gaps) / len(gaps) < 0.05


@pytest.mark.parametrize("logprobs", [True, False])
def test_tokens_are_scored_beside_completions(synced, policy, logprobs):
    """Steps are prepared ahead here: prompts of both kinds and decoding share them."""
    groups = synced.sample(PROBLEMS, 1, seed=1)
    rows = [g.prompt_ids for g in groups], [g.completions[0].token_ids for g in groups]
    owed = synced.score_with_next(*rows)
    found = synced.sample(PROBLEMS, GROUP, replace(synced.sampling, logprobs=logprobs), seed=2)
    assert owed.scores is not None
    alone = torch.tensor([value for row in synced.score(*rows) for value in row])
    beside = torch.tensor([value for row in owed.result() for value in row])
    assert float((beside - alone).abs().mean()) < 0.05
    assert all(
        len(c.sampling_logprobs or ()) == logprobs * len(c.token_ids) for g in found for c in g.completions
    )
    if logprobs:
        assert mean_gap(policy, found) < 0.05


def test_the_sentinel_proves_and_refutes(engine, config):
    policy = make_policy(config, seed=3)
    engine.load(policy.adapter(), policy.version)
    sentinel = Sentinel(engine, policy, PROBLEMS, max_gap=0.25)
    gap = sentinel.check()["sync/sentinel_gap"]
    assert gap < 0.1
    move(policy, 4, 0.005)
    engine.load(policy.adapter(), policy.version)
    metrics = sentinel.check()
    assert metrics["sync/arrived"] - 3 * metrics["sync/arrived_error"] > 0.5
    move(policy, 5, 0.005)  # the engine is not told
    with pytest.raises(SyncError):
        for _ in range(20):
            sentinel.check()
            move(policy, 6, 0.005)
    adapter = policy.adapter()
    engine.load(Adapter({**adapter.config, "lora_alpha": adapter.config["r"]}, adapter.tensors), 9)
    with pytest.raises(SyncError):
        Sentinel(engine, policy, PROBLEMS, max_gap=0.25).check()


def test_merged_weights_are_served_and_their_loss_is_reported(config, policy):
    """A second engine: full-precision deltas against what bfloat16 keeps of them."""
    from mathrl.rollout.vllm import VllmEngine
    from mathrl.rollout.vllm_core import CoreClient

    limits = Limits(
        max_model_len=256, max_num_seqs=64, lora_rank=0, kv_cache_bytes=1 << 30, memory_fraction=0.1
    )
    engine = VllmEngine(
        CoreClient, config.model.path, policy.tokenizer, [policy.eos_id], encode,
        Sampling(max_completion_tokens=LIMIT), limits, device="cuda", dtype=torch.bfloat16, compile=False,
    )  # fmt: skip
    try:
        engine.load(policy.adapter(), 1)
        assert 0.9 < engine.sync_metrics["merge/kept"] < 1.1
        assert 0 < engine.sync_metrics["merge/relative_error"] < 0.2
        assert mean_gap(policy, engine.sample(PROBLEMS, 2, seed=1)) < 0.08
        engine.load(None, 2)
        assert mean_gap(policy, engine.sample(PROBLEMS, 2, seed=1), reference=True) < 0.05
    finally:
        engine.close()


def test_replicas_sample_as_one_engine_and_are_proved_each(config, policy, synced):
    three = config.model_copy(update={"rollout": config.rollout.model_copy(update={"num_replicas": 3})})
    replicas, reason = make_engine(three, policy, encode)
    assert reason.endswith("3 replicas")
    processes = [psutil.Process(p.pid) for each in replicas.engines for p in each.client.processes]
    assert len({process.pid for process in processes}) == 3
    try:
        trainer = make_policy(config)
        replicas.load(trainer.adapter(), trainer.version)
        groups = replicas.sample(PROBLEMS, GROUP, seed=7)
        assert [group.problem for group in groups] == PROBLEMS
        assert mean_gap(trainer, groups) < 0.05
        alone = synced.sample(PROBLEMS, GROUP, seed=7)
        same = sum(a == b for a, b in zip(ids(groups), ids(alone), strict=True))
        assert same >= 0.8 * len(ids(alone))  # equal seeds, but bfloat16 sums that depend on the batch
        sentinel = Sentinel(replicas, trainer, PROBLEMS, max_gap=0.25)
        sentinel.check()
        with pytest.raises(SyncError, match="older weights|differ by"):
            for seed in range(20):
                move(trainer, 10 + seed, 0.005)
                for each in replicas.engines[:2]:
                    each.load(trainer.adapter(), trainer.version)  # the third is not told
                sentinel.check()
    finally:
        replicas.close()
    assert not any(process.is_running() for process in processes)
