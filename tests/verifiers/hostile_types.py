"""An answer type that misbehaves on command: what the pool's tests judge with."""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from verifiers import AnswerType, ParseError


class Misbehaving(AnswerType):
    """Answers are `verb argument`; every verb but `say` does something a verifier must survive."""

    name: ClassVar[str] = "misbehaving"

    def parse(self, text: str) -> Any:
        verb, _, argument = text.partition(" ")
        match verb:
            case "say":
                return argument
            case "sleep":
                time.sleep(float(argument))
                return argument
            case "spin":
                return 3 ** (10**9)  # holds the interpreter's lock: only a kill ends it
            case "eat":
                block = bytearray(int(argument) << 20)
                return str(len(block) >> 20)
            case "start":
                path, _, death = argument.partition(" ")
                child = subprocess.Popen(["sleep", "300"])
                with open(path, "a") as file:
                    file.write(f"{child.pid}\n")
                return self.parse(death)
            case "crash":
                ctypes.string_at(0)
            case "exit":
                os._exit(int(argument))
            case "leave":
                raise SystemExit(argument)
            case "print":
                print("noise " * 10_000)
                return argument
            case "die-once":
                marker = Path(argument)
                if not marker.exists():
                    marker.touch()
                    os.kill(os.getpid(), 9)
                return argument
            case "write":
                path, _, size = argument.partition(" ")
                Path(path).write_bytes(bytes(int(size)))
                return argument
            case "modules":
                return str(argument in sys.modules)
            case "pid":
                return str(os.getpid())
        raise ParseError(f"unknown verb {verb!r}")

    def equal(self, reference: Any, given: Any) -> bool:
        return bool(reference == given)


class TakesRow(Misbehaving):
    """Misbehaves, and asks for the row."""

    name: ClassVar[str] = "takes_row"
    takes_row: ClassVar[bool] = True

    def equal(self, reference: Any, given: Any, row: Mapping[str, Any] | None = None) -> bool:
        return bool(reference == given)


class Unfinished(AnswerType):
    """Has no `equal`."""

    name: ClassVar[str] = "unfinished"

    def parse(self, text: str) -> Any:
        return text


class Wants(Misbehaving):
    """Cannot be made without an argument."""

    name: ClassVar[str] = "wants"

    def __init__(self, unit: str) -> None:
        self.unit = unit


class Whole(AnswerType):
    """Raises whatever `int` does."""

    name: ClassVar[str] = "whole"

    def parse(self, text: str) -> Any:
        return int(text)

    def equal(self, reference: Any, given: Any) -> bool:
        return bool(reference == given)


class OwnReference(Whole):
    """Its references have a form of their own, which few have."""

    name: ClassVar[str] = "own_reference"

    def parse_reference(self, text: str) -> Any:
        return {"seven": 7}[text]


def raising_rule(text: str) -> str | None:
    """Raises for every text."""
    raise KeyError(text)


def misbehaving_rule(text: str) -> Any:
    """Does what the text says, as `Misbehaving`; `count` returns no text."""
    return len(text) if text == "count" else Misbehaving().parse(text)
