r"""LaTeX to sympy by math-verify's grammar, with its silent misreadings kept out."""

import functools
import hashlib
import math
import re

from limr_jax.rewards.math import sets
from limr_jax.rewards.math.brackets import split_outside_brackets

MAX_PARSED = 600  # characters given to the grammar
MAX_DEPTH = 40  # nested braces and brackets given to it


def _too_deep(text: str) -> bool:
    depth = deepest = 0
    for char in text:
        depth += (char in "{[(") - (char in "}])")
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH


_COSTLY = re.compile(
    r"\d\s*\^\s*\{?\s*\(?\s*-?\d+\s*\^"  # a tower of numbers
    r"|\^\s*\{[^{}^]{0,40}\^\s*\{[^{}^]{0,40}\^|\^\s*\w\s*\^"  # a tower of three
    r"|\^\s*[{(]?\s*[-+]?\s*\d{5,}"  # a power of 10,000 and more
    r"|\d{3}\s*\}?\s*[)}]\s*\^\s*\{?\s*\d{3}"  # a power of a large power
    r"|\)\s*\^\s*\{\s*\d{3,}"  # a sum to a power of 100 and more
    r"|\d{4,}\s*!|!\s*[)}]\s*!|(?:\^|\d{3})[^!]{0,20}[)}]\s*!"  # large factorials
    r"|\\(?:sum|prod|int)(?![a-z])[^$]{0,80}\d{4,}"  # long sums
    r"|\\(?:sum|prod)(?![a-z])[^$]{0,40}\^\s*\{[^{}]{0,20}[!^]"  # to a power, factorial
    r"|binom[^$]{0,40}(?:\d{5,}|\^)"
    r"|\\int[^$]{0,200}\\int"
)


def costly(text: str) -> bool:
    """Would it cost far more to evaluate than any answer a person wrote? Cheap."""
    return len(text) > MAX_PARSED or _too_deep(text) or bool(_COSTLY.search(text))


# What the grammar reads as something else, without complaint: it drops primes, adds
# numbers that stand side by side, lets a number's subscript go.
_MISREAD = re.compile(
    r"'|\\prime|\d\s+\d|\d\s*_|\^\s*\{?\s*T(?![A-Za-z])|!\s*!|\\p?mod(?![a-z])|:|°|%|\$"
    r"|(?<![\\A-Za-z^_])[A-Za-z]\s+\d|[^\x00-\x7f]|(?<![A-Za-z\\{])[A-Z]{3,}(?![A-Za-z])"
    r"|[<>=;?\"&~@#`]|(?<!\\max)(?<!\\min)(?<!\\gcd)(?<!\\lcm)\s*\([^()]*,|\\\\"
)
# The only commands that it is given. The rest it would drop, or take for letters.
KNOWN = r"""
    frac sqrt cdot binom pi infty sum prod int lim to left right lfloor rfloor lceil
    rceil sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth log ln
    exp min max gcd lcm alpha beta delta epsilon zeta eta theta iota kappa lambda mu nu
    xi rho sigma tau upsilon phi chi psi omega Delta Theta Lambda Xi Sigma Phi Psi Omega
    gamma Gamma Pi hbar ell { } , % |"""
KNOWN = frozenset(KNOWN.split())
_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)


_INDEX = re.compile(r"(?<=_\{)\s*[A-Za-z]\s*=")  # of a sum


def _unknown(text: str) -> bool:
    """Does it hold a command or a sign that the grammar is not trusted with?"""
    text = _INDEX.sub("", text)
    commands = {match[1] for match in _COMMAND.finditer(text)}
    return not commands <= KNOWN or _MISREAD.search(text) is not None


_IN_DEGREES = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc)\s*(?:\^\s*\{?-?\d\}?)?[\s({]*)(\d+(?:\.\d+)?)\s*°"
)
_GREEK = re.compile(r"\\(gamma|Gamma(?!\s*\()|Pi|hbar|ell)(?![A-Za-z])")
# Vectors, complements, probabilities: each is a letter of its own.
_VECTOR = r"\\(?:vec|mathbf|hat)\s*\{[^{}]{1,40}\}(?:\s*_(?:\w|\{[^{}]*\}))?"
_OPAQUE = [
    re.compile(
        r"\\(?:vec|overrightarrow|hat|tilde|overline|widehat|mathbf|mathbb|d?dot)"
        r"\s*\{[^{}]{1,40}\}(?:\s*_(?:\w|\{[^{}]*\}))?"
    ),
    re.compile(r"(?<![A-Za-z\\])[A-Z]\((?:\d+|[A-Z])\)"),
]
_PROBABILITY = re.compile(
    r"(?<![A-Za-z\\])P\s*\((?=[^)]*[A-Z\\|=])((?:[^()]|\([^()]*\))*)\)"
)
_CONJUGATE = re.compile(r"\\overline\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_I = re.compile(r"(?<![A-Za-z\\])i(?![A-Za-z])")
_REAL = re.compile(r"(?:\\(?:frac|sqrt|cdot|pi)(?![a-z])|[-+/\d.ie\s(){}^])+")
_DIFFERENTIAL = re.compile(r"\\int|\\frac\s*\{\s*d.*\}\s*\{\s*d")
_TOWER = re.compile(r"(\d{1,3})\s*\^\s*\{\s*(\d)\s*\^\s*\{?\s*(\d)\s*\}?\s*\}")
_LETTERS = re.compile(r"\\[A-Za-z]+|_\s*\{[^{}]*\}|_[A-Za-z]|[A-Za-z]+")


def _letter(name: str) -> str:
    """A letter that has this name, and no other has."""
    digest = hashlib.sha1(name.replace(" ", "").encode()).hexdigest()[:12]
    return r"\mu_{q" + digest.translate(_AS_LETTERS) + "}"


def _opaque(match: re.Match) -> str:
    return _letter(match[0])


def _probability(match: re.Match) -> str:
    r"""`P(A\cup B)` as P(A) + P(B) - P(AB), `P(A|B)` as P(AB)/P(B)."""
    event, *condition = split_outside_brackets(match[1], _CONDITION_BAR)[0]
    if len(condition) > 1:
        return match[0]
    both = _expectation(f"({event}) \\cap ({condition[0]})" if condition else event)
    return (
        rf"\frac{{{both}}}{{{_expectation(condition[0])}}}"
        if condition
        else f"({both})"
    )


_CONDITION_BAR = re.compile(r"\|")


def _expectation(event: str) -> str:
    indicator = sets.indicator(sets.joint(event))
    if indicator is None:
        return _letter(f"P({event})")
    terms = sorted((sorted(letters), count) for letters, count in indicator.items())
    named = [(count, _letter(f"P{some}") if some else "1") for some, count in terms]
    return "+".join(rf"({count})\cdot {name}" for count, name in named) or "0"


_FROM_TO = re.compile(r"\\vec\s*\{\s*([A-Z])\s*([A-Z])\s*\}")
_CROSS = re.compile(r"(?P<one>V)\s*\\times\s*(?P<two>V)".replace("V", _VECTOR))


def _forwards(match: re.Match) -> str:
    r"""`\vec{BA}` as -AB."""
    start, end = match.groups()
    return rf"(-\vec{{{end}{start}}})" if start > end else match[0]


def _cross(match: re.Match) -> str:
    r"""`\vec b\times\vec a` as -(a × b); a vector with itself is 0."""
    one, two = match["one"].replace(" ", ""), match["two"].replace(" ", "")
    if one == two:
        return "0"
    return f"({'-' * (one > two)}{_letter(' × '.join(sorted((one, two))))})"


_AS_LETTERS = str.maketrans("0123456789", "ghijklmnop")


def _double_factorial(match: re.Match) -> str:
    return str(math.prod(range(int(match[1]), 0, -2)))


def _tower(match: re.Match) -> str:
    base, low, high = map(int, match.groups())
    return rf"{base}^{{{low**high}}}" if low**high <= 2_000 else match[0]


def _readable(text: str) -> str:
    """A cleaned text as the grammar can be trusted to read it."""
    text = _IN_DEGREES.sub(r"\1(\2\\cdot \\frac{\\pi}{180})", text)
    text = re.sub(r"(?<![\d.])(\d{1,3})\s*!!(?!\s*!)", _double_factorial, text)
    text = re.sub(r"\(\s*([0-6])!\s*\)\s*!", lambda m: f"{math.factorial(int(m[1]))}!",
                  text)  # fmt: skip
    for _ in range(3):
        text = _TOWER.sub(_tower, text)
    text = re.sub(r"(\\(?:max|min|gcd|lcm))\s+(?=\()", r"\1", text)
    text = _CONJUGATE.sub(_conjugate, text)
    text = _FROM_TO.sub(_forwards, text)
    text = _PROBABILITY.sub(_probability, _CROSS.sub(_cross, text))
    for pattern in _OPAQUE:
        text = pattern.sub(_opaque, text)
    # The grammar may take a letter d for a differential.
    if not _DIFFERENTIAL.search(text):
        text = _LETTERS.sub(
            lambda m: m[0] if m[0][0] in "\\_" else re.sub("d", r"\\mu_{dd} ", m[0]),
            text,
        )
    text = re.sub(r"\\[,;!]|\\text\{\s*\}", " ", text)
    return re.sub(r"\s*(?:°|\\%)$", "", text).strip()


def _conjugate(match: re.Match) -> str:
    """A formula in which nothing but i is imaginary, with -i for i."""
    if not _REAL.fullmatch(match[1]) or not _I.search(match[1]):
        return match[0]
    return f"({_I.sub('(-i)', match[1])})"


# Numbers side by side are added by the grammar: it reads `5(2)` as 7.
_BESIDE = re.compile(
    r"(?:(?<![_^\d.])\d+(?:\.\d+)?|\)|\\binom\{[^{}]*\}\{[^{}]*\})\s*(?=\(|\\binom)"
)


@functools.lru_cache(maxsize=4096)
def parse_expression(text: str):
    """Sympy's expression for a cleaned text; None where the grammar reads none.

    None, too, for what is `costly`, or has commands that the grammar would misread.
    """
    import sympy
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    # What is refused here would be misread in silence, or take minutes and gigabytes.
    text = _readable(text)
    if not text or costly(text) or _unknown(text):
        return None
    text = _BESIDE.sub(lambda m: rf"{m[0].rstrip()}\cdot ", text)
    text = _GREEK.sub(lambda m: rf"\mu_{{{m[1]}}}", text)
    text = re.sub(r"(?<![\w.}])(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}", _mixed, text)
    try:
        parsed = latex2sympy(
            text,
            is_real=False,
            normalization_config=None,
            conversion_config=ConversionConfig(
                lowercase_symbols=False, interpret_as_mixed_fractions=False
            ),
        )
    except Exception:  # the grammar raises a dozen kinds for text that is no formula
        return None
    if not hasattr(parsed, "free_symbols") or parsed.has(sympy.Derivative):
        return None  # the derivative of a letter is 0 to sympy, and of any other too
    # As exact numbers: 0.1 + 0.2 is 0.3.
    decimals = parsed.atoms(sympy.Float)
    return parsed.xreplace({f: sympy.Rational(str(f)) for f in decimals})


def _mixed(match: re.Match) -> str:
    whole, top, low = match.groups()
    if 0 < int(top[:9]) < int(low[:9]):
        return rf"({whole}+\frac{{{top}}}{{{low}}})"
    return rf"{whole}\cdot \frac{{{top}}}{{{low}}}"
