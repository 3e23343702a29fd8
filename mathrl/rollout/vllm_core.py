"""The fast way to vLLM: requests straight to its core's process, finished completions back.

Nothing here is per token on the trainer's side: the core's scheduler keeps the tokens of a completion until
it is finished, and the trainer reads them from the core's own messages, without vLLM's output processor.

That is not vLLM's public interface: the core client's ``add_request``/``get_output``, the input processor,
``Scheduler.update_from_output``. They are the same in the versions that ``vllm_settings.FAST`` names; the
tests drive them on a real engine.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import InvalidStateError
from contextlib import contextmanager, suppress
from itertools import groupby, islice
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest
from vllm.v1.engine import FinishReason as VllmFinishReason
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.serial_utils import MsgpackEncoder

from mathrl.rollout.base import OnTokens
from mathrl.rollout.core import many_requests, swap_adapter
from mathrl.rollout.core.finished_only import UNDER_WAY
from mathrl.rollout.core.many_requests import Child, children_of
from mathrl.rollout.core.scheduler import FinishedOnlyAsyncScheduler, FinishedOnlyScheduler
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
from mathrl.rollout.vllm_fork import fork_cores
from mathrl.rollout.vllm_settings import EXTENSION
from mathrl.types import FinishReason, Sampling


class _Given(NamedTuple):
    """A token that is scored."""

    row: int
    place: int
    token: int


class _Wanted(NamedTuple):
    """A child to be sent, and what it is a child of."""

    request: Any
    child: Child


Place = tuple[int, int] | _Given
"""What a request is for: a completion, of an Ask and its seed, or a given token."""

_TELLING_S = 0.5  # for whoever samples, and has got the error already, to tell of it
_FEW = 8  # requests: sent one by one up to here
_REASONS: dict[Any, FinishReason] = {VllmFinishReason.STOP: "stop", VllmFinishReason.LENGTH: "length"}


class CoreClient:
    """See ``mathrl.rollout.vllm_client.Client``.

    Args:
        arguments: vLLM's engine arguments.
        device: "cuda" or "cpu".
    """

    streams = True

    def __init__(self, arguments: Mapping[str, Any], device: str) -> None:
        fork_cores(device)
        self._llm = LLMEngine.from_engine_args(EngineArgs(**arguments, **_classes(device)))
        self._core: Any = self._llm.engine_core
        self._lora: LoRARequest | None = None
        self._tasks = self._llm.get_supported_tasks()
        self._encoder = MsgpackEncoder()
        self.closed = False
        self.lost = ""  # why, where it is neither its process's end nor ours
        self.processes = list(self._core.resources.engine_manager.processes)
        own = weakref.ref(self)
        threading.Thread(target=_watch, args=(own, self.processes), daemon=True).start()
        threading.Thread(target=_listen, args=(own, self._core.output_queue_thread), daemon=True).start()

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
        parameters = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_completion_tokens,
            logprobs=0 if sampling.logprobs else None,
            stop_token_ids=list(eos_ids),
            detokenize=False,
        )
        scores = [[float("nan")] * len(tokens) for _, tokens in rows]
        with self._requests() as waiting:
            coming = self._completions(asks, parameters, waiting)
            # given tokens first: they share the steps that compute the prompts
            self._send([*self._given(rows, waiting), *islice(coming, at_once or None)])
            for answers in self._answers(waiting, on_tokens):
                outputs = []
                for place, answer in answers:
                    if isinstance(place, _Given):
                        scores[place.row][place.place] = _score(place.token, answer)
                    else:
                        outputs.append(_output(*place, answer, sampling.logprobs))
                self._send(list(islice(coming, len(outputs))))
                if outputs:
                    on_outputs(outputs)
        return scores

    def score(self, rows: Sequence[Row]) -> list[list[float]]:
        return self.sample((), Sampling(), (), lambda outputs: None, rows=rows)

    def set_adapter(self, name: str, number: int, folder: Path | None) -> None:
        with self._core_at_work():
            old, self._lora = self._lora, None
            wanted = None if folder is None else LoRARequest(name, number, str(folder))
            forget, path = old and old.lora_int_id, wanted and wanted.lora_path
            try:
                held = self._core.call_utility(swap_adapter.METHOD, forget, name, number, path)
            except EngineDeadError:
                raise
            except Exception as error:
                raise AdapterRefused(first_line(error)) from error
            if held != ([] if wanted is None else [number]):
                raise RuntimeError(f"vLLM holds the adapters {held}, expected {wanted and number}")
            self._lora = wanted

    def reload_weights(self, folder: Path) -> None:
        with self._core_at_work():
            self._core.collective_rpc("reload_weights", None, (), {"weights_path": str(folder)})

    def reset_prefix_cache(self) -> bool:
        with self._core_at_work():
            return bool(self._core.reset_prefix_cache())

    def close(self) -> None:
        self.closed = True
        ask_to_end(self.processes)
        self._core.shutdown(timeout=10.0)
        end_processes(self.processes)

    def _request(self, prompt: Sequence[int], parameters: SamplingParams) -> Any:
        """A checked request, of which children are sent: checking takes the longest."""
        inputs = {"type": "token", "prompt_token_ids": list(prompt)}
        request = self._llm.input_processor.process_inputs(
            "0", inputs, parameters, self._tasks, lora_request=self._lora
        )
        self._llm.input_processor.assign_request_id(request)  # vLLM adds random characters
        return request

    def _completions(
        self, asks: Sequence[Ask], parameters: SamplingParams, waiting: dict[str, Place]
    ) -> Iterator[_Wanted]:
        for n, (prompt, seeds) in enumerate(asks):
            request = self._request(prompt, parameters)
            for i, seed in enumerate(seeds):
                child = self._child(request, i, {"seed": seed})
                waiting[child.request_id] = (n, i)
                yield _Wanted(request, child)

    def _given(self, rows: Sequence[Row], waiting: dict[str, Place]) -> Iterator[_Wanted]:
        """The rows' scores by the very path that samples: adapter, prefix cache, sampler.

        Each token is a request that samples one token after all that stands before it and reports the given
        token's log-probability. (``prompt_logprobs`` would pass by the prefix cache.)
        """
        for n, (prompt, tokens) in enumerate(rows):
            if not tokens:
                continue
            request = self._request((*prompt, *tokens[:-1]), SamplingParams(max_tokens=1, detokenize=False))
            for t, token in enumerate(tokens):
                wanted = {"seed": t, "logprob_token_ids": [token]}
                child = self._child(request, t, wanted, len(prompt) + t)
                waiting[child.request_id] = _Given(n, t, token)
                yield _Wanted(request, child)

    def _child(
        self, request: Any, index: int, parameters: Mapping[str, Any], length: int | None = None
    ) -> Child:
        return Child(f"{index}_{request.request_id}", parameters, length)

    def _send(self, wanted: Sequence[_Wanted]) -> None:
        """Send them: many in one message, a few by vLLM's own, which nobody waits for."""
        if len(wanted) <= _FEW:
            for request, child in wanted:
                for each in children_of(request, [child]):
                    self._core.add_request(each)
            return
        requests, children = [], []
        for _, group in groupby(wanted, key=lambda each: id(each.request)):
            own = list(group)
            (encoded,) = self._encoder.encode(own[0].request)
            requests.append(bytes(encoded))
            children.append([each.child for each in own])
        self._core.call_utility(many_requests.METHOD, requests, children)

    @contextmanager
    def _requests(self) -> Iterator[dict[str, Place]]:
        """Requests under way by id; those left when something goes wrong are cancelled."""
        waiting: dict[str, Place] = {}
        with self._core_at_work():
            try:
                yield waiting
            except EngineDeadError:
                raise
            except BaseException:
                self._core.abort_requests(list(waiting))
                raise

    @contextmanager
    def _core_at_work(self) -> Iterator[None]:
        try:
            yield
        except EngineDeadError as error:
            raise CoreEnded(self.lost) from error

    def _answers(
        self, waiting: dict[str, Place], on_tokens: OnTokens | None = None
    ) -> Iterator[list[tuple[Place, Any]]]:
        """Finished outputs as they come, with what they answer, until ``waiting`` has lost all to them."""
        while waiting:
            outputs = self._next_outputs()
            if on_tokens is not None:
                for count in (o for o in outputs if o.request_id == UNDER_WAY):
                    on_tokens(count.new_token_ids[0])
            answers = [(waiting.pop(a.request_id), a) for a in outputs if a.request_id in waiting]
            for _, answer in answers:
                if answer.finish_reason not in _REASONS:
                    raise RuntimeError(f"vLLM gave up a request: {answer.finish_reason!r}")
            if answers:
                yield answers

    def _next_outputs(self) -> Any:
        try:
            return self._core.get_output().outputs
        except EngineDeadError:
            raise
        except Exception as error:  # by vLLM's thread that reads, which has ended with it
            self.lost = _unread(error)
            raise CoreEnded(self.lost) from error


def _classes(device: str) -> dict[str, Any]:
    if device == "cuda":
        return {"scheduler_cls": FinishedOnlyAsyncScheduler, "worker_extension_cls": EXTENSION}
    # the executor: not a third process
    return {"scheduler_cls": FinishedOnlyScheduler, "distributed_executor_backend": UniProcExecutor}


def _output(ask: int, seed: int, answer: Any, logprobs: bool) -> Output:
    values = tuple(answer.new_logprobs.logprobs[:, 0].tolist()) if logprobs else None
    return Output(ask, seed, tuple(answer.new_token_ids), _REASONS[answer.finish_reason], values)


def _score(token: int, answer: Any) -> float:
    """Log-probability of the given token."""
    ids, values = answer.new_logprobs.logprob_token_ids[0], answer.new_logprobs.logprobs[0]
    return float(values[list(ids).index(token)])


def _watch(client: weakref.ref[CoreClient], processes: Sequence[Any]) -> None:
    """Wake whoever waits for a core that has been killed; vLLM's client would wait for ever."""
    wait([process.sentinel for process in processes])
    _wake(client)


def _listen(client: weakref.ref[CoreClient], reader: threading.Thread) -> None:
    """The same for a core that nobody hears any more: vLLM's thread ends at a message it cannot read."""
    reader.join()
    alive = client()
    if alive is not None:
        with alive._core.outputs_queue.mutex:
            left = list(alive._core.outputs_queue.queue)
        errors = [each for each in left if isinstance(each, Exception)]
        if not errors:
            time.sleep(_TELLING_S)
        elif not isinstance(errors[0], EngineDeadError):  # which is the core's own last word
            alive.lost = _unread(errors[0])
    del alive
    _wake(client)


def _unread(error: Exception) -> str:
    return f"a message of it could not be read: {first_line(error)}"


def _wake(client: weakref.ref[CoreClient]) -> None:
    alive = client()
    if alive is None or alive.closed:
        return
    core = alive._core
    core.resources.engine_dead = True  # for the calls to come
    core.outputs_queue.put_nowait(EngineDeadError())
    for future in list(core.utility_results.values()):
        with suppress(InvalidStateError):  # answered already
            future.set_exception(EngineDeadError())
