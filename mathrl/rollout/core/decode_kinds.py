"""Which steps of vLLM's runner are replayed as graphs (decode_graphs.py), and which are of one kind."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Kind(NamedTuple):
    """Steps of one kind can replay the same graphs."""

    size: int  # completions, filled up
    num_adapters: int
    heated: bool  # a temperature other than 0 and 1
    num_logprobs: int  # -1: none


class Batch(NamedTuple):
    """A batch that could be made the current one."""

    kind: Kind
    rows: np.ndarray[Any, np.dtype[np.int32]]  # of the runner's states, one a request
    adapters: set[Any]
    model: Any  # vLLM's description of the model's graph


def only_decoding(scheduled: Any) -> list[str]:
    """Requests of a step that computes one token for each and nothing else; empty where it does more."""
    steady = getattr(scheduled, "steady", None)
    cached = scheduled.scheduled_cached_reqs
    if (
        steady is None
        or steady.others
        or scheduled.scheduled_new_reqs
        or scheduled.total_num_scheduled_tokens != len(steady.ids)
        or scheduled.scheduled_spec_decode_tokens
        or scheduled.scheduled_encoder_inputs
        or scheduled.preempted_req_ids
        or scheduled.has_structured_output_requests
        or scheduled.new_block_ids_to_zero
        or getattr(scheduled, "kv_cache_block_copies", None)
        or cached.resumed_req_ids
    ):
        return []
    ids: list[str] = steady.ids
    return ids


def batch_of(runner: Any, ids: list[str]) -> Batch | None:
    """These requests as a batch; None where a step of theirs is of no kind that has graphs."""
    index = runner.req_states.req_id_to_index
    rows = np.fromiter((index.get(name, -1) for name in ids), np.int32, len(ids))
    if (rows < 0).any() or not _plain_sampling(runner.sampler, rows):
        return None
    adapters: set[Any] = set()
    if runner.lora_config:
        numbers = runner.lora_state.lora_ids[rows]
        if (numbers != numbers[0]).any():
            return None
        adapters = runner.lora_state.get_activate_loras(ids)
    model = runner.cudagraph_manager.dispatch(len(ids), len(ids), 1, num_active_loras=len(adapters))
    if model.cg_mode.name != "FULL" or model.num_reqs != model.num_tokens:
        return None
    states = runner.sampler.sampling_states
    heat = states.temperature.np[rows]
    kind = Kind(
        model.num_reqs,
        len(adapters),
        bool(((heat != 0.0) & (heat != 1.0)).any()),
        int(states.num_logprobs[rows].max()),
    )
    return Batch(kind, rows, adapters, model)


def _plain_sampling(sampler: Any, rows: np.ndarray[Any, Any]) -> bool:
    """Whether these requests are sampled by temperature and seed alone."""
    states = sampler.sampling_states
    return bool(
        (states.top_k.np[rows] == states.vocab_size).all()
        and (states.top_p.np[rows] == 1.0).all()
        and (states.min_p.np[rows] == 0.0).all()
        and not sampler.penalties_state.use_penalty[rows].any()
        and not sampler.logit_bias_state.use_logit_bias[rows].any()
        and not sampler.bad_words_state.num_bad_words.np[rows].any()
        and not sampler.logprob_token_ids_state.num_token_ids.np[rows].any()
        and not sampler.compute_nans
        and states.num_logprobs[rows].max() <= 0
    )
