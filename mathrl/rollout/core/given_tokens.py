"""Given tokens are scored beside completions: what the scheduler makes of both in one decoding step.

A request that asks for the log-probability of a given token (``logprob_token_ids``) makes vLLM report a
second column for all that share its step, after that of the sampled tokens. Parts of one completion would
then differ in width. scheduler.py puts this mixin before the others.
"""

from __future__ import annotations

from typing import Any


class GivenTokens:
    """Scheduler mixin: one column for every request, of the token that it asks about.

    For most that is the token they have sampled; for one with ``logprob_token_ids``, the first of these.
    """

    requests: dict[str, Any]  # of vLLM's scheduler

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        logprobs = model_runner_output.logprobs
        if logprobs is not None and logprobs.logprobs.shape[1] > 1:
            model_runner_output.logprobs = self._one_column(logprobs, model_runner_output.req_id_to_index)
        return super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]

    def _one_column(self, logprobs: Any, rows: dict[str, int]) -> Any:
        """As ``logprobs`` of vLLM, (n, 2 or more), with one column."""
        tokens, values = logprobs.logprob_token_ids[:, :1].copy(), logprobs.logprobs[:, :1].copy()
        starts = logprobs.cu_num_generated_tokens
        for name, index in rows.items():
            request = self.requests.get(name)  # a cancelled one is gone
            if request is not None and request.sampling_params.logprob_token_ids:
                row = index if starts is None else starts[index]
                tokens[row], values[row] = logprobs.logprob_token_ids[row, 1], logprobs.logprobs[row, 1]
        return logprobs._replace(logprob_token_ids=tokens, logprobs=values)
