r"""What stands right beside a box, decided from the completion alone.

Behind the box, operators, exponents and units belong to the answer: `\boxed{7}^2` is 49, `\boxed{45}^\circ`
an angle, `\boxed{3}\pi` a product. Before it, a minus, a plus-minus and a currency belong to it; names and
relations (`n \ge`, `x =`, `x \in`) drop. There is no answer where an operator before the box takes it for an
operand (`2\cdot\boxed{5}`, `\sqrt{\boxed{5}}`, `10 - \boxed{5}`) or a relation denies it (`x \ne \boxed{5}`);
the blank of a sum (`3 + \boxed{4} = 7`) is one. A percent sign behind the box drops: it says what the number
counts.
"""

from __future__ import annotations

import re

from verifiers.grammar.units import known, normal_unit

MAX_CONTEXT_CHARS = 400
_MAX_TAIL_CHARS = 120

_PAIRS = (("(", ")"), ("\\left(", "\\right)"), ("\\bigl(", "\\bigr)"), ("{", "}"))
_FONT_BEFORE = re.compile(
    r"\\(?:text(?:bf|it|rm|normal)?|math(?:bf|rm|it)|mbox|boldsymbol|bm|(?:text)?color\{\w{1,20}\}|displaystyle)\s*\Z"
)
# A function or an operator that takes the box, and relations that deny it.
_OPERAND_BEFORE = re.compile(
    r"""
    (?: \d | \\(?:cdot|times|div|ast|frac|dfrac|tfrac|sqrt|binom|x?cancel|neq?|not|notin)(?![A-Za-z])\s?
      | \\(?:log|ln|sin|cos|tan|cot|sec|csc|exp)(?:[_^](?:\{[^{}]{1,20}\}|\w))?\s?
      | \\(?:[dt]?frac|binom)\{ | \\[dt]?frac\{[^{}]{0,40}\}\{ | \\sqrt(?:\[[^\[\]]{0,9}\])?\{
      | \\b?x?cancel\{
      | \^\{? | _\{? | ≠\s? | \\not\s?=\s? | [\w)}]\s?[*/]\s? | [\d)}]\s?[×÷⋅·]\s?
    )\Z
    """,
    re.VERBOSE,
)
_SUM_BEFORE = re.compile(r"(?:[\w)}\]]|\\[A-Za-z]+)\s?[-+−]\s?\Z")
_SIGN_BEFORE = re.compile(r"(?:\A|[$(=\s{\[,:]|\\[,;: ])([-−]|\\pm|\\mp|±)\s?\Z")
_CURRENCY_BEFORE = re.compile(r"(\\\$|[€£₹¥]|\\(?:euro|pounds|yen|rupee)\b|\bRs\.?)\s?\Z")

_DIGITS_AFTER = re.compile(r"\d|\s*\$?\s*,\s*\$?-?\d[\d.]*\$?\s*(?:,|$)")
_SCALE_AFTER = re.compile(r"[\s$)\]\\~]*(?:text\{\s*)?(hundred|thousand|million|billion|trillion)\b")
_PLAIN_VALUE = re.compile(r"-?[\d.,/]+")
_ATOM = re.compile(r"[\d.]+|[A-Za-z]|\\[A-Za-z]+|[\d.,]*\d|\\[dt]?frac\{[^{}]{1,20}\}\{[^{}]{1,20}\}")
_SUM = re.compile(r"(?<=[\w})\s])[-+]|\\pm")
_NO_VALUE = re.compile(r"[=<>,;]|\\(?:text|mbox|leq?|geq?|in|approx|begin|cup)(?![A-Za-z])")

_ORDINAL = re.compile(r"\^\s*\{?\s*(?:\\(?:text|mathrm|textrm)\s*\{)?\s*(?:st|nd|rd|th)\b")
_DEGREES = re.compile(
    r"[\s{}$)~]*(?:\^\s*\{?\s*\\circ\s*\}?|°|\\degree\b|\\circ\b)\s*(?:\\?(?:text|mathrm|rm)?\s*\{?\s*~?\s*([CF])\b\}?)?"
)
_OPERATOR_AFTER = re.compile(
    r"(?:\s|\\[,;:! ]|~)*(?:\^|\\(?:cdot|times|div|pm|mp)(?![A-Za-z])|[*×÷⋅·])"
    r"|[-+−/:](?=\s?[\d\\({A-Za-z])|\s[-+−/](?=\s?[\d\\({A-Za-z])|_\{?\d"
)
_FACTOR_AFTER = re.compile(
    r"(?:\\[,!]|[~\s])*(?:\\(?:pi|sqrt|sin|cos|tan|ln|log|binom|theta|alpha|beta|lambda|omega)(?![A-Za-z])"
    r"|\\[dt]?frac(?!\s*\{\s*\\(?:text|mathrm))|[A-Za-z](?![A-Za-z]))"
    r"|\\left\(|\((?=[^()A-Za-z=<>,]*[A-Za-z]?[^()A-Za-z=<>,]*\))|!"
)
_STOP = re.compile(
    r"""
    \$ | \\[)\]] | \n\s*\n | \\\\ | [=<>≤≥≈≠,;。，；！？?] | [.:](?=\s|$) | \\[;:,\ ](?=\s*[A-Za-z(]{2})
    | \\(?:approx|leq?|geq?|[lg]eqslant|neq?|equiv|sim(?:eq)?|cong|implies|iff|(?:Long)?[Rr]ightarrow|to|in
         |text(?:bf|rm|it)?|m?box|mathrm|operatorname|tag|end|boxed|fbox|square|blacksquare|qed|checkmark
         |q?quad|[pb]?mod|label|hspace|hfill|[cl]?dots|cup|cap|land|lor|wedge)(?![A-Za-z])
    """,
    re.VERBOSE,
)
_WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}(?![A-Za-z]*\})")
_PROSE_OPERATOR = re.compile(
    r"\^|\s?\\(?:cdot|times|div)(?![A-Za-z])|[*/](?=\d)|[-+](?=\d)|:(?=\d)|_\{?\d"
    r"|\\(?:pi|sqrt|[dt]?frac|ln|log)(?![A-Za-z])|[a-fi-ln-rt-z](?![A-Za-z])"
)
# A set goes on behind the box: \boxed{[0,1)} \cup \{3\}.
_SET_AFTER = re.compile(
    r"\s*\\(?:cup|cap|setminus|backslash)(?![A-Za-z])[^$\n]{1,120}?(?=\$|\\[)\]]|\.?\s*$|\n)"
)

_LAID_OUT_UNIT = re.compile(
    r"""
    (?:[\s{}$)~]|\\[,;:!\ )\]])*
    (?P<unit>(?:(?:[\s~]|\\[,;:!\ ]|\\cdot\b|/)*
        (?:\\mu\s*)?\\(?:text(?:rm|bf|normal)?|mathrm|mbox|operatorname|mathsf|rm)\s*\{[^{}]{1,40}\}
        (?:\s*\^\s*(?:\{\s*-?\d\s*\}|-?\d))?){1,5})
    """,
    re.VERBOSE,
)
_LAYOUT = re.compile(r"\\(?:text(?:rm|bf|normal)?|mathrm|mbox|operatorname|mathsf|rm|cdot)\b|\\[,;:! ]|[{}~]")
_LONG_UNIT = (
    r"(?:(?:milli|centi|kilo|deci)?met(?:er|re)s?|inch(?:es)?|feet|foot|yards?|miles?|(?:milli|kilo)?grams?|pounds?"
    r"|ounces?|(?:milli)?seconds?|minutes?|hours?|days?|weeks?|months?|years?|dollars?|cents?|(?:milli)?lit(?:er|re)s?"
    r"|gallons?|degrees?|radians?|newtons?|joules?|watts?|volts?|amperes?|hertz|[cmk]m|[km]g|ml|kN|kJ|kW|Hz|mph|ft)"
)
_PROSE_UNIT = re.compile(
    rf"""
    [\s$)\]\\~]*(?:text\{{\s*)?
    ((?:(?:square|cubic|sq\.?|cu\.?)\ )?{_LONG_UNIT}(?:\^\{{?[23]\}}?|[²³]|\ squared|\ cubed)?
     (?:(?:\s?/\s?|\ per\ )(?:(?:square|cubic)\ )?(?:{_LONG_UNIT}|[mgsh]\b)(?:\^\{{?[23]\}}?|[²³])?)?
    |[mgsh](?=[\s.$]*(?:\n|$))|m/s(?:\^\{{?2\}}?|²)?)(?![\w^])
    """,
    re.VERBOSE,
)


_STARTS_A_FORMULA = re.compile(r"(?:(?<!\\)\$|\\[\[(]|(?:\A|\s)[a-z]{2,12}:?\ )\Z")
_CLOSING = " \t\r\n$.*"


def with_context(content: str, before: str, after: str) -> str | None:
    """A box's content with what is glued to it; None where that makes another value of it.

    before, after: the text around the box, `MAX_CONTEXT_CHARS` of it at most.
    """
    if _STARTS_A_FORMULA.search(before) and not after.strip(_CLOSING):
        return content  # most boxes stand alone
    before, after, content = _out_of_brackets(before, after, content)
    in_sum = _SUM_BEFORE.search(before)
    blank = in_sum is not None and _is_a_blank(after)
    if _OPERAND_BEFORE.search(before) or (in_sum and not blank) or _DIGITS_AFTER.match(after):
        return None
    sign = _SIGN_BEFORE.search(before)
    if sign:
        content = f"({content})"
    elif _PLAIN_VALUE.fullmatch(content) and (currency := _CURRENCY_BEFORE.search(before)):
        content = currency[1] + content
    joined = _after_box(content, after, blank)
    if sign is None or joined is None:
        return joined
    return sign[1].replace("−", "-").replace("±", "\\pm") + joined


def _out_of_brackets(before: str, after: str, content: str) -> tuple[str, str, str]:
    """Without the brackets, braces and fonts that hold the box alone; bars are its absolute value."""
    for _ in range(4):
        if before.endswith("|") and after.startswith("|") and not before.endswith("||"):
            return before[:-1], after[1:], f"|{content}|"
        for opening, closing in _PAIRS:
            bare = before.rstrip() if opening != "{" else before
            if bare.endswith(opening) and after.lstrip().startswith(closing):
                inner = bare[: -len(opening)]
                if opening == "{" and not _FONT_BEFORE.search(inner) and re.search(r"[\w\]}^_]\Z", inner):
                    return before, after, content  # the argument of a command
                before, after = _FONT_BEFORE.sub("", inner), after.lstrip()[len(closing) :]
                break
        else:
            break
    return before, after, content


def _is_a_blank(after: str) -> bool:
    """Whether an equals sign follows in the same formula: what stands before the box is a term beside it."""
    stop = _STOP.search(after)
    return stop is not None and stop[0] == "=" and not _WORDS.search(after[: stop.start()])


def _after_box(content: str, after: str, blank: bool) -> str | None:
    if rest := _SET_AFTER.match(after):
        return content + rest[0]
    if _NO_VALUE.search(content):
        return content + unit_after(after) if content.count("=") == 1 and "," not in content else content
    if _PLAIN_VALUE.fullmatch(content) and (scale := _SCALE_AFTER.match(after)):
        return f"{content} {scale[1]}"
    if degrees := _DEGREES.match(after):
        return f"{_as_factor(content)}^\\circ" + (rf"\text{{{degrees[1]}}}" if degrees[1] else "")
    if not _ORDINAL.match(after):
        tail = _expression_after(after)
        if tail is None:
            return content if blank else None
        if tail:
            # 3\frac{1}{2} is a mixed number, and 1011_2 a numeral of base two.
            raw = content if tail[0] in "_:" or tail.startswith("\\frac") else _as_factor(content)
            content, after = raw + tail, after[len(tail) :]
    unit = unit_after(after)
    return f"({content}){unit}" if unit and _SUM.search(content) else content + unit


def _as_factor(content: str) -> str:
    bracketed = content.startswith("(") and content.endswith(")") and content.count("(") == 1
    return content if bracketed or _ATOM.fullmatch(content) else f"({content})"


def _expression_after(after: str) -> str | None:
    """The operators and factors behind a box, up to the end of the formula or sentence; "" where none is.

    None where they cannot be read as one expression: then the box is a part of something else.
    """
    stop = _STOP.search(after)
    limit = stop.start() if stop else len(after)
    formula = after[:limit]
    closed = stop is not None and stop[0] in ("$", "\\)", "\\]", "=", "<", ">", "\\approx", "\\text")
    if not closed or _WORDS.search(formula):
        if not _PROSE_OPERATOR.match(after):
            return ""
        formula = re.match(r"\s?\S+(?:\s(?=[\d(\\])\S+)*", formula)[0].rstrip(".!?)")  # type: ignore[index]
        return formula if _is_expression(formula) else None
    starts = _OPERATOR_AFTER.match(formula)
    if not starts and not _FACTOR_AFTER.match(formula):
        return ""
    formula = formula.rstrip(" ~\n\t.")
    if _is_expression(formula):
        return formula
    return None if starts else ""


def _is_expression(text: str) -> bool:
    """Whether brackets match and an operand follows every operator."""
    if len(text) > _MAX_TAIL_CHARS or any(text.count(a) != text.count(b) for a, b in ("()", "{}", "[]")):
        return False
    return re.search(r"(?:[-+*/^_:]|\\(?:cdot|times|div|pm))\s*\Z", text) is None


def unit_after(after: str) -> str:
    r"""The unit behind a value as `\text{ cm}^2`; "" where there is none that we know."""
    laid_out = _LAID_OUT_UNIT.match(after)
    if laid_out:
        plain = _LAYOUT.sub(" ", re.sub(r"\\mu\s*\\\w+\s*\{\s*", "u", laid_out["unit"]))
        unit = re.sub(r"\s*\^\s*", "^", " ".join(plain.split()))
        return rf"\text{{ {unit}}}" if known(unit) and normal_unit(unit) != "%" else ""
    prose = _PROSE_UNIT.match(after)
    return rf"\text{{ {prose[1].replace('²', '^2').replace('³', '^3')}}}" if prose else ""
