"""``mathrl init``: a commented recipe for a model and problems of one's own, after looking at both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any

import tomlkit
from cyclopts import App, Parameter

from mathrl.commands.data import origin, spread
from mathrl.config import DataConfig
from mathrl.data.guess import Guess, guess_columns
from mathrl.data.hub import check_model
from mathrl.data.prompts import asked_text, usual_instruction
from mathrl.data.rows import dataset_row
from mathrl.data.source import Row, read_file, read_hub
from mathrl.errors import UserError
from mathrl.recipes import load_recipe
from mathrl.run.files import atomic, refuse_taken, writing
from mathrl.run.progress import make_console

_EPILOGUE = """\
Example:
  mathrl init --model Qwen/Qwen3-0.6B --data train.jsonl --out mine.toml
  mathrl train mine.toml
"""
_RATES = ((0.3e9, 1e-4), (8e9, 3e-5), (float("inf"), 1e-5))  # (fewer parameters, learning rate of LoRA)
_THOUGHT_TOKENS = 4096
_MANY_PROBLEMS = 32  # a step, as the recipe default has it


@dataclass(frozen=True)
class ModelFacts:
    """What a model's folder says of it."""

    parameters: int  # 0: of an architecture whose sizes are not known
    context: int
    trusted: bool  # it may run its own code
    chat: bool
    opens_thought: bool  # a prompt of its template ends inside a thought
    can_think: bool  # its template knows enable_thinking
    prompt_tokens: Sequence[int]  # of the problems looked at, as they will be asked


def _init(
    *,
    model: Annotated[str, Parameter(help="folder or hub name of the model to train")],
    data: Annotated[str, Parameter(help="file, known data set or hub name of the problems")],
    out: Annotated[Path, Parameter(help="recipe to write")] = Path("recipe.toml"),
    question: Annotated[
        str, Parameter(help="column of the question, where it is not found", show_default=False)
    ] = "",
    answer: Annotated[
        str, Parameter(help="column of the answer, where it is not found", show_default=False)
    ] = "",
    trust_remote_code: Annotated[
        bool, Parameter(help="run Python code that the model brings", show_default=False)
    ] = False,
    overwrite: Annotated[bool, Parameter(help="replace the file", show_default=False)] = False,
) -> int:
    """Look at model and problems, write the recipe, say what was found."""
    if out.suffix != ".toml":
        raise UserError(f"--out {out} must end in .toml")
    refuse_taken(out, "--out", overwrite=overwrite)
    where = origin(data)
    guess = look_at_data(where, data, question, answer)
    facts = look_at_model(model, guess, trusted=trust_remote_code)
    with writing(out), atomic(out) as part:
        part.write_text(recipe_text(model, data, where, guess, facts), encoding="utf-8")
        load_recipe(str(part))
    console = make_console()
    for line in what_was_found(model, data, guess, facts):
        console.print(line, soft_wrap=True, markup=False)
    console.print(f"{out} is written; look at it, and then: mathrl train {out}", soft_wrap=True, markup=False)
    return 0


command = App(name="init", help_epilogue=_EPILOGUE, default_command=_init)


def look_at_data(where: dict[str, Any], name: str, question: str = "", answer: str = "") -> Guess:
    """The columns of a data set, and what they make of its first rows.

    Raises:
        UserError: it cannot be read, or holds no problems.
    """
    given = {"question_field": question, "answer_field": answer}
    row = dataset_row(DataConfig(**where, **{key: value for key, value in given.items() if value}))
    rows: list[Row]
    if "path" in where:
        rows = read_file(where["path"])
    elif row.hub:
        rows = read_hub(row.hub, row.config, row.split, local_option="--data FILE")
    else:
        raise UserError(f"data set {name!r} has no copy on the hub: give a file, --data FILE.jsonl")
    if not rows:
        raise UserError(f"{name} has no rows")
    known = "source" in where and where["source"] == row.name
    return guess_columns(rows, name, row if known or (question and answer) else None, question, answer)


def look_at_model(model: str, guess: Guess, *, trusted: bool = False) -> ModelFacts:
    """Sizes, context and chat template of a model, without its weights; ``trusted``: it may run its own code.

    Raises:
        UserError: there is no such model, or it has no tokenizer.
    """
    check_model(model)

    from mathrl.memory.shapes import load_shape  # transformers takes seconds
    from mathrl.policy.loading import context_length, load_tokenizer
    from mathrl.recipes import config_of

    try:
        tokenizer, context = load_tokenizer(model, trusted=trusted), context_length(model, trusted=trusted)
    except UserError as error:
        raise UserError(str(error).replace("--model.trust_remote_code", "--trust-remote-code")) from None
    named = {"model": {"path": model, "trust_remote_code": trusted}}
    try:
        parameters = load_shape(config_of(named, "init")).num_parameters
    except UserError:
        parameters = 0
    template = getattr(tokenizer, "chat_template", None)
    kind = "chat" if template else "plain"
    instruction = usual_instruction("chat" if template else "plain", guess.row.extract)
    prompts = [asked_text(problem, instruction) for problem in guess.problems]
    if kind == "chat":
        prompts = [
            str(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
                )
            )
            for prompt in prompts
        ]
    lengths = [len(ids) for ids in tokenizer(prompts, verbose=False)["input_ids"]]
    return ModelFacts(
        parameters,
        context,
        trusted,
        chat=bool(template),
        opens_thought=prompts[0].rstrip().endswith("<think>"),
        can_think="enable_thinking" in str(template),
        prompt_tokens=lengths,
    )


def recipe_text(model: str, data: str, where: dict[str, Any], guess: Guess, facts: ModelFacts) -> str:
    """The recipe as TOML, with what was found beside what follows from it."""
    name = PurePath(model).name
    lines = [
        f"# {name} on {data}: what mathrl init found, beside what follows from it. What is not said here",
        "# is as in the recipe default; mathrl config FILE prints every field with its reason.",
        'extends = "default"',
        f"description = {_toml(f'{name} on {PurePath(data).name}')}",
        "",
        "[model]",
        f"path = {_toml(model)}",
        *_model_lines(facts),
        "",
        "[data]",
        *_data_lines(where, guess),
        "",
        *_training_lines(guess, facts),
    ]
    return "\n".join(lines) + "\n"


def _model_lines(facts: ModelFacts) -> Iterator[str]:
    if facts.trusted:
        yield "trust_remote_code = true # Python code that the model brings is run"
    if facts.chat:
        yield 'prompt = "chat" # the tokenizer has a chat template'
    else:
        yield 'prompt = "plain" # no chat template: a base model, asked as "Question: … Answer:"'
    yield '# instruction = """{question}'
    yield '# Think step by step …""" # how it is asked; without it for steps and the form of answer below'
    yield '# system_prompt = ""'
    if facts.can_think:
        yield "chat_template_kwargs = { enable_thinking = false } # true: thoughts first; raise the limit"


def _data_lines(where: dict[str, Any], guess: Guess) -> Iterator[str]:
    row = guess.row
    for key, value in where.items():
        yield f"{key} = {_toml(value)}"
    if guess.known and "source" not in where:
        yield f"source = {_toml(row.name)} # the columns are those of this set"
    if not guess.known:
        yield f"question_field = {_toml(row.question[0])}"
        yield f"answer_field = {_toml(row.answer)} # {_read(guess)}"
        if any(problem.solution for problem in guess.problems) and row.solution:
            yield f"solution_field = {_toml(row.solution)} # worked solutions, for the supervised stage"
        if any(problem.options for problem in guess.problems):
            yield f"options_field = {_toml(row.options)}"
    yield f"answer_type = {_toml(row.answer_type)} # the narrowest that reads them"
    yield f"extract = {_toml(row.extract)} # how the answer of a completion is found"
    if not row.eval_split:
        yield '# eval_path = "test.jsonl" # without it a tenth of the problems is held out'


def _training_lines(guess: Guess, facts: ModelFacts) -> Iterator[str]:
    solved = sum(problem.solution is not None for problem in guess.problems)
    yield "[sft]"
    if solved:
        yield (
            f"skip = false # {solved} of {len(guess.problems)} problems have a worked solution; true: start "
            "from the model as it is"
        )
    else:
        yield "skip = true # no worked solutions: the model is trained as it is"
    yield ""
    yield "[rollout]"
    longest = max(facts.prompt_tokens)
    yield (
        f"max_prompt_tokens = 0 # the longest there is: {longest} among the {len(guess.problems)} looked at"
    )
    if facts.opens_thought:
        tokens = min(_THOUGHT_TOKENS, facts.context - longest)
        yield f"max_completion_tokens = {tokens} # the template opens a thought: room to end it"
    else:
        yield "max_completion_tokens = 0 # 1,024, or what the context leaves"
    if guess.num_rows < 2 * _MANY_PROBLEMS:
        problems = max(1, guess.num_rows // 4)
        yield f"problems_per_step = {problems} # there are {guess.num_rows} rows"
    yield ""
    yield "[update]"
    rate = next(rate for below, rate in _RATES if facts.parameters < below)
    size = f"{facts.parameters / 1e6:,.0f} M parameters" if facts.parameters else "a model of unknown size"
    yield f"learning_rate = {rate:g} # of LoRA, for {size}"


def what_was_found(model: str, data: str, guess: Guess, facts: ModelFacts) -> Iterator[str]:
    """For the console: the columns, the answers, the model."""
    row = guess.row
    yield (
        f"{data}: {guess.num_rows} rows; question {' + '.join(row.question)}, answer {row.answer}"
        + (f" (as {row.name})" if guess.known else "")
        + f", read as {row.answer_type}; {_read(guess)}"
    )
    size = f"{facts.parameters / 1e6:,.1f} M parameters, " if facts.parameters else ""
    template = "a chat template" if facts.chat else "no chat template"
    thinks = ", thinks where it is let" if facts.can_think or facts.opens_thought else ""
    yield f"{PurePath(model).name}: {size}reads {facts.context:,} tokens, {template}{thinks}"
    yield f"prompts: {spread(facts.prompt_tokens)} tokens"


def _read(guess: Guess) -> str:
    return f"{len(guess.problems)} of the {guess.tried} rows looked at are problems"


def _toml(value: str) -> str:
    return tomlkit.item(value).as_string()
