"""Verifiers for mathematical answers: extract the final answer, read it exactly, compare it by its type."""

from verifiers.base import AnswerType, Outcome, ParseError, Verdict, parse_reference, verify

__all__ = ["AnswerType", "Outcome", "ParseError", "Verdict", "parse_reference", "verify"]
