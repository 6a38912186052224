r"""One spelling for a mathematical answer: `clean`.

Strings in, strings out, and nothing beyond the standard library, so that the cheap
stage of grading runs where JAX runs.
"""

import re
import unicodedata

_UNICODE = str.maketrans(
    {
        "π": r"\pi ", "∞": r"\infty ", "×": r"\cdot ", "·": r"\cdot ",
        "⋅": r"\cdot ", "÷": "/", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ",
        "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ", "∓": r"\mp ",
        "−": "-", "–": "-", "—": "-", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ",
        "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "°": r"^\circ ",
        "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ",
        "λ": r"\lambda ", "φ": r"\phi ", "ω": r"\omega ", "…": r"\dots ",
        "′": "'", "’": "'", "，": ", ", "；": "; ", "：": ":", "（": "(", "）": ")",
        "、": ", ", "。": ".", "\u200b": "", "\ufeff": "", "\x00": "",
    }
)  # fmt: skip
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"
_CURRENCY = re.compile(r"\\\$|[€£¥₹₽]|\b(?:USD|EUR)\b")
_FUNCTIONS = [
    "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sin", "cos",
    "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt",
    "alpha", "beta", "gamma", "theta", "lambda", "omega", "infty", "pi",
]  # fmt: skip
_SPACING = re.compile(
    r"\\(?:quad|qquad|enspace|thinspace|displaystyle|textstyle|limits|nolimits|mathop"
    r"|mathstrut|phantom\{[^{}]*\}|hspace\{[^{}]*\}|label\{[^{}]*\}|tag\{[^{}]*\})"
    r"(?![A-Za-z])|(?<!\\)\\[,;:> \n]|~"
)
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
        (r"times|ast", r"\\cdot "),
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
        (r"lor|vee", " or "),
        (r"land|wedge", " and "),
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
_UNIT_POWER = re.compile(r"\\(?:text|mathrm)\s*\{(?:[^{}]|\^\{-?\d\})*\}")
_ESCAPES = [  # a program read a backslash as a control character
    (re.compile(r"\\?\x0c(?=rac|orall)"), r"\\f"),
    (re.compile(r"\\?\x08(?=oxed|egin|eta|inom|ar)"), r"\\b"),
    (re.compile(r"\\?\t(?=ext|frac|imes|heta|an\b|au\b|o\b)"), r"\\t"),
    (re.compile(r"\\?\r(?=ight|ho\b|angle)"), r"\\r"),
    (re.compile(r"\\?\n(?=eq\b|abla|e\b)"), r"\\n"),
]


def _font(match: re.Match) -> str:
    kind, inside = match.groups()
    word = inside.strip()
    if re.fullmatch(r"(?i)and|or", word):
        return f" {word.lower()} "
    before = match.string[max(0, match.start() - 2) : match.start()].strip()
    if word == "min" and before[-1:].isdigit():
        return r"\text{ min}"
    if word.lower() in _FUNCTIONS + ["max", "min", "gcd", "lcm", "mod", "det"]:
        return f"\\{word.lower()} "
    if kind.startswith("text") or kind in ("mbox", "hbox", "emph"):
        if word[:1].isdigit():
            return inside
        if re.search(r"(?i)[^A-Za-z](?:and|or)[^A-Za-z]", f" {word} ") is None:
            is_letter = len(word) <= 1 or not re.search(r"[A-Za-z]{2}", word)
            return inside if is_letter else f"\\text{{{inside}}}"
        parts = re.split(r"(?i)\b(and|or)\b", inside)
        return " ".join(
            p.lower() if p.lower() in ("and", "or") else f"\\text{{{p}}}"
            for p in parts
            if p.strip()
        )
    return inside if len(word) <= 1 else f"\\text{{{inside}}}"


def _superscript(match: re.Match) -> str:
    digits = match.group().translate(str.maketrans(_RAISED, "0123456789-"))
    return f"^{{{digits}}}"


_PROGRAM = re.compile(r"\b(?:math|np|numpy|sympy)\.[a-z]|^f['\"]")


def _symbols(text: str) -> str:
    """Unicode, control characters and doubled backslashes → plain LaTeX."""
    for pattern, new in _ESCAPES:
        text = pattern.sub(new, text)
    text = re.sub(r"(\d*\.\d+)\s*\.\.\.", r"\1\\dots ", text)
    text = re.sub("[¼-¾⅐-⅞]", r" \g<0>", text)
    text = re.sub(f"[{_RAISED}]+", _superscript, text)
    text = re.sub(r"√\s*(\d+|\w)", r"\\sqrt{\1}", text).replace("√", r"\sqrt")
    text = unicodedata.normalize("NFKC", text.translate(_UNICODE)).replace("⁄", "/")
    if _PROGRAM.search(text):
        text = re.sub(r"^f(['\"])(.*)\1$", r"\2", text, flags=re.DOTALL)
        text = re.sub(r"\b(?:math|np|numpy|sympy)\.(?=[a-z])", "", text)
        text = re.sub(r"\{([^{}]*):\.?\d*f\}", r"\1", text)
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z]{2})", r"\\", text)
    return text


_THOUSANDS = re.compile(
    r"(?<![\d.,\w])(\d{1,3})((?:(?:\{,\}|,\\!\s?|\\,|\\!|,)\d{3})+)(?![\d\w]|,\d)"
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
    seconds = 60 * int(match[1]) + int(match[2] or 0)
    return rf"\frac{{{seconds}}}{{3600}}°" if seconds else "°"


_ROW_SPACE = re.compile(r"\\\\\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm)\s*\]")
_HAT = r"\\(?:mathbf|boldsymbol|bm|hat|vec|widehat)\s*"
_BASIS = re.compile(
    rf"{_HAT}(?:\{{\s*)?(?:{_HAT})?\{{?\s*\\?([ijk])(?:math)?\s*\}}?(?:\s*\}})?"
)
_TERM = re.compile(r"\s*([-+]?)\s*([^-+§]*?)\s*(?:\\cdot)?\s*§([ijk])\s*")


def _unit_vectors(text: str) -> str:
    r"""`3\mathbf{i} - 4\mathbf{j}` as `(3, -4)`."""
    marked = _BASIS.sub(r"§\1", text)
    terms = list(_TERM.finditer(marked))
    named = [term[3] for term in terms]
    if len(terms) < 2 or len({*named}) < len(named) or _TERM.sub("", marked):
        return text
    values = {
        name: f"{sign}{size or 1}" for sign, size, name in map(re.Match.groups, terms)
    }
    axes = "ijk" if "k" in named else "ij"
    return f"({', '.join(values.get(axis, '0') for axis in axes)})"


def clean(text: str) -> str:
    """One spelling of an answer: same mathematics, fewer ways to write it."""
    text = _unit_vectors(_ROW_SPACE.sub(r"\\\\", text).strip().strip("$"))
    text = _symbols(_MARKDOWN.sub("", _ANSWER_IS.sub("", text)))
    text = re.sub(r"\\\(|\\\)|\\\[|\\\](?!\])", " ", text)
    text = _CURRENCY.sub(" ", text).replace("$", " ")
    text = re.sub(r"\\boxed\s*(?=\{)", "", text)
    text = _THOUSANDS.sub(_thousands, text)
    if _SPACED_DIGITS.fullmatch(text.strip()):
        text = text.replace(" ", "")
    text = text.replace(r"\!", "").replace("{,}", ",").replace("{:}", ":")
    text = _SPACING.sub(" ", text)
    text = _SIZES.sub("", text)
    text = re.sub(r"\{\{([^{}]*)\}\}", r"{\1}", text)
    text = _UNIT_POWER.sub(lambda m: re.sub(r"\^\{(-?\d)\}", r"^\1", m[0]), text)
    for _ in range(2):
        text = _FONT.sub(_font, text)
    text = re.sub(r"\\(?:rm|bf|it|sf)(?![A-Za-z])", "", text)
    for pattern, new in _RENAMED:
        text = pattern.sub(new, text)
    text = _ARC.sub(_degrees, _DEGREE.sub("°", text))
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
    return re.sub(r"^[,;:]+", "", text).strip()


_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
          "eight": 8, "nine": 9, "ten": 10, "twelve": 12, "sixteen": 16}  # fmt: skip


def _base(match: re.Match) -> str:
    """A base in words: `413_{\\text{five}}` is `413_5`."""
    number = _BASES.get(match[1].strip().lower())
    if number is None:
        return match[0]
    return f"_{number}" if number < 10 else f"_{{{number}}}"


def _operators(text: str) -> str:
    r"""Fractions, roots, powers and functions in full: `\frac12` → `\frac{1}{2}`."""
    text = text.replace("**", "^").replace("*", r"\cdot ")
    names = "|".join(_FUNCTIONS)
    text = re.sub(rf"(?<![\\A-Za-z])({names})(?![A-Za-z])", r"\\\1 ", text)
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\sqrt\s*(\d|[A-Za-z])", r"\\sqrt{\1}", text)
    text = re.sub(r"\\(sqrt|frac)\s+(?=[\[{])", r"\\\1", text)
    text = re.sub(r"\\frac\s*(\d|[A-Za-z])\s*(\d|[A-Za-z])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\d|[A-Za-z])\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"(\\frac\s*\{[^{}]*\})\s*(\d|[A-Za-z])", r"\1{\2}", text)
    text = re.sub(r"\\frac\s+\{", r"\\frac{", text)
    text = re.sub(r"\^\s*(-?\d{2,})", r"^{\1}", text)
    text = re.sub(r"([_^])\s*\{\s*(\w)\s*\}", r"\1\2", text)
    text = re.sub(r"([_^])\s*\{\s*\\text\{(\w+)\}\s*\}", r"\1{\2}", text)
    text = re.sub(
        r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})(?!\w)", r"\1\\cdot 10^{\2}", text
    )
    text = re.sub(r"(?<![\w})!])\s*\+\s*\\infty", r"\\infty", text)
    text = re.sub(r"\\log\s*_\s*\{?e\}?(?![A-Za-z])", r"\\ln ", text)
    text = re.sub(r"\\log\s*_\s*\{?(\d+)\}?\s*", r"\\log_{\1} ", text)
    text = re.sub(r"(?<![A-Za-z\\])C\((\d+),\s*(\d+)\)", r"\\binom{\1}{\2}", text)
    text = re.sub(r"\\(?:overline|overrightarrow|vec)\s*\{([A-Z]+)\}", r"\1", text)
    text = re.sub(r"\\pmod\s*\{?\s*(\d+|[a-z])\s*\}?", r"\\pmod{\1}", text)
    text = re.sub(r"(?<=\w)_\{(?:\\text\{)?([A-Za-z]{3,})\}{1,2}", _base, text)
    text = re.sub(r"(?<=\d)\s*\\text\{\s*to\s*\}\s*(?=\d)", ":", text)
    text = re.sub(r"\b([ap])\.\s?m\b\.?", r"\1m", text)
    text = re.sub(r"(?<=\d)\s*(?:\\text\{\s*)?dozen\b[a-z ]*\}?", r"\\cdot 12", text)
    return text


def currency_differs(one: str, two: str) -> bool:
    """Both name a currency by its sign, which `clean` drops, and not the same one."""
    signs = [{*re.findall("[€£¥₹₽$]", text)} for text in (one, two)]
    return all(signs) and signs[0] != signs[1]


def squeeze(text: str) -> str:
    """A cleaned text without its spaces, but for those between two digits."""
    return re.sub(r"(?<!\d) | (?!\d)", "", text)


def squeezed(text: str) -> str:
    """Cleaned and squeezed: equal strings are equal answers."""
    return squeeze(clean(text)).replace(r"\text{}", "")
