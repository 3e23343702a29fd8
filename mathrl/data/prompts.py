"""How a problem becomes a prompt, and a worked solution the completion that follows it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from jinja2 import TemplateError

from mathrl.config import Config, ModelConfig
from mathrl.data.problems import extract_rule
from mathrl.errors import UserError
from mathrl.rewards.scorer import as_answer
from mathrl.types import Problem

Kind = Literal["plain", "chat"]

# What a chat model is told about the form of its answer: the rule by which that answer is read afterwards.
_INSTRUCTIONS = {
    # no word where the answer is to stand: small models copy it ("#### answer"), and an example's number, too
    "gsm8k": "Think step by step. Then write the final answer on the last line, after ####.",
    "boxed": "Think step by step, then put the final answer in \\boxed{}.",
}
_FINAL_ANSWERS = {"gsm8k": "#### {answer}", "boxed": "\\boxed{{{answer}}}"}
_BROKEN = (TemplateError, TypeError, ValueError)  # whatever a template of others may meet
_MARKERS = {"gsm8k": "####", "boxed": "\\boxed"}


def usual_instruction(kind: Kind, extract: str) -> str:
    """How a problem is asked where the recipe says nothing: for the form of answer that ``extract`` reads."""
    if kind == "plain":
        return "Question: {question}\nAnswer:"
    told = _INSTRUCTIONS.get(extract)
    return f"{{question}}\n{told}" if told else "{question}"


def asked_text(problem: Problem, instruction: str) -> str:
    """The question with its options and what is said of the answer's form, before any chat template."""
    apart = "{options}" in instruction
    question = problem.question if apart else problem.question_with_options
    stands_for = {"{question}": question, "{options}": "\n".join(problem.lettered_options)}
    return re.sub(r"\{(?:question|options)\}", lambda found: stands_for[found[0]], instruction)


class PromptTemplate:
    """Problem -> prompt text and ids, the same for supervised training, rollouts and evaluation.

    ``plain`` is for base models (``Question: … Answer:``), ``chat`` is the tokenizer's own chat template with
    the question, and a sentence on the form of the answer, as the user's message.
    """

    def __init__(
        self,
        tokenizer: Any,
        kind: Kind,
        *,
        extract: str = "gsm8k",
        system_prompt: str = "",
        instruction: str = "",
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Args:
            instruction: the user's message (chat) or the whole prompt (plain), with ``{question}`` where the
                question stands and, if the options do not stand below it, ``{options}``; empty: as above.
            chat_template_kwargs: what the chat template is given besides the messages.

        Raises:
            UserError: ``kind`` is "chat" and the tokenizer has no chat template.
        """
        if kind == "chat" and not getattr(tokenizer, "chat_template", None):
            raise UserError(
                f"model.prompt is 'chat' but the tokenizer of {tokenizer.name_or_path or 'the model'} has no "
                "chat template: set model.prompt to 'plain'"
            )
        self.tokenizer = tokenizer
        self.kind = kind
        self.stop = ""  # a text that ends a completion; none but the model's own end
        self.extract = extract
        self.system_prompt = system_prompt
        self.instruction = instruction or usual_instruction(kind, extract)
        self.chat_template_kwargs = dict(chat_template_kwargs or {})

    def describe(self) -> dict[str, str]:
        """What an evaluation's protocol says of the prompt."""
        shape = self.text(Problem("", "{question}", ""))
        return {"kind": self.kind, "extract": self.extract, "prompt": shape}

    def text(self, problem: Problem) -> str:
        """The prompt as text."""
        if self.kind == "plain":
            asked = asked_text(problem, self.instruction)
            return f"{problem.system_prompt}\n\n{asked}" if problem.system_prompt else asked
        return self._chat(self.messages(problem))

    def messages(self, problem: Problem) -> list[dict[str, str]]:
        """The turns of a chat before any template: a system turn where there is one, and the user's."""
        system = problem.system_prompt or self.system_prompt
        turns = [{"role": "system", "content": system}] if system else []
        return [*turns, {"role": "user", "content": asked_text(problem, self.instruction)}]

    def _render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self.chat_template_kwargs,
            )
        )

    def _chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        try:
            return self._render(messages, add_generation_prompt=True)
        except _BROKEN as error:
            which = f"the chat template of {self.tokenizer.name_or_path or 'the model'}"
            why = str(error).strip().split("\n")[0]
            if messages[0]["role"] == "system":
                raise UserError(
                    f"{which} refuses a chat with a system prompt ({why}): leave model.system_prompt empty "
                    "and system turns out of the data, or set model.prompt to 'plain'"
                ) from None
            raise UserError(
                f"{which} cannot be used ({why}): set model.prompt to 'plain', or mend the template in the "
                "model's folder"
            ) from None

    def encode(self, problem: Problem) -> tuple[int, ...]:
        """The prompt's token ids, with BOS where the tokenizer's models expect one."""
        return self.encode_all([problem])[0]

    def encode_all(self, problems: Sequence[Problem]) -> list[tuple[int, ...]]:
        """``encode`` of each problem, in one call of the tokenizer."""
        # A chat template writes its own special tokens.
        found = self._ids([self.text(problem) for problem in problems], special=self.kind == "plain")
        if self.kind == "plain":  # some tokenizers close every text; a prompt is open
            eos = self.tokenizer.eos_token_id
            found = [ids[:-1] if ids and ids[-1] == eos else ids for ids in found]
        return found

    def completion_text(self, problem: Problem) -> str:
        """The worked solution as the completion that supervised training teaches, without its end token.

        It ends in the final answer in the form that the extraction rule reads. Without a solution, the final
        answer is all.
        """
        return self._join(problem.solution or "", problem)

    def direct_answer_text(self, problem: Problem) -> str:
        """The completion that gives the final answer without any working."""
        return self._join("", problem)

    def encode_completion(self, text: str) -> tuple[int, ...]:
        """A completion's token ids, with ``end_id``."""
        return self.encode_completions([text])[0]

    def encode_completions(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """``encode_completion`` of each text, in one call of the tokenizer."""
        end = self.end_id
        return [(*ids, end) for ids in self._ids(texts, special=False)]

    @cached_property
    def end_id(self) -> int:
        """The token that ends a completion: the tokenizer's EOS, or what ends a turn in its chat template.

        Chat models often end a turn with a token of its own and a document with EOS. A template that closes a
        turn with no special token leaves it to EOS.
        """
        eos: int = self.tokenizer.eos_token_id
        if self.kind == "plain":
            return eos
        question, answer = {"role": "user", "content": "1"}, {"role": "assistant", "content": "4096"}
        try:
            _, found, tail = self._render([question, answer], add_generation_prompt=False).rpartition("4096")
            opening = self._render([question], add_generation_prompt=True)
        except _BROKEN:
            return eos
        if not found or not tail or opening.endswith(tail):  # some templates always open the next turn
            return eos
        tail = tail.lstrip()
        ends = [token for token in self.tokenizer.get_added_vocab() if tail.startswith(token)]
        return int(self.tokenizer.convert_tokens_to_ids(max(ends, key=len))) if ends else eos

    def _ids(self, texts: Sequence[str], *, special: bool) -> list[tuple[int, ...]]:
        if not texts:
            return []
        # verbose: a prompt longer than the model reads is refused elsewhere, in words of our own
        found = self.tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
        return [tuple(ids) for ids in found]

    def _join(self, solution: str, problem: Problem) -> str:
        if _MARKERS.get(self.extract, "") not in solution or not solution:
            final = _FINAL_ANSWERS.get(self.extract, "{answer}").format(answer=as_answer(problem))
            solution = f"{solution}\n{final}" if solution else final
        return solution if self.kind == "chat" else f" {solution}"


class MessagesTemplate(PromptTemplate):
    """Chat turns for a server that has the model's template; no tokenizer is at hand."""

    def __init__(self, *, extract: str, system_prompt: str = "", instruction: str = "") -> None:
        self.kind, self.extract, self.system_prompt = "chat", extract, system_prompt
        self.instruction = instruction or usual_instruction("chat", extract)

    def describe(self) -> dict[str, str]:
        """What an evaluation's protocol says of the prompt."""
        turns = self.messages(Problem("", "{question}", ""))
        shape = "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
        return {"kind": "chat turns", "extract": self.extract, "prompt": shape}

    def text(self, problem: Problem) -> str:
        """The user's turn; what the server's template puts around it is not known here."""
        return asked_text(problem, self.instruction)


def make_template(config: Config, tokenizer: Any) -> PromptTemplate:
    """The template of a recipe. Raises UserError where it asks for chat and the tokenizer has no template."""
    return template_for(config.model, tokenizer, extract_rule(config.data))


def template_for(model: ModelConfig, tokenizer: Any, extract: str) -> PromptTemplate:
    """The template that a model is asked with where answers are read by ``extract``. Raises as above."""
    kind = model.prompt
    if kind == "auto":
        kind = "chat" if getattr(tokenizer, "chat_template", None) else "plain"
    return PromptTemplate(
        tokenizer,
        kind,
        extract=extract,
        system_prompt=model.system_prompt,
        instruction=model.instruction,
        chat_template_kwargs=model.chat_template_kwargs,
    )
