r"""Functions by pieces: `\begin{cases} x & x \ge 0 \\ -x & x < 0 \end{cases}`.

Two of them, or one and an ordinary expression, are the same if they agree at fixed
points, among them every bound that a condition names. So are two solution sets that a
letter's cases give, or `\min` and `\max` of it.
"""

import fractions
import re

from limr_jax.rewards.math import intervals, scalars, sympy_parse
from limr_jax.rewards.math.brackets import split_outside_brackets
from limr_jax.rewards.math.forms import CASES, Form, parse_form
from limr_jax.rewards.math.letters import substitute

# 'otherwise' is a condition itself: it is parted from its value, but kept.
_IF = re.compile(r"&|\b(?:if|for|when)\b|\b(?=otherwise)")
_ELSE = re.compile(r"otherwise|else")
_PARITY = re.compile(r"([a-z]) (?:is )?(even|odd)")
_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}")
_COMPARED = {
    "<": lambda a, b: a < b, r"\le": lambda a, b: a <= b, "=": lambda a, b: a == b,
    ">": lambda a, b: a > b, r"\ge": lambda a, b: a >= b, r"\ne": lambda a, b: a != b,
}  # fmt: skip
_BETWEEN = re.compile(r"\s*[;,]\s*")
_REGION = re.compile(r"\\\{|[(\[][^()\[\]]*,|\\mathbb")
_LETTER = re.compile(r"(?<![A-Za-z\\])[a-z](?![A-Za-z])")
Piece = tuple[str, str]  # value, condition ('' for otherwise)


class _Unreadable(Exception):
    """A condition or a value that is no formula."""


def parse_pieces(text: str) -> tuple[Piece, ...] | None:
    """The values of a cleaned text with their conditions; None for anything else."""
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).strip()
    cases = CASES.fullmatch(text)
    if cases and r"\begin" in cases[2]:
        return None
    # Without an environment: `n/2 if n is even, (n+1)/2 if n is odd`.
    rows = cases[2].split(r"\\") if cases else split_outside_brackets(text, _BETWEEN)[0]
    pieces = []
    for row in filter(None, (row.strip(" ,;.") for row in rows)):
        parts = [" ".join(part.strip(" ,;").split()) for part in _IF.split(row)]
        parts = [part for part in parts if part]
        if len(parts) != 2:
            return None
        pieces.append((parts[0], "" if _ELSE.fullmatch(parts[1]) else parts[1]))
    return tuple(pieces) if len(pieces) > 1 else None


def same_function(ref: Form, pred: Form) -> bool:
    """Do they agree at all points? At least one of them is given by pieces."""
    # An ordinary expression is one piece that holds everywhere.
    sides = [parse_pieces(f.text) or ((f.text, ""),) for f in (ref, pred)]
    conditions = [parse_form(c) for side in sides for _, c in side if c]
    # Conditions on two letters cut a plane, which points on a line do not try.
    names = {name for c in conditions for name in _LETTER.findall(c.text)}
    if len(names) != 1:
        return False
    name = names.pop()
    try:
        points = _points(conditions, name)
        if any(_REGION.match(value) for side in sides for value, _ in side):
            bounds = _bounds(conditions, name)  # every point costs several parses
            points = [x for x in points if x in bounds or x in range(-3, 4)]
        return _agree(sides, name, points)
    except _Unreadable:
        return False


def _agree(sides: list, name: str, points: list[fractions.Fraction]) -> bool:
    """Do both sides have the same value, or name the same region, at all points?"""
    known = 0  # points at which both have a value; a few say nothing
    for x in points:
        texts = [_at(side, name, x) for side in sides]
        if texts == [None, None]:
            continue
        if None in texts:
            return False
        one, two = (_region(text, name, x) for text in texts)
        if one or two:
            same = scalars.same_value
            if not (one and two and intervals.same_region(one, two, same_end=same)):
                return False
        else:
            one, two = (_value(text, name, x) for text in texts)
            if one is None and two is None:
                continue
            if one is None or two is None or not scalars.nearly_equal(one, two):
                return False
        known += 1
    return known > 5


def _region(text: str, name: str, x: fractions.Fraction):
    """The region that a set or an interval is where the letter is x."""
    if not _REGION.match(text):
        return None
    return intervals.parse_region(parse_form(substitute(text, name, f"({x})")))


def _points(conditions: list[Form], name: str) -> list[fractions.Fraction]:
    """Halves and thirds about 0, and every rational bound; integers for even, odd."""
    if any(_PARITY.fullmatch(c.text) for c in conditions):
        return [fractions.Fraction(k) for k in range(1, 13)]
    points = {fractions.Fraction(k, 2) for k in range(-9, 10)}
    points |= {fractions.Fraction(k, 3) for k in (-20, -1, 1, 20)}
    return sorted(points | _bounds(conditions, name))


def _bounds(conditions: list[Form], name: str) -> set[fractions.Fraction]:
    sides = [side for c in conditions for part in _relations(c) for side in part.parts]
    bounds = [scalars.numeric_value(side) for side in sides if side != name]
    return {fractions.Fraction(int(b.p), int(b.q)) for b in bounds if _rational(b)}


def _rational(value) -> bool:
    return value is not None and bool(value.is_Rational)


def _relations(condition: Form) -> list[Form]:
    return (
        [parse_form(part) for part in condition.parts]
        if condition.kind == "list"
        else [condition]
    )


def _at(side: tuple[Piece, ...], name: str, x: fractions.Fraction) -> str | None:
    """The first piece whose condition holds; None where none does."""
    for value, condition in side:
        if not condition or _holds(parse_form(condition), name, x):
            return value
    return None


def _holds(condition: Form, name: str, x: fractions.Fraction) -> bool:
    parity = _PARITY.fullmatch(condition.text)
    if parity:
        # True is 1 to Python, which is what an odd number leaves.
        return x % 2 == (parity[2] == "odd")
    if condition.kind == "list":
        each = [_holds(part, name, x) for part in _relations(condition)]
        return any(each) if condition.joined == "or" else all(each)
    if condition.kind != "relation" or not {*condition.ops} <= {*_COMPARED}:
        raise _Unreadable
    sides = [_value(part, name, x) for part in condition.parts]
    if None in sides or not all(side.is_real for side in sides):
        raise _Unreadable
    pairs = zip(sides, condition.ops, sides[1:])
    return all(bool(_COMPARED[op](a, b)) for a, op, b in pairs)


def _value(text: str, name: str, x: fractions.Fraction):
    """A number of sympy's; None where the expression has none."""
    parsed = None if _WORD.search(text) else sympy_parse.parse_expression(text)
    if parsed is None:
        raise _Unreadable
    try:
        return scalars.value_at(parsed, {name: x})
    except Exception:  # sympy raises many kinds where there is no value
        return None
