r"""Functions by pieces: `\begin{cases} x & x \ge 0 \\ -x & x < 0 \end{cases}`.

Two of them, or one and an ordinary expression, are the same if they agree at fixed
points, among them every bound that a condition names.
"""

import fractions
import re

from limr_jax import math_parse, math_value
from limr_jax.math_form import CASES, Form, read, split

_IF = re.compile(r"&|\b(?:if|for|when)\b|\b(?=otherwise)")
_ELSE = re.compile(r"otherwise|else")
_PARITY = re.compile(r"([a-z]) (?:is )?(even|odd)")
_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}")
_COMPARED = {
    "<": lambda a, b: a < b, r"\le": lambda a, b: a <= b, "=": lambda a, b: a == b,
    ">": lambda a, b: a > b, r"\ge": lambda a, b: a >= b, r"\ne": lambda a, b: a != b,
}  # fmt: skip
_BETWEEN = re.compile(r"\s*[;,]\s*")
_LETTER = re.compile(r"(?<![A-Za-z\\])[a-z](?![A-Za-z])")
Piece = tuple[str, str]  # value, condition ('' for otherwise)


class _Unreadable(Exception):
    """A condition or a value that is no formula."""


def pieces(text: str) -> tuple[Piece, ...] | None:
    """The values of a cleaned text with their conditions; None for anything else."""
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).strip()
    found = CASES.fullmatch(text)
    if found and r"\begin" in found[2]:
        return None
    rows = found[2].split(r"\\") if found else split(text, _BETWEEN)[0]
    made = []
    for row in filter(None, (row.strip(" ,;.") for row in rows)):
        parts = [" ".join(part.strip(" ,;").split()) for part in _IF.split(row)]
        parts = [part for part in parts if part]
        if len(parts) != 2:
            return None
        made.append((parts[0], "" if _ELSE.fullmatch(parts[1]) else parts[1]))
    return tuple(made) if len(made) > 1 else None


def same(ref: Form, pred: Form) -> bool:
    """Do they agree at all points? At least one of them is given by pieces."""
    sides = [pieces(f.text) or ((f.text, ""),) for f in (ref, pred)]
    conditions = [read(c) for side in sides for _, c in side if c]
    names = {name for c in conditions for name in _LETTER.findall(c.text)}
    if len(names) != 1:
        return False
    name = names.pop()
    try:
        values = [
            [_at(side, name, x) for side in sides] for x in _points(conditions, name)
        ]
    except _Unreadable:
        return False
    known = [pair for pair in values if pair != [None, None]]
    return len(known) > 5 and all(
        None not in pair and math_value.near(*pair) for pair in known
    )


def _points(conditions: list[Form], name: str) -> list[fractions.Fraction]:
    """Halves and thirds about 0, and every rational bound; integers for even, odd."""
    if any(_PARITY.fullmatch(c.text) for c in conditions):
        return [fractions.Fraction(k) for k in range(1, 13)]
    points = {fractions.Fraction(k, 2) for k in range(-9, 10)}
    points |= {fractions.Fraction(k, 3) for k in (-20, -1, 1, 20)}
    sides = [side for c in conditions for part in _relations(c) for side in part.parts]
    bounds = [math_value.constant(side) for side in sides if side != name]
    points |= {fractions.Fraction(int(b.p), int(b.q)) for b in bounds if _rational(b)}
    return sorted(points)


def _rational(value) -> bool:
    return value is not None and bool(value.is_Rational)


def _relations(condition: Form) -> list[Form]:
    return (
        [read(part) for part in condition.parts]
        if condition.kind == "list"
        else [condition]
    )


def _at(side: tuple[Piece, ...], name: str, x: fractions.Fraction):
    """The value of the first piece whose condition holds; None where none does."""
    for value, condition in side:
        if not condition or _holds(read(condition), name, x):
            return _value(value, name, x)
    return None


def _holds(condition: Form, name: str, x: fractions.Fraction) -> bool:
    parity = _PARITY.fullmatch(condition.text)
    if parity:
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
    parsed = None if _WORD.search(text) else math_parse.expression(text)
    if parsed is None:
        raise _Unreadable
    try:
        return math_value.at(parsed, {name: x})
    except Exception:  # sympy raises many kinds where there is no value
        return None
