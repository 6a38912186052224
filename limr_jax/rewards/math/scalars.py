r"""Are two scalars the same number or the same expression?

Literal numbers are compared as exact fractions, without sympy, so that the caller's
process may do it too (`compare_literals`). Everything else is parsed by math-verify's
LaTeX grammar and compared by evaluation: exactly where both are rational, to enough
digits where both are numbers, at fixed points where there are free symbols (two
different expressions agree at all of them with negligible probability; `simplify` is
slower and knows less).
"""

import fractions
import functools
import random
import re

from limr_jax.rewards.math import normalise
from limr_jax.rewards.math.literals import (
    Number,
    numbers_agree,
    parse_number,
    stands_for,
)
from limr_jax.rewards.math.sympy_parse import parse_expression


@functools.lru_cache(maxsize=4096)
def exact_value(text: str):
    """A cleaned text's value as sympy has it, exact; None where it is no number."""
    import sympy

    literal = parse_number(text)
    if literal:
        return sympy.Rational(*literal.value.as_integer_ratio())
    parsed = parse_expression(text)
    if not isinstance(parsed, sympy.Expr):
        return None
    try:
        # The grammar has no imaginary unit: its i is a letter.
        i = [s for s in parsed.free_symbols if s.name == "i"]
        parsed = parsed.subs(dict.fromkeys(i, sympy.I)) if i else parsed
        # 1/0 is zoo to sympy, 0/0 is nan.
        if parsed.free_symbols or parsed.has(sympy.zoo, sympy.nan):
            return None
        done = parsed.doit()
        return None if done.has(sympy.zoo, sympy.nan) else done
    except Exception:  # sympy raises many kinds where there is no value
        return None


@functools.lru_cache(maxsize=4096)
def numeric_value(text: str):
    """A cleaned text's value as a sympy number of 30 digits, or an exact rational.

    None where it is no finite number.
    """
    import sympy

    value = exact_value(text)
    if value is None or isinstance(value, sympy.Rational):
        return value
    try:
        value = value.evalf(30)
        return value if value.is_number and value.is_finite else None
    except Exception:
        return None


_MOST_DIGITS = 4_000  # two forms that need more to be told apart are not equal


def equal_closed_forms(a, b) -> bool:
    """Whether two numbers of sympy's are equal; 1 and 1 - e^{-100} are not.

    Told apart by as many digits as the parts of both can make them differ by: twice
    the sum of the parts' orders of magnitude, and some (after the separation bounds
    of Burnikel et al., Algorithmica 2009, which are for roots; e and π make it a rule
    of thumb).
    """
    import sympy

    # Two rationals are equal or not; for anything else == compares how it is written.
    rational = isinstance(a, sympy.Rational) and isinstance(b, sympy.Rational)
    if a == b or rational:
        return bool(a == b)
    ends = a.evalf(30), b.evalf(30)
    if not all(end.is_number and end.is_finite for end in ends):
        return False
    size = abs(ends[0]) + abs(ends[1])
    apart = abs(ends[0] - ends[1])
    # Different within the first 20 of 30 digits: no need of more.
    if apart > sympy.Float("1e-20") * max(size, sympy.Float("1e-60")):
        return False
    if a.has(sympy.Integral, sympy.Sum, sympy.Limit, sympy.Product):
        return True  # numerical, 30 digits of it
    digits = _digits(a, b)
    if digits > _MOST_DIGITS:
        return False
    # maxn: terms that cancel need more working digits than sympy's own 100.
    apart = abs(a.evalf(digits, maxn=3 * digits) - b.evalf(digits, maxn=3 * digits))
    return bool(apart <= sympy.Float(10) ** (20 - digits) * max(size, 1))


def _digits(*forms) -> int:
    import sympy

    parts = {part for form in forms for part in sympy.preorder_traversal(form)}
    orders = 0.0
    for part in parts:
        value = abs(part.evalf(5)) if part.is_number else 0
        if value and value.is_finite:
            orders += abs(float(sympy.log(value, 10).evalf(5)))
    return int(80 + 2 * orders + 2 * len(parts))


def _as_fraction(value) -> fractions.Fraction | None:
    import sympy

    if isinstance(value, sympy.Rational):
        return fractions.Fraction(int(value.p), int(value.q))
    if isinstance(value, sympy.Float):
        return fractions.Fraction(str(value)) if abs(value) < 1e300 else None
    return None


# A multiple of π is asked for as it stands: four digits do not show it.
_CLOSED = re.compile(r"^(?!.*\\(?:sin|cos|tan)).*\\pi")


def _same_constant(reference: str, prediction: str) -> bool:
    ref, pred = numeric_value(reference), numeric_value(prediction)
    if ref is None or pred is None:
        return False
    # Exactly first: only a rounded number has to show digits.
    if equal_closed_forms(exact_value(reference), exact_value(prediction)):
        return True
    literal_r, literal_p = parse_number(reference), parse_number(prediction)
    exact_r, exact_p = _as_fraction(ref), _as_fraction(pred)
    if literal_r and literal_r.step and exact_p is not None:
        if stands_for(literal_r, exact_p, scale=1, min_digits=3):
            return True
    elif literal_p and literal_p.step and exact_r is not None:
        least = 6 if _CLOSED.search(reference) else 4
        return stands_for(literal_p, exact_r, scale=1, min_digits=least)
    return False


def _points(names: tuple[str, ...], counted: bool):
    """Fixed values for the free symbols: small reals, larger integers, one negative.

    counted: integers alone, where a letter is the end of a sum.
    """
    # Seeded by the letters, so that a verdict never changes from run to run.
    draw = random.Random(" ".join(names))
    if counted:
        for _ in range(4):
            yield {n: fractions.Fraction(draw.randint(3, 25)) for n in names}, True
        return
    # With each point: whether values count there even if they are not real.
    for _ in range(4):
        yield {n: fractions.Fraction(draw.randint(30, 299), 97) for n in names}, True
    for _ in range(2):
        yield {n: fractions.Fraction(draw.randint(4, 25)) for n in names}, True
    # One letter negative at a time: only there |x| and x differ.
    for flipped in names[:4]:
        at = {n: fractions.Fraction(draw.randint(30, 299), 97) for n in names}
        yield at | {flipped: -at[flipped]}, False


def _exactly_at(parsed, values: dict):
    import sympy

    numbers = {n: sympy.Rational(*v.as_integer_ratio()) for n, v in values.items()}
    # The one letter without a value is i.
    subs = {s: numbers.get(s.name, sympy.I) for s in parsed.free_symbols}
    return parsed.subs(subs).doit()


def value_at(parsed, values: dict):
    """The value of an expression where its letters have these; None without one."""
    import sympy

    value = _exactly_at(parsed, values)
    if isinstance(value, sympy.Rational):
        return value
    value = value.evalf(25)
    return value if value.is_number and value.is_finite else None


def _names(*parsed) -> tuple[tuple[str, ...], bool]:
    import sympy

    names = tuple(sorted({s.name for e in parsed for s in e.free_symbols} - {"i"}))
    counted = any(e.has(sympy.Sum, sympy.Product, sympy.factorial) for e in parsed)
    return names, counted


def values_at_points(*parsed) -> list[tuple] | None:
    """Values of the expressions at common points; None where too few can be had."""
    names, counted = _names(*parsed)
    rows = []
    for values, everywhere in _points(names, counted):
        try:
            row = tuple(value_at(e, values) for e in parsed)
        except Exception:
            continue
        if any(v is None for v in row):
            continue
        # Beside a negative number the branch of √x or ln x is a mere convention.
        if everywhere or all(v.is_real for v in row):
            rows.append(row)
    return rows if len(rows) >= 3 else None


def nearly_equal(a, b) -> bool:
    """Whether two values of `value_at` are equal, to 12 digits where one is inexact."""
    if a.is_Rational and b.is_Rational:
        return bool(a == b)
    return bool(abs(a - b) <= 1e-12 * (abs(a) + abs(b)))


# `1011_2`, `(1011)_2`, `2A_{16}`.
_BASE = re.compile(r"\(?(\d[\dA-Fa-f]*)\)?\s*_\s*(?:\{\s*)?(\d+)\s*\}?")


def same_value(reference: str, prediction: str) -> bool:
    """Whether two cleaned texts are one number or one expression."""
    if normalise.squeeze(reference) == normalise.squeeze(prediction):
        return bool(reference)
    bases = [_BASE.fullmatch(t) for t in (reference, prediction)]
    if any(bases):
        digits = [m[1] if m else t for m, t in zip(bases, (reference, prediction))]
        if all(bases):
            return digits[0].lower() == digits[1].lower() and bases[0][2] == bases[1][2]
        return digits[0] == digits[1] and not bases[1]  # 101_2 is not 101
    ref, pred = parse_number(reference), parse_number(prediction)
    if ref and pred:
        return numbers_agree(ref, pred) or _degrees(reference, prediction)
    if _same_constant(reference, prediction):
        return True
    if ref and r"\pi" in prediction and _school_pi(ref, prediction):
        return True
    if _degrees(reference, prediction):
        return True
    return same_expression(reference, prediction)


def _school_pi(reference: Number, prediction: str) -> bool:
    """A reference computed with 22/7 or 3.14 for π, the prediction exact: 14 is 44."""
    if reference.step is None and reference.value.denominator > 1:
        return False
    for value in (r"\frac{22}{7}", "(3.14)"):
        computed = numeric_value(
            re.sub(r"\\pi(?![A-Za-z])", lambda _, value=value: value, prediction)
        )
        exact = _as_fraction(computed) if computed is not None else None
        if exact == reference.value:
            return True
    return False


def _degrees(reference: str, prediction: str) -> bool:
    """An angle in degrees against one in radians: only where π shows which is which."""
    marks = [t.endswith("°") for t in (reference, prediction)]
    if marks[0] == marks[1]:
        return False
    mine, yours = (
        rf"\frac{{({t.removesuffix('°')})\pi}}{{180}}" if m else t
        for t, m in zip((reference, prediction), marks)
    )
    bare = prediction if marks[0] else reference
    return r"\pi" in bare and _same_constant(mine, yours)


def _expressions(reference: str, prediction: str):
    """Both texts as expressions of sympy's; None unless both are such."""
    import sympy

    pair = parse_expression(reference), parse_expression(prediction)
    # A relation, a tuple or a truth value is parsed too, and has no value at a point.
    return pair if all(isinstance(x, sympy.Expr) for x in pair) else None


def same_expression(reference: str, prediction: str) -> bool:
    """Equality as functions of the free symbols, by evaluation at fixed points."""
    pair = _expressions(reference, prediction)
    if pair is None:
        return False
    ref, pred = pair
    if not (ref.free_symbols or pred.free_symbols):
        return False
    rows = values_at_points(ref, pred)
    if not rows or not all(nearly_equal(a, b) for a, b in rows):
        return False
    names, counted = _names(ref, pred)
    # At one point exactly: near is not equal, as in x + e^{-100}.
    try:
        values, _ = next(_points(names, counted))
        return equal_closed_forms(_exactly_at(ref, values), _exactly_at(pred, values))
    except Exception:
        return False


def same_up_to_factor(reference: str, prediction: str, positive: bool) -> bool:
    """Is `reference` a constant (positive) multiple of `prediction`? For equations."""
    pair = _expressions(reference, prediction)
    if pair is None:
        return False
    ref, pred = pair
    # Where both are 0 any factor would do.
    rows = [row for row in values_at_points(ref, pred) or [] if any(row)]
    if len(rows) < 3 or not all(a and b for a, b in rows):
        return False
    factor = rows[0][0] / rows[0][1]
    if positive and not (factor.is_real and factor > 0):
        return False
    return all(nearly_equal(a / b, factor) for a, b in rows)


def compare_literals(reference: str, prediction: str) -> bool | None:
    """Whether two literal numbers, as written, agree; None unless both are literals."""
    ref = parse_number(normalise.clean(reference))
    pred = parse_number(normalise.clean(prediction))
    return numbers_agree(ref, pred) if ref and pred else None
