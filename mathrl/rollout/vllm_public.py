"""vLLM by its public interface: ``LLM.generate`` with a ``LoRARequest``, for versions that we have not tried.

Slower than ``vllm_core``: a message a token and completion, Python objects for every log-probability, and no
verdict begins before the last completion has ended. The tokens are the same: every completion has its own
seed.
"""

from __future__ import annotations

import gc
import multiprocessing
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from multiprocessing.connection import Pipe, wait
from pathlib import Path
from typing import Any, TypeVar

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from mathrl.rollout.base import OnTokens
from mathrl.rollout.vllm_client import (
    AdapterRefused,
    Ask,
    CoreEnded,
    Output,
    Row,
    ask_to_end,
    end_processes,
    first_line,
)
from mathrl.rollout.vllm_settings import EXTENSION
from mathrl.types import FinishReason, Sampling

T = TypeVar("T")
_STARTING = threading.Lock()  # replicas one after the other: what is new is the one's that starts
_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class PublicClient:
    """See ``mathrl.rollout.vllm_client.Client``.

    Args:
        arguments: vLLM's engine arguments.
        device: "cuda" or "cpu".
    """

    streams = False

    def __init__(self, arguments: Mapping[str, Any], device: str) -> None:
        with _STARTING:
            before = {process.pid for process in multiprocessing.active_children()}
            self._llm: Any = LLM(**arguments, worker_extension_cls=EXTENSION)
            self.processes = [p for p in multiprocessing.active_children() if p.pid not in before]
        self._lora: LoRARequest | None = None
        self._workers_in_core = device == "cuda"  # elsewhere the extension is in a process below the core's

    def sample(
        self,
        asks: Sequence[Ask],
        sampling: Sampling,
        eos_ids: Sequence[int],
        on_outputs: Callable[[list[Output]], None],
        on_tokens: OnTokens | None = None,
        at_once: int = 0,
        rows: Sequence[Row] = (),
    ) -> list[list[float]]:
        common = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": sampling.max_completion_tokens,
            "logprobs": 0 if sampling.logprobs else None,
            "stop_token_ids": list(eos_ids),
            "detokenize": False,
        }
        places = [(n, i, seed) for n, ask in enumerate(asks) for i, seed in enumerate(ask.seeds)]
        given = _Given(rows)
        found = self._generate(
            [asks[n].prompt for n, _, _ in places] + given.prompts,
            [SamplingParams(**common, seed=seed) for _, _, seed in places] + given.parameters,
        )
        sampled, scored = found[: len(places)], found[len(places) :]
        on_outputs(
            [_output(n, i, f, sampling.logprobs) for (n, i, _), f in zip(places, sampled, strict=True)]
        )
        return given.scores(scored)

    def score(self, rows: Sequence[Row]) -> list[list[float]]:
        given = _Given(rows)
        return given.scores(self._generate(given.prompts, given.parameters))

    def set_adapter(self, name: str, number: int, folder: Path | None) -> None:
        old, self._lora = self._lora, None
        engine = self._llm.llm_engine
        if old is not None:
            self._call(lambda: engine.remove_lora(old.lora_int_id))
        if folder is None:
            return
        request = LoRARequest(name, number, str(folder))
        try:
            self._call(lambda: engine.add_lora(request))
        except CoreEnded:
            raise
        except Exception as error:
            raise AdapterRefused(first_line(error)) from error
        self._lora = request

    def reload_weights(self, folder: Path) -> None:
        how = {"weights_path": str(folder)}
        self._call(lambda: self._llm.collective_rpc("reload_weights", kwargs=how))

    def reset_prefix_cache(self) -> bool:
        return bool(self._call(self._llm.reset_prefix_cache))

    def close(self) -> None:
        if self._workers_in_core:
            ask_to_end(self.processes)
        self._llm = None
        gc.collect()  # vLLM ends its processes when its objects go
        for process in self.processes:
            process.terminate()
        end_processes(self.processes)

    def _generate(self, prompts: Sequence[Sequence[int]], parameters: Sequence[SamplingParams]) -> list[Any]:
        """A completion of every prompt, in their order."""
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        found = self._call(
            lambda: self._llm.generate(inputs, list(parameters), use_tqdm=False, lora_request=self._lora)
        )
        completions = [request.outputs[0] for request in found]
        for completion in completions:
            if completion.finish_reason not in _REASONS:
                raise RuntimeError(f"vLLM gave up a request: {completion.finish_reason!r}")
        return completions

    def _call(self, work: Callable[[], T]) -> T:
        """The result of ``work``, done in another thread: vLLM would wait for ever for a killed core."""
        future: Future[T] = Future()
        done, doing = Pipe(duplex=False)

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 whatever it is, the one that waits raises it
                future.set_exception(error)
            finally:
                doing.close()  # which wakes the one that waits

        threading.Thread(target=run, daemon=True).start()
        with done:
            wait([done, *(process.sentinel for process in self.processes)])
            if not future.done() or (future.exception() and not all(p.is_alive() for p in self.processes)):
                raise CoreEnded
        return future.result()


class _Given:
    """A request for each token of the rows: it samples one token, with the given one's score beside it."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._places = [(n, t) for n, (_, tokens) in enumerate(rows) for t in range(len(tokens))]
        self.prompts: list[Sequence[int]] = [(*rows[n][0], *rows[n][1][:t]) for n, t in self._places]
        self.parameters = [
            SamplingParams(max_tokens=1, detokenize=False, seed=t, logprob_token_ids=[rows[n][1][t]])
            for n, t in self._places
        ]

    def scores(self, completions: Sequence[Any]) -> list[list[float]]:
        """Of each row, from its requests' completions."""
        scores: list[list[float]] = [[] for _ in self._rows]
        for (n, t), completion in zip(self._places, completions, strict=True):
            scores[n].append(float(completion.logprobs[0][self._rows[n][1][t]].logprob))
        return scores


def _output(ask: int, seed: int, completion: Any, logprobs: bool) -> Output:
    tokens = tuple(completion.token_ids)
    values = None
    if logprobs:
        rows = zip(tokens, completion.logprobs, strict=True)
        values = tuple(float(row[token].logprob) for token, row in rows)
    return Output(ask, seed, tokens, _REASONS[completion.finish_reason], values)
