"""The fields of a recipe as options of a command: ``--section.key value``, each with its reason as help."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from cyclopts import Group, Parameter
from pydantic.fields import FieldInfo

from mathrl.recipes import all_fields, is_flag, is_table, kinds_of, range_of

Overrides = list[tuple[str, str]]
"""(``section.key``, its text) pairs, as ``load_recipe`` takes them."""

_SHOWN = Group("Fields of the recipe, the commonest (mathrl config RECIPE prints all)")


def takes_fields(*shown: str) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Give a command an option for every field of a recipe; those named are in its ``--help``.

    The command itself has a last argument ``overrides``, which gets the fields that were given.
    """

    def decorate(command: Callable[..., int | None]) -> Callable[..., int | None]:
        fields = {
            dotted.replace(".", "__"): (dotted, field) for dotted, field in all_fields() if "." in dotted
        }
        own = inspect.signature(command, eval_str=True)
        options = [_option(name, dotted, field, dotted in shown) for name, (dotted, field) in fields.items()]

        def run(*words: Any, **given: Any) -> int | None:
            overrides = [
                pair for name, (dotted, _) in fields.items() for pair in _texts(dotted, given.pop(name, None))
            ]
            return command(*words, **given, overrides=overrides)

        kept = [parameter for name, parameter in own.parameters.items() if name != "overrides"]
        vars(run)["__signature__"] = inspect.Signature([*kept, *options])
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__annotations__ = {}  # the signature's own are whole
        return run

    return decorate


def _option(name: str, dotted: str, field: FieldInfo, shown: bool) -> inspect.Parameter:
    # A flag may stand alone; any other value is text, for the recipe reads it and names its range.
    kind: Any = dict[str, str] if is_table(field) else bool if is_flag(field) else str
    parameter = Parameter(
        name=f"--{dotted}",
        help=f"{field.description}{range_of(field)}",
        group=_SHOWN,
        show=shown,
        show_default=False,
        metavar="N" if kinds_of(field) & {int, float} else "TEXT",
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, parameter],
    )


def _texts(dotted: str, given: str | bool | dict[str, str] | None) -> Iterator[tuple[str, str]]:
    if isinstance(given, dict):
        yield from ((f"{dotted}.{key}", value) for key, value in given.items())
    elif given is not None:
        yield dotted, str(given).lower() if isinstance(given, bool) else given
