r"""Notations of other packages, schools and countries, put as `normalise.clean` has it.

siunitx, colours and sizes, `C_{10}^{3}`, `0.1(6)`, `2,50,000`, `3万`, `\tg`. Strings
in, strings out; what is not recognised stays as it is.
"""

import re

_GROUP = r"\s*\{([^{}]*)\}"
_SI = re.compile(
    rf"\\(?P<kind>num|SI|qty|si|unit|ang)(?![A-Za-z])\s*(?:\[[^\[\]]*\])?{_GROUP}"
    rf"(?:{_GROUP})?"
)
_SI_NAMES = {
    "kilo": "k", "centi": "c", "milli": "m", "micro": "u", "mega": "M", "giga": "G",
    "nano": "n", "deci": "d", "gram": "g", "metre": "m", "meter": "m", "second": "s",
    "minute": "min", "hour": "h", "day": "day", "litre": "L", "liter": "L",
    "newton": "N", "joule": "J", "watt": "W", "volt": "V", "ampere": "A",
    "kelvin": "K", "mole": "mol", "hertz": "Hz", "pascal": "Pa", "coulomb": "C",
    "percent": "%", "degree": "°", "celsius": "°C", "degreeCelsius": "°C",
    "per": "/", "squared": "^2", "cubed": "^3", "square": "sq ", "cubic": "cu ",
    "kilogram": "kg", "radian": "rad", "tonne": "tonne",
}  # fmt: skip


def _si_unit(written: str) -> str:
    r"""`\kilo\metre\per\hour` as `\text{ km/h}`; `kg` as it stands."""
    names = re.findall(r"\\([A-Za-z]+)|([^\\\s]+)", written)
    unit = ""
    for name, plain in names:
        if name and name not in _SI_NAMES:
            return rf"\{name}"  # not ours to drop
        short = _SI_NAMES.get(name, plain)
        # kilo, centi, mega: a prefix touches its unit, and no unit's name ends so.
        prefix = len(short) == 1 and name.endswith(("o", "i", "a"))
        unit += short if prefix or not short.isalpha() else short + " "
    unit = unit.replace(" ^", "^").replace(" /", "/").strip()
    return unit if unit.startswith(("%", "°")) else rf"\text{{ {unit}}}"


def _si(match: re.Match) -> str:
    kind, first, second = match["kind"], match[2], match[3]
    if kind == "ang":
        parts = [part.strip() for part in first.split(";")]
        marks = (r"^\circ ", "'", "''")  # \ang{30;15;20}
        angle = "".join(a + m for a, m in zip(parts, marks) if a)
        # A second group is no argument of this command, but what follows it.
        return angle + (f" {{{second}}}" if second is not None else "")
    if kind == "num":
        number = re.sub(r"(?<=\d)\s*e\s*([-+]?\d+)", r"\\cdot 10^{\1}", first)
        return number + (f"{{{second}}}" if second is not None else "")
    if kind in ("si", "unit"):
        return _si_unit(first) + (f"{{{second}}}" if second is not None else "")
    return f"{first} {_si_unit(second)}" if second is not None else match[0]


# The colour alone: `\textcolor[rgb]{1,0,0}{x}` leaves `{x}`.
_COLOUR = re.compile(
    r"\\(?:textcolor|color|colorbox|fcolorbox\s*\{[a-zA-Z!0-9 ]*\})"
    r"\s*(?:\[[A-Za-z]*\])?\s*\{[a-zA-Z!0-9., ]*\}"
)
_SIZE = re.compile(
    r"\\(?:tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge|Huge"
    r"|bfseries|itshape|centering|boldmath|mathlarger)(?![A-Za-z])\s*"
)
_TAG = re.compile(r"</?\s*(?:answer|final_answer|ans|final)\s*>", re.IGNORECASE)
_QUOTED = re.compile(r"(['\"“”‘’`])([^'\"“”‘’`]+)(['\"“”‘’`]|'')")


def strip_styling(text: str) -> str:
    """The text without colours, sizes, tags and quotation marks around the whole."""
    text = _TAG.sub(" ", _SIZE.sub("", _COLOUR.sub("", text)))
    quoted = _QUOTED.fullmatch(text.strip().removesuffix("."))
    return quoted[2] if quoted else text


_LETTER = (
    r"(?:\\(?:mathrm|text|rm|operatorname)\s*\{\s*)?(?P<letter>[CAP])(?:\s*\})?\s*"
)
# With both braces or with none: `_{10}`, `_5`.
_N, _K = (
    rf"\s*(?P<in_{x}>\{{\s*)?(?P<{x}>\d{{1,4}}|[nmkr])(?(in_{x})\s*\}})\s*"
    for x in "nk"
)
# In `{}_{10}C_3` the index comes first, at a start or behind a sign.
_FIRST = r"(?:(?<=[-=+(,{ ])|^|\{\s*\})\s*"
_CHOSEN = [
    re.compile(pattern + r"(?![\d.])")
    for pattern in (
        rf"(?<![A-Za-z\\]){_LETTER}_{_N}\^{_K}",  # C_{10}^{3}
        rf"(?<![A-Za-z\\]){_LETTER}\^{_K}_{_N}",  # C^{3}_{10}
        rf"{_FIRST}_{_N}{_LETTER}_{_K}",  # {}_{10}C_3
        rf"{_FIRST}\^{_N}{_LETTER}_{_K}",  # ^{10}C_3
        rf"(?<![A-Za-z\\]){_LETTER}\({_N},{_K}\)",  # C(10, 3)
    )
]


def _chosen(match: re.Match) -> str:
    """`C_{10}^{3}`, `{}_{10}C_3`: combinations; with A or P: arrangements."""
    letter, n, k = match["letter"], match["n"], match["k"]
    if n.isdigit() and k.isdigit() and int(k) <= int(n):
        if letter == "C":
            return rf"\binom{{{n}}}{{{k}}}"
        return rf"\frac{{{n}!}}{{{int(n) - int(k)}!}}"
    # `C_n^2` is a choice; of `A_n^2` the n may be an index and the 2 a power.
    if letter == "C" and n in "nm" and n != k:
        return rf"\binom{{{n}}}{{{k}}}"
    return match[0]


_CYCLES = [
    # U+0305, a line over each digit.
    (re.compile(r"((?:\d\u0305)+)"),
     lambda m: rf"\overline{{{m[1].replace(chr(0x305), '')}}}"),
    # `0.\dot{1}2\dot{3}`: from dot to dot.
    (re.compile(r"(?<=\d\.)(\d*)\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}?"),
     r"\1\\overline{\2\3\4}"),
    # `0.1(6)`; without a point, as in `5(20)`, it is a product.
    (re.compile(r"(?<![\d.])(\d{1,20}\.\d{0,20})\((\d{1,20})\)(?![\d(.^!])"),
     r"\1\\overline{\2}"),
]  # fmt: skip
_GROUPS = [  # 2,50,000 and 1.250.000 and 1'250'000
    re.compile(r"(?<![\d.,\w])\d{1,2}(?:,\d\d){1,6},\d{3}(?![\d\w]|,\d)"),
    re.compile(r"(?<![\d.,\w])\d{1,3}(?:\.\d{3}){2,8}(?![\d\w]|\.\d)"),
    re.compile(r"(?<![\d.,\w'°])\d{1,3}(?:['’]\d{3}){1,8}(?!['’\d\w])"),
]
# Chinese for 'the answer is', 'in all', 'there are', 'about', before a number.
_LEAD_IN = re.compile(
    r"^\s*(?:答案?|结果|一共|总共|共计|共有|合计|共|有|是|约为?|大约|为|等于|[:：=\s])+(?=[-\d\\$.√π])"
)
_NAMES = {
    "tg": "tan", "arctg": "arctan", "ctg": "cot", "cotg": "cot", "cotan": "cot",
    "arcctg": "arccot", "cosec": "csc", "sh": "sinh", "ch": "cosh", "th": "tanh",
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "lg": "log_{10}",
}  # fmt: skip
_LONG = "|".join(name for name in _NAMES if name not in ("sh", "ch", "th"))
# In `\mathrm`, sh, ch and th may be anything: only at a start or behind a sign.
_RENAMED = re.compile(
    rf"(?:^|(?<=[-+=(]))\\mathrm\s*\{{(?:sh|ch|th)\}}"
    rf"|\\(?:operatorname\*?\s*\{{\s*(?:sh|ch|th|{_LONG})|(?:mathrm|text)\s*\{{\s*(?:{_LONG}))"
    r"\s*\}"
    rf"|\\({'|'.join(_NAMES)})(?![A-Za-z])"
    rf"|(?<![\\A-Za-z])(arcctg|arctg|ctg|tg|lg)(?=\s*[(\d\\]|\s[a-z](?![a-z]))"
)


_NAME = re.compile("[a-z]+")


def standard_notation(text: str) -> str:
    """The text in the notation that most problems have."""
    text = _SI.sub(_si, text)
    for pattern, new in _CYCLES:
        text = pattern.sub(new, text)
    for pattern in _GROUPS:
        text = pattern.sub(lambda m: re.sub(r"\D", "", m[0]), text)
    text = _LEAD_IN.sub("", text)
    # The last word is the name: `\operatorname{tg}`.
    text = _RENAMED.sub(lambda m: rf"\{_NAMES[_NAME.findall(m[0])[-1]]} ", text)
    for pattern in _CHOSEN:
        text = pattern.sub(_chosen, text)
    return text
