"""HTML pages from templates: one file each, style and script inside, and no request to any network."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mathrl import __version__

OUTCOME_WORDS = {
    "correct": "correct",
    "wrong": "wrong",
    "no_answer": "no answer",
    "unparsed": "unreadable answer",
    "timeout": "timed out",
    "error": "verifier error",
    "bad_reference": "unreadable reference",
}


def render(name: str, **values: Any) -> str:
    """The page of templates/<name>; every value is escaped unless it is Markup."""
    return _environment().get_template(name).render(values)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt value is an error, not a blank
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"source": _source, "embed": embed, "version": __version__}
    environment.filters |= {
        "percent": percent,
        "number": number,
        "p_value": p_value,
        "verdict": verdict_words,
    }
    return environment


def _source(name: str) -> Markup:
    """A style sheet or script of the package, as it is."""
    return Markup((resources.files(__package__) / "templates" / name).read_text(encoding="utf-8"))


def embed(name: str, value: Any) -> Markup:
    """A JSON value for the page's script; nothing in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return Markup('<script type="application/json" id="{}">').format(name) + Markup(text + "</script>")


def verdict_words(outcome: str) -> str:
    """An outcome in words for readers."""
    return OUTCOME_WORDS.get(outcome, outcome)


def number(value: float) -> str:
    """Three significant digits, without exponents where a reader would not want them."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-4:
        return f"{value:.2g}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(size)))}f}"


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage, with a narrow no-break space before the sign."""
    return f"{100 * value:.{digits}f}\u202f%" if math.isfinite(value) else "–"


def axis_percent(value: float) -> str:
    return f"{100 * value:.3g}\u202f%"


def p_value(p: float) -> str:
    """ "= 0.03" or "< 0.0001"."""
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"


def made_on(summary: Mapping[str, Any]) -> str:
    """Hardware and versions of a summary in one line, for a page's foot; empty where neither is known."""
    known = [f"{package} {number}" for package, number in summary.get("versions", {}).items()]
    return ", ".join([*([summary["hardware"]] if "hardware" in summary else []), *known])


def duration(seconds: float) -> str:
    """Seconds in the unit a reader would choose."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def shown(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values as text, for a table of settings."""
    return [(name, json.dumps(v, ensure_ascii=False) if v == "" else str(v)) for name, v in values.items()]
