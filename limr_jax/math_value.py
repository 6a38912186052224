r"""Are two scalars the same number or the same expression?

Literal numbers are compared as exact fractions, without sympy, so that the parent
process may do it too. Everything else is parsed by math-verify's LaTeX grammar and
compared by evaluation: exactly where both are rational, to 25 digits where both are
numbers, at fixed points where there are free symbols (two different expressions agree
at all of them with negligible probability; `simplify` is slower and knows less).

Rounding. A number with a decimal point may be a rounded one. It stands for an exact
value that rounds or truncates to it, where it shows at least 3 significant digits and
is the reference's (the reference states the rounding), or at least 4 and is the
prediction's (6 where the reference is written with π). Two decimals agree if the longer
rounds to the shorter, 3 digits or more. An integer in a reference is exact.
"""

import dataclasses
import fractions
import functools
import random
import re

from limr_jax import math_parse, math_text

MAX_DIGITS = 400  # a longer literal is text, not a number


@dataclasses.dataclass(frozen=True)
class Number:
    """A literal: its value, the unit of its last decimal (None: exact), its marks."""

    value: fractions.Fraction
    step: fractions.Fraction | None
    digits: int
    percent: bool = False
    degree: bool = False


_LITERAL = re.compile(
    r"(?P<sign>[-+]?)\s*(?:"
    r"(?P<head>\d*)\.(?P<fixed>\d*)\s*\\(?:overline|dot|bar)\s*\{?(?P<cycle>\d+)\}?"
    r"|(?:(?P<whole>\d+)\s*)?\\frac\s*\{\s*(?P<top>-?\d+)\s*\}\s*\{\s*(?P<low>\d+)\s*\}"
    r"|(?:(?P<mixed>\d+) )?(?P<over>\d+)\s*/\s*(?P<under>\d+)"
    r"|(?P<decimal>\d+\.\d*|\.\d+|\d+)"
    r"(?:\s*\\cdot\s*10\s*\^\s*(?:\{\s*(?P<power>[-+]?\d+)\s*\}|(?P<digit>\d)))?"
    r")\s*(?P<mark>\\%|°)?"
)


def _decimal(match: re.Match) -> tuple[fractions.Fraction, fractions.Fraction | None]:
    text = match["decimal"]
    power = int(match["power"] or match["digit"] or 0)
    places = len(text.partition(".")[2])
    scale = fractions.Fraction(10) ** power
    step = scale / 10**places if places or power else None
    return fractions.Fraction(text.rstrip(".") or "0") * scale, step


def _repeating(head: str, fixed: str, cycle: str) -> fractions.Fraction:
    """0.1666… as its fraction."""
    ninths = fractions.Fraction(int(cycle), 10 ** len(cycle) - 1)
    return fractions.Fraction(f"{head or 0}.{fixed or 0}") + ninths / 10 ** len(fixed)


def number(text: str) -> Number | None:
    """A cleaned string that is one literal number, or None."""
    text = re.sub(r"^([-+]?\d*\.\d*?)(\d{1,6}?)\2{1,40}\s*\\dots$",
                  r"\1\\overline{\2}", text[:MAX_DIGITS])  # fmt: skip
    text = re.sub(r"(?<=\.\d\d)(\d*)\s*\\dots$", r"\1", text)  # 3.14159… goes on
    match = _LITERAL.fullmatch(text) if len(text) < MAX_DIGITS else None
    if match is None or abs(int(match["power"] or 0)) > MAX_DIGITS:
        return None
    step = None
    if match["low"] or match["under"]:
        top, low = match["top"] or match["over"], match["low"] or match["under"]
        whole = match["whole"] or match["mixed"]
        if not int(low) or (whole and not 0 < int(top) < int(low)):
            return None
        value = fractions.Fraction(int(top), int(low)) + int(whole or 0)
    elif match["cycle"]:
        value = _repeating(match["head"], match["fixed"], match["cycle"])
    else:
        value, step = _decimal(match)
    digits = len((match["decimal"] or "").replace(".", "").lstrip("0")) or 1
    if match["sign"] == "-":
        value = -value
    percent, degree = match["mark"] == r"\%", match["mark"] == "°"
    return Number(value, step, digits, percent, degree)


def stands_for(
    rounded: Number, exact: fractions.Fraction, scale: int, min_digits: int
) -> bool:
    """Does the decimal round, or truncate, `exact`? `scale` is 100 for a percentage."""
    if rounded.step is None or rounded.digits < min_digits:
        return False
    value, step = rounded.value / scale, rounded.step / scale
    truncated = value * exact > 0 and 0 <= abs(exact) - abs(value) < step
    return abs(value - exact) * 2 <= step or truncated


def close(reference: Number, prediction: Number) -> bool:
    """Equality of two literals under the rounding rule; 28 % = 28 = 0.28."""
    if reference.percent + prediction.percent and reference.degree + prediction.degree:
        return False  # 75 % of what is not 75 degrees
    scales = [(1, 1)]
    if reference.percent != prediction.percent:
        scales = [(100, 1) if reference.percent else (1, 100)]
        plain = prediction if reference.percent else reference
        # 28 may lack its sign; 1/8 and a reference of 0.125 are what they say.
        exact = plain.step is None or plain is reference
        if abs(plain.value) >= 1 or not exact:
            scales.append((1, 1))
    for mine, yours in scales:
        ref, pred = reference.value / mine, prediction.value / yours
        inexact = reference.step or prediction.step
        if ref == pred or (inexact and abs(ref - pred) * 10**9 < abs(ref)):
            return True
        if stands_for(reference, pred, mine, 3 if prediction.step is None else 3):
            finer = prediction.step is None or prediction.step < reference.step
            if finer and prediction.value.denominator > 1:
                return True
        if reference.step is None and reference.value.denominator == 1:
            continue
        rounds = stands_for(prediction, ref, yours, 3 if reference.step else 4)
        whole = prediction.step is None and prediction.digits >= 3
        if rounds or (whole and prediction.value == round(ref) and reference.step):
            return True
    return False


# ---- values of expressions --------------------------------------------------


@functools.lru_cache(maxsize=4096)
def constant(text: str):
    """A cleaned string's value as a sympy number of 30 digits, or an exact rational."""
    import sympy

    literal = number(text)
    if literal:
        return sympy.Rational(*literal.value.as_integer_ratio())
    parsed = math_parse.expression(text)
    if not isinstance(parsed, sympy.Expr):
        return None
    try:
        i = [s for s in parsed.free_symbols if s.name == "i"]
        parsed = parsed.subs(dict.fromkeys(i, sympy.I)) if i else parsed
        if parsed.free_symbols or parsed.has(sympy.zoo, sympy.nan):
            return None
        done = parsed.doit()
        if isinstance(done, sympy.Rational):
            return done
        value = done.evalf(30)
        return value if value.is_number and value.is_finite else None
    except Exception:
        return None


def _exactly(a, b) -> bool:
    import sympy

    if isinstance(a, sympy.Rational) and isinstance(b, sympy.Rational):
        return a == b
    if not a.is_comparable and not b.is_comparable:
        a, b = sympy.N(a, 30), sympy.N(b, 30)
    size = abs(a) + abs(b)
    return bool(size == 0 or abs(a - b) <= sympy.Float("1e-20", 30) * size)


def _as_fraction(value) -> fractions.Fraction | None:
    import sympy

    if isinstance(value, sympy.Rational):
        return fractions.Fraction(int(value.p), int(value.q))
    if isinstance(value, sympy.Float):
        return fractions.Fraction(str(value)) if abs(value) < 1e300 else None
    return None


# A multiple of π is asked for as it stands: four digits do not show it.
_CLOSED = re.compile(r"^(?!.*\\(?:sin|cos|tan)).*\\pi")
_DECIMAL = re.compile(r"\d\.\d|(?<!\d)\.\d")


def _same_constant(reference: str, prediction: str) -> bool:
    ref, pred = constant(reference), constant(prediction)
    if ref is None or pred is None:
        return False
    if _exactly(ref, pred):
        return True
    literal_r, literal_p = number(reference), number(prediction)
    exact_r, exact_p = _as_fraction(ref), _as_fraction(pred)
    if literal_r and literal_r.step and exact_p is not None:
        if stands_for(literal_r, exact_p, 1, 3):
            return True
    elif literal_p and literal_p.step and exact_r is not None:
        if stands_for(literal_p, exact_r, 1, 6 if _CLOSED.search(reference) else 4):
            return True
    elif _DECIMAL.search(reference) or _DECIMAL.search(prediction):
        return bool(abs(ref - pred) <= 1e-6 * abs(ref))
    return False


def _points(names: tuple[str, ...], counted: bool):
    """Fixed values for the free symbols: small reals, larger integers, one negative.

    counted: integers alone, where a letter is the end of a sum.
    """
    draw = random.Random(" ".join(names))
    if counted:
        for _ in range(4):
            yield {n: fractions.Fraction(draw.randint(3, 25)) for n in names}, True
        return
    for _ in range(4):
        yield {n: fractions.Fraction(draw.randint(30, 299), 97) for n in names}, True
    for _ in range(2):
        yield {n: fractions.Fraction(draw.randint(4, 25)) for n in names}, True
    for flipped in names[:4]:
        at = {n: fractions.Fraction(draw.randint(30, 299), 97) for n in names}
        yield at | {flipped: -at[flipped]}, False


def at(parsed, values: dict):
    """The value of an expression where its letters have these; None without one."""
    import sympy

    numbers = {n: sympy.Rational(*v.as_integer_ratio()) for n, v in values.items()}
    subs = {s: numbers.get(s.name, sympy.I) for s in parsed.free_symbols}
    value = parsed.subs(subs).doit()
    if isinstance(value, sympy.Rational):
        return value
    value = value.evalf(25)
    return value if value.is_number and value.is_finite else None


def samples(*parsed) -> list[tuple] | None:
    """Values of the expressions at common points; None where too few can be had."""
    import sympy

    names = tuple(sorted({s.name for e in parsed for s in e.free_symbols} - {"i"}))
    counted = any(e.has(sympy.Sum, sympy.Product, sympy.factorial) for e in parsed)
    rows = []
    for values, everywhere in _points(names, counted):
        try:
            row = tuple(at(e, values) for e in parsed)
        except Exception:
            continue
        if any(v is None for v in row):
            continue
        if everywhere or all(v.is_real for v in row):
            rows.append(row)
    return rows if len(rows) >= 3 else None


def near(a, b) -> bool:
    """Equality of two values of `at`."""
    if a.is_Rational and b.is_Rational:
        return bool(a == b)
    return bool(abs(a - b) <= 1e-12 * (abs(a) + abs(b)))


_BASE = re.compile(r"\(?(\d[\dA-Fa-f]*)\)?\s*_\s*\{?(\d+)\}?")


def same_value(reference: str, prediction: str) -> bool:
    """Equality of two scalars given as cleaned strings."""
    if math_text.squeeze(reference) == math_text.squeeze(prediction):
        return bool(reference)
    bases = [_BASE.fullmatch(t) for t in (reference, prediction)]
    if any(bases):
        digits = [m[1] if m else t for m, t in zip(bases, (reference, prediction))]
        if all(bases):
            return digits[0].lower() == digits[1].lower() and bases[0][2] == bases[1][2]
        return digits[0] == digits[1] and not bases[1]  # 101_2 is not 101
    ref, pred = number(reference), number(prediction)
    if ref and pred:
        return close(ref, pred) or _degrees(reference, prediction)
    if _same_constant(reference, prediction):
        return True
    if ref and r"\pi" in prediction and _school_pi(ref, prediction):
        return True
    for scaled_r, scaled_p in _percentages(reference, prediction):
        if _same_constant(scaled_r, scaled_p):
            return True
    if _degrees(reference, prediction):
        return True
    return same_expression(reference, prediction)


def _school_pi(reference: Number, prediction: str) -> bool:
    """A reference computed with 22/7 or 3.14 for π, the prediction exact: 14 is 44."""
    if reference.step is None and reference.value.denominator > 1:
        return False
    for value in (r"\frac{22}{7}", "(3.14)"):
        computed = constant(re.sub(r"\\pi(?![A-Za-z])", lambda _: value, prediction))  # noqa: B023
        exact = _as_fraction(computed) if computed is not None else None
        if exact is not None and abs(exact - reference.value) * 10**9 < abs(exact):
            return True
    return False


def _percentages(reference: str, prediction: str):
    """A percentage against a number without the sign: also as a hundredth."""
    marks = [t.endswith(r"\%") for t in (reference, prediction)]
    if marks[0] == marks[1]:
        return
    texts = [t.removesuffix(r"\%").strip() for t in (reference, prediction)]
    literal = number(texts[0 if marks[0] else 1])
    other = constant(texts[1 if marks[0] else 0])
    if literal and other is not None and (exact := _as_fraction(other)) is not None:
        least = 3 if marks[0] else 4
        if stands_for(literal, exact, 100, least):
            yield "0", "0"
    hundredth = [rf"\frac{{{t}}}{{100}}" if m else t for t, m in zip(texts, marks)]
    yield hundredth[0], hundredth[1]


def _degrees(reference: str, prediction: str) -> bool:
    """An angle in degrees against one in radians: only where π shows which is which."""
    marks = [t.endswith("°") for t in (reference, prediction)]
    if marks[0] == marks[1]:
        return False
    texts = [
        rf"\frac{{({t.removesuffix('°')})\pi}}{{180}}" if m else t
        for t, m in zip((reference, prediction), marks)
    ]
    bare = prediction if marks[0] else reference
    return r"\pi" in bare and _same_constant(*texts)


def same_expression(reference: str, prediction: str) -> bool:
    """Equality as functions of the free symbols, by evaluation at fixed points."""
    import sympy

    ref, pred = math_parse.expression(reference), math_parse.expression(prediction)
    if not isinstance(ref, sympy.Expr) or not isinstance(pred, sympy.Expr):
        return False
    if not (ref.free_symbols or pred.free_symbols):
        return False
    rows = samples(ref, pred)
    return bool(rows) and all(near(a, b) for a, b in rows)


def same_up_to_factor(reference: str, prediction: str, positive: bool) -> bool:
    """Is `reference` a constant (positive) multiple of `prediction`? For equations."""
    import sympy

    ref, pred = math_parse.expression(reference), math_parse.expression(prediction)
    if not isinstance(ref, sympy.Expr) or not isinstance(pred, sympy.Expr):
        return False
    rows = [row for row in samples(ref, pred) or [] if any(row)]
    if len(rows) < 3 or not all(a and b for a, b in rows):
        return False
    factor = rows[0][0] / rows[0][1]
    if positive and not (factor.is_real and factor > 0):
        return False
    return all(near(a / b, factor) for a, b in rows)


def legible(text: str) -> bool:
    """Could it be evaluated? Then a comparison that failed says 'different'."""
    import sympy

    if number(text) or constant(text) is not None:
        return True
    parsed = math_parse.expression(text)
    return isinstance(parsed, sympy.Expr) and samples(parsed) is not None


def literals(reference: str, prediction: str) -> bool | None:
    """The verdict on two literal numbers, None unless both are: needs no worker."""
    ref = number(math_text.clean(reference))
    pred = number(math_text.clean(prediction))
    return close(ref, pred) if ref and pred else None
