"""The words and commands that the grammar knows."""

from __future__ import annotations


def words(text: str) -> frozenset[str]:
    """The words of a text, for tables that read better as running text."""
    return frozenset(text.split())


GREEK = words(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho sigma "
    "tau phi varphi chi psi omega Gamma Delta Theta Lambda Pi Sigma Phi Psi Omega"
)

CONSTANT_WORDS = {
    "pi": "pi", "infty": "oo", "infinity": "oo", "inf": "oo", "oo": "oo", "imath": "i", "cdots": "ldots",
    "dots": "ldots", "ldots": "ldots", "dotsc": "ldots", "varnothing": "emptyset", "emptyset": "emptyset",
    "R": "set R", "reals": "set R", "ell": "l",
}  # fmt: skip

_FUNCTION_SPELLINGS = {
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "ceiling": "ceil", "sign": "sgn", "tg": "tan",
    "ctg": "cot", "arctg": "arctan", "Arctan": "arctan", "Arcsin": "arcsin", "Arccos": "arccos",
}  # fmt: skip
FUNCTIONS = _FUNCTION_SPELLINGS | {
    name: name
    for name in words(
        "sin cos tan cot sec csc sinh cosh tanh coth sech csch arcsin arccos arctan arccot arcsec arccsc "
        "arcsinh arccosh arctanh exp ln log lg max min gcd lcm det floor ceil abs sgn Re Im arg sqrt cbrt "
        "factorial binomial"
    )
}

COMMANDS = words(
    "frac dfrac tfrac cfrac sfrac nicefrac sqrt binom dbinom tbinom choose over sum prod int iint oint lim "
    "lfloor rfloor "
    "lceil rceil langle rangle lvert rvert mid vert lVert rVert circ prime dollar euro pounds yen rupee pmod "
    "bmod mod not boxed fbox cancel phantom stackrel overset underset underline overbrace underbrace tag"
)

OPERATOR_COMMANDS = {
    "cdot": "*", "times": "*", "ast": "*", "div": "/", "pm": "pm", "mp": "mp", "le": "<=", "leq": "<=",
    "leqslant": "<=", "ge": ">=", "geq": ">=", "geqslant": ">=", "lt": "<", "gt": ">", "ne": "!=",
    "neq": "!=", "approx": "approx", "approxeq": "approx", "simeq": "approx", "thickapprox": "approx",
    "in": "in", "notin": "notin", "cup": "cup", "bigcup": "cup", "cap": "cap", "setminus": "setminus",
    "backslash": "setminus", "colon": ":", "lbrace": "\\{", "rbrace": "\\}", "lbrack": "[",
    "rbrack": "]", "slash": "/", "equiv": "equiv", "cong": "equiv", "sim": "equiv", "to": "to",
    "rightarrow": "to", "Rightarrow": "to", "implies": "to", "iff": "to", "lparen": "(", "rparen": ")",
    "land": "and", "lor": "or", "wedge": "and", "vee": "or", "percent": "%", "newline": "\\\\",
    "vert": "|", "lvert": "|", "rvert": "|", "mid": "mid", "degree": "degree", "subset": "subset",
    "subseteq": "subset", "nmid": "notdivides",
}  # fmt: skip

FONT_COMMANDS = words(
    "text textbf textit textrm textnormal textsf texttt textsc mbox hbox mathrm mathbf mathit mathsf "
    "mathtt mathcal mathfrak mathbb boldsymbol operatorname rm bf it vec hat overrightarrow overline bar "
    "widehat tilde emph mathnormal dot ddot"
)
TEXT_COMMANDS = words("text textbf textit textrm textnormal textsf mbox hbox mathrm emph")
IGNORED_COMMANDS = words(
    "checkmark blacksquare qed therefore because "
    "hline quad qquad bigskip smallskip allowbreak hfil null kern normalsize small "
    "large Large footnotesize protect relax"
)

WORD_OPERATORS: dict[str, tuple[str, str]] = {
    "and": ("op", "and"), "or": ("op", "or"), "AND": ("op", "and"), "OR": ("op", "or"),
    "U": ("sym", "U"), "union": ("op", "cup"), "Union": ("op", "cup"), "in": ("op", "in"),
    "pm": ("op", "pm"), "percent": ("op", "%"), "percentage": ("op", "%"), "pct": ("op", "%"),
    "degrees": ("op", "degree"), "degree": ("op", "degree"), "deg": ("op", "degree"),
    "mod": ("cmd", "mod"),
}  # fmt: skip

SHORT_WORDS = words(
    "yes no not odd red one two six ten all any none new old man day boy dog cat low hot top bob amy joe "
    "tom sam ann dan ben kim lee tim eve ray pat ted jim liz sue eva ian leo mia zoe ava gus hal sun mon "
    "tue wed thu fri sat jan feb mar apr may jun jul aug sep oct nov dec box car bus van"
)

UNIT_WORDS = words(
    """
    mm millimeter millimeters millimetre millimetres cm centimeter centimeters centimetre centimetres dm
    m meter meters metre metres km kilometer kilometers kilometre kilometres in inch inches ft foot feet
    yd yard yards mi mile miles mg milligram milligrams g gram grams kg kilogram kilograms lb lbs pound
    pounds oz ounce ounces ton tons tonne tonnes s sec secs second seconds min mins minute minutes h hr
    hrs hour hours day days week weeks month months year years yr yrs ms l L liter liters litre litres
    ml mL milliliter milliliters gallon gallons gal quart quarts pint pints cup cups dollar dollars cent
    cents penny pennies nickel nickels dime dimes quarter quarters usd euro euros yuan yen rupee rupees
    mph kph kmh units unit square cubic sq cu per radian radians rad degree degrees celsius fahrenheit
    joule joules watt watts newton newtons volt volts
    """
)
