"""The command line: ``mathrl COMMAND …``. Each command imports what it needs when it runs."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn, get_args

from mathrl import __version__
from mathrl.errors import UserError, did_you_mean

Overrides = list[tuple[str, str]]
_DOTTED = re.compile(r"--([a-z_]+(?:\.[a-z_0-9]+)+)(?:=(.*))?", re.DOTALL)

MODULE_COMMANDS = {
    "eval": ("mathrl.commands.evaluate", "Evaluate a model on benchmarks."),
    "judge": ("mathrl.commands.judge", "Judge saved completions again, without a model."),
    "compare": ("mathrl.commands.compare", "Compare runs, or algorithms on one budget."),
    "plan": ("mathrl.memory.plan", "Predict the memory of a recipe and choose its budgets."),
    "doctor": ("mathrl.report.doctor", "Say what is wrong with a run."),
    "replay": ("mathrl.commands.replay", "Recompute a saved batch's loss, gradient norm and metrics."),
}
"""Commands whose module has ``add_arguments(parser)`` and ``run(namespace) -> exit status``."""

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: --([\w.-]+)", message)
        if unknown:
            from mathrl.config import Config
            from mathrl.recipes import flatten

            keys = list(flatten(Config()))
            ends = [key for key in keys if key.endswith("." + unknown[1].replace("-", "_"))]
            hint = f"did you mean --{ends[0]}?" if ends else did_you_mean(unknown[1], keys)
            raise UserError(f"unknown option --{unknown[1]}: {hint}")
        raise UserError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 0 fine, 2 something the user can put right, 130 interrupted."""
    try:
        words, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
        args = _parser(words[0] if words else "").parse_args(words)
        if overrides and not getattr(args, "takes_overrides", False):
            raise UserError(f"mathrl {args.command} takes no --{overrides[0][0]}")
        args.overrides = overrides
        return int(args.run(args) or 0)
    except UserError as error:
        print(f"mathrl: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("mathrl: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        sys.stderr.close()
        return 0


def split_overrides(argv: Sequence[str]) -> tuple[list[str], Overrides]:
    """Take ``--section.key value``, ``--section.key=value`` and bare boolean options out of ``argv``.

    Raises:
        UserError: an option without its value.
    """
    words: list[str] = []
    overrides: Overrides = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        match = _DOTTED.fullmatch(word)
        if not match:
            words.append(word)
        elif match[2] is not None:
            overrides.append((match[1], match[2]))
        elif _is_flag(match[1]) and (
            not rest or rest[0].lower() not in ("true", "false", "yes", "no", "on", "off")
        ):
            overrides.append((match[1], "true"))
        elif not rest or rest[0].startswith("--"):
            raise UserError(f"--{match[1]} needs a value")
        else:
            overrides.append((match[1], rest.pop(0)))
    return words, overrides


def _is_flag(dotted: str) -> bool:
    from mathrl.recipes import find_field

    annotation = find_field(dotted).annotation
    return bool in {annotation, *get_args(annotation)}


def _parser(chosen: str) -> argparse.ArgumentParser:
    """All commands; the arguments of ``chosen`` alone are built where a module brings its own."""
    parser = _Parser(
        prog="mathrl",
        description="Reinforcement learning with verifiable rewards for mathematics.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mathrl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(
        name: str, run: Callable[[argparse.Namespace], int | None], text: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    def recipe_command(
        name: str, run: Callable[[argparse.Namespace], int | None], text: str
    ) -> argparse.ArgumentParser:
        sub = command(name, run, text + " Any field of the recipe can be set: --section.key value.")
        sub.add_argument("recipe", nargs="?", default="quickstart", metavar="RECIPE|FILE.toml")
        sub.set_defaults(takes_overrides=True)
        return sub

    for name, run, text in (
        ("train", _train, "Train: SFT where the recipe asks for it, evaluate, reinforce, evaluate, report."),
        ("sft", _sft, "Make only the reference of a recipe: its supervised stage."),
    ):
        sub = recipe_command(name, run, text)
        sub.add_argument(
            "--resume", action="store_true", help="go on where the run's folder stopped, if it exists"
        )
        sub.add_argument(
            "--overwrite", action="store_true", help="delete the run's folder first, if it exists"
        )
    sub = recipe_command(
        "config", _config, "Print a recipe with every field resolved, its reason and its range."
    )
    sub.add_argument("--plain", action="store_true", help="without comments")

    for name, (module, text) in MODULE_COMMANDS.items():
        sub = command(name, _run_module, text)
        sub.set_defaults(module=module)
        if chosen == name:
            import_module(module).add_arguments(sub)

    sub = command("report", _report, "Write RUN/report.html again.")
    sub.add_argument("run_dir", type=Path, metavar="RUN")
    sub = command(
        "export", _export, "Write a run's adapter and merged model for transformers, peft and vLLM."
    )
    sub.add_argument("run_dir", type=Path, metavar="RUN")
    sub.add_argument("out_dir", type=Path, metavar="OUT")
    sub.add_argument("--which", choices=("last", "best"), default="last", help="checkpoint (default: last)")
    sub = command("generate-problems", _generate, "Write generated grade-school word problems as JSON lines.")
    sub.add_argument("--n", type=int, required=True, help="how many")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    sub.add_argument("--min-steps", type=int, default=1)
    sub.add_argument("--max-steps", type=int, default=3)
    sub.add_argument("--max-operand", type=int, default=10)
    return parser


def _run_module(args: argparse.Namespace) -> int | None:
    result: int | None = import_module(args.module).run(args)
    return result


def _train(args: argparse.Namespace) -> int:
    from mathrl.commands.train import train
    from mathrl.recipes import load_recipe

    return train(load_recipe(args.recipe, args.overrides), resume=args.resume, overwrite=args.overwrite)


def _sft(args: argparse.Namespace) -> int:
    from mathrl.commands.train import make_reference
    from mathrl.recipes import load_recipe

    return make_reference(
        load_recipe(args.recipe, args.overrides), resume=args.resume, overwrite=args.overwrite
    )


def _config(args: argparse.Namespace) -> None:
    from mathrl.recipes import dump, load_recipe

    print(dump(load_recipe(args.recipe, args.overrides), comments=not args.plain), end="")


def _report(args: argparse.Namespace) -> None:
    from mathrl.report.run_page import write_report

    print(write_report(args.run_dir))


def _export(args: argparse.Namespace) -> None:
    from mathrl.commands.export import export_run

    done = export_run(args.run_dir, args.out_dir, which=args.which)
    print(f"{done.folder}/adapter: the adapter of step {done.step} in peft's format")
    kept = f"{done.kept:.1%} of the adapter's change is kept"
    print(f"{done.folder}/merged: the merged model, {done.dtype}; {kept}")


def _generate(args: argparse.Namespace) -> None:
    from mathrl.data.wordproblems import write_problems

    write_problems(
        args.out,
        n=args.n,
        seed=args.seed,
        min_steps=args.min_steps,
        max_steps=args.max_steps,
        max_operand=args.max_operand,
    )


if __name__ == "__main__":
    sys.exit(main())
