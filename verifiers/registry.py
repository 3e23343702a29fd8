"""Answer types by name: built-in ones, and other packages' through the entry points `mathrl.verifiers`.

A type is imported when it is first asked for. In a package of your own:

    [project.entry-points."mathrl.verifiers"]
    formula = "chemistry.verifier:Formula"
"""

from __future__ import annotations

import difflib
import functools
from importlib.metadata import EntryPoint, entry_points

from verifiers import plugins
from verifiers.base import AnswerType

ENTRY_POINT_GROUP = "mathrl.verifiers"

_BUILT_IN = {
    "all_of": "verifiers.answers.several:AllOf",
    "any_of": "verifiers.answers.several:AnyOf",
    "auto": "verifiers.answers.auto:Auto",
    "boolean": "verifiers.answers.text:Boolean",
    "choice": "verifiers.answers.choice:Choice",
    "equation": "verifiers.answers.expression:Equation",
    "expression": "verifiers.answers.expression:Expression",
    "interval": "verifiers.answers.interval:Interval",
    "list": "verifiers.answers.collection:List",
    "matrix": "verifiers.answers.matrix:Matrix",
    "number": "verifiers.answers.number:Number",
    "set": "verifiers.answers.collection:FiniteSet",
    "text": "verifiers.answers.text:Text",
    "time": "verifiers.answers.measured:Time",
    "tuple": "verifiers.answers.collection:Tuple",
    "units": "verifiers.answers.measured:Units",
}
_registered: dict[str, AnswerType] = {}


@functools.cache
def _entry_points() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        known = f"the built-in {point.name}" if point.name in _BUILT_IN else None
        if point.name in found:
            known = found[point.name].value
        if known is not None and known != point.value:
            raise ValueError(
                f"answer type {point.name!r} is registered twice: by {known} and by {point.value}"
            )
        found[point.name] = point
    return found


def names() -> list[str]:
    """The names of all registered answer types, sorted; nothing is imported for it."""
    return sorted({*_BUILT_IN, *_registered, *_entry_points()})


def register(answer_type: type[AnswerType]) -> type[AnswerType]:
    """Register a class under its `name`; usable as a decorator.

    Raises `ValueError` for a taken name, and for a class of which no object can be made.
    """
    name = getattr(answer_type, "name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(f"{answer_type.__qualname__} needs a class attribute `name`, a non-empty string")
    if name in names():
        raise ValueError(f"answer type {name!r} is already registered; choose another name")
    _registered[name] = _instance(answer_type.__qualname__, answer_type)
    return answer_type


@functools.lru_cache(maxsize=256)
def _load(name: str) -> AnswerType:
    if name in _BUILT_IN:
        return _load_path(_BUILT_IN[name])
    try:
        loaded = _entry_points()[name].load()
    except Exception as error:  # a package of others, which may raise anything while it is imported
        raise ValueError(f"cannot import answer type {name!r}: {plugins.told(error)}") from error
    return _instance(name, loaded)


@functools.lru_cache(maxsize=256)
def _load_path(path: str) -> AnswerType:
    try:
        return _instance(path, plugins.load(path))
    except ValueError as error:
        raise ValueError(f"cannot import answer type {path!r}: {error}") from None


def _instance(source: str, loaded: object) -> AnswerType:
    if not (isinstance(loaded, type) and issubclass(loaded, AnswerType)):
        raise ValueError(f"{source!r} must name a subclass of verifiers.AnswerType, got {loaded!r}")
    try:
        return loaded()
    except Exception as error:  # it is abstract still, or wants arguments
        raise ValueError(plugins.told(error)) from error


def get(name: str) -> AnswerType:
    """The answer type of this name, or of the class a path `package.module:Class` names, registered or not.

    Such a path imports the module, so it must come from a flag or from code, never from a row of data.

    Raises `ValueError`: for an unknown name with the near ones, for a path with what is wrong with it.
    """
    if name in _registered:
        return _registered[name]
    if name in _BUILT_IN or name in _entry_points():
        return _load(name)
    if plugins.is_module_path(name):
        return _load_path(name)
    near = difflib.get_close_matches(name, names(), n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(names())}"
    raise ValueError(f"unknown answer type {name!r}; {hint}")
