"""What stands in a field of a row, as text: questions (also as lists of messages), answers, options, meta.

Nothing is ever turned into text by Python's ``str`` of a list or a dictionary: what is neither text nor a
number nor a known form makes the row unusable, with the reason.
"""

from __future__ import annotations

import ast
import math
import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from mathrl.rewards.scorer import joins_texts
from mathrl.types import read_json

_MESSAGES_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*['"](?:role|content|from|value)['"]\s*:""")
_LIST_AS_TEXT = re.compile(r"""\s*\[\s*(["']).*\1\s*\]\s*""", re.DOTALL)
_OPTION_LABEL = re.compile(r"\s*\(?[A-J]\s*[).:]\s*")
_ROLES = {"human": "user", "gpt": "assistant", "developer": "system"}  # as other tools write them


class UnusableRow(ValueError):
    """A row that is well formed but makes no problem; the message is the reason."""


class Asked(NamedTuple):
    """A question, and the system prompt that its row gives with it."""

    question: str
    system_prompt: str = ""


def read_question(value: Any) -> Asked:
    """A question: text, or a list of messages ``{"role": …, "content": …}`` with one turn of the user.

    The user's turn is the question and a system turn the system prompt; what the assistant says after it is
    not asked. A list that was stored as text is read as the list it was.

    Raises:
        UnusableRow: empty, neither text nor messages, or a conversation: a question that follows on what was
            said before would be another question without it.
    """
    if isinstance(value, str) and not _MESSAGES_AS_TEXT.match(value):
        text = value.strip()
    elif isinstance(value, bool) or not isinstance(value, int | float | Decimal | None):
        return _of_messages(read_messages(value))
    else:
        text = _number(value) or ""
    if not text:
        raise UnusableRow("empty question")
    return Asked(text)


def join_questions(parts: Sequence[Asked]) -> Asked:
    """A question that stands in several fields of a row."""
    systems = dict.fromkeys(part.system_prompt for part in parts if part.system_prompt)
    return Asked(" ".join(part.question for part in parts), "\n\n".join(systems))


def questions_in(value: Any) -> list[str]:
    """The texts that were asked in a field: the text itself, or every turn of the user.

    Raises:
        UnusableRow: as ``read_question``, but a conversation is none.
    """
    try:
        return [read_question(value).question]
    except UnusableRow:
        if not isinstance(value, str | list | tuple):
            raise
        turns = [text for role, text in read_messages(value) if role == "user"]
        if not turns:
            raise
        return turns


def list_in(value: Any) -> Any:
    """The list of answers that was stored as text (``["72"]``); anything else as it is.

    Raises:
        UnusableRow: it looks like such a list and cannot be read.
    """
    if not isinstance(value, str) or not _LIST_AS_TEXT.fullmatch(value):
        return value
    found = _literal(value)
    if len(found) == 1 and any(ord(c) < 32 for c in str(found[0])):
        return [value.strip()[1:-1].strip()[1:-1]]  # \frac with one backslash is an escape of JSON
    return found


def read_answer(value: Any) -> str:
    """A reference as text; numbers lose a trailing .0 and any exponent, and keep all other digits.

    Raises:
        UnusableRow: empty (null and NaN, too), or neither a number, text, nor true or false.
    """
    if isinstance(value, bool):
        return str(value)
    if not isinstance(value, str | int | float | Decimal | None):
        raise UnusableRow(f"the answer is {_kind(value)}, not a number or text")
    if isinstance(value, float | Decimal) and math.isinf(value):
        raise UnusableRow(f"the answer is {value}")
    text = value.strip() if isinstance(value, str) else _number(value)
    if not text:
        raise UnusableRow("empty answer")
    return text


def read_answers(value: Sequence[Any]) -> list[Any]:
    """References in a list, each as ``read_answer`` reads it; lists inside of it stay lists, true stays true.

    Raises:
        UnusableRow: the list is empty, or ``read_answer`` does.
    """
    if not value:
        raise UnusableRow("empty answer")
    return [
        read_answers(v) if isinstance(v, list | tuple) else v if isinstance(v, bool) else read_answer(v)
        for v in value
    ]


def read_options(value: Any) -> tuple[str, ...]:
    """Option texts of a multiple-choice question, without their letters; () where there are none.

    A list of texts or numbers, or a dictionary with such a list as ``text``.

    Raises:
        UnusableRow: another form.
    """
    if isinstance(value, Mapping):
        value = value.get("text", value)
    if value is None or value == "":
        return ()
    if not isinstance(value, list | tuple):
        raise UnusableRow(f"the options are {_kind(value)}, not a list")
    given = [o.get("text", o) if isinstance(o, Mapping) else o for o in value]
    texts = [o.strip() if isinstance(o, str) else _number(o) for o in given if o is not None]
    if any(text is None for text in texts):
        raise UnusableRow("an option is neither a text nor a number")
    return tuple(_OPTION_LABEL.sub("", text, count=1) for text in texts if text is not None)


def json_value(value: Any) -> Any:
    """A value of a row as JSON can hold it: decimals as numbers, dates and the like as text, NaN as null.

    Arrays, tensors and their numbers are what ``tolist`` gives, 32-bit floats as ``single`` writes them.
    """
    if isinstance(value, Decimal):
        value = int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        return json_value(single(value.tolist()) if is_single(value.dtype) else value.tolist())
    return str(value)


def is_single(dtype: Any) -> bool:
    """Whether numbers of this type are 32-bit floats: of numpy, torch, pandas or ``datasets``."""
    return str(dtype).lower().rpartition(".")[2] == "float32"


def single(value: Any) -> Any:
    """A 32-bit float as the number of fewest digits that it stands for: 0.1, where Python has 0.10000000149.

    Lists are gone through; anything else stays as it is.
    """
    if isinstance(value, list):
        return [single(item) for item in value]
    if not isinstance(value, float):
        return value
    written = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    return next((number for number in written if _stored(number) == value), value)


def _stored(number: float) -> float | None:
    try:
        return float(struct.unpack("f", struct.pack("f", number))[0])
    except OverflowError:  # rounded up, it is more than 32 bits hold
        return None


def field_text(value: Any) -> str:
    """A value as a person would write it on a command line, to be compared with what was written there."""
    if value is None:
        return ""
    return (_number(value) or "") if isinstance(value, float | Decimal) else str(value)


def _number(value: Any) -> str | None:
    """A number as text, "" for NaN; None for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    if isinstance(value, int):
        return str(value)
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return str(value)
    text = format(value if isinstance(value, Decimal) else Decimal(repr(value)), "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def _kind(value: Any) -> str:
    name = "dictionary" if isinstance(value, Mapping) else type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def read_messages(value: Any, what: str = "the question") -> list[tuple[str, str]]:
    """(role, text) of each message of a list, or of one message; also of a list that was stored as text.

    Raises:
        UnusableRow: another form; ``what`` names it.
    """
    if isinstance(value, str):
        value = _literal(value)
    if isinstance(value, Mapping) and ("role" in value or "from" in value):
        value = [value]
    if not isinstance(value, list | tuple) or not value:
        raise UnusableRow(f"{what} is {_kind(value)}, not a text or a list of messages")
    found = []
    for message in value:
        if not isinstance(message, Mapping):
            raise UnusableRow(f"{what} is a list of {_kind(message)}, not of messages")
        role = message.get("role", message.get("from"))
        text = _content(message.get("content", message.get("value")), what)
        if not isinstance(role, str) or text is None:
            raise UnusableRow(f"a message of {what} has no role or no text")
        found.append((_ROLES.get(role, role), text.strip()))
    return found


def _literal(text: str) -> Any:
    if joins_texts(text):
        raise UnusableRow("a list stored as text without commas, as numpy prints one: store it as JSON")
    for read in (read_json, ast.literal_eval):  # neither runs anything
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of \sqrt, which is no escape of Python's
                return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    raise UnusableRow("a list stored as text that cannot be read")


def _content(value: Any, what: str) -> str | None:
    """The text of a message, which may come in parts."""
    if not isinstance(value, list | tuple):
        return value if isinstance(value, str) else None
    parts = [part.get("text") if isinstance(part, Mapping) else part for part in value]
    if not all(isinstance(part, str) for part in parts):
        raise UnusableRow(f"a message of {what} holds more than text")
    return "".join(str(part) for part in parts)


def _of_messages(messages: Sequence[tuple[str, str]]) -> Asked:
    roles = [role for role, _ in messages]
    unknown = next((role for role in roles if role not in ("system", "user", "assistant")), None)
    if unknown is not None:
        raise UnusableRow(f"a message of the question is by {unknown!r}, not system, user or assistant")
    if "user" not in roles:
        raise UnusableRow("no message of the question is by the user")
    last = len(roles) - 1 - roles[::-1].index("user")
    if any(role != "system" for role in roles[:last]):
        raise UnusableRow("the question is a conversation of several turns")
    question = messages[last][1]
    if not question:
        raise UnusableRow("empty question")
    return Asked(question, "\n\n".join(text for role, text in messages if role == "system" and text))
