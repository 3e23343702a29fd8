"""The command line: ``mathrl COMMAND …``. A command's module is loaded when the command is named.

Nothing here loads torch, transformers or the configuration: help comes at once, and a wrong word is told
before anything heavy is imported.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin

import cyclopts
from cyclopts import App, Argument, CycloptsError, Parameter

from mathrl import __version__
from mathrl.distributed.environment import settle_in
from mathrl.errors import UserError, cannot_write, did_you_mean, says_full

COMMANDS = {
    "train": (
        "entries:train",
        "Train: SFT where the recipe asks for it, evaluate, reinforce, evaluate, report.",
    ),
    "sft": ("entries:sft", "Make only the reference of a recipe: its supervised stage."),
    "pairs": ("pairs:command", "Make ranked pairs from completions: right against wrong, by the verifiers."),
    "reward-model": ("entries:reward_model", "Train a reward model on ranked pairs."),
    "config": ("entries:config", "Print a recipe with every field resolved, its reason and its range."),
    "init": ("init:command", "Write a commented recipe for a model and problems of your own."),
    "eval": ("evaluate:command", "Evaluate a model on benchmarks."),
    "judge": ("judge:command", "Judge saved completions again, without a model."),
    "compare": ("compare:command", "Compare runs, or algorithms on one budget."),
    "plan": ("plan:command", "Predict the memory of a recipe, with any field set, and choose its budgets."),
    "data": ("data:command", "Look at a data set: rows, what is skipped, how answers are read, as asked."),
    "doctor": ("doctor:command", "Say what is wrong with a run."),
    "replay": ("entries:replay", "Recompute a saved batch's loss, gradient norm and metrics."),
    "report": ("entries:report", "Write RUN/report.html again."),
    "export": ("entries:export", "Write a run's adapter and merged model for transformers, peft and vLLM."),
    "generate-problems": (
        "entries:generate_problems",
        "Write generated grade-school word problems as JSON lines.",
    ),
}
"""Command -> its function (or App) in mathrl/commands/, and its line in ``mathrl --help``."""

ON_RANKS = ("train", "sft", "eval")
"""Commands that several processes do together: --gpus N, --ranks N, or under torchrun."""

EXAMPLES = """\
Examples:
  mathrl train                                     a small model from nothing
  mathrl train --model.path DIR --data.path FILE   your own model and problems
  mathrl eval DIR --benchmark gsm8k --samples 8    accuracy, with intervals
"""

EXIT_USER_ERROR = 2
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
"""What libraries below would advise or warn of is not for a user's console; read when they are loaded."""
_BELOW = r"(transformers|peft|torch|datasets|huggingface_hub)\b"  # that warn of what they will drop some day
EXIT_INTERRUPTED = 130
_FIELD = re.compile(r"--[a-z_]+(?:\.[a-z_0-9-]+)+")
_TRUTHS = dict.fromkeys(("true", "yes", "on"), "true") | dict.fromkeys(("false", "no", "off"), "false")


def make_app(*, examples: bool = True) -> App:
    """The application: every command by the path to its function. A command's help has its own examples."""
    app = App(
        name="mathrl",
        help="Reinforcement learning with verifiable rewards for mathematics.",
        help_format="plaintext",
        help_epilogue=EXAMPLES if examples else None,
        version=__version__,
        default_parameter=Parameter(
            negative=(), allow_repeating=True
        ),  # of two equal options the last counts
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    for number, (name, (path, text)) in enumerate(COMMANDS.items()):
        app.command(f"mathrl.commands.{path}", name=name, help=text, sort_key=number)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status.

    0 fine, 1 a process was lost and --resume goes on, 2 something the user can put right, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning, module=_BELOW)
    try:
        own = settle_in()
    except UserError as error:
        print(f"mathrl: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    try:
        if own.world > 1:
            _refuse_ranks(words)
        known = bool(words) and words[0] in COMMANDS
        app = make_app(examples=not known)
        return int(app(_settled(words, app[words[0]]) if known else words) or 0)
    except (CycloptsError, UserError) as error:
        if own.is_main:  # before the ranks have met all say the same
            sentence = _sentence(error, words) if isinstance(error, CycloptsError) else str(error)
            print(f"mathrl: {sentence}", file=sys.stderr)
        return error.exit_status if isinstance(error, UserError) else EXIT_USER_ERROR
    except KeyboardInterrupt as stopped:
        print("mathrl: interrupted", file=sys.stderr)
        return int(getattr(stopped, "exit_status", EXIT_INTERRUPTED))
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        sys.stderr.close()
        return 0
    except OSError as error:  # of a file that is written whole; what grows meanwhile has its own sentence
        if not own.is_main or not says_full(error):
            raise
        where, go_on = error.filename or "a file", words[0] in ("train", "sft", "reward-model")
        advice = "make room and go on with --resume" if go_on else "make room"
        print(f"mathrl: {where} cannot be written: {cannot_write(error)}; {advice}", file=sys.stderr)
        return EXIT_USER_ERROR


def _refuse_ranks(words: Sequence[str]) -> None:
    """Raise where torchrun has started a command that works in one process."""
    if words and words[0] in COMMANDS and words[0] not in ON_RANKS:
        raise UserError(f"mathrl {words[0]} works in one process: start it without torchrun")


def _settled(words: Sequence[str], command: App) -> list[str]:
    """The words, a flag and its value as one, true or false: else a value would be left to the arguments.

    Raises:
        UserError: what follows a flag is no truth, and as a recipe it would be unknown.
    """
    if not any(word.startswith("--") for word in words):
        return list(words)
    arguments = command.assemble_argument_collection()
    flags, takes_recipe = _flags(arguments), any(argument.names == ("RECIPE",) for argument in arguments)
    settled: list[str] = []
    for word in words:
        option, sign, value = word.partition("=")
        if sign and _is_bare(option, flags) and value.lower() in _TRUTHS:
            settled.append(f"{option}={_TRUTHS[value.lower()]}")
        elif settled and _is_bare(settled[-1], flags) and word.lower() in _TRUTHS:
            settled[-1] += f"={_TRUTHS[word.lower()]}"
        else:
            settled.append(word)
    if takes_recipe and (wrong := _untrue(settled, flags)):
        raise UserError(wrong)
    return settled


def _untrue(words: Sequence[str], flags: Collection[str]) -> str:
    """A sentence where a word after a flag can be meant for nothing but its value; else nothing."""
    from mathrl.recipes import recipe_names

    names = recipe_names()
    for flag, word in pairwise(words):
        if not _is_bare(flag, flags) or word.startswith("-") or word.endswith(".toml") or "/" in word:
            continue
        if word not in names and not did_you_mean(word, names).startswith("did") and not Path(word).exists():
            return f"{flag} must be {_kind(bool)}, not {word!r}"
    return ""


def _flags(arguments: Iterable[Argument]) -> set[str]:
    """The names of the options that are true or false, and may stand alone."""
    return {
        _plain(name)
        for argument in arguments
        if argument.hint is bool or bool in get_args(argument.hint)
        for name in argument.names
    }


def _is_bare(word: str, flags: Collection[str]) -> bool:
    """Whether a word is a flag without a value."""
    return word.startswith("--") and _plain(word) in flags


def _is_table(hint: Any) -> bool:
    return any(get_origin(kind) is dict for kind in (hint, *get_args(hint)))


def _sentence(error: CycloptsError, words: Sequence[str]) -> str:
    """What is wrong with the command line."""
    known = words and words[0] in COMMANDS
    command, see = (words[0], f"see mathrl {words[0]} --help") if known else ("mathrl", "see mathrl --help")
    match error:
        case cyclopts.UnknownCommandError():
            what = "option" if words[0].startswith("-") else "command"
            return f"unknown {what} {words[0]!r}: {did_you_mean(words[0], COMMANDS)}"
        case cyclopts.UnknownOptionError():
            return _unknown_option(error, command, see)
        case cyclopts.MissingArgumentError(argument=argument) if argument is not None:
            if _is_table(argument.hint) and error.keyword in (None, argument.name):
                return f"{argument.name} is a table: {argument.name}.NAME VALUE sets an entry of it"
            if error.keyword or argument.tokens:
                return f"{error.keyword or argument.tokens[-1].keyword} needs a value"
            return f"{command} needs {argument.name}: {see}"
        case cyclopts.CoercionError(argument=argument) if argument is not None and _is_table(argument.hint):
            return f"{argument.name} is a table: {argument.name}.NAME VALUE sets an entry of it"
        case cyclopts.CoercionError(token=token, argument=argument) if token and argument is not None:
            choices = argument.get_choices()
            wanted = f"one of {', '.join(choices)}" if choices else _kind(error.target_type)
            return f"{token.keyword or argument.name} must be {wanted}, not {token.value!r}"
        case cyclopts.UnusedCliTokensError(unused_tokens=[first, *_]):
            flags = _flags(make_app()[words[0]].assemble_argument_collection()) if known else ()
            return _untrue(words, flags) or f"{command} has no use for {first!r}: {see}"
    return " ".join(str(error).split())


def _unknown_option(error: cyclopts.UnknownOptionError, command: str, see: str) -> str:
    given = error.token.keyword or error.token.value
    known = [name for argument in error.argument_collection for name in argument.names]
    if _FIELD.fullmatch(given) and not any(_FIELD.fullmatch(name) for name in known):
        return f"{command} takes no {given}: only commands that read a recipe take its fields"
    plain = _plain(given)
    meant = [n for n in known if _plain(n) == plain] or [n for n in known if _plain(n).endswith("-" + plain)]
    if meant:
        return f"unknown option {given}: did you mean {meant[0]}?"
    near = did_you_mean(given, known)
    return f"unknown option {given}: " + (near if near.startswith("did") else see)


def _plain(option: str) -> str:
    """An option's words, however they are joined: model-path of --model.path."""
    return re.sub("[._]", "-", option.lstrip("-"))


def _kind(target: type | None) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(target or str, "text")


if __name__ == "__main__":
    sys.exit(main())
