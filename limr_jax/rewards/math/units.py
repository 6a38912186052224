r"""Units after a value, currencies, too: `5 \text{ cm}`, `10 square units`, `98美元`.

A unit that only one side names is dropped. Two known units that differ are a conflict,
but where they measure the same thing one value can be put into the other's unit: 1500 m
is 1.5 km, and 5 m is neither 5 cm nor 5 s. Factors are exact.
"""

import re
from fractions import Fraction

from limr_jax.rewards.math.literals import parse_number

# (factor, powers of base units): km/h is (5/18, (("m", 1), ("s", -1))).
Measure = tuple[Fraction, tuple[tuple[str, int], ...]]

# short name → (how many of the base unit, the base unit)
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
# short name → (how many of the formula, the formula)
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
        # What is listed above keeps its entry: kg, cm, mg.
        _table.setdefault(_prefix + _name, (Fraction(_times) * Fraction(_size), _of))
NAMES = frozenset({*_SIZES, *_DERIVED})
# short name → other ways to write it
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
    "nd": "", "rd": "", "deg": "", "yuan": "", "degC": "celsius", "degF": "fahrenheit",
    "rupee": "", "yen": "", "ruble": "rouble", "peso": "",
}  # fmt: skip
_ORDINAL = ("th", "st", "nd", "rd")
_ALIASES = {w: short for short, ws in _UNITS.items() for w in [short, *ws.split()]}


def _short_name(word: str) -> str | None:
    """`Metres` → `m`; a unit of physics with a prefix is its own short name."""
    known = word if word in NAMES else None
    # As written first: only their letters' case parts MW from mW.
    return _ALIASES.get(word) or known or _ALIASES.get(word.lower().rstrip("s"))


_POWERS = {"sq": 2, "cu": 3}
_RAISED = {"squared": 2, "cubed": 3}
_TOKEN = re.compile(
    r"(?P<slash>/|\bper\b)|(?P<word>[A-Za-z]+)|\^\s*\{?\s*(?P<power>-?\d)\s*\}?"
    r"|(?P<other>[^\s{}.,~()·]|\\)"
)


def measure(unit: str) -> Measure | None:
    """A cleaned unit as (factor, powers of base units), None where a word is unknown.

    `\\text{ km/h}` is (5/18, (("m", 1), ("s", -1))).
    """
    plain = re.sub(r"\\(?:text|cdot)(?![A-Za-z])", " ", unit)
    terms: list[list] = []  # [short name, power]
    # sign: -1 behind a slash; ahead: the power that `square` gives to the next unit.
    sign, ahead = 1, 1
    for token in _TOKEN.finditer(plain):
        word = token["word"]
        short = word and _short_name(word)
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
            inner, whole = measure(formula)
            size = Fraction(size) * inner
        factor *= Fraction(size) ** power
        for base, count in whole:
            powers[base] = powers.get(base, 0) + count * power
    return factor, tuple(sorted((b, n) for b, n in powers.items() if n))


# What is counted, in the singular: with measures, the only words that may be dropped.
_COUNTED = """unit way item thing object piece part point place position digit value
    number integer solution root answer element member term factorization row
    column line circle square triangle rectangle polygon side edge vertex face diagonal
    region area interval angle page problem question test exam word letter symbol
    card coin ball marble die dice game round move turn step trip race mark goal
    vote person people man men woman women child children boy girl student pupil teacher
    worker employee player friend member guest passenger customer team group class
    family house home room chair table seat desk door window floor building school
    book notebook pen pencil paper sheet stamp ticket photo sticker gift present prize
    apple orange pear banana peach plum lemon grape cherry berry strawberry watermelon
    fruit vegetable carrot potato tomato onion egg cake cookie pie pizza slice sandwich
    candy chocolate lollipop marmalade jelly cup glass bottle can jar box bag basket
    bucket carton package packet pack bar loaf bread milk juice coffee water rice flour
    sugar animal dog cat cow pig goat sheep lamb horse chicken hen rabbit duck goose
    bird fish frog bee ant fly spider turtle elephant lion tiger bear monkey tree flower
    rose plant seed leaf branch car bus truck train bike bicycle boat ship plane
    helicopter wheel tire toy doll stuffed hard bead block brick tile stick rope ribbon
    shirt shoe sock hat dress coat button shelf stone rock shell star
    planet day night morning weekend term outcome path route combination arrangement
    permutation subset function sequence choice possibility case color colour red blue
    green yellow white black brown pink purple gray grey large small big little
    total altogether all in different distinct possible real approximately approx
    meal meals lap hit shot win loss year old generation dap clock chip
    bit byte kilobyte megabyte gigabyte degree"""
_COUNTED = frozenset(_COUNTED.split())
_IRREGULAR = {"vertices": "vertex", "leaves": "leaf", "shelves": "shelf",
              "loaves": "loaf", "geese": "goose"}  # fmt: skip
_JOINING = frozenset(("per", "a", "an", "each", "of", "the"))


def _counted(word: str) -> bool:
    return _singular(word) in _COUNTED


def _singular(word: str) -> str:
    word = _IRREGULAR.get(word.lower(), word.lower())
    forms = [word, word.removesuffix("s"), word.removesuffix("es")]
    forms += [word[:-3] + "y"] if word.endswith("ies") else []
    return next((form for form in forms if form in _COUNTED), word)


def only_units_and_nouns(words: str) -> bool:
    """Are these units and nouns only, which leave the number before them what it is?"""
    words = re.sub(r"\([A-Z]\)", "", words.replace(r"\text", " "))
    all_words = re.findall(r"[A-Za-z]+", words)
    units = [w for w in all_words if _short_name(w) or _counted(w)]
    rest = {w.lower() for w in all_words if w not in units}
    odd = re.sub(r"\^\s*\{?\s*-?\d\s*\}?|\\text|\\cdot|[A-Za-z\s{}/.,~()]", "", words)
    return bool(units) and rest <= _JOINING and not odd


_MARKS = {"%": "percent", "°": "deg"}
_POWER = r"(?:\s*\^\s*\{?\s*-?\d\s*\}?)?"
# `5\text{ m}/\text{s}^2`
_TEXT_UNIT = re.compile(
    r"(?<=[\d}\)!°%A-Za-z|])\s*(?:\^\s*\{\s*)?((?:\s*/?\s*(?:\\cdot\s*)?\\text\{[^{}]*\}"
    rf"{_POWER}\s*)+)\}}?\s*(/\s*[A-Za-z]+)?{_POWER}$"
)
# `5 cm`, `10 square units`
_WORD_UNIT = re.compile(
    rf"(?<=[\d}}\)°%])(\s*)((?:[A-Za-z]+\.?{_POWER}[\s/]*)+)(?:\([^()]*\))?$"
)
_CHINESE_UNIT = re.compile(
    r"(?<=[\d}\)])\s*(?:平方|立方)?(?:千米|公里|厘米|毫米|分米|米|千克|公斤|克|小时|分钟|秒|毫升"
    r"|升|吨|美元|人民币|元|角|种|个|人|只|条|本|页|天|次|岁|张|件|名|位|辆|棵|支|枝|块|组|年"
    r"|月|日|周|套|间|台|把|双|对|根|颗|朵|头|匹|份|袋|盒|瓶|杯|度|分|顶|枚|座|场)"
    r"(?:方法|方式|情况|不同的?(?:方法|方式)?)?[.。]?$"
)
# Words that may stand before a value; the last has to state it: 'The area is 4'.
_BEFORE = """
    the a an is are was be equals answer final result value number area volume
    perimeter length width height radius diameter distance speed probability sum product
    difference total amount cost price of which that it so thus hence therefore we get
    have there exactly only just approximately about around roughly required correct
    desired in all"""
_BEFORE = frozenset(_BEFORE.split())
_STATING = """
    number is are was be equals answer result get have exactly only just approximately
    about around roughly total"""
_STATING = frozenset(_STATING.split())
_WORDS_BEFORE = re.compile(r"^\\text\{([^{}]*)\}\s*:?\s*(?=[-\d(\\[|])")


_OPTION = re.compile(r"\(?[A-J]\)?[:.]?\s*(?:\\text\{\s*|\s)[A-Za-z]{2}")


def split_unit(text: str) -> tuple[str, str]:
    r"""A cleaned item as (value, unit words); the unit is '' where there is none.

    Words that are no known unit, no known noun and no known phrase stay in the value,
    which then is none: `5 \text{ squared}` is not 5.
    """
    # An option, `(B) square`, is not an amount.
    if _OPTION.match(text):
        return text, ""
    before = _WORDS_BEFORE.match(text)
    if before:
        words = re.findall(r"[^\W\d_]+", before[1].lower())
        stated = words and {*words} <= _BEFORE and words[-1] in _STATING
        if stated and not re.search(r"\d", before[1]):
            text = text[before.end() :]
    note = re.search(r"\s*\((?:\\text\{([^{}]*)\}|[A-Z])\)$", text)
    if note and (only_units_and_nouns(note[1]) if note[1] else re.search(r"\d", text)):
        text = text[: note.start()]
    text = _CHINESE_UNIT.sub("", text)
    # 20° C: the letter is neither a coulomb nor a variable.
    scale = re.search(
        r"(?<=°)\s*(?:\\text\{\s*)?([CF])(?:elsius|ahrenheit)?\s*\}?$", text
    )
    if scale:
        return text[: scale.start()], f"deg{scale[1]}"
    match = _TEXT_UNIT.search(text)
    if match:
        if not only_units_and_nouns(match[1] + (match[2] or "")):
            return text, ""
        return text[: match.start()].strip(), match.group(1) + (match[2] or "")
    match = _WORD_UNIT.search(text)
    if not match or not only_units_and_nouns(match[2]):
        return text, ""
    words = re.findall(r"[A-Za-z]+", match.group(2))
    spaced = bool(match.group(1))
    plain = parse_number(text[: match.start()].strip()) is not None
    # `3m` may be 3 times m; behind a number and a blank it is metres.
    if all(len(w) > 1 or (spaced and plain) for w in words):
        return text[: match.start()].strip(), match.group(2)
    return text, ""


def unit_name(unit: str) -> str:
    """A name that all spellings of one unit or noun share, `km` and `kilometers`."""
    size = measure(unit)
    if size:
        return str(size)
    words = re.findall(r"[A-Za-z]+", unit.replace(r"\text", " "))
    return " ".join(_short_name(w) or _singular(w) for w in words)


def without_unit(text: str) -> str:
    """The value of a cleaned item, without its unit."""
    return split_unit(text)[0]


_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*(?:,|and\b)?\s*")


def in_one_unit(text: str) -> str:
    """`4 hours 30 minutes` as 270 minutes; any other text as it stands."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).strip()
    amounts = _AMOUNT.findall(plain)
    if not 2 <= len(amounts) <= 4 or _AMOUNT.sub("", plain):
        return text
    measures = [measure(unit) for _, unit in amounts]
    if None in measures or len({m[1] for m in measures}) > 1:
        return text
    # All of it in the unit that stands last.
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


def in_reference_unit(ref: str, pred: str) -> tuple[str, str] | None:
    """Both values in the reference's unit; None unless both measure the same thing."""
    (mine, unit_r), (yours, unit_p) = split_unit(ref), split_unit(pred)
    measures = [measure(u) for u in (unit_r, unit_p)]
    if None in measures or measures[0][1] != measures[1][1]:
        return None
    ratio = measures[1][0] / measures[0][0]
    literal = parse_number(yours)
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
    values, unit_words = zip(*map(split_unit, (ref, pred)))
    if (
        all(unit_words)
        and unit_words[0] != unit_words[1]
        and not re.search(r"\d", "".join(values))
    ):
        return True  # 'n even', 'n odd'
    for value, unit in zip(values, unit_words):
        words = re.findall(r"[A-Za-z]+", unit.replace(r"\text", ""))
        names = set(map(_short_name, words))
        # A sign behind the number is its unit, where no word names one.
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


_CURRENCY_SIGNS = {
    "USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥", "CNY": "¥", "RMB": "¥", "INR": "₹",
    "RUB": "₽", "DOLLAR": "$", "EURO": "€", "RUPEE": "₹", "YEN": "¥", "YUAN": "¥",
    "CENT": "$",
}  # fmt: skip
# `$5` names a currency; `$5$` is TeX.
_CURRENCIES = re.compile(
    r"[€£¥₹₽]|\\\$|^\s*\$(?=[\d., ]+$)"
    rf"|(?<![A-Za-z])({'|'.join(_CURRENCY_SIGNS)})s?(?![A-Za-z])",
    re.IGNORECASE,
)


def currencies_differ(one: str, two: str) -> bool:
    """Whether both texts name a currency, and not the same one.

    As written: `normalise.clean` drops a currency.
    """
    signs = [
        {
            _CURRENCY_SIGNS.get((m[1] or "").upper(), m[0].strip()[-1])
            for m in _CURRENCIES.finditer(text)
        }
        for text in (one, two)
    ]
    return all(signs) and signs[0] != signs[1]
