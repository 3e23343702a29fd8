"""A decoding step of vLLM's runner as three graphs that are replayed, instead of some forty launches.

While requests only decode, a step's inputs follow from the step before, and all of that stands on the GPU:
positions, tokens, cache slots, seeds. vLLM's second runner launches the kernels that work them out, and those
that sample, one by one from Python at every step, which takes longer (4 ms on a host of 2026) than the GPU
needs for the step where few are left. Here vLLM's own functions for both are captured once a batch size:
inputs, the model (vLLM's graph, as it is), sampling. Python only says what has changed: who is in the batch,
and which requests have new cache blocks.

A step that is not of this kind goes vLLM's way; so do all, where the runner has anything that this does not
know. A batch is filled up to the graph's size with copies of its last request that have no token: they write
nothing, and what they sample is not looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from mathrl.rollout.core.decode_kinds import Batch, Kind, batch_of, only_decoding

logger = logging.getLogger("vllm.mathrl")


class _Graphs(NamedTuple):
    inputs: Callable[[], None]
    sample: Callable[[], None]


class DecodeGraphs:
    """The steps of one runner.

    Args:
        runner: vLLM's GPUModelRunner, with its graphs captured.
        library: vLLM's functions and classes that are used here, by their names.
        record: (launches, memory pool) -> what replays them.
    """

    def __init__(
        self, runner: Any, library: Any, record: Callable[[Callable[[], None], Any], Callable[[], None]]
    ) -> None:
        self.runner, self.library, self._record = runner, library, record
        self.gave_up = False
        device, size = runner.device, runner.max_num_reqs
        whole: dict[str, Any] = {"dtype": torch.int32, "device": device}
        # (size,) rows of the runner's states; (size,) 1 for a request, 0 for what fills the batch up
        self._places = torch.zeros(2 * size, **whole)
        self._starts = torch.arange(size + 1, **whole)
        self._zeros = torch.zeros(size, **whole)
        self._logit_rows = torch.zeros(size, dtype=torch.int64, device=device)
        self._sampled = torch.zeros(size, 1, dtype=torch.int64, device=device)
        self._num_sampled = torch.zeros(size, **whole)
        self._logprobs: Any = None  # vLLM's tensors, for ``size`` completions
        self._settled: dict[str, torch.Tensor] = {}  # what vLLM keeps in buffers that take turns
        self._graphs: dict[Kind, _Graphs] = {}
        self._met: set[Kind] = set()
        self._ids: list[str] = []  # of the step before, where it was one of these
        self._index: dict[str, int] = {}
        self._batch: Batch | None = None
        self._adapter: tuple[int, int] | None = None  # that vLLM's kernels have been told of; for how many
        self._under_way: tuple[_Graphs, set[str]] | None = None
        self._copied: Any = None  # when the tokens of the step before have left their buffer

    @property
    def num_kinds(self) -> int:
        """Kinds of steps that there are graphs of by now."""
        return len(self._graphs)

    def forget(self) -> None:
        """vLLM makes a step of its own: the buffers that it shares with these steps hold another batch."""
        self._ids, self._batch, self._adapter = [], None, None

    def execute(self, scheduled: Any) -> bool:
        """Begin the step, where it is one of these: inputs and model are under way then."""
        ids = [] if self.gave_up else only_decoding(scheduled)
        if not ids:
            return False
        runner, batch = self.runner, self._batch
        same = batch is not None and ids == self._ids
        if not same:
            batch = batch_of(runner, ids)
        if batch is None:
            return False
        runner.finish_requests(scheduled)
        runner.free_states(scheduled)
        moved = self._new_blocks(scheduled.scheduled_cached_reqs)
        if not same:
            self._enter(ids, batch)
        if moved or not same:
            places = self._places[: len(ids)]
            runner.block_tables.gather_block_tables(places, num_reqs_padded=batch.kind.size)
        graphs = self._graphs_of(batch)
        runner.kv_connector.pre_forward(scheduled)
        graphs.inputs()
        runner.cudagraph_manager.run_fullgraph(batch.model)
        self._under_way = graphs, scheduled.finished_req_ids
        return True

    def sample(self) -> Any:
        """vLLM's output of the step that ``execute`` has begun; None where it has begun none."""
        if self._under_way is None or self._batch is None:
            return None
        (graphs, finished), self._under_way = self._under_way, None
        runner, library, n = self.runner, self.library, len(self._ids)
        if self._copied is not None:
            runner.main_stream.wait_event(self._copied)
        graphs.sample()
        logprobs = None
        if self._batch.kind.num_logprobs >= 0:
            logprobs = library.LogprobsTensors(*(column[:n] for column in self._logprobs))
        output = library.ModelRunnerOutput(
            req_ids=self._ids,
            req_id_to_index=self._index,
            sampled_token_ids=None,
            prompt_logprobs_dict={},
        )
        tokens = library.SamplerOutput(
            sampled_token_ids=self._sampled[:n],
            logprobs_tensors=logprobs,
            num_nans=None,
            num_sampled=self._num_sampled[:n],
        )
        answer = library.AsyncOutput(
            model_runner_output=output,
            sampler_output=tokens,
            num_sampled_tokens=tokens.num_sampled,
            main_stream=runner.main_stream,
            copy_stream=runner.output_copy_stream,
        )
        self._copied = answer.copy_event
        output.kv_connector_output = runner.kv_connector.post_forward(finished)
        return answer

    # --- who is in the batch --------------------------------------------------------------------------------

    def _enter(self, ids: list[str], batch: Batch) -> None:
        """Make these the batch: all that graphs read and that does not follow from the step before."""
        runner, most, size = self.runner, self.runner.max_num_reqs, batch.kind.size
        if self._batch is None:  # vLLM's own steps may have added requests
            self._settle()
        n = len(ids)
        places = np.full(2 * most, batch.rows[-1], np.int32)
        places[:n] = batch.rows
        places[most:] = np.arange(most) < n
        _send(self._places, places)
        _send(runner.input_buffers.query_start_loc, np.minimum(np.arange(most + 1), n).astype(np.int32))
        if runner.lora_config:
            number = int(runner.lora_state.lora_ids[batch.rows[0]])
            if self._adapter != (number, size):
                runner._set_active_loras((number,) * size, (number,) * size, batch.adapters)
                self._adapter = number, size
        self._ids, self._batch = ids, batch
        self._index = {name: i for i, name in enumerate(ids)}

    def _settle(self) -> None:
        """Copy what vLLM keeps in buffers that take turns to where graphs can read it."""
        for name, tensor in self._turning().items():
            if name not in self._settled:
                self._settled[name] = torch.empty_like(tensor.gpu, device=self.runner.device)
            self._settled[name].copy_(tensor.gpu, non_blocking=True)

    def _turning(self) -> dict[str, Any]:
        states = self.runner.sampler.sampling_states
        return {
            "temperature": states.temperature,
            "seeds": states.seeds,
            "prefill_len": self.runner.req_states.prefill_len,
        }

    def _new_blocks(self, cached: Any) -> bool:
        """Tell the runner's block tables of new cache blocks; whether there were any."""
        index, tables = self.runner.req_states.req_id_to_index, self.runner.block_tables
        moved = False
        for name, blocks in zip(cached.req_ids, cached.new_block_ids, strict=True):
            if blocks is not None:
                tables.append_block_ids(index[name], blocks, overwrite=False)
                moved = True
        if moved:
            tables.apply_staged_writes()
        return moved

    # --- the graphs -----------------------------------------------------------------------------------------

    def _graphs_of(self, batch: Batch) -> _Graphs:
        """The first step of a kind is launched kernel by kernel, so that all of them are loaded."""
        graphs = self._graphs.get(batch.kind)
        if graphs is not None:
            return graphs
        shape = self._input_batch(batch)
        graphs = _Graphs(lambda: self._make_inputs(shape, batch.model.cg_mode), lambda: self._sample(shape))
        if batch.kind not in self._met:
            self._met.add(batch.kind)
            return graphs
        pool = self.runner.cudagraph_manager.pool
        try:
            recorded = _Graphs(self._record(graphs.inputs, pool), self._record(graphs.sample, pool))
        except RuntimeError as error:  # this step kernel by kernel, the others vLLM's way
            self.gave_up = True
            logger.error("decoding steps are launched kernel by kernel: no graph of them: %s", error)
            return graphs
        self._graphs[batch.kind] = recorded
        return recorded

    def _input_batch(self, batch: Batch) -> Any:
        """vLLM's InputBatch, of buffers that stay."""
        buffers, size = self.runner.input_buffers, batch.kind.size
        rows = np.full(size, batch.rows[-1], np.int32)
        rows[: len(batch.rows)] = batch.rows
        return SimpleNamespace(
            num_reqs=size,
            num_reqs_after_padding=size,
            idx_mapping=self._places[:size],
            idx_mapping_np=rows,
            expanded_idx_mapping=self._places[:size],
            expanded_local_pos=self._zeros[:size],
            num_scheduled_tokens=np.ones(size, np.int32),
            num_tokens=size,
            num_tokens_after_padding=size,
            num_draft_tokens=0,
            query_start_loc=buffers.query_start_loc[: size + 1],
            query_start_loc_np=np.arange(size + 1, dtype=np.int32),
            seq_lens=buffers.seq_lens[:size],
            seq_lens_cpu_upper_bound=torch.full((size,), self.runner.max_model_len, dtype=torch.int32),
            dcp_local_seq_lens=None,
            is_prefilling_np=np.zeros(size, np.bool_),
            input_ids=buffers.input_ids[:size],
            positions=buffers.positions[:size],
            logits_indices=self._logit_rows[:size],
            cu_num_logits=self._starts[: size + 1],
            cu_num_logits_np=np.arange(size + 1, dtype=np.int32),
            prompt_lens=None,
        )

    def _make_inputs(self, batch: Any, mode: Any) -> None:
        """Positions, lengths, tokens, cache slots and the attention's schedule, of the step to come."""
        runner, library, size = self.runner, self.library, batch.num_reqs
        buffers, states = runner.input_buffers, runner.req_states
        library.prepare_pos_seq_lens(
            batch.idx_mapping,
            batch.query_start_loc,
            states.num_computed_tokens.gpu,
            buffers.positions,
            buffers.seq_lens,
        )
        alive = self._places[runner.max_num_reqs : runner.max_num_reqs + size]
        batch.seq_lens.mul_(alive)
        rows = library.combine_sampled_and_draft_tokens(
            buffers.input_ids,
            batch.idx_mapping,
            states.last_sampled_tokens,
            batch.query_start_loc,
            batch.seq_lens,
            self._settled["prefill_len"],
            states.draft_tokens,
            batch.cu_num_logits,
            size,
            runner.model_state.num_new_sampled_tokens_per_step,
        )
        batch.logits_indices.copy_(rows)
        tables = runner.block_tables
        slots = tables.compute_slot_mappings(
            batch.idx_mapping, batch.query_start_loc, batch.positions, num_tokens_padded=size
        )
        runner.model_state.prepare_attn(
            batch,
            mode,
            tables.get_dummy_block_tables(size),
            slots,
            runner.attn_groups,
            runner.kv_cache_config,
            for_capture=True,  # for any length that the model can have
        )

    def _sample(self, batch: Any) -> None:
        """Logits, tokens, their log-probabilities; the runner's states take the tokens in."""
        runner, size = self.runner, batch.num_reqs
        turning = self._turning()
        before = {name: tensor.gpu for name, tensor in turning.items()}
        try:
            for name, tensor in turning.items():
                tensor.gpu = self._settled[name]
            hidden = runner.cudagraph_manager.hidden_states[:size]
            found, num_sampled, num_rejected = runner.sample(hidden, batch, None)
        finally:
            for name, tensor in turning.items():
                tensor.gpu = before[name]
        self._sampled[:size].copy_(found.sampled_token_ids)
        self._num_sampled[:size].copy_(num_sampled)
        if found.logprobs_tensors is not None:
            columns = found.logprobs_tensors[:3]
            if self._logprobs is None:
                most = runner.max_num_reqs
                self._logprobs = [c.new_zeros((most, *c.shape[1:])) for c in columns]
            for kept, column in zip(self._logprobs, columns, strict=True):
                kept[:size].copy_(column)
        runner.postprocess_sampled(
            batch.idx_mapping, found.sampled_token_ids, num_sampled, num_rejected, batch.query_start_loc
        )


def _send(to: torch.Tensor, words: np.ndarray[Any, Any]) -> None:
    """To the device, without waiting for it."""
    source = torch.from_numpy(words)
    to.copy_(source.pin_memory() if to.is_cuda else source, non_blocking=True)
