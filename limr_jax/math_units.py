r"""Units after a value: `5 \text{ cm}`, `10 square units`, `15th`, `98美元`.

A unit that only one side names is dropped. Two known units that differ are a conflict,
but where they measure the same thing one value can be put into the other's unit.
"""

import re
from fractions import Fraction

from limr_jax import math_measure, math_value

_UNITS = {
    "m": "meter metre", "cm": "centimeter centimetre", "mm": "millimeter millimetre",
    "km": "kilometer kilometre", "in": "inch inche", "ft": "foot feet", "yd": "yard",
    "mi": "mile", "g": "gram gm", "kg": "kilogram", "mg": "milligram", "lb": "pound",
    "oz": "ounce", "s": "second sec", "min": "minute", "h": "hour hr", "day": "",
    "week": "", "month": "", "year": "yr", "L": "liter litre", "ml": "milliliter mL",
    "gal": "gallon", "pint": "", "quart": "", "ton": "", "tonne": "", "acre": "",
    "N": "newton", "J": "joule", "W": "watt", "V": "volt", "K": "kelvin", "Hz": "hertz",
    "Pa": "pascal", "mol": "mole",
    "mph": "", "kmh": "kph", "dollar": "", "cent": "", "euro": "", "rad": "radian",
    "sq": "square", "cu": "cubic", "unit": "", "am": "", "pm": "", "th": "", "st": "",
    "nd": "", "rd": "", "deg": "", "yuan": "", "degC": "", "degF": "",
    "hundred": "", "thousand": "", "million": "", "billion": "", "trillion": "",
}  # fmt: skip
_ORDINAL = ("th", "st", "nd", "rd")
_ALIASES = {w: short for short, ws in _UNITS.items() for w in [short, *ws.split()]}


def _short_name(word: str) -> str | None:
    """`Metres` → `m`; a unit of physics with a prefix is its own short name."""
    known = word if word in math_measure.NAMES else None
    return _ALIASES.get(word) or known or _ALIASES.get(word.lower().rstrip("s"))


_MARKS = {"%": "percent", "°": "deg"}
_BOUND = r"\b(?:most|least|not|than|over|under|above|below|between|from|to)\b"
_NO_UNIT = re.compile(r"\b(?:not|wrong|incorrect|false|or|than)\b")  # 5 or more
_POWER = r"(?:\s*\^\s*\{?\s*-?\d\s*\}?)?"
_TEXT_UNIT = re.compile(
    r"(?<=[\d}\)!°%A-Za-z|])\s*(?:\^\s*\{\s*)?((?:\s*/?\s*\\text\{[^{}]*\}"
    rf"{_POWER}\s*)+)\}}?\s*(?:/\s*[A-Za-z]+)?{_POWER}$"
)
_WORD_UNIT = re.compile(
    rf"(?<=[\d}}\)°%])(\s*)((?:[A-Za-z]+\.?{_POWER}[\s/]*)+)(?:\([^()]*\))?$"
)
_OTHER_SCRIPT = re.compile(r"(?<=[\d}\)])\s*[\u3040-\u9fff\uac00-\ud7a3]+$")


def split(text: str) -> tuple[str, str]:
    """A cleaned item as (value, unit words); the unit is '' where there is none."""
    text = re.sub(
        rf"^\\text\{{(?![^{{}}]*{_BOUND})[^{{}}]*\}}\s*(?=[-\d(\\[])", "", text
    )
    text = re.sub(r"\s*\((?:\\text\{[^{}]*\}|[A-Z])\)$", "", text)
    text = _OTHER_SCRIPT.sub("", text)
    scale = re.search(r"(?<=°)\s*(?:\\text\{\s*)?([CF])\s*\}?$", text)
    if scale:
        return text[: scale.start()], f"deg{scale[1]}"
    found = _TEXT_UNIT.search(text)
    if found and not _NO_UNIT.search(found.group(1)):
        return text[: found.start()].strip(), found.group(1)
    found = _WORD_UNIT.search(text)
    if not found:
        return text, ""
    words = re.findall(r"[A-Za-z]+", found.group(2))
    known = [w in _ALIASES or w.lower().rstrip("s") in _ALIASES for w in words]
    spaced = bool(found.group(1))
    long = [len(w) >= (3 if spaced else 4) for w in words]
    plain = math_value.number(text[: found.start()].strip()) is not None
    if all(k and (len(w) > 1 or (spaced and plain)) or n
           for w, k, n in zip(words, known, long)):  # fmt: skip
        return text[: found.start()].strip(), found.group(2)
    return text, ""


def without(text: str) -> str:
    return split(text)[0]


_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*(?:,|and\b)?\s*")


def in_one(text: str) -> str:
    """`4 hours 30 minutes` as 270 minutes; any other text as it stands."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).strip()
    amounts = _AMOUNT.findall(plain)
    if not 2 <= len(amounts) <= 4 or _AMOUNT.sub("", plain):
        return text
    measures = [math_measure.read(unit, _short_name) for _, unit in amounts]
    if None in measures or len({m[1] for m in measures}) > 1:
        return text
    total = sum(Fraction(n) * m[0] for (n, _), m in zip(amounts, measures))
    total /= measures[-1][0]
    return (
        rf"\frac{{{total.numerator}}}{{{total.denominator}}} \text{{{amounts[-1][1]}}}"
    )


def with_currency(written: str, cleaned: str) -> str:
    r"""`\$5` with its unit in words, as 5 cents has it."""
    priced = re.fullmatch(
        r"\$?\s*(\\\$|[€£])\s*[-\d.,]+\$?|\$\s*[-\d.,]+", written.strip()
    )
    names = {"€": "euros", "£": "pounds"}
    name = names.get(priced[1], "dollars") if priced else ""
    return rf"{cleaned} \text{{ {name}}}" if priced else cleaned


def converted(ref: str, pred: str) -> tuple[str, str] | None:
    """Both values in the reference's unit; None unless both measure the same thing."""
    (mine, unit_r), (yours, unit_p) = split(ref), split(pred)
    measures = [math_measure.read(u, _short_name) for u in (unit_r, unit_p)]
    if None in measures or measures[0][1] != measures[1][1]:
        return None
    ratio = measures[1][0] / measures[0][0]
    literal = math_value.number(yours)
    if literal is None:
        scale = rf"\frac{{{ratio.numerator}}}{{{ratio.denominator}}}"
        return mine, rf"{scale}\cdot ({yours})"
    value = literal.value * ratio
    if value.denominator == 1:
        return mine, str(value.numerator)
    return mine, rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def conflict(ref: str, pred: str) -> bool:
    """Both sides name a known unit, and not the same: 5 m is not 5 cm."""
    units = []
    values, named = zip(*map(split, (ref, pred)))
    if all(named) and named[0] != named[1] and not re.search(r"\d", "".join(values)):
        return True  # 'n even', 'n odd'
    for value, unit in zip(values, named):
        words = re.findall(r"[A-Za-z]+", unit.replace(r"\text", ""))
        names = set(map(_short_name, words))
        mark = _MARKS.get(value.strip()[-1:]) if not names - {None} else None
        names |= {mark}
        powers = re.findall(r"\^\s*\{?\s*(-?\d)", unit)
        if "sq" in names or "cu" in names:
            powers = ["2" if "sq" in names else "3"]
        units.append((names - {None, "unit", "sq", "cu", *_ORDINAL}, powers))
    (mine, power), (yours, other) = units
    if {"rad"} in (mine, yours) and {"deg"} in (mine, yours):
        return not re.search(r"\\pi", "".join(values))  # `\frac{\pi}{3}` rad is 60°
    if {"deg"} in (mine, yours) and mine | yours <= {"deg", "degC", "degF"}:
        return False
    return bool(mine and yours and (not mine & yours or power != other))
