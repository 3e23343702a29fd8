"""Verdict -> reward: the only door between the trainer and the verifiers.

A completion's reward is a weighted sum of terms, each logged by itself: what the verifier said, whether an
answer could be extracted, its length, the user's own functions, and (optionally) a learned reward model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from statistics import fmean, pstdev

import verifiers
from mathrl.config import RewardConfig
from mathrl.distributed.collectives import world_size
from mathrl.distributed.environment import workers_a_rank
from mathrl.errors import UserError
from mathrl.rewards.functions import RewardFunction, evaluate_function
from mathrl.rewards.votes import same_answers
from mathrl.types import Completion, Group, Problem, Score
from verifiers import Outcome, ParseError, Verdict, plugins
from verifiers.answers import several
from verifiers.extraction.rules import extract, find_rule
from verifiers.extraction.thoughts import PROMPT_TAIL_CHARS, opens_thought, without_thinking
from verifiers.policy import as_asked
from verifiers.pool.pool import Request, VerifierPool
from verifiers.tools.references import Reading, read_reference

RewardModel = Callable[[Sequence[Problem], Sequence[Completion]], Sequence[float]]
"""Scores of a learned reward model, one a completion; ``mathrl.rewards.learned`` makes one."""

Terms = tuple[str, list[list[float]]]
"""A term of the reward: its name, and its weighted value of every completion (empty: there is none)."""

UNFINISHED_THOUGHT = "its thought did not end"
_EXTRACTED = (Outcome.CORRECT, Outcome.WRONG)


def check_reference(problem: Problem) -> str | None:
    """Why no verifier can read the problem's reference answer; None where one can."""
    try:
        verifiers.parse_reference(problem.answer, problem.answer_type)
    except ParseError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - a verifier of the user's own may raise anything
        return f"{type(error).__name__}: {error}"
    return None


def takes_row(answer_type: str) -> bool:
    """Whether the verifier of this name asks for the other columns of a problem's row."""
    return verifiers.registry.get(answer_type).takes_row


def as_answer(problem: Problem) -> str:
    """The reference as a solution ends in it: the first of alternatives, all of several answers."""
    return verifiers.registry.get(problem.answer_type).as_answer(problem.answer)


def read_only_as_words(problem: Problem) -> bool:
    """Whether all that can be judged of an answer to the problem is that it repeats the reference."""
    return read_reference(problem.answer, problem.answer_type).reading is Reading.WORDS


_SHAPES = {
    "a whole number": re.compile(r"[-+−]?\$?\d[\d,]*(?:\.0+)?"),
    "a decimal": re.compile(r"[-+−]?\$?[\d,]*\.\d+"),
    "a fraction": re.compile(
        r"[-+−]?\$?(?:\d+\s*/\s*\d+|\\[dt]?frac\s*(?:\{[^{}]*\}|\d)\s*(?:\{[^{}]*\}|\d))"
    ),
    "a choice": re.compile(r"\(?[A-J]\)?\.?"),
}


def kind_of_reference(problem: Problem) -> str:
    """What a reference is, in words for a count: "a whole number", "a fraction", … "words"."""
    found = read_reference(problem.answer, problem.answer_type)
    if found.reading is not Reading.MATHEMATICS:
        return found.kind or found.reading.value
    plain = problem.answer.strip().strip("$ ")
    shape = next((name for name, shape in _SHAPES.items() if shape.fullmatch(plain)), None)
    if shape:
        return shape
    return "other mathematics" if problem.answer_type == "auto" else f"another {problem.answer_type}"


def extract_answer(text: str, rule: str) -> str | None:
    """The final answer that an extraction rule finds in a worked solution; None where there is none."""
    return extract(text, rule)


def check_extract_rule(name: str, where: str = "") -> None:
    """Raise UserError, with near names, where there is no such extraction rule or it cannot be imported.

    ``where`` is the field that names it.
    """
    try:
        find_rule(name)
    except ValueError as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from None


def joins_texts(text: str) -> bool:
    """Whether texts of a list stand side by side, as numpy prints one."""
    return several.joins_texts(text)


def names_module(name: str) -> bool:
    """Whether the name of a verifier or rule has a module imported: a file of data may not."""
    return plugins.is_module_path(name)


def check_answer_type(name: str) -> None:
    """Raise UserError, with near names, where no verifier of this name is registered."""
    try:
        verifiers.registry.get(name)
    except ValueError as error:
        raise UserError(f"data.answer_type: {error}") from None


def prompt_end(prompt: str) -> str:
    """The end of a prompt that opened a thought, as chat templates may; "" where judging needs none of it."""
    return prompt[-PROMPT_TAIL_CHARS:] if opens_thought(prompt) else ""


class RewardScorer:
    """Scores completions in isolated verifier processes; usable while others are still being sampled.

    ``submit`` starts a verdict early; ``score`` waits for those and starts the rest. An outcome that is the
    verifier's fault (ERROR, TIMEOUT) earns ``wrong`` and is counted by itself in the metrics.

    ``prompt_text`` gives the prompt that a problem's completions follow: where it opens a thought, one that
    does not close it has no answer. Until it is set, it is what a saved row said (``meta["prompt"]``).
    """

    def __init__(
        self,
        config: RewardConfig,
        extract: str,
        reward_model: RewardModel | None = None,
        functions: Sequence[RewardFunction] = (),
    ):
        self.config, self.extract, self.reward_model = config, extract, reward_model
        self.functions = tuple(functions)
        self.prompt_text: Callable[[Problem], str] = lambda problem: str(problem.meta.get("prompt") or "")
        self._prompt_ends: dict[str, str] = {}  # by problem id, as long as its completions come in
        self.pool = VerifierPool(workers_a_rank(config.num_workers), config.timeout_s, config.memory_mb)
        self.pool.start()  # models and engines load meanwhile
        self._under_way: dict[Request, Future[Verdict]] = {}  # equal completions of a problem share one

    @property
    def asks_whole_step(self) -> str:
        """A reward function that is given all completions of a step at once; empty where there is none."""
        whole = (f.name for f in self.functions if f.is_async or f.compares_all)
        return next(whole, "")

    def submit(self, problem: Problem, completion: Completion) -> Future[Verdict]:
        """Start judging a completion now; ``score`` picks the verdict up. Another thread may ask than it."""
        return self._verdict(self._request(problem, completion))

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with one Score a completion, in order.

        Of several ranks' shares of a step, functions that are given all of it have their say afterwards:
        ``compare_all``.

        Raises:
            UserError: a reward function failed.
        """
        verdicts = self._verdicts(groups)
        extra = [
            self._model_terms(groups),
            *(self._function_terms(f, groups, verdicts) for f in self.functions if not f.compares_all),
        ]
        scored = [
            replace(
                group,
                scores=tuple(
                    self._score(
                        completion, verdicts[g][i], {n: values[g][i] for n, values in extra if values}
                    )
                    for i, completion in enumerate(group.completions)
                ),
            )
            for g, group in enumerate(groups)
        ]
        return scored if world_size() > 1 else self.with_terms(scored, self.compare_all(scored))

    @property
    def compares_all(self) -> bool:
        """Whether a reward function is given all completions of a step, those of all ranks."""
        return any(f.compares_all for f in self.functions)

    def compare_all(self, scored: Sequence[Group]) -> list[Terms]:
        """What the functions that are given all completions of a step at once say of these.

        Raises:
            UserError: a reward function failed.
        """
        outcomes = [[score.outcome for score in group.scores] for group in scored]
        return [
            (f.name, self._values(f, scored, outcomes, [[] for _ in scored]))
            for f in self.functions
            if f.compares_all
        ]

    def with_terms(self, scored: Sequence[Group], terms: Sequence[Terms]) -> list[Group]:
        """The groups with these terms in their rewards."""
        if not terms:
            return list(scored)
        return [
            replace(
                group,
                scores=tuple(
                    _plus(score, {name: values[g][i] for name, values in terms})
                    for i, score in enumerate(group.scores)
                ),
            )
            for g, group in enumerate(scored)
        ]

    def judge(self, groups: Sequence[Group]) -> list[Group]:
        """The same by the verifiers alone, for evaluations: no reward model and no function is asked."""
        return [
            replace(
                group,
                scores=tuple(self._score(c, v, {}) for c, v in zip(group.completions, said, strict=True)),
            )
            for group, said in zip(groups, self._verdicts(groups), strict=True)
        ]

    def same_answers(self, asked: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[int]]:
        """Which of the answers to each problem say the same; see ``mathrl.rewards.votes.same_answers``."""
        return same_answers(self.pool.map, asked)

    def close(self) -> None:
        self.pool.close()

    def _request(self, problem: Problem, completion: Completion) -> Request:
        end = self._prompt_ends.get(problem.id)
        if end is None:
            end = self._prompt_ends[problem.id] = prompt_end(self.prompt_text(problem))
        return Request(
            completion.text,
            as_asked(problem.answer, problem.question, problem.answer_type, problem.options),
            problem.answer_type,
            self.extract,
            problem.options,
            end,
            problem.row,
        )

    def _verdict(self, request: Request) -> Future[Verdict]:
        future = self._under_way.get(request)
        if future is None:
            future = self._under_way[request] = self.pool.submit(request)
        return future

    def _verdicts(self, groups: Sequence[Group]) -> list[list[Verdict]]:
        requests = [[self._request(g.problem, c) for c in g.completions] for g in groups]
        futures = [[self._verdict(request) for request in row] for row in requests]
        for group, row in zip(groups, requests, strict=True):  # others may be under way
            self._prompt_ends.pop(group.problem.id, None)
            for request in row:
                self._under_way.pop(request, None)
        return [
            [
                _explained(future.result(), completion, request.prompt)
                for future, request, completion in zip(said, row, group.completions, strict=True)
            ]
            for group, row, said in zip(groups, requests, futures, strict=True)
        ]

    def _model_terms(self, groups: Sequence[Group]) -> Terms:
        if self.reward_model is None or not self.config.learned:
            return "model", []
        problems = [g.problem for g in groups for _ in g.completions]
        flat = iter(self.reward_model(problems, [c for g in groups for c in g.completions]))
        weight = self.config.model_weight
        return "model", [[weight * float(next(flat)) for _ in g.completions] for g in groups]

    def _function_terms(
        self, function: RewardFunction, groups: Sequence[Group], verdicts: Sequence[Sequence[Verdict]]
    ) -> Terms:
        outcomes = [[verdict.outcome for verdict in said] for said in verdicts]
        return function.name, self._values(function, groups, outcomes, verdicts)

    def _values(
        self,
        function: RewardFunction,
        groups: Sequence[Group],
        outcomes: Sequence[Sequence[str]],
        verdicts: Sequence[Sequence[Verdict]],
    ) -> list[list[float]]:
        """Weighted values; 0 where the reference could not be read, for that never trains."""
        readable = [i for i, found in enumerate(outcomes) if Outcome.BAD_REFERENCE not in found]
        asked = evaluate_function(
            function,
            [groups[i] for i in readable],
            [verdicts[i] for i in readable],
            self.config.function_timeout_s,
        )
        values = [[0.0] * len(g.completions) for g in groups]
        for i, row in zip(readable, asked, strict=True):
            values[i] = [function.weight * value for value in row]
        return values

    def _score(self, completion: Completion, verdict: Verdict, extra: Mapping[str, float]) -> Score:
        cfg = self.config
        parts = {"answer": self._answer(completion, verdict.outcome)}
        if cfg.format:
            parts["format"] = cfg.format * (verdict.outcome in _EXTRACTED)
        if cfg.length:
            parts["length"] = cfg.length * len(completion.token_ids)
        parts |= extra
        return Score(sum(parts.values()), verdict.outcome.value, verdict.extracted, verdict.detail, parts)

    def _answer(self, completion: Completion, outcome: Outcome) -> float:
        """The verifier's part: by outcome, and what is cut at the limit apart where the recipe says so."""
        cfg = self.config
        if outcome is Outcome.CORRECT:
            return cfg.correct
        if cfg.truncated is not None and completion.finish_reason == "length":
            return cfg.truncated
        apart = {Outcome.UNPARSED: cfg.unparsed, Outcome.NO_ANSWER: cfg.no_answer}.get(outcome)
        return cfg.wrong if apart is None else apart


def _plus(score: Score, terms: Mapping[str, float]) -> Score:
    parts = {**score.parts, **terms}
    return replace(score, reward=sum(parts.values()), parts=parts)


def _explained(verdict: Verdict, completion: Completion, prompt: str) -> Verdict:
    """The verdict, saying so where there is no answer because a thought did not end."""
    if verdict.outcome is Outcome.NO_ANSWER and without_thinking(completion.text, prompt) is None:
        return replace(verdict, detail=UNFINISHED_THOUGHT)
    return verdict


def could_be_judged(groups: Sequence[Group]) -> list[Group]:
    """Groups whose reference could be read: BAD_REFERENCE is neither right nor wrong, so it never trains."""
    return [g for g in groups if not any(s.outcome == Outcome.BAD_REFERENCE for s in g.scores)]


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """What the policy did in a rollout, before any selection: rewards, lengths, verdict shares.

    ``reward/equal_frac`` is the share of groups whose rewards are all equal: they carry no advantage.
    ``verify/words_frac`` is the share whose reference is read only as words: right is who repeats them.
    """
    scores = [s for g in groups for s in g.scores]
    completions = [c for g in groups for c in g.completions]
    lengths = [len(c.token_ids) for c in completions]
    rewards = [s.reward for s in scores]
    outcomes = Counter(s.outcome for s in scores)
    metrics = {
        "reward/mean": fmean(rewards),
        "reward/std": pstdev(rewards),
        "reward/correct_frac": outcomes[Outcome.CORRECT.value] / len(scores),
        "reward/equal_frac": fmean(float(len(set(g.rewards)) == 1) for g in groups),
        "rollout/length_mean": fmean(lengths),
        "rollout/length_max": float(max(lengths)),
        "rollout/truncated_frac": fmean(float(c.finish_reason == "length") for c in completions),
        "rollout/unfinished_thought_frac": fmean(float(s.detail == UNFINISHED_THOUGHT) for s in scores),
        "rollout/prompt_length_mean": fmean(len(g.prompt_ids) for g in groups),
        "tokens/sampled": float(sum(lengths)),
    }
    metrics |= {f"verify/{o.value}_frac": outcomes[o.value] / len(scores) for o in Outcome}
    metrics["verify/words_frac"] = fmean(float(read_only_as_words(g.problem)) for g in groups)
    for name in sorted({name for s in scores for name in s.parts}):
        metrics[f"reward/{name}"] = fmean(s.parts.get(name, 0.0) for s in scores)
    return metrics
