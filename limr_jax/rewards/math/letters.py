r"""Letters of an answer: which are variables, and what is put in for them."""

import re

# Not behind `_`: in `a_n` the one variable is a.
_VARIABLE = re.compile(r"(?<![A-Za-z\\_])[A-Za-z](?![A-Za-z])")


def variables(text: str) -> set[str]:
    """The letters that stand alone, as variables do; e and i are numbers."""
    # Products apart first: `xy` holds two variables and is no word.
    plain = re.sub(r"\\(?:text|mathbb)\s*\{[^{}]*\}|\\[A-Za-z]+", " ", spaced_out(text))
    return set(_VARIABLE.findall(plain)) - {"e", "i"}


def substitute(text: str, letter: str, new: str) -> str:
    """`new` in the place of a letter that stands alone."""
    # Subscripts, too: in `a_k` the letter may be an index that runs.
    # `new` goes in by a function, as `re.sub` reads the backslashes of a string.
    return re.sub(rf"(?<![A-Za-z\\]){letter}(?![A-Za-z])", lambda _: new, text)


def spaced_out(text: str) -> str:
    """Products of letters apart: `xy` → `x y`."""
    return re.sub(
        r"\\[A-Za-z]+|[A-Za-z]{2,}",
        lambda m: m[0] if m[0][0] == "\\" else " ".join(m[0]),
        text,
    )
