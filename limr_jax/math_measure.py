r"""What a unit measures: `\text{ km/h}` is 5/18 of `m s^-1`.

So that 1500 m is 1.5 km, and 5 m is neither 5 cm nor 5 s. Factors are exact.
"""

import re
from collections.abc import Callable
from fractions import Fraction

Measure = tuple[Fraction, tuple[tuple[str, int], ...]]

# short name → how many of the base unit, what it is a power of
_SIZES = {
    "m": (1, "m"), "cm": ("1/100", "m"), "mm": ("1/1000", "m"), "km": (1000, "m"),
    "in": ("0.0254", "m"), "ft": ("0.3048", "m"), "yd": ("0.9144", "m"),
    "mi": ("1609.344", "m"), "g": (1, "g"), "mg": ("1/1000", "g"), "kg": (1000, "g"),
    "lb": ("453.59237", "g"), "oz": ("28.349523125", "g"), "s": (1, "s"),
    "min": (60, "s"), "h": (3600, "s"), "day": (86400, "s"), "week": (604800, "s"),
    "month": ("1/12", "year"), "year": (1, "year"), "dollar": (1, "dollar"),
    "cent": ("1/100", "dollar"), "A": (1, "A"), "eV": (1, "eV"), "mol": (1, "mol"),
    "cal": (1, "cal"),
}  # fmt: skip
_DERIVED = {
    "L": ("1/1000", "m^3"), "ml": ("1/1000000", "m^3"),
    "gal": ("0.003785411784", "m^3"), "N": (1000, "g m / s^2"),
    "J": (1000, "g m^2 / s^2"), "W": (1000, "g m^2 / s^3"), "Hz": (1, "s^-1"),
    "mph": (1, "mi / h"), "kmh": (1, "km / h"), "Pa": (1000, "g / m s^2"),
    "C": (1, "A s"), "V": (1000, "g m^2 / A s^3"),
}  # fmt: skip
_PREFIXES = {"G": 10**9, "M": 10**6, "k": 10**3, "d": "1/10", "c": "1/100",
             "m": "1/1000", "n": "1/1000000000"}  # fmt: skip
_PREFIXED = "m g s A eV mol cal L N J W Pa V C Hz"
for _prefix, _times in _PREFIXES.items():
    for _name in _PREFIXED.split():
        _table = _SIZES if _name in _SIZES else _DERIVED
        _size, _of = _table[_name]
        _table.setdefault(_prefix + _name, (Fraction(_times) * Fraction(_size), _of))
NAMES = frozenset({*_SIZES, *_DERIVED})
_POWERS = {"sq": 2, "cu": 3}
_RAISED = {"squared": 2, "cubed": 3}
_TOKEN = re.compile(
    r"(?P<slash>/|\bper\b)|(?P<word>[A-Za-z]+)|\^\s*\{?\s*(?P<power>-?\d)\s*\}?"
    r"|(?P<other>[^\s{}.,~()·]|\\)"
)


def read(unit: str, short_name: Callable[[str], str | None]) -> Measure | None:
    """A cleaned unit as (factor, powers of base units), None where a word is unknown.

    short_name: how a unit may be written → its short name.
    """
    plain = re.sub(r"\\(?:text|cdot)(?![A-Za-z])", " ", unit)
    terms: list[list] = []  # [short name, power]
    sign, ahead = 1, 1
    for token in _TOKEN.finditer(plain):
        word = token["word"]
        short = word and short_name(word)
        if token["slash"]:
            sign = -1
        elif short in _POWERS:
            ahead = _POWERS[short]
        elif word in _RAISED and terms:
            terms[-1][1] *= _RAISED[word]
        elif token["power"] and terms:
            terms[-1][1] *= int(token["power"])
        elif short in _SIZES or short in _DERIVED:
            terms.append([short, sign * ahead])
            ahead = 1
        else:
            return None
    return _product(terms) if terms and ahead == 1 else None


def _product(terms: list[list]) -> Measure:
    factor, powers = Fraction(1), {}
    for short, power in terms:
        if short in _SIZES:
            size, base = _SIZES[short]
            whole = ((base, 1),)
        else:
            size, formula = _DERIVED[short]
            inner, whole = read(formula, str)
            size = Fraction(size) * inner
        factor *= Fraction(size) ** power
        for base, count in whole:
            powers[base] = powers.get(base, 0) + count * power
    return factor, tuple(sorted((b, n) for b, n in powers.items() if n))
