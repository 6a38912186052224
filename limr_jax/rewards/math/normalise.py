r"""One spelling for a mathematical answer: `clean`.

Strings in, strings out, and nothing beyond the standard library, so that the cheap
stage of grading runs where JAX runs.
"""

import re
import unicodedata

from limr_jax.rewards.math import matrices, notation
from limr_jax.rewards.math.brackets import split_outside_brackets

_UNICODE = str.maketrans(
    {
        "π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ",
        "⋅": r"\cdot ", "÷": "/", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ",
        "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ", "∓": r"\mp ",
        "−": "-", "–": "-", "—": "-", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ",
        "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "°": r"^\circ ",
        "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "¬": r"\neg ",
        "∨": r"\lor ", "∧": r"\land ",
        "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ",
        "λ": r"\lambda ", "φ": r"\phi ", "ω": r"\omega ", "…": r"\dots ",
        "′": "'", "’": "'", "，": ", ", "；": "; ", "：": ":", "（": "(", "）": ")",
        **{chr(0x245F + k): f" ({k}) " for k in range(1, 21)},  # ① to ⑳ number parts
        "、": ", ", "。": ".", "\u200b": "", "\ufeff": "", "\x00": "",
    }
)  # fmt: skip
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"
_CURRENCY = re.compile(r"(?:\bUS)?\\\$|[€£¥₹₽]|\b(?:USD|EUR|GBP|JPY|CNY|RMB|INR)\b")
_FUNCTIONS = [
    "arcsin", "arccos", "arctan", "arccot", "sinh", "cosh", "tanh", "sin", "cos",
    "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt",
    "alpha", "beta", "gamma", "theta", "lambda", "omega", "infty", "pi",
]  # fmt: skip
_SPACING = re.compile(
    r"\\(?:quad|qquad|enspace|thinspace|displaystyle|textstyle|limits|nolimits|mathop"
    r"|mathstrut|phantom\{[^{}]*\}|hspace\{[^{}]*\}|label\{[^{}]*\}|tag\{[^{}]*\})"
    r"(?![A-Za-z])|(?<!\\)\\[,;:> \n]|~"
)
# `\left.` is a bracket that is not drawn: its dot goes with it.
_SIZES = re.compile(
    r"\\(?:left|right|[bB]ig{1,2}[lrm]?)(?![A-Za-z])\s*\.?(?=\s|[^\w]|$)"
)
_RENAMED = [
    (re.compile(rf"\\(?:{old})(?![A-Za-z])\s*"), new)
    for old, new in [
        (r"[dtc]frac", r"\\frac"),
        (r"[dt]binom", r"\\binom"),
        (r"leqslant|leqq|leq", r"\\le "),
        (r"geqslant|geqq|geq", r"\\ge "),
        (r"neq", r"\\ne "),
        (r"lt", "<"),
        (r"gt", ">"),
        (r"ast", r"\\cdot "),
        (r"div", "/"),
        (r"cupdot|sqcup|uplus", r"\\cup "),
        (r"varnothing", r"\\emptyset "),
        (r"infin", r"\\infty "),
        (r"mid|vert|lvert|rvert|vline", "|"),
        (r"colon", ":"),
        (r"lbrace", r"\\{"),
        (r"rbrace", r"\\}"),
        (r"lbrack", "["),
        (r"rbrack", "]"),
        (r"langle|lparen", "("),
        (r"rangle|rparen", ")"),
        (r"cdots|ldots|dotsc|dotsb|dots|hdots", r"\\dots "),
        (r"degree", r"^\\circ "),
        (r"lor|vee", r"\\lor "),
        (r"land|wedge", r"\\land "),
        (r"lnot", r"\\neg "),
        (r"bar", r"\\overline"),
        (r"overrightarrow", r"\\vec"),
        (r"(?:sfrac|nicefrac|flatfrac)", r"\\frac"),
        (r"equiv", "="),
        (r"varepsilon", r"\\epsilon "),
        (r"varphi", r"\\phi "),
        (r"approxeq|simeq|thickapprox", r"\\approx "),
        (r"to|rightarrow|Rightarrow|implies", r"\\to "),
    ]
]
_FONT = re.compile(
    r"\\(text(?:bf|it|rm|sf|tt|normal|up)?|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathtt"
    r"|mathcal|operatorname\*?|boldsymbol|bm|bf|emph|underline|rm)\s*\{([^{}]*)\}"
)
_BOLD = ("mathbf", "boldsymbol", "bm", "bf")
_TIMES = re.compile(r"\\times(?![A-Za-z])")
_VECTOR = re.compile(
    r"\\(?:vec|overrightarrow|hat|mathb[bf]|boldsymbol|bm|nabla)(?![A-Za-z])"
)
_OF_LETTERS = re.compile(
    r"(?<![\\A-Za-z])([A-Za-z](?:_(?:\w|\{\w+\}))?)\s*\\times(?=\s*[A-Za-z](?![A-Za-z]))"
)
# `\text{cm^{2}}`: the patterns below read a `\text{…}` without braces in it.
_UNIT_POWER = re.compile(r"\\(?:text|mathrm)\s*\{(?:[^{}]|\^\{-?\d\})*\}")


# Alone or behind `\in` a bold R is the reals; elsewhere it may be a vector.
_NUMBER_SET = re.compile(
    r"(^|(?<=\\in))\s*\\(?:mathbf|bf|Bbb)\s*\{?\s*([NZQRC])(?![A-Za-z])\s*\}?"
)


def _font(match: re.Match) -> str:
    kind, inside = match.groups()
    if kind in _BOLD and _TIMES.search(match.string) and len(inside.strip()) == 1:
        return match[0]  # vectors: their product is not that of numbers
    word = inside.strip()
    if re.fullmatch(r"(?i)and|or", word):
        return f" {word.lower()} "
    # `5 \text{min}` is minutes, and no minimum.
    before = match.string[max(0, match.start() - 2) : match.start()].strip()
    if word == "min" and before[-1:].isdigit():
        return r"\text{ min}"
    if word.lower() in _FUNCTIONS + ["max", "min", "gcd", "lcm", "mod", "det"]:
        return f"\\{word.lower()} "
    if kind.startswith("text") or kind in ("mbox", "hbox", "emph"):
        # `\text{3 hours}`, `\text{x = 5}`: mathematics in a font for words.
        if word[:1].isdigit() or re.search(r"[:=,].*\d", word):
            return inside
        if re.search(r"(?i)[^A-Za-z](?:and|or)[^A-Za-z]", f" {word} ") is None:
            is_letter = len(word) <= 1 or not re.search(r"[A-Za-z]{2}", word)
            return inside if is_letter else f"\\text{{{inside}}}"
        # `\text{cats and dogs}`: `forms` looks for an 'and' outside of brackets.
        parts = re.split(r"(?i)\b(and|or)\b", inside)
        pieces = (
            p.lower() if p.lower() in ("and", "or") else f"\\text{{{p}}}"
            for p in parts
            if p.strip()
        )
        return f" {' '.join(pieces)} "
    return inside if len(word) <= 1 else f"\\text{{{inside}}}"


def _kept_apart(match: re.Match, new: str) -> str:
    r"""`\cdot\mathbf{b}` as `\cdot b`, not as a command of another name."""
    command = re.search(
        r"\\[A-Za-z]+$", match.string[max(0, match.start() - 20) : match.start()]
    )
    return f" {new}" if command and new[:1].isalpha() else new


def _superscript(match: re.Match) -> str:
    digits = match.group().translate(str.maketrans(_RAISED, "0123456789-"))
    return f"^{{{digits}}}"


_PROGRAM = re.compile(r"\b(?:math|np|numpy|sympy)\.[a-z]|^f['\"]")


def _symbols(text: str) -> str:
    """Unicode and doubled backslashes → plain LaTeX."""
    # `0.333...`: at an end these dots would be dropped as full stops.
    text = re.sub(r"(\d*\.\d+)\s*\.\.\.", r"\1\\dots ", text)
    # NFKC makes `½` 1⁄2, and so `2½` 21⁄2; a blank makes it a mixed number.
    text = re.sub("[¼-¾⅐-⅞]", r" \g<0>", text)
    # Before NFKC, which makes `x²` x2.
    text = re.sub(f"[{_RAISED}]+", _superscript, text)
    text = re.sub(r"√\s*(\d+|\w)", r"\\sqrt{\1}", text).replace("√", r"\sqrt")
    text = unicodedata.normalize("NFKC", text.translate(_UNICODE)).replace("⁄", "/")
    if _PROGRAM.search(text):
        text = re.sub(r"^f(['\"])(.*)\1$", r"\2", text, flags=re.DOTALL)
        text = re.sub(r"\b(?:math|np|numpy|sympy)\.(?=[a-z])", "", text)
        text = re.sub(r"\{([^{}]*):\.?\d*f\}", r"\1", text)
    # In an environment a doubled backslash ends a row.
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z]{2})", r"\\", text)
    return text


# Groups of three to the last: `1,2345` is a list.
_THOUSANDS = re.compile(
    r"(?<![\d.,\w])([1-9]\d{0,2})((?:(?:\{,\}|,\\!\s?|\\,|\\!|,)\d{3})+)(?![\d\w]|,\d)"
)
_SPACED_DIGITS = re.compile(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?")


def _thousands(match: re.Match) -> str:
    head, rest = match.groups()
    before = match.string[max(0, match.start() - 2) : match.start()].strip()
    if before[-1:] in ("(", "[") or before == r"\{":
        return match.group()  # (3,331) is a pair
    return head + re.sub(r"\D", "", rest)


_MARKDOWN = re.compile(r"^\s*(?:\*\*|__|`)|(?:\*\*|__|`)\.?\s*$")
_ANSWER_IS = re.compile(
    r"^\W*(?:the )?(?:final |correct )?answer\s*(?:is\b|[:=])(?!\s*not\b)"
    r"\W*?(?=[\w\\$({\[.+-])",
    re.I,
)
_DEGREE = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\bdegrees?\b|\\text\{\s*degrees?\s*\}")


_PRIME = r"(?:'|\^\s*(?:\\prime|\{\s*\\prime\s*\}))"
_ARC = re.compile(
    rf"°\s*(\d{{1,2}})\s*{_PRIME}(?!\s*{_PRIME})"
    rf"(?:\s*(\d{{1,2}})\s*(?:{_PRIME}\s*{_PRIME}|\"))?"
)


def _degrees(match: re.Match) -> str:
    """`30° 15'` is 30 15/60 degrees."""
    # Behind the degrees it makes a mixed number, `30\frac{900}{3600}°`.
    seconds = 60 * int(match[1]) + int(match[2] or 0)
    return rf"\frac{{{seconds}}}{{3600}}°" if seconds else "°"


_ROW_SPACE = re.compile(r"\\\\\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm)\s*\]")
_HAT = r"\\(?:mathbf|boldsymbol|bm|hat|vec|widehat)\s*"
_BASIS = re.compile(
    rf"{_HAT}(?:\{{\s*)?(?:{_HAT})?\{{?\s*\\?([ijk])(?:math)?\s*\}}?(?:\s*\}})?"
)


def _unit_vectors(text: str) -> str:
    r"""`3\mathbf{i} - 4\mathbf{j}` as `(3, -4)`."""
    label, equals, sums = text.rpartition("=")
    *pairs, tail = re.split(r"§([ijk])", _BASIS.sub(r"§\1", sums))
    # One alone may be a letter; a § of the text's own would be taken for a mark.
    if len(pairs) < 4 or tail.strip(" .") or "§" in text:
        return text
    values: dict[str, str] = {}
    for before, name in zip(pairs[::2], pairs[1::2]):
        size = before.strip().removesuffix(r"\cdot").strip()
        sign = size[:1] if size[:1] in ("+", "-") else ""
        size = size[len(sign) :].strip()
        bare = re.sub(r"\([^()]*\)", "", size)
        # `1+2t\mathbf{i}` is not (1+2t)i: a sum needs its brackets.
        if name in values or "+" in bare or "-" in bare or (values and not sign):
            return text
        values[name] = f"{sign}{size or 1}"
    axes = "ijk" if "k" in values else "ij"
    return f"{label}{equals}({', '.join(values.get(axis, '0') for axis in axes)})"


def _collapsed(text: str) -> str:
    """One blank for a run of them, one line break for a run with one in it.

    What follows may look for blanks on both sides of a sign: in a run of n of them
    that is n² places, or worse.
    """
    return re.sub(r" ?\n\s*", "\n", re.sub(r"[^\S\n]+", " ", text))


# Between equations: a wide space, a line's end, or the one blank of `m=4 n=7`.
_GAP = re.compile(
    r"\s*(?:\\(?:q?quad|newline|par)(?![A-Za-z])|\n|\\\\|(?:\\[ ,;:]\s?){2,}"
    r"|(?<=\d) (?=[A-Za-z] ?=))\s*"
)
_SYSTEM = re.compile(
    r"(?:\\left\s*)?(?:\\\{)?\s*"
    r"\\begin\{((?:align|gather|eqnarray)(?:ed)?\*?|cases|array|matrix|split)\}(?:\{[^{}]*\})?"
    r"((?:(?!\\begin|\\end).)*)\\end\{\1\}(?:\s*\\right\s*[.)}])?",
    re.DOTALL,
)
_RELATION = re.compile(
    r"[<>=]|\\(?:[lg]eq?|leqslant|geqslant|neq?|in|equiv)(?![A-Za-z])"
)


def _rows(match: re.Match) -> str:
    """The equations of a system, one a row; a row that begins with a sign goes on."""
    text = ""
    for row in match[2].split(r"\\"):
        # An & before a sign aligns rows; any other parts the cells of a matrix.
        row = re.sub(rf"&\s*(?={_RELATION.pattern})", "", row).strip(" ,;.\n")
        if "&" in row or (row and not _RELATION.search(row)):
            return match[0]
        text += (" " if _RELATION.match(row) else r" \quad ") * bool(text and row) + row
    return text


_VALUE = re.compile(r"(?:\\(?:frac|sqrt|pi|cdot|infty)(?![A-Za-z])|[^A-Za-z\\&])+")


def _apart(text: str) -> str:
    r"""`x=1 \quad y=2`, or on two lines: two equations, with a comma between."""
    text = _SYSTEM.sub(_rows, text)
    parts, gaps = split_outside_brackets(text, _GAP)
    each = all(split_outside_brackets(part, _RELATION)[1] for part in parts)
    if not gaps or not (each or all(map(_VALUE.fullmatch, parts))):
        return text
    joined = parts[0]
    for part in parts[1:]:
        bare = re.search(r"(?:[,;]|\b(?:and|or)\}?)\s*$", joined) or re.match(
            "and|or", part
        )
        joined += (" " if bare else ", ") + part
    return joined


def _products(text: str) -> str:
    r"""`\times` as `\cdot`, but not between vectors, sets or two letters."""
    if _VECTOR.search(text):
        return text
    # `\Times` keeps its place while the others become `\cdot`.
    kept = _OF_LETTERS.sub(r"\1 \\Times ", text)
    return _TIMES.sub(r"\\cdot ", kept).replace(r"\Times", r"\times")


def clean(text: str) -> str:
    """One spelling of an answer: same mathematics, fewer ways to write it."""
    # The order counts: what is dropped early cannot be taken for a part of what stays.
    text = _ROW_SPACE.sub(r"\\\\", _collapsed(text)).strip().strip("$")
    text = notation.strip_styling(_unit_vectors(text))
    text = _symbols(_MARKDOWN.sub("", _ANSWER_IS.sub("", text)))
    text = notation.standard_notation(_apart(text))
    text = re.sub(r"\\\(|\\\)|\\\[|\\\](?!\])", " ", text)
    text = _CURRENCY.sub(" ", text).replace("$", " ")
    text = re.sub(r"\\boxed\s*(?=\{)", "", text)
    text = re.sub(r"\{\s*\\(rm|bf|it|sf)(?![A-Za-z])([^{}]*)\}", r"\\text\1{\2}", text)
    text = re.sub(r"(?<=\d) ?\{ ?, ?\} ?(?=\d)", "{,}", text)
    text = _THOUSANDS.sub(_thousands, text)
    # Blanks between digits may also part the members of a list, so all of it must fit.
    if _SPACED_DIGITS.fullmatch(text.strip()):
        text = text.replace(" ", "")
    # Only now: by these marks `_THOUSANDS` knows `1{,}000` and `1\!000` as numbers.
    text = text.replace(r"\!", "").replace("{,}", ",").replace("{:}", ":")
    text = _collapsed(_SPACING.sub(" ", text))
    text = _SIZES.sub("", text)
    text = re.sub(r"\{\{([^{}]*)\}\}", r"{\1}", text)
    text = _UNIT_POWER.sub(lambda m: re.sub(r"\^\{(-?\d)\}", r"^\1", m[0]), text)
    text = _NUMBER_SET.sub(r"\\mathbb{\2}", text)
    # A separator at an edge of `\text{Ann, }` parts a list: `forms` looks outside.
    text = re.sub(r"\\text\{([^{}]*[^{},; ])\s*([,;])\s*\}", r"\\text{\1}\2 ", text)
    text = re.sub(r"\\text\{\s*([,;])(?=[^{}]*[A-Za-z])", r"\1 \\text{", text)
    for _ in range(2):  # a font within a font
        text = _FONT.sub(lambda m: _kept_apart(m, _font(m)), text)
    text = re.sub(r"\\(?:rm|bf|it|sf)(?![A-Za-z])", "", text)
    for pattern, new in _RENAMED:
        text = pattern.sub(new, text)
    text = _DEGREE.sub("°", text)
    text = re.sub(r"\\text\{\s*°\s*([A-Za-z ]*)\}", r"°\\text{\1}", text)
    # After the fonts, which show what is a vector.
    text = _products(text)
    if _RELATION.search(text):  # of conditions; of propositions they are operators
        text = text.replace(r"\lor ", " or ").replace(r"\land ", " and ")
    text = _ARC.sub(_degrees, text)
    text = re.sub(
        r"(?:\\text\{\s*(?:percent(?:age)?|pct)\s*\}|\b(?:percent(?:age)?|pct)\b)|\\?%",
        r"\\%",
        text,
    )
    text = re.sub(r"<=", r"\\le ", text)
    text = re.sub(r">=", r"\\ge ", text)
    text = re.sub(r"!=", r"\\ne ", text)
    text = _operators(text)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"(?:[.,;:]|\\)+$", "", text).strip()
    text = re.sub(r"\.(?=\s*[\])}])", "", text)
    text = re.sub(r"^\\overline\{([A-Z]{2})\}$", r"\1", text)  # a segment
    text = matrices.with_determinants(text)
    return re.sub(r"^[,;:]+", "", text).strip()


def _operators(text: str) -> str:
    r"""Fractions, roots, powers and functions in full: `\frac12` → `\frac{1}{2}`."""
    # `2^6 3^5`: behind a power a blank is a product; in `3 1/2` it is a sum.
    text = re.sub(r"(?<=\d)(\^(?:\d|\{\d+\})) (?=\d)", r"\1\\cdot ", text)
    text = text.replace("**", "^").replace("*", r"\cdot ")
    names = "|".join(_FUNCTIONS)
    text = re.sub(rf"(?<![\\A-Za-z])({names})(?![A-Za-z])", r"\\\1 ", text)
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\sqrt\s*(\d|[A-Za-z])", r"\\sqrt{\1}", text)
    text = re.sub(r"\\(sqrt|frac)\s+(?=[\[{])", r"\\\1", text)
    # `\frac12`, `\frac1{2}`, `\frac{1}2`: other patterns look for two pairs of braces.
    text = re.sub(r"\\frac\s*(\d|[A-Za-z])\s*(\d|[A-Za-z])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\d|[A-Za-z])\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"(\\frac\s*\{[^{}]*\})\s*(\d|[A-Za-z])", r"\1{\2}", text)
    text = re.sub(r"\\frac\s+\{", r"\\frac{", text)
    # `x^10` means the tenth power, though TeX raises the 1 alone.
    text = re.sub(r"\^\s*(-?\d{2,})", r"^{\1}", text)
    text = re.sub(
        r"([_^])\s*(\\frac\{[^{}]*\}\{[^{}]*\}|\\sqrt\{[^{}]*\})", r"\1{\2}", text
    )
    text = re.sub(
        r"\\(mathbb|overline|vec|hat)\s*([A-Za-z])(?![A-Za-z])", r"\\\1{\2}", text
    )
    text = re.sub(r"\{([^{}]*)\\choose([^{}]*)\}", r"\\binom{\1}{\2}", text)
    # Not before a digit: `2^{3}4` is not 2^34.
    text = re.sub(r"([_^])\s*\{\s*(\w)\s*\}(?!\d)", r"\1\2", text)
    text = _BRACED.sub(r"\1", text)
    text = re.sub(r"([_^])\s*\{\s*\\text\{(\w+)\}\s*\}", r"\1{\2}", text)
    text = re.sub(
        r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})(?!\w)", r"\1\\cdot 10^{\2}", text
    )
    # The plus of `(2, +\infty)` is a sign and adds nothing.
    text = re.sub(r"(?<![\w})!])\s*\+\s*\\infty", r"\\infty", text)
    text = re.sub(r"\\log\s*_\s*\{?e\}?(?![A-Za-z])", r"\\ln ", text)
    text = re.sub(r"\\log\s*_\s*\{?(\d+)\}?\s*", r"\\log_{\1} ", text)
    text = re.sub(r"(?<=\d)\s*\\text\{\s*to\s*\}\s*(?=\d)", ":", text)  # a ratio
    text = re.sub(r"\b([ap])\.\s?m\b\.?", r"\1m", text)
    return _ORDINAL.sub("", text)


_ORDINAL = re.compile(
    r"(?<=\d)\s*(?:\^\s*)?(?:\{\s*)?(?:\\text\{\s*)?(?<![A-Za-z])(?:st|nd|rd|th)(?![A-Za-z])(?:\s*\}){0,2}"
)


# `{x}_1` is `x_1`: braces around a letter that has an index or a power.
_BRACED = re.compile(
    r"(?:(?<![A-Za-z\]}_^])|(?<=[_^]\w))\{([A-Za-z]|\\[a-z]+)\}(?=\s*[_^])"
)


def squeeze(text: str) -> str:
    """A cleaned text without its spaces, but for those between two digits."""
    return re.sub(r"(?<!\d) | (?!\d)", "", text)


def squeezed(text: str) -> str:
    """Cleaned and squeezed: equal strings are equal answers."""
    return squeeze(clean(text)).replace(r"\text{}", "")
