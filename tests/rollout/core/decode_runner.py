"""As much of vLLM's runner as a decoding step asks for, of torch, and graphs of its calls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
