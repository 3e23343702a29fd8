"""The conformance kit: what every answer type must hold, tried on a table of examples.

A table is a JSONL file of lines `{"answer": REFERENCE, "given": TEXT, "expected": OUTCOME}`. `given` is
already extracted; the outcome is correct, wrong, unparsed or bad_reference. With `"one_way": true` a line
says nothing about the two the other way round: a rounded reference accepts the exact value, not conversely.
With `"row": {...}` the line carries the columns that the type's `equal` asks for.

Every verdict of the kit is judged in a `VerifierPool`, so a type that hangs or crashes is reported like any
other finding.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verifiers.base import Outcome, Verdict
from verifiers.pool.pool import Request, VerifierPool
from verifiers.tools.hostile import hostile_texts

TABLE_OUTCOMES = (Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSED, Outcome.BAD_REFERENCE)
"""What a line of a table may expect."""

MAX_MATRIX_TEXTS = 40
"""All pairs of this many texts are judged for symmetry and transitivity: the first ones of the table."""

_MAX_MUTATED_ANSWERS = 100
_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True)
class Example:
    """One line of a table; `given` is an answer already extracted."""

    answer: str
    given: str
    expected: Outcome
    one_way: bool = False
    row: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(slots=True)
class Report:
    """What the kit found. counts: verdicts a check; judging_s: seconds of each example."""

    findings: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    judging_s: list[float] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether there is nothing to report."""
        return not self.findings


def read_examples(path: Path) -> list[Example]:
    """Read a table. Raises `ValueError` that names the line for anything that is not an example."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the examples in {path}: {error}") from error
    examples = [_example(line, f"{path}, line {n}") for n, line in enumerate(lines, start=1) if line.strip()]
    accepted = sum(example.expected is Outcome.CORRECT for example in examples)
    refused = sum(example.expected is Outcome.WRONG for example in examples)
    if not accepted or not refused:
        raise ValueError(
            f"{path} needs examples of both kinds, got {accepted} expected 'correct' and {refused} 'wrong'"
        )
    return examples


def _example(line: str, where: str) -> Example:
    try:
        fields = json.loads(line)
        example = Example(
            fields["answer"],
            fields["given"],
            Outcome(fields["expected"]),
            bool(fields.get("one_way")),
            dict(fields.get("row") or {}),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f'{where}: want {{"answer": "...", "given": "...", "expected": "correct"}}, got {line!r} '
            f"({type(error).__name__}: {error})"
        ) from None
    if not isinstance(example.answer, str) or not isinstance(example.given, str):
        raise ValueError(f"{where}: 'answer' and 'given' must be strings, got {line!r}")
    if example.expected not in TABLE_OUTCOMES:
        raise ValueError(f"{where}: 'expected' must be one of {', '.join(TABLE_OUTCOMES)}, got {line!r}")
    return example


def check(answer_type: str, examples: list[Example], pool: VerifierPool) -> Report:
    """Try all properties on one answer type, named or as `module:Class`."""
    kit = _Kit(answer_type, examples, pool)
    kit.examples_hold()
    kit.reflexive()
    kit.symmetric_and_transitive()
    kit.hostile_is_harmless()
    kit.mutants_are_refused()
    return kit.report


class _Kit:
    def __init__(self, answer_type: str, examples: list[Example], pool: VerifierPool) -> None:
        self.report = Report()
        self._type = answer_type
        self._examples = examples
        self._pool = pool
        self._rows = {text: e.row for e in reversed(examples) for text in (e.given, e.answer)}
        self._answers = list(
            dict.fromkeys(e.answer for e in examples if e.expected is not Outcome.BAD_REFERENCE)
        )

    def examples_hold(self) -> None:
        requests = [Request(e.given, e.answer, self._type, "bare", row=e.row) for e in self._examples]
        self.report.counts["examples"] = len(requests)
        verdicts = self._pool.map(requests)
        self.report.judging_s = [verdict.seconds for verdict in verdicts]
        for example, verdict in zip(self._examples, verdicts, strict=True):
            if verdict.outcome is not example.expected:
                self._find("example", example.answer, example.given, f"expected {example.expected}", verdict)

    def reflexive(self) -> None:
        readable = (e.given for e in self._examples if e.expected in (Outcome.CORRECT, Outcome.WRONG))
        texts = list(dict.fromkeys([*self._answers, *readable]))
        for text, verdict in zip(texts, self._judge("reflexive", [(t, t) for t in texts]), strict=True):
            # A given answer need not be good enough to be a reference.
            unfit = verdict.outcome is Outcome.BAD_REFERENCE and text not in self._answers
            if verdict.outcome is not Outcome.CORRECT and not unfit:
                self._find("reflexive", text, text, "a text must equal itself", verdict)

    def symmetric_and_transitive(self) -> None:
        one_way = {text for e in self._examples if e.one_way for text in (e.answer, e.given)}
        pairs = [e for e in self._examples if e.expected in (Outcome.CORRECT, Outcome.WRONG)]
        texts = list(
            dict.fromkeys(text for e in pairs for text in (e.answer, e.given) if text not in one_way)
        )
        texts = texts[:MAX_MATRIX_TEXTS]
        cells = [(a, b) for a in texts for b in texts]
        verdicts = dict(zip(cells, self._judge("symmetric, transitive", cells), strict=True))
        equal = {cell: verdict.outcome is Outcome.CORRECT for cell, verdict in verdicts.items()}
        decided = {c for c, v in verdicts.items() if v.outcome in (Outcome.CORRECT, Outcome.WRONG)}
        for a, b in itertools.combinations(texts, 2):
            if {(a, b), (b, a)} <= decided and equal[a, b] != equal[b, a]:
                rule = f"the other way round is {verdicts[a, b].outcome}"
                self._find("symmetric", b, a, rule, verdicts[b, a])
        for a, b, c in itertools.permutations(texts, 3):
            if equal[a, b] and equal[b, c] and (a, c) in decided and not equal[a, c]:
                self._find("transitive", a, c, f"both equal {_short(b)}", verdicts[a, c])

    def hostile_is_harmless(self) -> None:
        names = hostile_texts()
        references = self._answers[:2]
        given = [(reference, text) for reference in references for text in names.values()]
        for (reference, text), verdict in zip(given, self._judge("hostile", given), strict=True):
            if verdict.outcome in (Outcome.CORRECT, Outcome.TIMEOUT, Outcome.ERROR):
                self._find("hostile", reference, text, "must be refused cleanly", verdict)
        as_reference = [(text, references[0]) for text in names.values()] if references else []
        verdicts = self._judge("hostile reference", as_reference)
        for (text, reference), verdict in zip(as_reference, verdicts, strict=True):
            if verdict.outcome in (Outcome.TIMEOUT, Outcome.ERROR):
                self._find("hostile reference", text, reference, "must be refused cleanly", verdict)

    def mutants_are_refused(self) -> None:
        meant = {(e.answer, e.given) for e in self._examples if e.expected is Outcome.CORRECT}
        pairs = [(a, mutant) for a in self._answers[:_MAX_MUTATED_ANSWERS] for mutant in mutants(a)]
        pairs = [pair for pair in pairs if pair not in meant]
        for (answer, mutant), verdict in zip(pairs, self._judge("mutation", pairs), strict=True):
            if verdict.outcome is Outcome.CORRECT:
                self._find("mutation", answer, mutant, "if that is meant, list it in the table", verdict)

    def _judge(self, check_name: str, pairs: list[tuple[str, str]]) -> list[Verdict]:
        requests = [
            Request(given, answer, self._type, "bare", row=self._rows.get(answer, self._rows.get(given, {})))
            for answer, given in pairs
        ]
        self.report.counts[check_name] = len(requests)
        return self._pool.map(requests)

    def _find(self, check_name: str, answer: str, given: str, rule: str, verdict: Verdict) -> None:
        why = f" ({_short(verdict.detail)})" if verdict.detail else ""
        pair = f"answer {_short(answer)}, given {_short(given)}"
        self.report.findings.append(f"{check_name}: {pair}: got {verdict.outcome}{why}; {rule}")


def mutants(text: str) -> Iterator[str]:
    """The text with one digit or letter replaced by the next one, at up to 40 places.

    Only replacements: to drop or repeat a character often keeps the value (1.0 and 1.00). A letter next to
    another one or to a backslash is left alone, being part of a word or a command with synonyms.
    """
    places = [i for i, char in enumerate(text) if char.isascii() and char.isalnum()][:40]
    for i in places:
        char = text[i]
        if char.isdigit():
            yield f"{text[:i]}{(int(char) + 1) % 10}{text[i + 1 :]}"
        elif not _in_word(text, i):
            start = ord("a" if char.islower() else "A")
            yield f"{text[:i]}{chr(start + (ord(char) - start + 1) % 26)}{text[i + 1 :]}"


def _in_word(text: str, index: int) -> bool:
    before, after = text[index - 1 : index], text[index + 1 : index + 2]
    return before.isalpha() or before == "\\" or after.isalpha()


def render(answer_type: str, report: Report) -> str:
    """The report as text: each finding, then what was tried, how fast, and the verdict on the type."""
    lines = [*report.findings]
    tried = ", ".join(f"{name} {count}" for name, count in report.counts.items())
    lines.append(f"{answer_type}: verdicts judged: {tried}")
    if report.judging_s:
        ordered = sorted(report.judging_s)
        p99 = ordered[math.ceil(0.99 * len(ordered)) - 1]
        lines.append(f"one verdict: median {1e3 * ordered[len(ordered) // 2]:.3f} ms, p99 {1e3 * p99:.3f} ms")
    lines.append("passed" if report.passed else f"FAILED: {len(report.findings)} findings")
    return "\n".join(lines)


def _short(text: str) -> str:
    return ascii(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "...")
