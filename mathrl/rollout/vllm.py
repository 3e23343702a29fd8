"""The vLLM engine: token ids in, finished completions out, and adapters by way of a RAM disk."""

from __future__ import annotations

import shutil
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mathrl.errors import LostPartError, UserError
from mathrl.memory.plan import Limits
from mathrl.rollout.adapter_files import weights_folder, write_merged, write_served
from mathrl.rollout.base import OnCompletion, OnTokens, PromptEncoder, Scores, check_lengths
from mathrl.rollout.core.no_script import script_left_out
from mathrl.rollout.texts import texts_of
from mathrl.rollout.vllm_client import (
    AdapterRefused,
    Ask,
    Client,
    CoreEnded,
    Output,
    Row,
    exit_codes,
    first_line,
)
from mathrl.rollout.vllm_settings import engine_arguments, engine_environment
from mathrl.types import Adapter, Completion, Group, Problem, Sampling, derive_seed

_RESET_ATTEMPTS = 100  # x 10 ms: a step in flight frees its blocks within milliseconds


class _Owed:
    """``mathrl.rollout.base.Scores`` of these rows."""

    def __init__(self, rows: list[Row], score: Callable[[list[Row]], list[list[float]]]) -> None:
        self.rows, self._score = rows, score
        self.scores: list[list[float]] | None = None
        self.outdated = False

    def result(self) -> list[list[float]]:
        if self.scores is None:
            if self.outdated:
                raise RuntimeError("the engine has been given other weights before it scored these tokens")
            self.scores = self._score(self.rows)
        return self.scores


class VllmEngine:
    """Samples with vLLM from the adapter it was last given.

    Each version of the adapter gets its own id and name, so that neither the adapter slots nor the prefix
    cache (keyed by that name) can hold another version's; the cache is emptied besides, and that is checked.

    Args:
        start: makes vLLM from its arguments and the device: ``CoreClient`` or ``PublicClient``.
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
        trusted: run code that the model brings (``model.trust_remote_code``).
        max_sequences: completions under way at once where ``sample`` is given no settings; 0: all.

    Raises:
        UserError: vLLM does not start, or the rank is larger than it serves.
    """

    name = "vllm"
    exact_logprobs = False

    def __init__(
        self,
        start: Callable[[dict[str, Any], str], Client],
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
        trusted: bool = False,
        max_sequences: int = 0,
    ) -> None:
        arguments = engine_arguments(model, limits, device, dtype, seed, compile, trusted=trusted)
        self.version = 0
        self.on_tokens: OnTokens | None = None
        self.model, self.tokenizer, self.eos_ids = model, tokenizer, tuple(eos_ids)
        self.encode, self.sampling, self.limits = encode, sampling, limits
        self.sync_metrics: dict[str, float] = {}  # of the last load
        self.max_sequences = max_sequences
        self._dtype = dtype
        self._folder = weights_folder()
        self._serial = self._num_written = 0
        self._write_s = 0.0  # of what is to be loaded
        self._owed: _Owed | None = None
        self._closed = False
        self._remove_folder = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        try:
            with engine_environment(device), script_left_out():
                self.client = start(arguments, device)
        except Exception as error:
            self._remove_folder()
            why = first_line(error)
            raise UserError(f"vLLM did not start on {device} with {model!r}: {why}") from error

    @property
    def streams(self) -> bool:
        """See ``mathrl.rollout.base.Engine``."""
        return self.client.streams

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
        at_once = self.max_sequences if sampling is None else 0
        sampling = sampling or self.sampling
        prompts = [tuple(self.encode(problem)) for problem in problems]
        check_lengths(problems, prompts, sampling.max_completion_tokens, self.limits.max_model_len)
        asks = [
            Ask(prompt, [derive_seed(seed, problem.id, i) for i in range(group_size)])
            for problem, prompt in zip(problems, prompts, strict=True)
        ]
        done: dict[tuple[int, int], Completion] = {}

        def finished(outputs: list[Output]) -> None:
            texts = texts_of(self.tokenizer, [o.token_ids for o in outputs])
            for (p, i, tokens, reason, logprobs), text in zip(outputs, texts, strict=True):
                done[p, i] = completion = Completion(tokens, text, reason, logprobs)
                if on_completion is not None:
                    on_completion(p, i, completion)

        owed = self._owed if self._owed is not None and self._owed.scores is None else None
        with self._at_work("sampling"):
            scores = self.client.sample(
                asks, sampling, self.eos_ids, finished, self.on_tokens, at_once, owed.rows if owed else ()
            )
        if owed:  # where it was broken off, the next call asks for them
            owed.scores, self._owed = scores, None
        return [
            Group(problem, prompt, tuple(done[p, i] for i in range(group_size)), policy_version=self.version)
            for p, (problem, prompt) in enumerate(zip(problems, prompts, strict=True))
        ]

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Log-probabilities at temperature 1 of given tokens, as they would be sampled.

        Args:
            prompts: n lists of token ids.
            continuations: n lists of token ids, each scored after its prompt and its own earlier tokens.

        Returns:
            n lists, one number a token of the continuation.
        """
        return self._score(list(zip(prompts, continuations, strict=True)))

    def score_with_next(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> Scores:
        """``score`` beside the completions sampled next, where it costs a share of a few decoding steps."""
        self._owed = _Owed(list(zip(prompts, continuations, strict=True)), self._score)
        return self._owed

    def write(self, adapter: Adapter) -> Path | None:
        """Put the adapter on the RAM disk for ``load``, of this engine or another; None: merged weights."""
        if not self.limits.lora_rank:
            return None
        start = time.perf_counter()
        for left in self._folder.iterdir():
            shutil.rmtree(left, ignore_errors=True)
        self._num_written += 1
        folder = self._folder / str(self._num_written)
        write_served(adapter, folder, self._dtype)
        self._write_s = time.perf_counter() - start
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
        if self._owed is not None:
            self._owed.outdated, self._owed = True, None
        with self._at_work("loading weights"):
            if self.limits.lora_rank:
                folder = None if adapter is None else written or self.write(adapter)
                metrics = {"sync/write_s": self._write_s}
                self._write_s = 0.0
                self._serial += 1
                self.client.set_adapter(f"version-{version}-{self._serial}", self._serial, folder)
            else:
                metrics = self._load_merged(adapter)
            self._reset_prefix_cache()
        self.version = version
        self.sync_metrics = metrics | {"sync/engine_s": time.perf_counter() - start}

    def close(self) -> None:
        """End the engine's processes; safe to call twice."""
        if not self._closed:
            self._closed = True
            self.client.close()
            self._remove_folder()

    def _score(self, rows: list[Row]) -> list[list[float]]:
        with self._at_work("scoring"):
            return self.client.score(rows)

    def _load_merged(self, adapter: Adapter | None) -> dict[str, float]:
        model = Path(self.model)
        if not model.is_dir():
            raise UserError(f"rollout.merge_adapter needs a local model folder, and {self.model!r} is none")
        folder = self._folder / "merged"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            metrics = write_merged(adapter, model, folder, self._dtype)
            self.client.reload_weights(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return metrics

    def _reset_prefix_cache(self) -> None:
        for _ in range(_RESET_ATTEMPTS):
            if self.client.reset_prefix_cache():
                return
            time.sleep(0.01)
        raise RuntimeError(
            "vLLM did not empty its prefix cache: prompts would keep the old weights' keys and values"
        )

    @contextmanager
    def _at_work(self, work: str) -> Iterator[None]:
        """One sentence where vLLM's process has ended meanwhile, or refuses an adapter."""
        try:
            yield
        except AdapterRefused as error:
            raise UserError(f"vLLM refuses the adapter: {error}") from error
        except CoreEnded as error:
            how = f"is lost while {work} ({error})"
            if not str(error):
                how = (
                    f"ended while {work} ({exit_codes(self.client.processes)}; -9: killed, mostly as the "
                    "machine's memory ran out; otherwise its own error stands above)"
                )
            raise LostPartError(
                f"vLLM's process {how}: a training run goes on from its last checkpoint with --resume"
            ) from error
