"""Hundreds of requests in one message: a group's are one request with other seeds.

A message a request takes vLLM's core 50 µs each to read it, check its parameters and hash its prompt for the
prefix cache, besides the socket, in a thread that competes with the first steps: 30 ms and more for 640.
Here a request is read, checked and hashed once, and copied for each of its children.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple

METHOD = "mathrl_add_many"
"""Of vLLM's ``EngineCore``, to be called from the trainer's process."""


class Child(NamedTuple):
    """A copy of a request; it travels as a list."""

    request_id: str
    parameters: Mapping[str, Any]  # of its sampling, which differ
    length: int | None  # tokens of the prompt that it has; None: all


def children_of(request: Any, children: Sequence[Sequence[Any]]) -> list[Any]:
    """vLLM's requests (``EngineCoreRequest``) of these children."""
    made = []
    for each in children:
        name, parameters, length = Child(*each)
        child = copy(request)
        child.request_id, child.sampling_params = name, copy(request.sampling_params)
        for key, value in parameters.items():
            setattr(child.sampling_params, key, value)
        if length is not None:
            child.prompt_token_ids = request.prompt_token_ids[:length]
        made.append(child)
    return made


class _OncePerPrompt:
    """vLLM's hasher of a request's whole blocks, for requests whose prompts begin alike.

    Args:
        usual: request -> the hashes of its whole blocks after those that it has.
    """

    def __init__(self, usual: Callable[[Any], list[Any]]) -> None:
        self._usual = usual
        self._known: list[Any] = []
        self._tokens = 0  # of the prompt whose blocks are known

    def __call__(self, request: Any) -> list[Any]:
        if self._tokens and not request.block_hashes and request.num_tokens >= self._tokens:
            request.block_hashes += self._known
        found = self._usual(request)
        self._known, self._tokens = [*request.block_hashes, *found], request.num_tokens
        return found


def take_many() -> None:
    """Give vLLM's ``EngineCore`` the method ``METHOD``, in the core's process."""
    core: Any = importlib.import_module("vllm.v1.engine.core").EngineCore
    setattr(core, METHOD, _add_many)


def _add_many(core: Any, requests: Sequence[bytes], children: Sequence[Sequence[Sequence[Any]]]) -> None:
    """Add the children of each request; none where one of them is refused."""
    kind: Any = importlib.import_module("vllm.v1.engine").EngineCoreRequest
    decoder: Any = importlib.import_module("vllm.v1.serial_utils").MsgpackDecoder(kind)
    usual, made = core.request_block_hasher, []
    try:
        for request, own in zip(requests, children, strict=True):
            core.request_block_hasher = usual and _OncePerPrompt(usual)
            made += [core.preprocess_add_request(c) for c in children_of(decoder.decode(request), own)]
    finally:
        core.request_block_hasher = usual
    for request, wave in made:
        request._block_hasher = usual
        core.add_request(request, wave)
