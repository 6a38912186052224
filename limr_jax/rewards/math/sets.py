r"""Sets, events and propositions: `\overline{A\cup B}` is `\overline A\cap\overline B`.

Each is its indicator, a polynomial in the indicators of its letters, of which every
square is itself: two formulas are the same if their polynomials are. A probability is
linear in it, so that `P(\overline A)` is 1 - P(A).
"""

import re

from limr_jax.rewards.math import normalise
from limr_jax.rewards.math.brackets import enclosed, split_outside_brackets

# Letters of a product → its coefficient; A ∪ B is {A}: 1, {B}: 1, {A, B}: -1.
Indicator = dict[frozenset[str], int]
_ONE: Indicator = {frozenset(): 1}
_MOST = 64  # terms
# From the loosest to the closest; the first two bind to the right.
_LEVELS = [
    re.compile(rf"\\(?:{names})(?![A-Za-z])")
    for names in (
        "leftrightarrow|Leftrightarrow|iff",
        "to|longrightarrow|Longrightarrow",
        "cup|lor|oplus|triangle|bigtriangleup",
        "cap|land|setminus|backslash",
    )
]
_FORMULA = re.compile(r"\\[a-z]{2}|^\s*[A-Za-z]\s*$")
_ARROWS = (r"\to", r"\longrightarrow", r"\Longrightarrow")
_NEGATED = re.compile(r"\\(?:neg(?![A-Za-z])|overline\s*(?=\{))(.+)", re.DOTALL)
_COMPLEMENT = re.compile(
    r"([A-Z]|\(.*\)|\\overline\{.*\})"
    r"\s*(?:\^\s*\{?\s*(?:[cC]|\\complement|\\prime)\s*\}?|')"
)
_QUANTIFIED = re.compile(
    r"\\(forall|exists)\s*([a-z](?![A-Za-z])(?:\s*\\in\s*\\mathbb\{[A-Z]\})?)\s*[,:.]?\s*"
)
_DENIED = {r"\le": ">", r"\ge": "<", r"\ne": "="}
_DENYING = re.compile(r"\\(?:le|ge|ne)(?![A-Za-z])")
OPERATOR = re.compile(
    "|".join(p.pattern for p in _LEVELS) + r"|\\(?:neg|forall|exists)(?![A-Za-z])"
)


def _sum(*weighed: tuple[int, Indicator]) -> Indicator:
    total: Indicator = {}
    for weight, terms in weighed:
        for letters, count in terms.items():
            total[letters] = total.get(letters, 0) + weight * count
    return {letters: count for letters, count in total.items() if count}


def _both(one: Indicator, two: Indicator) -> Indicator:
    # Every square is itself, so a product has each letter of its factors once.
    return _sum(
        *(
            (count, {a | b: other})
            for a, count in one.items()
            for b, other in two.items()
        )
    )


def _joined(mark: str, one: Indicator, two: Indicator) -> Indicator:
    both = _both(one, two)
    if mark in (r"\cap", r"\land"):
        return both
    if mark in (r"\cup", r"\lor"):
        return _sum((1, one), (1, two), (-1, both))  # A + B - AB
    if mark in (r"\setminus", r"\backslash"):
        return _sum((1, one), (-1, both))  # A - AB
    if mark in (r"\oplus", r"\triangle", r"\bigtriangleup"):
        return _sum((1, one), (1, two), (-2, both))  # A + B - 2AB
    if mark in _ARROWS:
        return _sum((1, _ONE), (-1, one), (1, both))  # 1 - A + AB
    return _sum((1, _ONE), (-1, one), (-1, two), (2, both))  # 1 - A - B + 2AB


def indicator(text: str) -> Indicator | None:
    """A cleaned text's indicator; what holds no operator is a letter of its own."""
    text = text.strip()
    quantified = _QUANTIFIED.match(text)
    if quantified:
        return _quantified(quantified, indicator(text[quantified.end() :]))
    for level in _LEVELS:
        parts, marks = split_outside_brackets(text, level)
        if marks:
            return _folded([indicator(part) for part in parts], marks)
    negated = _NEGATED.match(text) or _COMPLEMENT.fullmatch(text)
    # `\overline{A}B` is not the complement of AB: one bracket has to hold all of it.
    if negated and (
        negated.re is _COMPLEMENT or text[1] == "n" or enclosed(negated[1])
    ):
        return _complement(indicator(negated[1]))
    whole = enclosed(text)
    # The brackets of `(A \cup B)` hold a formula, those of `(1, 2)` are a part of it.
    if whole and whole[0] + whole[2] in ("()", "{}") and _FORMULA.search(whole[1]):
        return indicator(whole[1])
    return _atom(normalise.squeeze(text)) if text else None


def _atom(text: str) -> Indicator:
    if text == r"\emptyset":
        return {}
    sides, signs = split_outside_brackets(text, _DENYING)
    if len(signs) == 1 and all(sides):  # x ≤ 2 is not x > 2
        return _complement(_atom(sides[0] + _DENIED[signs[0]] + sides[1]))
    return {frozenset([text]): 1}


def _complement(inner: Indicator | None) -> Indicator | None:
    return None if inner is None else _sum((1, _ONE), (-1, inner))


def _quantified(match: re.Match, body: Indicator | None) -> Indicator | None:
    """'For all' is a letter of its own; 'there is' is not for all that not."""
    if body is None:
        return None
    every = match[1] == "forall"
    every_one = body if every else _complement(body)
    # Equal bodies are equal polynomials, so that their terms can be the letter's name.
    terms = sorted((sorted(letters), count) for letters, count in every_one.items())
    atom = {frozenset([f"{normalise.squeeze(match[2])}: {terms}"]): 1}
    return atom if every else _complement(atom)


def _folded(values: list[Indicator | None], marks: list[str]) -> Indicator | None:
    """One value of several; an arrow binds to the right."""
    if marks[0] in _ARROWS:
        values, marks = values[::-1], marks[::-1]
    total = values[0]
    for mark, value in zip(marks, values[1:]):
        if total is None or value is None or len(total) * len(value) > _MOST:
            return None
        # From the right, the value so far is what an arrow points to.
        left, right = (value, total) if mark in _ARROWS else (total, value)
        total = _joined(mark, left, right)
    return total


_BESIDE = re.compile(r"(?<=[A-Z})'])\s*(?:,\s*|(?=\\overline|\(|[A-Z](?![a-z])))")
_ALGEBRA = re.compile(r"(?=.*(?:\\overline|'))(?:\\(?:overline|cdot)|[A-Z+'(){}\s])+")


def joint(event: str) -> str:
    r"""`A\overline B`, events side by side, as an intersection."""
    return _BESIDE.sub(r" \\cap ", event)


def _as_sets(text: str) -> str:
    r"""`\overline{A + B}` of Boolean algebra, as it would be of sets."""
    if not _ALGEBRA.fullmatch(text):
        return text
    return joint(text.replace(r"\cdot", r"\cap ").replace("+", r"\cup "))


def same_formula(ref: str, pred: str) -> bool:
    """Equality of two cleaned formulas of sets or propositions, not both of which
    are a single letter, and which say something."""
    ref, pred = _as_sets(ref), _as_sets(pred)
    if not (OPERATOR.search(ref) or OPERATOR.search(pred)):
        return False
    one, two = indicator(ref), indicator(pred)
    # All tautologies are 1: that two of them are equal says nothing.
    return one is not None and one == two and one != _ONE
