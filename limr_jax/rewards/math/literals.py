r"""Literal numbers, and which of them round to which.

Rounding. A number with a decimal point may be a rounded one. It stands for an exact
value that rounds or truncates to it, where it shows at least 3 significant digits and
is the reference's (the reference states the rounding), or at least 4 and is the
prediction's (6 where the reference is written with π). Two decimals agree if the longer
rounds to the shorter, 3 digits or more (2 of two percentages). An integer in a
reference is exact.
"""

import dataclasses
import fractions
import re

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
    # `0.1\overline{6}`
    r"(?P<head>\d*)\.(?P<fixed>\d*)\s*\\(?:overline|dot|bar)\s*\{?(?P<cycle>\d+)\}?"
    # `\frac{1}{2}`, `3\frac{1}{2}`
    r"|(?:(?P<whole>\d+)\s*)?\\frac\s*\{\s*(?P<top>-?\d+)\s*\}\s*\{\s*(?P<low>\d+)\s*\}"
    # `1/2`, `3 1/2`
    r"|(?:(?P<mixed>\d+) )?(?P<over>\d+)\s*/\s*(?P<under>\d+)"
    # `1.5`, `1.5\cdot 10^{3}`
    r"|(?P<decimal>\d+\.\d*|\.\d+|\d+)"
    r"(?:\s*\\cdot\s*10\s*\^\s*(?:\{\s*(?P<power>[-+]?\d+)\s*\}|(?P<digit>\d)))?"
    r")\s*(?P<mark>\\%|°)?"
)


def _decimal(match: re.Match) -> tuple[fractions.Fraction, fractions.Fraction | None]:
    text = match["decimal"]
    power = int(match["power"] or match["digit"] or 0)
    places = len(text.partition(".")[2])
    scale = fractions.Fraction(10) ** power
    # Beside a power of ten the last digit may be rounded, too: `15\cdot 10^3`.
    step = scale / 10**places if places or power else None
    return fractions.Fraction(text.rstrip(".") or "0") * scale, step


def _repeating(head: str, fixed: str, cycle: str) -> fractions.Fraction:
    """0.1666… as its fraction."""
    ninths = fractions.Fraction(int(cycle), 10 ** len(cycle) - 1)
    return fractions.Fraction(f"{head or 0}.{fixed or 0}") + ninths / 10 ** len(fixed)


def parse_number(text: str) -> Number | None:
    """A cleaned string that is one literal number, or None."""
    # `0.1212\dots`: what stands there twice goes on for ever.
    text = re.sub(r"^([-+]?\d*\.\d*?)(\d{1,6}?)\2{1,40}\s*\\dots$",
                  r"\1\\overline{\2}", text[:MAX_DIGITS])  # fmt: skip
    # Without its dots it is a decimal, which stands for what truncates to it.
    text = re.sub(r"(?<=\.\d\d)(\d*)\s*\\dots$", r"\1", text)  # 3.14159… goes on
    match = _LITERAL.fullmatch(text) if len(text) < MAX_DIGITS else None
    if match is None or abs(int(match["power"] or 0)) > MAX_DIGITS:
        return None
    step = None
    if match["low"] or match["under"]:
        top, low = match["top"] or match["over"], match["low"] or match["under"]
        whole = match["whole"] or match["mixed"]
        # 2 3/2 is a product to some and a sum to others: no literal.
        if not int(low) or (whole and not 0 < int(top) < int(low)):
            return None
        value = fractions.Fraction(int(top), int(low)) + int(whole or 0)
    elif match["cycle"]:
        value = _repeating(match["head"], match["fixed"], match["cycle"])
    else:
        value, step = _decimal(match)
    # Those that show something: zeros in front do not, zeros at the end do.
    digits = len((match["decimal"] or "").replace(".", "").lstrip("0")) or 1
    if match["sign"] == "-":
        value = -value
    percent, degree = match["mark"] == r"\%", match["mark"] == "°"
    return Number(value, step, digits=digits, percent=percent, degree=degree)


def stands_for(
    rounded: Number, exact: fractions.Fraction, scale: int, min_digits: int
) -> bool:
    """Does the decimal round, or truncate, `exact`? `scale` is 100 for a percentage."""
    if rounded.step is None or rounded.digits < min_digits:
        return False
    value, step = rounded.value / scale, rounded.step / scale
    truncated = value * exact > 0 and 0 <= abs(exact) - abs(value) < step
    return abs(value - exact) * 2 <= step or truncated


def numbers_agree(reference: Number, prediction: Number) -> bool:
    """Equality of two literals under the rounding rule; 28 % = 28 = 0.28."""
    if reference.percent + prediction.percent and reference.degree + prediction.degree:
        return False  # 75 % of what is not 75 degrees
    # What the two values are divided by: (the reference's, the prediction's).
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
        # Nine equal digits differ by a computation's noise: 2.9999999999 is 3.
        if ref == pred or (inexact and abs(ref - pred) * 10**9 < abs(ref)):
            return True
        # `180.67` for 542/3: the reference states the rounding.
        if stands_for(reference, pred, scale=mine, min_digits=3):
            finer = prediction.step is None or prediction.step < reference.step
            if finer and prediction.value.denominator > 1:
                return True
        if reference.step is None and reference.value.denominator == 1:
            continue
        least = 4
        if reference.step:
            least = 2 if reference.percent and prediction.percent else 3
        rounds = stands_for(prediction, ref, scale=yours, min_digits=least)
        # 300 for 299.94: a whole number of three digits may be rounded, too.
        whole = prediction.step is None and prediction.digits >= 3
        if rounds or (whole and prediction.value == round(ref) and reference.step):
            return True
    return False
