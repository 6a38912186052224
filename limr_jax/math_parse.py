r"""LaTeX to sympy by math-verify's grammar, with its silent misreadings kept out."""

import functools
import re

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
    r"'|\\prime|\d\s+\d|\d\s*_|\^\s*\{?\s*T(?![A-Za-z])|!\s*!|\\p?mod(?![a-z])|:"
)
_GREEK = re.compile(r"\\(gamma|Gamma(?!\s*\()|Pi)(?![A-Za-z])")


def misread(text: str) -> bool:
    """Does it hold what math-verify's grammar takes for something else?"""
    both_cases = {c.lower() for c in _LONE.findall(text) if c.isupper()}
    both_cases &= set(_LONE.findall(text))
    marks = (_MISREAD, _VERTICES, _WORDS)
    return bool(both_cases or any(mark.search(text) for mark in marks))


_WORDS = re.compile(r"\\text\{\s*[A-Za-z]{2}")
_VERTICES = re.compile(r"(?<![A-Za-z\\{])[A-Z]{3,}(?![A-Za-z])")
_IN_DEGREES = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc)\s*(?:\^\s*\{?-?\d\}?)?[\s({]*)(\d+(?:\.\d+)?)\s*°"
)
_LONE = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")


# Numbers side by side are added by the grammar: it reads `5(2)` as 7.
_BESIDE = re.compile(
    r"(?:(?<![_^\d.])\d+(?:\.\d+)?|\)|\\binom\{[^{}]*\}\{[^{}]*\})\s*(?=\(|\\binom)"
)


@functools.lru_cache(maxsize=4096)
def expression(text: str):
    """Sympy's expression for a cleaned string, None where the grammar has none."""
    import sympy
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    if _WORDS.search(text) or _VERTICES.search(text):
        return None  # 'all even n', triangle ABC: no product of letters
    text = _IN_DEGREES.sub(r"\1(\2\\cdot \\frac{\\pi}{180})", text)
    text = re.sub(r"\\text\{[^{}]*\}", "", text).replace("°", "").strip()
    text = re.sub(r"\\%$", "", text).strip()
    if not text or costly(text) or _MISREAD.search(text):
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
    return parsed


def _mixed(match: re.Match) -> str:
    whole, top, low = match.groups()
    if 0 < int(top[:9]) < int(low[:9]):
        return rf"({whole}+\frac{{{top}}}{{{low}}})"
    return rf"{whole}\cdot \frac{{{top}}}{{{low}}}"
