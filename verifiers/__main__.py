"""Verifiers of mathematical answers on the command line."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from verifiers import registry
from verifiers.policy import rule_book


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 `check` found something, 2 a wrong request."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ValueError as error:
        print(f"verifiers: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has gone (`| head`); Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m verifiers", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    judge = commands.add_parser("judge", help="judge JSON lines (id, answer, completion) from stdin")
    judge.set_defaults(run=_judge)
    audit = commands.add_parser("audit", help="compare verdicts with labels (JSON lines with 'expected')")
    audit.add_argument("labelled", type=Path, help="JSONL file: id, answer, completion, expected, maybe type")
    audit.set_defaults(run=_audit)
    for command in (judge, audit):
        command.add_argument("--type", default="auto", help="answer type (default: auto), or module:Class")
        command.add_argument("--extract", default="auto", help="extraction rule (default: auto)")

    types = commands.add_parser("types", help="list the registered answer types")
    types.set_defaults(run=_types)

    policy = commands.add_parser("policy", help="print the rule book: what counts as the same answer")
    policy.set_defaults(run=_policy)

    new = commands.add_parser("new", help="write the file of a new answer type and its table of examples")
    new.add_argument("name", help="the name, in lower case")
    new.add_argument("--dir", type=Path, default=Path(), help="folder to write to (default: this one)")
    new.set_defaults(run=_new)

    check = commands.add_parser("check", help="run the conformance kit on an answer type")
    check.add_argument("type", help="module:Class, or a registered name")
    check.add_argument("examples", type=Path, help="JSONL table: answer, given, expected")
    check.set_defaults(run=_check)

    for command in (judge, audit, check):
        command.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="worker processes")
        command.add_argument(
            "--timeout-s", type=float, default=5.0, help="seconds for one verdict (default: 5)"
        )
        command.add_argument("--memory-mb", type=int, default=1024, help="memory limit of one worker, MiB")
    return parser


def _judge(options: argparse.Namespace) -> int:
    from verifiers.pool.pool import VerifierPool
    from verifiers.tools.judge import judge

    _refuse_unknown_names(options)
    with VerifierPool(options.jobs, options.timeout_s, options.memory_mb) as pool:
        judge(sys.stdin.buffer, sys.stdout, pool, options.type, options.extract)
    return 0


def _audit(options: argparse.Namespace) -> int:
    from verifiers.pool.pool import VerifierPool
    from verifiers.tools.audit import audit, render

    _refuse_unknown_names(options)
    try:
        lines = options.labelled.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"cannot read {options.labelled}: {error.strerror}") from error
    with VerifierPool(options.jobs, options.timeout_s, options.memory_mb) as pool:
        result = audit(lines, pool, options.type, options.extract)
    print(render(result))
    return 0


def _refuse_unknown_names(options: argparse.Namespace) -> None:
    from verifiers.extraction.rules import find_rule

    registry.get(options.type)
    find_rule(options.extract)


def _types(options: argparse.Namespace) -> int:
    for name in registry.names():
        kind = type(registry.get(name))
        summary = (kind.__doc__ or "").strip().partition("\n")[0]
        print(f"{name:12} {kind.__module__}:{kind.__qualname__}  {summary}")
    return 0


def _policy(options: argparse.Namespace) -> int:
    print(rule_book())
    return 0


def _new(options: argparse.Namespace) -> int:
    from verifiers.tools.scaffold import write_answer_type

    module, examples = write_answer_type(options.name, options.dir)
    class_name = "".join(word.capitalize() for word in options.name.split("_"))
    print(f"wrote {module} and {examples}; fill them in, then run in that folder:")
    print(f"python -m verifiers check {module.stem}:{class_name} {examples.name}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from verifiers.pool.pool import VerifierPool
    from verifiers.tools.conformance import check, read_examples, render

    registry.get(options.type)
    examples = read_examples(options.examples)
    with VerifierPool(options.jobs, options.timeout_s, options.memory_mb) as pool:
        report = check(options.type, examples, pool)
    print(render(options.type, report))
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
