"""Ranked pairs: read from files, split by question, encoded, and dealt to batches of equal lengths."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mathrl.config import Config
from mathrl.data.fields import UnusableRow, read_answer, read_messages
from mathrl.data.source import Row, get_field, read_file
from mathrl.errors import UserError
from mathrl.rewards.learned import Message, encode_conversations
from mathrl.types import derive_seed

SIDES = ("chosen", "rejected")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one question, the first the better one."""

    question: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    margin: float = 0.0  # by which the chosen score should be larger
    where: str = ""  # file and row
    unasked_margin: bool = False  # its row has a margin that is not asked for

    @property
    def key(self) -> str:
        """What pairs of one question share: its text but for case and spacing."""
        return " ".join("\n".join(m["content"] for m in self.question).casefold().split())

    @property
    def asked(self) -> str:
        """The question as text."""
        return "\n".join(m["content"] for m in self.question if m["role"] == "user")


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A pair as token ids, each side a whole conversation."""

    pair: Pair
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    num_shared: int  # tokens that both begin with

    @classmethod
    def of(cls, pair: Pair, chosen: tuple[int, ...], rejected: tuple[int, ...]) -> EncodedPair:
        both = zip(chosen, rejected, strict=False)
        differ = (i for i, (a, b) in enumerate(both) if a != b)
        return cls(pair, chosen, rejected, next(differ, min(len(chosen), len(rejected))))

    @property
    def num_tokens(self) -> int:
        """Tokens of both sides; what they begin with alike is counted once, as it is computed once."""
        return len(self.chosen_ids) + len(self.rejected_ids) - self.num_shared


@dataclass(frozen=True)
class PairSets:
    """What a reward model is trained and measured on; no question is on both sides."""

    train: tuple[EncodedPair, ...]
    held_out: tuple[EncodedPair, ...]
    num_long: int = 0  # left out, longer than the model's context
    num_asked_twice: int = 0  # training pairs left out, their question being held out in a file
    num_margins: int = 0  # rows with a margin that is not asked for

    def describe(self) -> str:
        """One line."""
        num = [len({p.pair.key for p in part}) for part in (self.train, self.held_out)]
        told = (
            f"{len(self.train):,} pairs of {num[0]:,} questions to train on, "
            f"{len(self.held_out):,} of {num[1]:,} held out"
        )
        if self.num_long:
            told += f"; {self.num_long:,} longer than the model's context left out"
        if self.num_asked_twice:
            told += f"; {self.num_asked_twice:,} left out, for their question is held out"
        if self.num_margins:
            told += (
                f"; the field margin of {self.num_margins:,} is not used (--reward_model.margins true asks "
                "for it: the chosen score must then be larger by it)"
            )
        return told


def load_pairs(config: Config, tokenizer: Any, context: int) -> PairSets:
    """The pairs of ``reward_model.pairs``, split by question or held out in ``reward_model.eval_pairs``.

    Raises:
        UserError: a file that cannot be read, a row that is no pair (which, and why), a pair that is longer
            than ``context`` tokens unless ``data.skip_long_prompts``, or no pair left on one side.
    """
    own = config.reward_model
    if not own.pairs:
        raise UserError(
            "a reward model is trained on ranked pairs: name their file with --reward_model.pairs "
            "(mathrl pairs makes one from completions)"
        )
    pairs = read_pairs(own.pairs, margins=own.margins)
    asked_twice = 0
    if own.eval_pairs:
        held_out = read_pairs(own.eval_pairs, margins=own.margins)
        keys = {pair.key for pair in held_out}
        train = [pair for pair in pairs if pair.key not in keys]
        asked_twice = len(pairs) - len(train)
    else:
        threshold = own.eval_fraction * 2**63
        train, held_out = [], []
        for pair in pairs:  # by the question alone: the same for every run and order
            out = derive_seed("held-out pairs", pair.key) < threshold
            (held_out if out else train).append(pair)
    skip = config.data.skip_long_prompts
    encoded = [encode_pairs(tokenizer, part, context, skip=skip) for part in (train, held_out)]
    num_long = [len(part) - len(fitting) for part, fitting in zip((train, held_out), encoded, strict=True)]
    split = not own.eval_pairs  # of one file
    other = f"by reward_model.eval_fraction {own.eval_fraction:g}"
    long = f"longer than the model's context of {context} tokens"
    gone = {f"held out {other}": len(held_out) * split, "with a question that is held out": asked_twice}
    _refuse_empty(encoded[0], f"{own.pairs} is left to train on", gone | {long: num_long[0]}, split)
    gone = {f"to train on {other}": len(train) * split, long: num_long[1]}
    _refuse_empty(encoded[1], f"{own.eval_pairs or own.pairs} is left held out", gone, split)
    unasked = sum(pair.unasked_margin for pair in (*train, *held_out))
    return PairSets(tuple(encoded[0]), tuple(encoded[1]), sum(num_long), asked_twice, unasked)


def _refuse_empty(left: Sequence[EncodedPair], what: str, gone: Mapping[str, int], split: bool) -> None:
    """Refuse a side without pairs; ``gone``: where they went, and how many."""
    if left:
        return
    told = "; ".join(f"{num:,} {where}" for where, num in gone.items() if num)
    raise UserError(
        f"no pair of {what}, of {sum(gone.values()):,} ({told}): it needs pairs of more questions"
        + ", or another --reward_model.eval_fraction" * split
    )


def read_pairs(path: str | Path, *, margins: bool = False) -> list[Pair]:
    """The pairs of a jsonl, json, parquet or csv file.

    A row has ``question`` (or ``prompt``), ``chosen`` and ``rejected``, each a text or a list of messages
    with ``role`` and ``content``; a side may begin with the messages of the question. ``margin`` is a number
    >= 0, read where ``margins`` asks for it and else only noted.

    Raises:
        UserError: the first row that is no such pair, and why.
    """
    return [_pair(row, f"{path}, row {number}", margins) for number, row in enumerate(read_file(path), 1)]


def _pair(row: Row, where: str, margins: bool) -> Pair:
    row = {key: value for key, value in row.items() if value is not None}  # a column of other rows
    name = "question" if "question" in row or "prompt" not in row else "prompt"
    question = _messages(get_field(row, name, where), "user", name, where)
    sides = []
    for side in SIDES:
        messages = _messages(get_field(row, side, where), "assistant", side, where)
        if len(messages) > len(question) and messages[: len(question)] == question:
            messages = messages[len(question) :]
        if messages[0]["role"] != "assistant":
            raise UserError(
                f"{where}: {side!r} begins with a message by {messages[0]['role']!r} that is not the "
                f"question's: a side is what was answered, after the messages of {name!r} or without them"
            )
        sides.append(messages)
    chosen, rejected = sides
    if [m["content"].split() for m in chosen] == [m["content"].split() for m in rejected]:
        raise UserError(
            f"{where}: chosen and rejected are the same text, so there is nothing to rank: leave the pair out"
        )
    margin = 0.0
    if margins:
        given = get_field(row, "margin", where)
        try:
            margin = math.nan if isinstance(given, bool) else float(given)
        except (TypeError, ValueError):
            margin = math.nan
        if not 0 <= margin < math.inf:
            raise UserError(f"{where}: margin must be a number >= 0, got {given!r}")
    return Pair(question, chosen, rejected, margin, where, "margin" in row and not margins)


def _messages(value: Any, role: str, what: str, where: str) -> tuple[Message, ...]:
    """A text or number as one message of ``role``, or the messages of a list; none of them empty."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = read_answer(value)  # the column of a CSV file in which every text is a number
        found = (
            [(role, value)] if isinstance(value, str) else read_messages(value, repr(what)) if value else []
        )
    except UnusableRow as error:
        raise UserError(f"{where}: {error}") from None
    if not found or not all(text.strip() for _, text in found):
        raise UserError(f"{where}: {what!r} is empty: give it a text, or leave the pair out")
    return tuple({"role": by, "content": text} for by, text in found)


def encode_pairs(tokenizer: Any, pairs: Sequence[Pair], context: int, *, skip: bool) -> list[EncodedPair]:
    """Token ids of both sides.

    Raises:
        UserError: two sides of the same tokens; or one of more than ``context`` tokens, unless ``skip``.
    """
    sides = [[(*p.question, *getattr(p, side)) for p in pairs] for side in SIDES]
    chosen, rejected = (encode_conversations(tokenizer, side) for side in sides)
    found = []
    for pair, better, worse in zip(pairs, chosen, rejected, strict=True):
        longest = max(len(better), len(worse))
        if better == worse:
            raise UserError(
                f"{pair.where}: chosen and rejected are the same tokens, so there is nothing to rank: leave "
                "the pair out"
            )
        if longest <= context:
            found.append(EncodedPair.of(pair, better, worse))
        elif not skip:
            raise UserError(
                f"{pair.where}: {longest} tokens do not fit the model's context of {context} tokens: leave "
                "such pairs out with --data.skip_long_prompts"
            )
    return found


def balanced_batches(lengths: Sequence[int], size: int, seed: int) -> list[list[int]]:
    """Indices of all items in batches of about ``size``, every batch with the same mixture of lengths.

    Sorted by length the items are cut into strata of as many as there are batches, and each stratum is dealt
    one to a batch at random: batches differ by one item at most, and by little in tokens.
    """
    rng = random.Random(seed)
    num = max(1, round(len(lengths) / size))
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], rng.random()))
    batches: list[list[int]] = [[] for _ in range(num)]
    for begin in range(0, len(order), num):
        stratum = order[begin : begin + num]
        for batch, item in zip(rng.sample(range(num), len(stratum)), stratum, strict=True):
            batches[batch].append(item)
    return batches
