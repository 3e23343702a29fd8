"""Fields that only one kind of run has: said of another, they would do nothing and are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mathrl.config import Config
from mathrl.errors import UserError


@dataclass(frozen=True)
class KindOfRun:
    """Fields of one kind of run, and what tells that a run is of another.

    Args:
        what: what the fields are for.
        other: what a run has instead; empty: the fields count.
        from_recipe: whether a recipe's own value is refused as one of the command line is; else it stands
            beside what was given instead, for whoever names that chose it over the recipe's.
    """

    fields: tuple[str, ...]
    what: str
    other: Callable[[Config], str]
    from_recipe: Callable[[Config], bool]
    advice: Callable[[str], str]  # by the field's name; what to do


def _pretrained(config: Config) -> str:
    return f"model.path names {config.model.path}" if config.model.path else ""


def _own_problems(config: Config) -> str:
    data = config.data
    own = "the mix" if data.mix else data.path or (data.source if data.source != Config().data.source else "")
    return f"those of {own} are taken" if own else ""


def _own_demonstrations(config: Config) -> str:
    own = f"those of {config.sft.path} are taken" if config.sft.path else ""
    return _own_problems(config) or own


def _generated(config: Config) -> str:
    return "" if _own_problems(config) else "the problems are generated"


def _all_generated(config: Config) -> str:
    others = config.sft.path or config.data.shots_path  # they are read by the same fields
    return "" if others else _generated(config)


def _name_yours(_: str) -> str:
    return "name yours with --data.path or --data.source, or leave it out"


def _leave_out(name: str) -> str:
    steps = " (the optimiser's steps are sft.max_train_steps)" if name == "sft.max_steps" else ""
    return f"leave it out{steps}"


FROM_NOTHING = KindOfRun(
    (
        "model.hidden_size",
        "model.num_layers",
        "model.num_heads",
        "model.num_kv_heads",
        "model.intermediate_size",
        "model.vocab_size",
        "model.context_length",
        "sft.direct_answer_fraction",  # plants what reinforcement is to unlearn
        "sft.direct_answer_steps",
    ),
    "a model built from nothing",
    _pretrained,
    lambda config: not config.sft.skip,  # a model that is its own reference was built by these sizes
    lambda _: (
        "leave one of them out (without a recipe's name, the recipe default is taken, which is made for "
        "pretrained models)"
    ),
)
GENERATED = KindOfRun(
    ("data.num_train_problems", "data.min_steps", "data.max_steps", "data.max_operand"),
    "generated problems",
    _own_problems,
    lambda _: False,
    _leave_out,
)
GENERATED_DEMONSTRATIONS = KindOfRun(
    ("sft.num_problems", "sft.min_steps", "sft.max_steps", "sft.longer_fraction", "sft.drill_fraction"),
    "generated problems",
    _own_demonstrations,
    lambda _: False,
    _leave_out,
)
OWN_PROBLEMS = KindOfRun(
    ("data.eval_path", "data.sft_fraction"),
    "problems of a file or a data set",
    _generated,
    lambda _: False,
    _name_yours,
)
FIELDS_OF_FILES = KindOfRun(
    (
        "data.config",
        "data.split",
        "data.question_field",
        "data.answer_field",
        "data.solution_field",
        "data.options_field",
        "data.answer_type",
        "data.answer_type_field",
        "data.where",
        "data.eval_split",
        "data.eval_fraction",
    ),
    "problems of a file or a data set",
    _all_generated,
    lambda _: False,
    _name_yours,
)
KINDS_OF_RUN = (FROM_NOTHING, GENERATED, GENERATED_DEMONSTRATIONS, OWN_PROBLEMS, FIELDS_OF_FILES)


def refuse_of_other_kinds(config: Config, table: Mapping[str, Any], where: str, given: set[str]) -> None:
    """Refuse a field that does nothing in this run.

    Args:
        table: the recipe, with what was given on top.
        given: dotted names of what was said on the command line or in a call: that is meant, whatever it is.

    Raises:
        UserError: the field, what it is for, what the run has instead, and what to do.
    """
    usual = Config()
    for kind in KINDS_OF_RUN:
        other = kind.other(config)
        for name in kind.fields if other else ():
            section, key = name.split(".")
            value, default = (getattr(getattr(c, section), key) for c in (config, usual))
            said = kind.from_recipe(config) and key in table.get(section, {}) and value != default
            if name in given or said:
                raise UserError(
                    f"{where}: {name} = {value!r} is for {kind.what}, and {other}: {kind.advice(name)}"
                )
