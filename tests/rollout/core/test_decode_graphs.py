"""Steps as graphs beside the same steps launched one by one, on a runner of torch and graphs of its calls."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mathrl.rollout.core import graphs_in_vllm
from mathrl.rollout.core.decode_graphs import DecodeGraphs

ROWS, LENGTH, BLOCK, BLOCKS, VOCABULARY = 12, 48, 4, 200, 997
SIZES = (1, 2, 4, 8, 12)


class Record(TorchDispatchMode):
    """As CUDA's graphs: calls are noted with their tensors and change nothing; a replay makes them again."""

    def __init__(self, run: Any, pool: Any) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        with self:
            run()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        changes = func._schema.is_mutable
        result = args[0] if changes else func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, None if changes else result))
        return result

    def __call__(self) -> None:
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            if result is not None:
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class Turning:
    """A tensor that vLLM copies from the host to one of two buffers, which take turns."""

    def __init__(self, values: Any) -> None:
        self.np = np.array(values)
        self._turns = [torch.from_numpy(self.np.copy()) for _ in range(2)]
        self.gpu = self._turns[0]

    def copy_to_uva(self) -> None:
        self._turns.reverse()
        self.gpu = self._turns[0]
        self.gpu.copy_(torch.from_numpy(self.np))
        self._turns[1].fill_(-77)  # whoever still reads the old one reads this


def ints(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.int32)


class Tables:
    """Cache blocks of requests; slots of tokens."""

    def __init__(self) -> None:
        self.blocks, self.rows = ints(ROWS, BLOCKS), ints(ROWS, BLOCKS)
        self.counts = [0] * ROWS
        self.staged: list[tuple[int, int, list[int]]] = []
        self.slots = torch.zeros(1, 2 * ROWS, dtype=torch.int64)

    def append_block_ids(self, row: int, blocks: Any, overwrite: bool) -> None:
        start = 0 if overwrite else self.counts[row]
        self.staged.append((row, start, blocks[0]))
        self.counts[row] = start + len(blocks[0])

    def apply_staged_writes(self) -> None:
        for row, start, blocks in self.staged:
            self.blocks[row, start : start + len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        self.staged = []

    def gather_block_tables(self, places: torch.Tensor, num_reqs_padded: int) -> None:
        self.rows[: len(places)] = self.blocks[places.long()]
        self.rows[len(places) : num_reqs_padded] = 0

    def get_dummy_block_tables(self, n: int) -> tuple[torch.Tensor]:
        return (self.rows[:n],)

    def compute_slot_mappings(self, places: Any, starts: Any, positions: Any, num_tokens_padded: int) -> Any:
        n = len(places)
        at = _targets(starts, n)
        where = positions[starts[:n].long()]
        block = self.blocks[places.long()].gather(1, (where // BLOCK)[:, None]).squeeze(1)
        self.slots.fill_(-1)
        self.slots[0].scatter_(0, at, block.long() * BLOCK + where % BLOCK)
        self.slots[0, -1:].fill_(-1)
        return self.slots[:, :num_tokens_padded]


def _targets(starts: torch.Tensor, n: int) -> torch.Tensor:
    """Of each request the place of its token; of one without a token the last place, which nobody reads."""
    counts = starts[1 : n + 1] - starts[:n]
    return torch.where(counts == 1, starts[:n], 2 * ROWS - 1).long()


class Runner:
    """As much of vLLM's runner as a decoding step asks for; the model and its sampler are arithmetic."""

    max_num_reqs, max_model_len, lora_config = ROWS, LENGTH, True
    device = torch.device("cpu")
    attn_groups = kv_cache_config = None

    def __init__(self) -> None:
        states = SimpleNamespace(
            temperature=Turning(np.ones(ROWS, np.float32)),
            seeds=Turning(np.zeros(ROWS, np.int64)),
            top_k=SimpleNamespace(np=np.full(ROWS, VOCABULARY)),
            top_p=SimpleNamespace(np=np.ones(ROWS)),
            min_p=SimpleNamespace(np=np.zeros(ROWS)),
            num_logprobs=np.full(ROWS, -1, np.int32),
            vocab_size=VOCABULARY,
        )
        none = np.zeros(ROWS, np.int32)
        self.sampler = SimpleNamespace(
            sampling_states=states,
            penalties_state=SimpleNamespace(use_penalty=none),
            logit_bias_state=SimpleNamespace(use_logit_bias=none),
            bad_words_state=SimpleNamespace(num_bad_words=SimpleNamespace(np=none)),
            logprob_token_ids_state=SimpleNamespace(num_token_ids=SimpleNamespace(np=none.copy())),
            compute_nans=False,
        )
        self.req_states = SimpleNamespace(
            req_id_to_index={},
            prefill_len=Turning(np.zeros(ROWS, np.int32)),
            num_computed_tokens=SimpleNamespace(gpu=ints(ROWS)),
            last_sampled_tokens=torch.zeros(ROWS, 1, dtype=torch.int64),
            total_len=ints(ROWS),
            draft_tokens=ints(ROWS, 0),
        )
        self.input_buffers = SimpleNamespace(
            query_start_loc=ints(ROWS + 1),
            seq_lens=ints(ROWS),
            input_ids=ints(2 * ROWS),
            positions=torch.zeros(2 * ROWS, dtype=torch.int64),
        )
        self.block_tables = Tables()
        self.model_state = SimpleNamespace(
            num_new_sampled_tokens_per_step=1, prepare_attn=lambda batch, *a, **k: self._attend(batch)
        )
        self.kv_connector = SimpleNamespace(pre_forward=lambda s: None, post_forward=lambda ids: None)
        self.lora_state = SimpleNamespace(
            lora_ids=np.full(ROWS, 3), get_activate_loras=lambda ids: {"adapter"}
        )
        self.told = 0  # tokens that the adapter's kernels know of; 0: nobody has told them
        self.cudagraph_manager = self
        self.pool = None
        self.hidden_states = torch.zeros(ROWS, dtype=torch.int64)
        self.lengths = ints(ROWS)  # the attention's schedule
        self.cache = torch.zeros(BLOCKS * BLOCK, dtype=torch.int64)
        self.main_stream, self.output_copy_stream = SimpleNamespace(wait_event=lambda event: None), None
        self.free = list(range(ROWS))

    def _set_active_loras(self, prompts: tuple[int, ...], tokens: tuple[int, ...], adapters: Any) -> None:
        assert prompts == tokens
        assert adapters == {"adapter"}
        self.told = len(tokens)

    def _attend(self, batch: Any) -> None:
        self.lengths[: batch.num_reqs].copy_(batch.seq_lens)

    def dispatch(self, num_reqs: int, num_tokens: int, uniform: int, num_active_loras: int) -> Any:
        size = next(s for s in SIZES if s >= num_reqs)
        return SimpleNamespace(cg_mode=SimpleNamespace(name="FULL"), num_reqs=size, num_tokens=size)

    def finish_requests(self, scheduled: Any) -> None:
        for name in scheduled.finished_req_ids:
            row = self.req_states.req_id_to_index.pop(name, None)
            if row is not None:
                self.free.append(row)

    def free_states(self, scheduled: Any) -> None: ...

    def run_fullgraph(self, model: Any) -> None:
        """Every token is written to its slot; its request reads all of its own and not one more."""
        size, buffers = model.num_tokens, self.input_buffers
        assert self.told in (0, size)
        for t in range(size):
            slot = int(self.block_tables.slots[0, t])
            if slot >= 0:
                self.cache[slot] = int(buffers.input_ids[t]) * 31 + int(buffers.positions[t])
        for t in range(size):
            self.hidden_states[t] = self._read(self.block_tables.rows[t], int(self.lengths[t]))

    def _read(self, row: torch.Tensor, length: int) -> int:
        slots = [int(row[i // BLOCK]) * BLOCK + i % BLOCK for i in range(length)]
        return sum((i + 1) * int(self.cache[s]) for i, s in enumerate(slots)) % VOCABULARY

    def sample(self, hidden: torch.Tensor, batch: Any, grammar: Any) -> Any:
        states, places = self.sampler.sampling_states, batch.expanded_idx_mapping.long()
        position = batch.positions[batch.logits_indices]
        heat = states.temperature.gpu[places].mul(10).long()
        mixed = hidden[batch.logits_indices] * 7 + states.seeds.gpu[places] * (position + 1) + heat
        tokens = (mixed % VOCABULARY)[:, None]
        going = (batch.seq_lens >= self.req_states.prefill_len.gpu[places]).int()
        logprobs = None
        if states.num_logprobs[batch.idx_mapping_np].max() >= 0:
            logprobs = (tokens, -tokens.float() / VOCABULARY, tokens[:, 0] % 5, None)
        found = SimpleNamespace(sampled_token_ids=tokens, logprobs_tensors=logprobs)
        return found, going, torch.zeros_like(going)

    def postprocess_sampled(
        self, places: Any, tokens: Any, num_sampled: Any, rejected: Any, starts: Any
    ) -> None:
        n, rows, states = len(places), places.long(), self.req_states
        last = states.last_sampled_tokens
        kept = torch.where(num_sampled[:, None] > 0, tokens, last[rows])
        # of several places of one row the one with a token counts
        alone = torch.where(num_sampled > 0, rows, ROWS).long()
        wide = torch.cat([last, last.new_zeros(1, 1)]).scatter(0, alone[:, None], kept)
        last.copy_(wide[:ROWS])
        states.total_len.index_add_(0, rows, num_sampled)
        states.num_computed_tokens.gpu.index_add_(0, rows, (starts[1 : n + 1] - starts[:n]))


def prepare_pos_seq_lens(places: Any, starts: Any, computed: Any, positions: Any, seq_lens: Any) -> None:
    n = len(places)
    known = computed[places.long()]
    seq_lens[:n].copy_(known + starts[1 : n + 1] - starts[:n])
    seq_lens[n:].zero_()
    positions.scatter_(0, _targets(starts, n), known.long())


def combine_sampled_and_draft_tokens(
    ids: Any,
    places: Any,
    last: Any,
    starts: Any,
    lens: Any,
    prefill: Any,
    draft: Any,
    cu: Any,
    n: int,
    new: int,
) -> Any:
    rows = places.long()
    at = torch.where(lens > prefill[rows], _targets(starts, n), 2 * ROWS - 1)
    ids.scatter_(0, at, last[rows, 0].int())
    return (starts[1 : n + 1] - 1).long()


class Answer:
    def __init__(self, *, model_runner_output: Any, sampler_output: Any, **_: Any) -> None:
        tokens, self.copy_event = sampler_output.sampled_token_ids[:, 0].tolist(), object()
        self.tokens = dict(zip(model_runner_output.req_ids, tokens, strict=True))
        assert model_runner_output.req_id_to_index == {
            n: i for i, n in enumerate(model_runner_output.req_ids)
        }
        assert sampler_output.num_sampled.tolist() == [1] * len(tokens)
        columns = sampler_output.logprobs_tensors
        self.logprobs = None if columns is None else [column.tolist() for column in columns]


def output(**fields: Any) -> Any:
    return SimpleNamespace(**fields)


LIBRARY = SimpleNamespace(
    prepare_pos_seq_lens=prepare_pos_seq_lens,
    combine_sampled_and_draft_tokens=combine_sampled_and_draft_tokens,
    AsyncOutput=Answer,
    SamplerOutput=output,
    ModelRunnerOutput=output,
    LogprobsTensors=lambda *columns: columns,
)


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


class VllmsRunner:
    """What is changed: vLLM's own steps say so."""

    def execute_model(
        self, scheduler_output: Any, intermediate_tensors: Any = None, dummy_run: bool = False
    ) -> str:
        return "vLLM's"

    def sample_tokens(self, grammar_output: Any) -> str:
        return "vLLM's tokens"


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A process of a vLLM of a version that has been tried."""
    kind = type("GPUModelRunner", (VllmsRunner,), {})
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0.26.0"))
    monkeypatch.setitem(sys.modules, "vllm.v1.worker.gpu.model_runner", SimpleNamespace(GPUModelRunner=kind))
    return kind


def test_vllms_runner_is_asked_where_graphs_have_not_made_the_step(
    vllm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs_in_vllm.use_decode_graphs()
    runner, forgotten = vllm(), []
    graphs = SimpleNamespace(
        execute=lambda scheduled: scheduled.steady == "known",
        sample=lambda: "tokens of a graph",
        forget=lambda: forgotten.append(1),
    )
    monkeypatch.setattr(graphs_in_vllm, "_graphs_for", lambda runner: graphs)
    assert runner.sample_tokens(None) == "vLLM's tokens"  # nothing has been begun here
    assert runner.execute_model(SimpleNamespace(), dummy_run=True) == "vLLM's"
    runner.decode_graphs = graphs
    assert runner.execute_model(SimpleNamespace(steady="known"), None) is None
    assert runner.sample_tokens(None) == "tokens of a graph"
    assert not forgotten
    assert runner.execute_model(SimpleNamespace(steady="unknown"), None) == "vLLM's"
    assert runner.execute_model(SimpleNamespace(), None) == "vLLM's"
    assert runner.execute_model(SimpleNamespace(steady="known"), dummy_run=True) == "vLLM's"
    assert len(forgotten) == 3
    graphs.sample = lambda: None
    assert runner.sample_tokens(None) == "vLLM's tokens"


@pytest.mark.parametrize("what", ["another version", "switched off", "another runner"])
def test_what_has_not_been_tried_stays_vllms(vllm: Any, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if what == "another version":
        monkeypatch.setattr(sys.modules["vllm"], "__version__", "0.31.2")
    if what == "switched off":
        monkeypatch.setenv(graphs_in_vllm.SWITCH, "0")
    graphs_in_vllm.use_decode_graphs()
    runner = vllm()
    assert (
        runner.execute_model(SimpleNamespace(steady=SimpleNamespace(ids=["a"], others={})), None) == "vLLM's"
    )
    if what == "another runner":  # it has nothing of what is looked for
        assert runner.decode_graphs is None
    else:
        assert vllm.execute_model is VllmsRunner.execute_model
