"""An engine that asks a server of the OpenAI API (vLLM, SGLang, llama.cpp, a provider) for its completions.

It is for evaluation: a server takes no adapter and proves nothing of its weights, so nothing is trained from
it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

from mathrl.errors import UserError, did_you_mean
from mathrl.rollout.base import OnCompletion, OnTokens
from mathrl.types import Adapter, Completion, FinishReason, Group, Problem, Sampling, derive_seed, whole_text

KEY_VARIABLE = "OPENAI_API_KEY"
ATTEMPTS = 6  # of a request that a busy server turned away; waits of 1, 2, 4 … seconds between them
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
_SEED_BITS = 31  # servers take a signed 32-bit seed

Ask = Callable[[Problem], list[dict[str, str]] | tuple[int, ...]]
"""Problem -> chat turns, or a whole prompt's token ids: to text a server would add its own first token."""


class Server:
    """What a server says of itself; every failure is one sentence.

    Args:
        url: with ``/v1`` at its end, or without.
        model: the name that it serves a model by; empty: its only one.

    Raises:
        UserError: no server answers there, the key is refused, or it serves no such model.
    """

    def __init__(self, url: str, model: str = "", *, timeout_s: float = 600.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"--endpoint {url!r} must begin with http:// or https://")
        plain = url.rstrip("/")
        self.url = plain if plain.endswith("/v1") else f"{plain}/v1"
        key = os.environ.get(KEY_VARIABLE, "")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.timeout = httpx.Timeout(timeout_s, connect=10.0)
        served = self._models()
        names = [str(entry.get("id")) for entry in served]
        if not model and len(names) != 1:
            raise UserError(f"{self.url} serves {', '.join(names) or 'no model'}: name one with --model")
        if model and model not in names:
            raise UserError(f"{self.url} serves no model {model!r}: {did_you_mean(model, names)}")
        self.model = model or names[0]
        entry = served[names.index(self.model)]
        self.context: int | None = entry.get("max_model_len")  # tokens; servers other than vLLM do not say

    def _models(self) -> list[Mapping[str, Any]]:
        try:
            answer = httpx.get(f"{self.url}/models", headers=self.headers, timeout=30.0)
        except httpx.HTTPError as error:
            raise UserError(
                f"no server answers at {self.url} ({type(error).__name__}): start it, for example with "
                "vllm serve MODEL, or check --endpoint"
            ) from None
        if answer.status_code in (401, 403):
            raise UserError(f"{self.url} refuses the key: set the environment variable {KEY_VARIABLE}")
        try:
            return list(answer.json()["data"])
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{self.url}/models answers {answer.status_code} and no list of models: check --endpoint"
            ) from None


class EndpointEngine:
    """Samples from a server; a request a completion, so each has its own seed and comes as it finishes.

    Args:
        ask: problem -> chat turns (``/chat/completions``) or a prompt (``/completions``).
        concurrency: requests under way at once.
    """

    name = "endpoint"
    version = 0
    exact_logprobs = False
    streams = False  # no trainer asks it

    def __init__(self, server: Server, ask: Ask, sampling: Sampling, *, concurrency: int = 64) -> None:
        self.server, self.ask, self.sampling, self.concurrency = server, ask, sampling, concurrency
        self.on_tokens: OnTokens | None = None  # a server tells nothing before a completion has finished

    def sample(
        self,
        problems: Sequence[Problem],
        group_size: int,
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        on_completion: OnCompletion | None = None,
    ) -> list[Group]:
        """See ``mathrl.rollout.base.Engine.sample``; a server need not honour a seed.

        Raises:
            UserError: the server refuses a request, or stays out of reach.
        """
        done = asyncio.run(self._sample(problems, group_size, sampling or self.sampling, seed, on_completion))
        return [Group(p, (), tuple(row)) for p, row in zip(problems, done, strict=True)]

    def encode(self, problem: Problem) -> tuple[int, ...]:
        """A server does that."""
        return ()

    def load(self, adapter: Adapter | None, version: int) -> None:
        """A server has the weights it was started with.

        Raises:
            UserError: an adapter is given.
        """
        if adapter is not None:
            raise UserError("a server takes no adapter from here: start it with the adapter")

    def close(self) -> None:
        """Nothing of the server is ours."""

    async def _sample(
        self,
        problems: Sequence[Problem],
        group_size: int,
        sampling: Sampling,
        seed: int,
        on_completion: OnCompletion | None,
    ) -> list[list[Completion]]:
        seats = asyncio.Semaphore(self.concurrency)
        limits = httpx.Limits(max_connections=self.concurrency)
        async with httpx.AsyncClient(
            headers=self.server.headers, timeout=self.server.timeout, limits=limits
        ) as client:

            async def one(p: int, i: int) -> Completion:
                body = self._body(problems[p], sampling, derive_seed(seed, problems[p].id, i))
                async with seats:
                    completion = self._read(await self._post(client, problems[p], body), problems[p])
                if on_completion is not None:
                    on_completion(p, i, completion)
                return completion

            tasks = [
                [asyncio.ensure_future(one(p, i)) for i in range(group_size)] for p in range(len(problems))
            ]
            try:
                return [list(await asyncio.gather(*row)) for row in tasks]
            finally:
                for task in (task for row in tasks for task in row):
                    task.cancel()

    def _body(self, problem: Problem, sampling: Sampling, seed: int) -> dict[str, Any]:
        asked = self.ask(problem)
        body: dict[str, Any] = {"prompt": asked} if isinstance(asked, tuple) else {"messages": asked}
        body |= {
            "model": self.server.model,
            "max_tokens": sampling.max_completion_tokens,
            "temperature": sampling.temperature,
        }
        if sampling.temperature > 0:
            body |= {"top_p": sampling.top_p, "seed": seed >> (63 - _SEED_BITS)}
        return body

    async def _post(self, client: httpx.AsyncClient, problem: Problem, body: dict[str, Any]) -> Any:
        path, why = "chat/completions" if "messages" in body else "completions", ""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(2.0 ** (attempt - 1))
            try:
                answer = await client.post(f"{self.server.url}/{path}", json=body)
            except httpx.HTTPError as error:
                why = type(error).__name__
                continue
            if answer.status_code == 200:
                return _said(answer)
            why = f"{answer.status_code}: {_reason(_said(answer))}"
            if answer.status_code not in _BUSY:
                raise UserError(f"{self.server.url} refuses the request for problem {problem.id} ({why})")
        raise UserError(
            f"{self.server.url} did not answer {ATTEMPTS} times ({why}): what is finished is kept, and the "
            "same evaluation goes on from there"
        )

    def _read(self, said: Any, problem: Problem) -> Completion:
        try:
            return _completion(said)
        except (LookupError, TypeError, AttributeError):  # a proxy's answer, or one without a choice
            raise UserError(
                f"{self.server.url} answers problem {problem.id} with no completion ({_reason(said)}): check "
                "--endpoint; what is finished is kept"
            ) from None


def _said(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return answer.text


def _reason(said: Any) -> str:
    """The server's own words, in one line."""
    if isinstance(said, Mapping):
        error = said.get("error", said)
        said = error.get("message", error) if isinstance(error, Mapping) else error
    return " ".join(str(said).split())[:200]


def _completion(answer: Any) -> Completion:
    choice = answer["choices"][0]
    text = whole_text((choice["message"].get("content") if "message" in choice else choice.get("text")) or "")
    tokens = int((answer.get("usage") or {}).get("completion_tokens") or len(text.split()))
    reason: FinishReason = "length" if choice.get("finish_reason") == "length" else "stop"
    return Completion((0,) * max(tokens, 1), text, reason)  # a server tells how many, not which
