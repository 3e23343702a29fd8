"""Steps as graphs beside the same steps launched one by one, on the runner of decode_runner.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from decode_runner import (
    BLOCK,
    LIBRARY,
    ROWS,
    VOCABULARY,
    Answer,
    Record,
    Runner,
    combine_sampled_and_draft_tokens,
    prepare_pos_seq_lens,
)

from mathrl.rollout.core.decode_graphs import DecodeGraphs


class Side:
    """A runner and its requests; steps by graphs or one by one."""

    def __init__(self, graphs: bool) -> None:
        self.runner = Runner()
        self.graphs = DecodeGraphs(self.runner, LIBRARY, Record) if graphs else None
        self.num_blocks = 1

    def add(self, name: str, prompt: int, seed: int, heat: float = 1.0, logprobs: int = -1) -> None:
        """A request whose prompt is in the cache; vLLM's own step does that."""
        runner, states = self.runner, self.runner.req_states
        row = states.req_id_to_index[name] = runner.free.pop(0)
        states.prefill_len.np[row] = prompt
        sampling = runner.sampler.sampling_states
        sampling.seeds.np[row], sampling.temperature.np[row] = seed, heat
        sampling.num_logprobs[row] = logprobs
        for each in (states.prefill_len, sampling.seeds, sampling.temperature):
            each.copy_to_uva()
        states.num_computed_tokens.gpu[row] = prompt
        states.last_sampled_tokens[row] = seed % VOCABULARY
        runner.block_tables.append_block_ids(row, (self._blocks(-(-prompt // BLOCK)),), overwrite=True)
        runner.block_tables.apply_staged_writes()
        slots = [int(runner.block_tables.blocks[row, i // BLOCK]) * BLOCK + i % BLOCK for i in range(prompt)]
        runner.cache[slots] = torch.arange(prompt) * seed % 100
        if self.graphs is not None:
            self.graphs.forget()

    def _blocks(self, n: int) -> list[int]:
        first, self.num_blocks = self.num_blocks, self.num_blocks + n
        return list(range(first, first + n))

    def scheduled(self, names: list[str], finished: set[str]) -> Any:
        index, computed = (
            self.runner.req_states.req_id_to_index,
            self.runner.req_states.num_computed_tokens.gpu,
        )
        full = [int(computed[index[name]]) % BLOCK == 0 for name in names]
        cached = SimpleNamespace(
            req_ids=names,
            new_block_ids=[(self._blocks(1),) if f else None for f in full],
            resumed_req_ids=set(),
        )
        return SimpleNamespace(
            steady=SimpleNamespace(ids=names, others={}),
            scheduled_cached_reqs=cached,
            scheduled_new_reqs=[],
            total_num_scheduled_tokens=len(names),
            scheduled_spec_decode_tokens={},
            scheduled_encoder_inputs={},
            preempted_req_ids=None,
            has_structured_output_requests=False,
            new_block_ids_to_zero=None,
            finished_req_ids=finished,
        )

    def step(self, names: list[str], finished: set[str]) -> Any:
        scheduled = self.scheduled(names, finished)
        if self.graphs is not None:
            assert self.graphs.execute(scheduled)
            return self.graphs.sample()
        return self.one_by_one(scheduled, names)

    def one_by_one(self, scheduled: Any, names: list[str]) -> Any:
        """The step with just these requests, as vLLM makes it."""
        runner, n = self.runner, len(names)
        runner.finish_requests(scheduled)
        states, buffers, tables = runner.req_states, runner.input_buffers, runner.block_tables
        for name, blocks in zip(names, scheduled.scheduled_cached_reqs.new_block_ids, strict=True):
            if blocks:
                tables.append_block_ids(states.req_id_to_index[name], blocks, overwrite=False)
        tables.apply_staged_writes()
        rows = np.array([states.req_id_to_index[name] for name in names], np.int32)
        places = torch.from_numpy(rows)
        buffers.query_start_loc[: n + 1] = torch.arange(n + 1)
        starts = buffers.query_start_loc[: n + 1]
        tables.gather_block_tables(places, n)
        prepare_pos_seq_lens(
            places, starts, states.num_computed_tokens.gpu, buffers.positions, buffers.seq_lens
        )
        indices = combine_sampled_and_draft_tokens(
            buffers.input_ids, places, states.last_sampled_tokens, starts, buffers.seq_lens[:n],
            states.prefill_len.gpu, None, None, n, 1,
        )  # fmt: skip
        tables.compute_slot_mappings(places, starts, buffers.positions, n)
        batch = SimpleNamespace(
            num_reqs=n, seq_lens=buffers.seq_lens[:n], expanded_idx_mapping=places, idx_mapping_np=rows,
            positions=buffers.positions, logits_indices=indices,
        )  # fmt: skip
        runner._attend(batch)
        runner.run_fullgraph(SimpleNamespace(num_tokens=n))
        found, num_sampled, rejected = runner.sample(runner.hidden_states[:n], batch, None)
        runner.postprocess_sampled(places, found.sampled_token_ids, num_sampled, rejected, starts)
        logprobs = found.logprobs_tensors
        tokens = SimpleNamespace(
            sampled_token_ids=found.sampled_token_ids,
            num_sampled=num_sampled,
            logprobs_tensors=logprobs and logprobs[:3],
        )
        index = {name: i for i, name in enumerate(names)}
        return Answer(
            model_runner_output=SimpleNamespace(req_ids=names, req_id_to_index=index), sampler_output=tokens
        )

    def state(self) -> tuple[Any, ...]:
        states = self.runner.req_states
        return (
            states.num_computed_tokens.gpu.tolist(),
            states.last_sampled_tokens.tolist(),
            states.total_len.tolist(),
            self.runner.cache.tolist(),
        )


@pytest.mark.parametrize("seed", range(4))
def test_tokens_and_states_are_those_of_steps_launched_one_by_one(seed: int) -> None:
    draw = np.random.default_rng(seed)
    sides = Side(graphs=False), Side(graphs=True)
    running: list[str] = []
    finished: set[str] = set()
    for step in range(60):
        for _ in range(int(draw.integers(0, 3)) if step % 7 == 0 else 0):
            if len(running) + len(finished) < ROWS - 1:
                name, prompt, number = (
                    f"r{step}-{len(running)}",
                    int(draw.integers(1, 9)),
                    int(draw.integers(1, 999)),
                )
                for side in sides:
                    side.add(name, prompt, number, heat=[1.0, 0.7][seed % 2], logprobs=[-1, 0][seed // 2])
                running.append(name)
        if not running:
            continue
        answers = [side.step(list(running), finished) for side in sides]
        assert answers[0].tokens == answers[1].tokens
        assert answers[0].logprobs == answers[1].logprobs
        assert sides[0].state() == sides[1].state()
        finished = {name for name in running if draw.random() < 0.03}
        running = [name for name in running if name not in finished]
    graphs = sides[1].graphs
    assert graphs is not None
    assert graphs.num_kinds >= 2  # most steps were replays
    assert not graphs.gave_up


def test_without_a_graph_of_it_the_step_is_launched_and_the_others_are_vllms() -> None:
    def refuse(run: Any, pool: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    plain, side = Side(graphs=False), Side(graphs=True)
    graphs = side.graphs
    assert graphs is not None
    graphs._record = refuse
    for each in (plain, side):
        each.add("a", 5, 7)
    for _ in range(2):
        assert side.step(["a"], set()).tokens == plain.step(["a"], set()).tokens
    assert graphs.gave_up
    before = side.state()
    assert not graphs.execute(side.scheduled(["a"], set()))
    assert graphs.sample() is None
    assert side.state() == before == plain.state()


CHANGES: dict[str, Any] = {
    "vLLM schedules others": lambda s, r: s.steady.others.update(b=3),
    "a new request": lambda s, r: s.scheduled_new_reqs.append("b"),
    "more tokens": lambda s, r: setattr(s, "total_num_scheduled_tokens", 2),
    "given back": lambda s, r: setattr(s, "preempted_req_ids", {"b"}),
    "structured": lambda s, r: setattr(s, "has_structured_output_requests", True),
    "resumed": lambda s, r: s.scheduled_cached_reqs.resumed_req_ids.add("a"),
    "unknown": lambda s, r: r.req_states.req_id_to_index.clear(),
    "top-k": lambda s, r: r.sampler.sampling_states.top_k.np.fill(5),
    "top-p": lambda s, r: r.sampler.sampling_states.top_p.np.fill(0.9),
    "min-p": lambda s, r: r.sampler.sampling_states.min_p.np.fill(0.1),
    "penalties": lambda s, r: r.sampler.penalties_state.use_penalty.fill(1),
    "given tokens": lambda s, r: r.sampler.logprob_token_ids_state.num_token_ids.np.fill(1),
    "several log-probabilities": lambda s, r: r.sampler.sampling_states.num_logprobs.fill(2),
    "no graph": lambda s, r: setattr(
        r, "dispatch", lambda *a, **k: SimpleNamespace(cg_mode=SimpleNamespace(name="NONE"))
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_step_of_another_kind_is_left_to_vllm(what: str) -> None:
    side = Side(graphs=True)
    assert side.graphs is not None
    side.add("a", 5, 7)
    scheduled = side.scheduled(["a"], set())
    CHANGES[what](scheduled, side.runner)
    before = side.state()
    assert not side.graphs.execute(scheduled)
    assert side.graphs.sample() is None
    assert side.state() == before


def test_requests_of_two_adapters_are_left_to_vllm() -> None:
    side = Side(graphs=True)
    assert side.graphs is not None
    side.add("a", 5, 7)
    side.add("b", 5, 8)
    side.runner.lora_state.lora_ids[side.runner.req_states.req_id_to_index["b"]] = 4
    assert not side.graphs.execute(side.scheduled(["a", "b"], set()))
    assert side.graphs.execute(side.scheduled(["a"], set()))
