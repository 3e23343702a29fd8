"""Where a completion thinks and where it answers: what stands in a block of thought is no answer.

Blocks are `<think>`, `<thinking>`, `<thought>`, `<reason>`, `<reasoning>` and `<scratchpad>` with their
closing tags, `[THINK]`, `<|begin_of_thought|>`, `<|START_THINKING|>` and `◁think▷` with theirs.
"""

from __future__ import annotations

import re

PROMPT_TAIL_CHARS = 400
"""So much of a prompt's end says whether it opened a thought."""

_HINTS = ("think", "thought", "reason", "scratchpad", "_of_solution|", "_response|")
_MARK = re.compile(
    r"""
    <\s*(?P<closes>/)?\s*(?P<tag>think|thought|reason|scratchpad)(?:ing|s)?\s*>
    | \[(?P<closes_2>/)?(?P<bracket>think)\]
    | <\|(?:begin_of_|start_|(?P<closes_3>end_(?:of_)?))(?P<pipe>thought|thinking)\|>
    | ◁(?P<closes_4>/)?(?P<triangle>think)▷
    """,
    re.IGNORECASE | re.VERBOSE,
)
_SOLUTION_MARK = re.compile(r"<\|(?:(?:begin|end)_of_solution|(?:start|end)_response)\|>", re.IGNORECASE)
# What a chat template writes between turns: <|im_start|>assistant, <｜Assistant｜>, [/INST], </s>.
_TURN_MARK = re.compile(r"<[|｜][^|｜<>]{1,40}[|｜]>|\[/?INST\]|</?s>|<(?:start|end)_of_turn>|<eos>")
_TURN_HEADER = re.compile(
    r"(?:<[|｜][^|｜<>]{1,40}[|｜]>|\[/INST\]|<start_of_turn>)\s*(?:assistant|model)?:?\s*\Z", re.IGNORECASE
)


def without_thinking(completion: str, prompt: str = "") -> str | None:
    """The completion after its blocks of thought; None where a block is still open at the end.

    prompt: what stood before the completion, or its end. Where that opened a thought, a completion that does
    not close it is all thought.
    """
    opened = _opened_by(prompt)
    if not opened:
        if "<" not in completion and "[" not in completion and "◁" not in completion:
            return completion
        folded = completion.casefold()
        if not any(hint in folded for hint in _HINTS):
            return completion
    kept: list[str] = []
    open_marks: list[str] = [opened] if opened else []
    position = 0
    opened_at = 0 if opened else -1
    for mark in _MARK.finditer(completion):
        name, closes = _name(mark)
        if not closes:
            if not open_marks:
                kept.append(completion[position : mark.start()])
            again = name in open_marks[-1:] and not completion[max(opened_at, 0) : mark.start()].strip()
            if not again:  # a template opened the block, and the completion says so once more
                open_marks.append(name)
            opened_at = mark.end()
        elif not open_marks:
            kept.clear()  # the prompt opened the block, and we were not told: all before was thinking
        elif name in open_marks:
            del open_marks[len(open_marks) - 1 - open_marks[::-1].index(name) :]
        else:
            continue
        position = mark.end()
    if open_marks:
        return None
    return _SOLUTION_MARK.sub(" ", "".join(kept) + completion[position:])


def opens_thought(prompt: str) -> bool:
    """Whether a prompt ends inside a thought, as the chat templates of thinking models end theirs."""
    return bool(_opened_by(prompt))


def _name(mark: re.Match[str]) -> tuple[str, bool]:
    """(kind of block, whether the mark closes one)."""
    found = mark.groupdict()
    kind = next(key for key in ("tag", "bracket", "pipe", "triangle") if found[key])
    closes = any(found[key] for key in ("closes", "closes_2", "closes_3", "closes_4"))
    return f"{kind} {found[kind].casefold()}" if kind == "tag" else kind, closes


def _opened_by(prompt: str) -> str:
    """The kind of the block that a prompt leaves open for its completion; "" where there is none.

    The mark ends the prompt, or begins its last turn with a few words after it. A mark that the question
    only talks of opens nothing.
    """
    tail = prompt[-PROMPT_TAIL_CHARS:]
    marks = list(_MARK.finditer(tail))
    if not marks:
        return ""
    name, closes = _name(marks[-1])
    after = tail[marks[-1].end() :]
    if closes or _TURN_MARK.search(after):
        return ""
    begins_turn = _TURN_HEADER.search(tail[: marks[-1].start()]) is not None
    return name if begins_turn or not after.strip() else ""
