"""What an evaluation asks: a model that is loaded here, or one that a server has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from mathrl.commands.model_source import EndpointSource, ModelSource
from mathrl.config import Config
from mathrl.data.few_shot import FewShotTemplate
from mathrl.data.prompts import MessagesTemplate, PromptTemplate, template_for
from mathrl.errors import UserError
from mathrl.policy.loading import load_tokenizer
from mathrl.rollout.base import Engine
from mathrl.rollout.endpoint import EndpointEngine, Server
from mathrl.rollout.engine_choice import make_engine
from mathrl.types import Problem, Sampling


class Subject(Protocol):
    """One model, whatever serves it."""

    context: int | None  # tokens of a prompt and its completion; None: unknown
    info: Mapping[str, Any]  # what its completions depend on besides the protocol

    def template(self, extract: str, examples: Sequence[Problem]) -> PromptTemplate:
        """How a benchmark's problems are asked."""
        ...

    def longest(self, template: PromptTemplate, problems: Sequence[Problem]) -> tuple[int, Problem]:
        """Tokens of the longest prompt, and whose it is; 0 where no tokenizer is at hand."""
        ...

    def engine(
        self, config: Config, templates: Mapping[str, PromptTemplate], completions: int
    ) -> tuple[Engine, str]:
        """Ready to sample, and in words which it is; ``templates`` by benchmark, the most asked at once."""
        ...


class LoadedModel:
    """A model, with its adapter, in this process and its engine."""

    def __init__(self, source: ModelSource) -> None:
        self.source, self.policy = source, source.load()
        base = self.policy.model.get_base_model()
        self.context: int | None = getattr(base.config, "max_position_embeddings", None)
        dtype = str(self.policy.head_weight().dtype).removeprefix("torch.")
        self.info: Mapping[str, Any] = source.facts() | {"dtype": dtype}

    def template(self, extract: str, examples: Sequence[Problem]) -> PromptTemplate:
        return _template(self.source.config, self.policy.tokenizer, extract, examples)

    def longest(self, template: PromptTemplate, problems: Sequence[Problem]) -> tuple[int, Problem]:
        return _longest(template, problems)

    def engine(
        self, config: Config, templates: Mapping[str, PromptTemplate], completions: int
    ) -> tuple[Engine, str]:
        engine, reason = make_engine(config, self.policy, lambda p: _of(templates, p).encode(p), completions)
        engine.load(self.policy.adapter() if self.source.adapter else None, version=0)
        return engine, reason


class ServedModel:
    """A model behind the OpenAI API: asked by chat turns, or by whole prompts where a tokenizer is given."""

    def __init__(self, source: EndpointSource) -> None:
        self.source = source
        self.server = Server(source.url, source.model)
        trusted = source.config.model.trust_remote_code
        self.tokenizer = load_tokenizer(source.tokenizer, trusted=trusted) if source.tokenizer else None
        self.context = self.server.context
        self.info: Mapping[str, Any] = source.facts() | {"model": self.server.model}

    def template(self, extract: str, examples: Sequence[Problem]) -> PromptTemplate:
        if self.tokenizer is not None:
            return _template(self.source.config, self.tokenizer, extract, examples)
        if examples:
            raise UserError(
                "--shots writes whole prompts, and a server is asked by chat turns: give the model's "
                "tokenizer with --tokenizer"
            )
        model = self.source.config.model
        return MessagesTemplate(
            extract=extract, system_prompt=model.system_prompt, instruction=model.instruction
        )

    def longest(self, template: PromptTemplate, problems: Sequence[Problem]) -> tuple[int, Problem]:
        return _longest(template, problems) if self.tokenizer is not None else (0, problems[0])

    def engine(
        self, config: Config, templates: Mapping[str, PromptTemplate], completions: int
    ) -> tuple[Engine, str]:
        def ask(problem: Problem) -> list[dict[str, str]] | tuple[int, ...]:
            template = _of(templates, problem)
            return template.messages(problem) if self.tokenizer is None else template.encode(problem)

        sampling = Sampling(max_completion_tokens=config.rollout.max_completion_tokens, logprobs=False)
        engine = EndpointEngine(self.server, ask, sampling, concurrency=self.source.concurrency)
        by = "chat turns" if self.tokenizer is None else "whole prompts"
        return engine, f"{self.server.model} at {self.server.url}, asked by {by}"


def load_subject(source: ModelSource | EndpointSource) -> Subject:
    """The model of a source, loaded or asked for.

    Raises:
        UserError: it cannot be loaded or reached; the sentence says why.
    """
    return ServedModel(source) if isinstance(source, EndpointSource) else LoadedModel(source)


def _template(config: Config, tokenizer: Any, extract: str, examples: Sequence[Problem]) -> PromptTemplate:
    if examples:
        return FewShotTemplate(tokenizer, examples, extract=extract)
    return template_for(config.model, tokenizer, extract)


def _longest(template: PromptTemplate, problems: Sequence[Problem]) -> tuple[int, Problem]:
    lengths = [len(ids) for ids in template.encode_all(problems)]
    return max(zip(lengths, problems, strict=True), key=lambda pair: pair[0])


def _of(templates: Mapping[str, PromptTemplate], problem: Problem) -> PromptTemplate:
    return templates[problem.id.partition("/")[0]]
