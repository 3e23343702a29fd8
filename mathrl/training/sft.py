"""The supervised stage: worked solutions -> the reference model, an ordinary transformers folder."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mathrl.config import Config, SftConfig
from mathrl.data import wordproblems
from mathrl.data.datasets import GENERATED
from mathrl.data.few_shot import template_with_examples
from mathrl.data.problem_set import ProblemSet, keep_fitting, question_key, without
from mathrl.data.problems import load_demonstrations
from mathrl.data.prompts import PromptTemplate
from mathrl.data.stream import ProblemStream
from mathrl.data.wordproblems import is_drill
from mathrl.distributed.agreement import any_rank, together
from mathrl.distributed.collectives import own_share, rank, sum_ranks
from mathrl.errors import NonFiniteError, UserError
from mathrl.policy.adapter_folder import find_adapter, read_adapter
from mathrl.policy.loading import (
    adapter_of,
    add_adapter,
    add_turn_end,
    context_of,
    keep_freed_memory,
    load_base,
    load_tokenizer,
    resolve_device,
    resolve_dtype,
    without_bars,
)
from mathrl.policy.merge import merge_into
from mathrl.policy.scratch import build_model, build_tokenizer
from mathrl.rollout.adapter_files import write_adapter
from mathrl.run.files import atomic
from mathrl.training.sft_loss import Example, SftLoss, encode_example, encode_examples, tokens_that_fit
from mathrl.training.sft_optimizer import Masters, schedule
from mathrl.types import Problem, derive_seed

OnMetrics = Callable[[int, dict[str, float]], None]

_MAX_HELD_OUT = 300
_LAST_PHASE = 0.3  # of the learning rate, where the direct answers begin; linear to 0


@dataclass(frozen=True, slots=True)
class SftResult:
    """How the supervised stage went; the numbers are of held-out worked solutions."""

    steps: int
    tokens: int  # trained on, prompts included
    seconds: float
    held_out_loss: float  # nats a completion token
    held_out_exact: float  # share of solutions that greedy decoding would reproduce token by token
    reached_target: bool
    best_step: int  # of the weights that were kept; the last one without sft.keep_best


@dataclass(frozen=True)
class Demonstrations:
    """What the supervised stage learns from, read and encoded."""

    tokenizer: Any
    template: PromptTemplate
    train: ProblemSet
    examples: dict[str, Example]  # worked solution by problem id
    held_out: tuple[Example, ...]


def load_examples(config: Config, shown: Sequence[Problem] = ()) -> Demonstrations:
    """The recipe's worked solutions, and the tokenizer of the base that will learn them.

    Args:
        shown: worked examples that stand before every question; they are not learnt from themselves.

    Raises:
        UserError: none; or one that is longer than the model's context, unless ``data.skip_long_prompts`` is
            set, which leaves such problems out.
    """
    train, held_out = load_demonstrations(config)
    train = without(train, {question_key(p) for p in shown}, "shown as an example")
    tokenizer = base_tokenizer(config, train.problems)
    template, context = template_with_examples(config, tokenizer, shown), context_of(config.model)
    encoded = encode_examples(template, train.problems)
    examples = {p.id: example for p, example in zip(train.problems, encoded, strict=True)}

    def against(length: int) -> str:
        if length <= context:
            return ""
        return f"{length} tokens with its worked solution do not fit the model's context of {context} tokens"

    reasons = (against(example.num_tokens) for example in encoded)
    called = "prompt and worked solution too long"
    train = keep_fitting(train, reasons, called=called, skip=config.data.skip_long_prompts)
    unseen = encode_examples(template, held_out.problems)
    fitting = itertools.islice((e for e in unseen if e.num_tokens <= context), _MAX_HELD_OUT)
    kept = {p.id: examples[p.id] for p in train.problems}
    return Demonstrations(tokenizer, template, train, kept, tuple(fitting))


def train_reference(
    config: Config,
    out_dir: Path,
    *,
    demonstrations: Demonstrations | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_metrics: OnMetrics | None = None,
    adapter_dir: Path | None = None,
) -> SftResult:
    """Train the base on worked solutions and save it with its tokenizer in ``out_dir``, whole or not at all.

    Several ranks share the examples of each step; rank 0 saves.

    The base is ``model.path``, or is built from scratch. Training ends after ``sft.max_train_steps``, or as
    soon as ``sft.target_accuracy`` of the held-out solutions would be reproduced by greedy decoding; the
    ``sft.direct_answer_steps`` come after that. Equal seeds give equal weights (but for ``sft.max_seconds``).

    Args:
        demonstrations: as ``load_examples`` gives them; None: loaded here.
        progress: called as (steps done, steps at most).
        on_metrics: called as (step, metrics) every ``sft.eval_every_steps`` and at the end. If it is given,
            it must be on every rank.
        adapter_dir: where the adapter of ``sft.lora`` is kept, too: with the base it makes the same reference
            elsewhere (``model.adapter``).

    Raises:
        UserError: no worked solutions, or a base that cannot be loaded; nothing is written then.
    """
    start = time.monotonic()
    with together("loading the base"):
        if demonstrations is None:
            demonstrations = load_examples(config)
        tokenizer = demonstrations.tokenizer
        model = _base(config, tokenizer)
        adapted = _adapted(model, config) if config.sft.lora else None
        stage = _Stage(config, model, demonstrations, progress, on_metrics)
    stage.run(start)
    learnt = None
    if adapted is not None:
        learnt, model = adapter_of(adapted), adapted.unload()
        with together("merging the adapter"):
            merge_into(model, learnt)
    add_turn_end(model, tokenizer, config.model)
    with together("saving the reference"):
        if rank() == 0:
            if learnt is not None and adapter_dir is not None:
                with atomic(adapter_dir) as folder:
                    write_adapter(learnt, folder, torch.float32)
            with atomic(out_dir) as folder, without_bars():
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
    return SftResult(
        stage.step,
        stage.tokens,
        time.monotonic() - start,
        stage.metrics.get("sft/held_out_loss", math.nan),
        stage.metrics.get("sft/held_out_exact", math.nan),
        stage.reached_target,
        stage.kept_step,
    )


def planned_steps(sft: SftConfig, demonstrations: Demonstrations) -> int:
    """Optimiser steps of the stage at most: ``sft.max_train_steps``, or what ``sft.epochs`` make of the data.

    Batches are filled up to ``sft.batch_tokens``, so that an epoch is a little more than tokens / batch.
    """
    if not sft.epochs:
        return sft.max_train_steps
    tokens = sum(e.num_tokens for e in demonstrations.examples.values())
    return max(1, min(sft.max_train_steps, math.ceil(sft.epochs * tokens / sft.batch_tokens)))


class _Stage:
    """The loop and what it works on."""

    def __init__(
        self,
        config: Config,
        model: Any,
        demonstrations: Demonstrations,
        progress: Callable[[int, int], None] | None,
        on_metrics: OnMetrics | None,
    ) -> None:
        self.sft = config.sft.model_copy(
            update={"max_train_steps": planned_steps(config.sft, demonstrations)}
        )
        self.progress, self.on_metrics = progress, on_metrics
        self.template, self.held_out = demonstrations.template, demonstrations.held_out
        compiled = config.sft.compile and model.device.type == "cuda"
        self.loss = SftLoss(
            model,
            config.sft.prompt_loss_weight,
            compile_layers=compiled,
            most_tokens=tokens_that_fit(model),
        )
        self.optimizer = Masters(model, config.sft)
        seed = derive_seed(config.run.seed, "sft")
        self.stream = ProblemStream(demonstrations.train.problems, seed)
        self.rng = random.Random(seed)
        self.pending: Example | None = None
        self.worked = demonstrations.examples
        self.direct: dict[str, Example] = {}
        self.step, self.tokens, self.reached_target = 0, 0, False
        self.metrics: dict[str, float] = {}
        self.kept_step = 0
        self.lowest = math.inf  # held-out loss
        self.best: list[Tensor] = []  # the weights that reached it

    def run(self, start: float) -> None:
        sft = self.sft
        most = sft.num_steps
        early = sft.direct_answer_fraction if not sft.direct_answer_steps else 0.0
        if sft.keep_best:
            self._evaluate()
        while self.step < sft.max_train_steps and not self.reached_target and not self._is_late(start):
            self._train(early, sft.learning_rate * schedule(self.step, sft), most)
            if self.step % sft.eval_every_steps == 0 or self.step == sft.max_train_steps:
                self._evaluate()
                reached = self.metrics.get("sft/held_out_exact", 0.0)
                self.reached_target = 0 < sft.target_accuracy <= reached
        most = self.step + sft.direct_answer_steps  # the target may have come early
        for done in range(sft.direct_answer_steps):
            rate = _LAST_PHASE * sft.learning_rate * (1 - done / sft.direct_answer_steps)
            self._train(sft.direct_answer_fraction, rate, most)
        if sft.direct_answer_steps:
            self._evaluate()
        if sft.keep_best and self.best and self.kept_step != self.step:
            self.optimizer.restore(self.best)
            self._evaluate()
        if self.progress:
            self.progress(most, most)

    def _is_late(self, start: float) -> bool:
        """Whether the stage's seconds are over, by the clock of any rank."""
        limit = self.sft.max_seconds
        return bool(limit) and any_rank(time.monotonic() - start >= limit)

    def _train(self, direct_fraction: float, learning_rate: float, most: int) -> None:
        examples = self._take(direct_fraction)
        with together("a supervised step"):
            loss = self.loss.backward(own_share(examples), self.loss.weight(examples))
        self.metrics["sft/loss"] = float(sum_ranks(loss))
        if not math.isfinite(self.metrics["sft/loss"]):
            raise NonFiniteError(
                f"the SFT loss is not finite at step {self.step + 1}: lower sft.learning_rate"
            )
        self.metrics["sft/grad_norm"] = self.optimizer.step(learning_rate)
        self.metrics["sft/learning_rate"] = learning_rate
        self.step += 1
        self.tokens += sum(e.num_tokens for e in examples)
        if self.progress:
            self.progress(self.step, most)

    def _take(self, direct_fraction: float) -> list[Example]:
        """The next examples, up to ``sft.batch_tokens`` tokens; one at least."""
        examples: list[Example] = []
        room = self.sft.batch_tokens
        while True:
            example = self.pending or self._next(direct_fraction)
            room -= example.num_tokens
            if room < 0 and examples:
                self.pending = example
                return examples
            self.pending = None
            examples.append(example)

    def _next(self, direct_fraction: float) -> Example:
        problem = self.stream.take(1)[0]
        # a drill answered without its working would teach nothing
        if self.rng.random() >= direct_fraction or is_drill(problem):
            return self.worked[problem.id]
        if problem.id not in self.direct:
            self.direct[problem.id] = encode_example(self.template, problem, direct=True)
        return self.direct[problem.id]

    def _evaluate(self) -> None:
        if self.held_out:
            loss, exact = self.loss.held_out(self.held_out, self.sft.batch_tokens)
            self.metrics |= {"sft/held_out_loss": loss, "sft/held_out_exact": exact}
            if self.sft.keep_best and loss < self.lowest:
                self.lowest, self.kept_step, self.best = loss, self.step, self.optimizer.snapshot()
        if not self.sft.keep_best:
            self.kept_step = self.step
        if self.on_metrics:
            with together("telling how the supervised stage goes"):
                self.on_metrics(self.step, dict(self.metrics))


def base_tokenizer(config: Config, demonstrations: Sequence[Problem]) -> Any:
    """The tokenizer of the model at ``model.path``, or one built from the demonstrations' texts."""
    if config.model.path:
        return load_tokenizer(config.model.path, trusted=config.model.trust_remote_code)
    if config.data.source == GENERATED and not config.data.path:
        texts = wordproblems.corpus()
    else:
        texts = (f"Question: {p.question}\nAnswer: {p.solution}" for p in demonstrations)
    return build_tokenizer(texts, config.model.vocab_size)


def _adapted(model: Any, config: Config) -> Any:
    """The model with an adapter as ``[lora]`` says, which alone is trainable; the layers are the model's own.

    Raises:
        UserError: a model built from nothing, whose weights have to be learnt.
    """
    if not config.model.path:
        raise UserError("sft.lora needs model.path: a model built from nothing learns all of its weights")
    return add_adapter(model.requires_grad_(False), config.lora, derive_seed(config.run.seed, "sft"))


def _base(config: Config, tokenizer: Any) -> Any:
    """The model to train, its weights trainable."""
    device = resolve_device(config.run)
    dtype = resolve_dtype(config.model, device)
    if device.type == "cpu":
        keep_freed_memory()
    if config.model.path:
        base = load_base(config.model.path, device, dtype, trusted=config.model.trust_remote_code)
        if config.model.adapter:
            merge_into(base, read_adapter(find_adapter(config.model.adapter)))
        return base.requires_grad_(True)
    return build_model(config.model, tokenizer, config.run.seed).to(device, dtype).eval()
