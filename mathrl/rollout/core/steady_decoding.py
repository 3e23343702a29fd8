"""Requests that only decode, scheduled all at once instead of one by one.

Nearly all of a rollout's steps are the same step: every running request gets one more token. vLLM's
scheduler goes through its requests in Python for that, four times a step, and with 512 of them takes longer
(7 ms on a host of 2026) than the GPU for the step itself (5 ms). Here such requests stand in rows of arrays;
vLLM's own code sees those alone that come, end, or need more than a token. What it sees is as it would have
been: a request that leaves its row brings along all that vLLM would have written into it meanwhile.

Where anything is asked for that this does not know (speculation, structured output, sliding windows, ...) a
request, or the whole scheduler, goes vLLM's way. A mixin for scheduler.py, to stand before ``FinishedOnly``.
"""

from __future__ import annotations

from copy import copy
from typing import Any, NamedTuple

import numpy as np

from mathrl.rollout.core.decode_rows import DecodeRows, Ints

_PLAIN = {  # of vLLM's scheduler: what it must not have, where it has such a field
    "connector": None,
    "ec_connector": None,
    "num_spec_tokens": 0,
    "num_lookahead_tokens": 0,
    "dynamic_sd_lookup": None,
    "enable_return_routed_experts": False,
    "return_sampling_mask": False,
    "defer_block_free": False,
    "use_pp": False,
    "need_mamba_block_aligned_split": False,
    "needs_kv_cache_zeroing": False,
    "log_stats": False,
}
_PLAIN_REQUEST: dict[str, Any] = {  # of its requests, likewise
    "pooling_params": None,
    "structured_output_request": None,
    "num_encoder_inputs": 0,
    "resumable": False,
    "is_prefill_chunk": False,
    "async_tokens_to_discard": 0,
    "num_stale_output_tokens": 0,
    "spec_token_ids": [],
}
_PLAIN_SAMPLING = {
    "min_tokens": 0,
    "prompt_logprobs": None,
    "logprob_token_ids": None,
    "repetition_detection": None,
}
_LIMITS = ("max_num_running_reqs", "max_num_active_reqs", "max_num_scheduled_tokens")  # of vLLM's scheduler


class _Step(NamedTuple):
    """What a step computes for rows; kept on vLLM's SchedulerOutput until the tokens come."""

    rows: Ints
    ids: list[str]
    stays: Ints  # of the rows when it was scheduled
    others: dict[str, int]  # what vLLM's own scheduler added: request -> tokens


class SteadyDecoding:
    """Scheduler mixin; see the module."""

    requests: dict[str, Any]  # of vLLM's scheduler
    running: list[Any]
    kv_cache_manager: Any
    max_num_running_reqs: int
    _tokens: dict[str, list[int]]  # of FinishedOnly
    _logprobs: dict[str, list[Any]]
    _room: dict[str, int]
    _cached: dict[str, int]
    _block_tokens: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rows: DecodeRows | None = None
        self._ahead = any(kind.__name__ == "AsyncScheduler" for kind in type(self).__mro__)
        if self._block_tokens and _has(self, _PLAIN):
            self._rows = DecodeRows(self.max_num_running_reqs, self.max_model_len)  # type: ignore[attr-defined]

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        rows = self._rows
        if rows is None or getattr(getattr(self, "_pause_state", None), "name", "") == "PAUSED_ALL":
            self._leave_all()
            return super().schedule(*args, **kwargs)  # type: ignore[misc]
        self._enter(rows)
        due, ids = rows.due()
        due, ids, blocks = self._blocks(rows, due, ids)
        output = self._schedule_others(rows, len(ids), args, kwargs)
        self._add(rows, output, due, ids, blocks)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        step: _Step | None = getattr(scheduler_output, "steady", None)
        rows = self._rows
        if step is None or rows is None:
            return super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        rest = copy(scheduler_output)
        rest.num_scheduled_tokens = left = dict(step.others)
        stayed = rows.stays[step.rows] == step.stays
        for i in np.flatnonzero(~stayed):  # cancelled, or given up its row, while the step was under way
            left[step.ids[i]] = 1
        here = [step.ids[i] for i in np.flatnonzero(stayed)] if not stayed.all() else step.ids
        where = step.rows[stayed]
        entered = [name for name in step.others if name in rows.row_of]
        if entered:  # meanwhile
            here = here + entered
            where = np.append(where, [rows.row_of[name] for name in entered])
            for name in entered:
                del left[name]
        ended = self._take(rows, here, where, model_runner_output)
        hashers = {name: self._leave(row, ends=True) for name, row in ended.items()}
        left |= dict.fromkeys(ended, 1)
        messages = super().update_from_output(rest, model_runner_output)  # type: ignore[misc]
        for name, hasher in hashers.items():
            request = self.requests.get(name)
            if request is not None:  # not its end, says vLLM
                request._block_hasher = hasher
                request.update_block_hashes()
                self._cached.pop(name, None)
        return messages

    def finish_requests(self, request_ids: Any, *args: Any, **kwargs: Any) -> Any:
        if self._rows is not None:
            names = [request_ids] if isinstance(request_ids, str) else request_ids
            if names is not None:
                names = request_ids = list(names)
            for name in list(self._rows.row_of) if names is None else names:
                if name in self._rows.row_of:
                    self._leave(self._rows.row_of[name])
        return super().finish_requests(request_ids, *args, **kwargs)  # type: ignore[misc]

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> Any:
        self._leave_all()  # running requests may be asked to give up their blocks
        return super().reset_prefix_cache(*args, **kwargs)  # type: ignore[misc]

    def _num_tokens_under_way(self) -> int:
        held: int = super()._num_tokens_under_way()  # type: ignore[misc]
        return held + (self._rows.num_tokens if self._rows is not None else 0)

    def _enter(self, rows: DecodeRows) -> None:
        """Give a row to every running request whose next step is a token."""
        if len(rows) == len(self.running):
            return
        for request in self.running:
            name = request.request_id
            if name not in rows.row_of and _only_decodes(request):
                rows.enter(request, self._room.get(name, 0), _ends(request))

    def _blocks(
        self, rows: DecodeRows, due: Ints, ids: list[str]
    ) -> tuple[Ints, list[str], list[tuple[list[int], ...] | None]]:
        """New cache blocks, where a row's are full; rows that get none are left to vLLM, which preempts."""
        blocks: list[tuple[list[int], ...] | None] = [None] * len(ids)
        refused = []
        for i in np.flatnonzero(rows.computed[due] >= rows.room[due]):
            row = due[i]
            request = rows.requests[row]
            request.num_computed_tokens = int(rows.computed[row])
            granted = self.kv_cache_manager.allocate_slots(request, 1)
            if granted is None:
                refused.append(i)
                continue
            blocks[i] = granted.get_block_ids(allow_none=True)
            rows.room[row] = self._room[request.request_id]
        if refused:
            for i in refused:
                self._leave(int(due[i]))
            kept = [i for i in range(len(ids)) if i not in refused]
            due, ids, blocks = due[kept], [ids[i] for i in kept], [blocks[i] for i in kept]
        return due, ids, blocks

    def _schedule_others(self, rows: DecodeRows, num_due: int, args: Any, kwargs: Any) -> Any:
        """vLLM's schedule, of requests without a row and of what the rows leave of its limits."""
        whole = self.running
        limits = {name: getattr(self, name) for name in _LIMITS if hasattr(self, name)}
        all_have_rows = len(rows) == len(whole)
        self.running = [] if all_have_rows else [r for r in whole if r.request_id not in rows.row_of]
        for name, limit in limits.items():
            setattr(self, name, limit - (num_due if name == "max_num_scheduled_tokens" else len(rows)))
        try:
            output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        finally:
            for name, limit in limits.items():
                setattr(self, name, limit)
            if all_have_rows and not self.running:
                self.running = whole
            else:
                self.running = [r for r in whole if r.request_id in rows.row_of] + self.running
        return output

    def _add(self, rows: DecodeRows, output: Any, due: Ints, ids: list[str], blocks: list[Any]) -> None:
        """A token for each of these rows to what vLLM has scheduled."""
        others = output.num_scheduled_tokens
        output.steady = _Step(due, ids, rows.stays[due], others)
        if not ids:
            return
        output.num_scheduled_tokens = dict.fromkeys(ids, 1) | others
        output.total_num_scheduled_tokens += len(ids)
        cached = output.scheduled_cached_reqs
        cached.req_ids = ids + cached.req_ids
        cached.new_block_ids = blocks + cached.new_block_ids
        cached.num_computed_tokens = rows.computed[due].tolist() + cached.num_computed_tokens
        cached.num_output_tokens = rows.scheduled(due).tolist() + cached.num_output_tokens
        before = getattr(self, "prev_step_scheduled_req_ids", None)
        if before is not None and not getattr(self, "use_v2_model_runner", False):
            before.update(ids)  # the older runner sends all tokens of others anew
        rows.computed[due] += 1

    def _take(self, rows: DecodeRows, names: list[str], where: Ints, found: Any) -> dict[str, int]:
        """Give the rows their tokens; returns those that get their last one, which vLLM is to add."""
        if not names:
            return {}
        index = found.req_id_to_index
        at = np.fromiter(map(index.__getitem__, names), np.int64, len(names))
        sampled = found.sampled_token_ids
        tokens = np.fromiter((sampled[i][0] for i in at.tolist()), np.int64, len(names))
        ended = rows.ended_by(where, tokens)
        going = ~ended
        logprobs = found.logprobs
        if logprobs is None:
            rows.add(where[going], tokens[going])
        else:
            starts = getattr(logprobs, "cu_num_generated_tokens", None)
            at = (at if starts is None else np.asarray(starts)[at])[going]
            kept = logprobs.logprobs[at, 0], logprobs.sampled_token_ranks[at]
            rows.add(where[going], tokens[going], *kept)
        return {names[i]: int(where[i]) for i in np.flatnonzero(ended)}

    def _leave_all(self) -> None:
        if self._rows is not None:
            for row in self._rows.active.tolist():
                self._leave(row)

    def _leave(self, row: int, ends: bool = False) -> Any:
        """Free a row and make its request what it would be by vLLM's own steps.

        With ``ends`` its next token is its last: no other request will look for its tokens in the prefix
        cache, so they are not hashed for it. Returns what would hash them.
        """
        rows = self._rows
        assert rows is not None
        request, computed = rows.requests[row], int(rows.computed[row])
        under_way = computed - request.num_prompt_tokens + 1 - int(rows.received[row])
        name, given = request.request_id, rows.leave(row)
        request.num_computed_tokens = computed
        if self._ahead:
            request.num_output_placeholders = under_way
        if hasattr(request, "num_in_flight_tokens"):
            request.num_in_flight_tokens = under_way
        hasher = request._block_hasher
        if ends:
            request._block_hasher = None
            self._cached[name] = (computed - under_way + 1) // self._block_tokens
        if given.tokens:
            request.append_output_token_ids(given.tokens)
            self._tokens.setdefault(name, []).extend(given.tokens)
            if given.logprobs is not None and request.sampling_params.logprobs is not None:
                part = np.array(given.tokens)[:, None], given.logprobs[:, None], given.ranks
                self._logprobs.setdefault(name, []).append(self._lists(*part))
        return hasher

    def _lists(self, *columns: Any) -> Any:
        """vLLM's own kind of log-probabilities: tokens (n, 1), log-probabilities (n, 1), ranks (n,)."""
        raise NotImplementedError


def _only_decodes(request: Any) -> bool:
    sampling = request.sampling_params
    return (
        sampling is not None
        and sampling.logprobs in (None, 0)
        and _has(request, _PLAIN_REQUEST)
        and _has(sampling, _PLAIN_SAMPLING)
        and request.num_tokens + request.num_output_placeholders - request.num_computed_tokens == 1
    )


def _has(thing: Any, wanted: dict[str, Any]) -> bool:
    """Whether the thing's fields, where it has them, are as wanted, or as empty."""
    return all(getattr(thing, name, value) in (value, None) for name, value in wanted.items())


def _ends(request: Any) -> list[int]:
    """Tokens that end a request; as vLLM's ``check_stop`` has it."""
    sampling = request.sampling_params
    ends = {*(sampling.stop_token_ids or ()), getattr(sampling, "eos_token_id", None)}
    return sorted(ends - {None})
