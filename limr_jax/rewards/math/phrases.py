r"""Mathematics in words: `\text{cube root of } 125`, `twenty-one`, `5 million`, 七.

A table of phrases and the formula that each stands for, applied from the inside out. A
text in which words are left that are no units and no nouns stays as it was.
"""

import re
from collections.abc import Callable

from limr_jax.rewards.math import units

ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen",
    "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SIZES = {word: k for k, word in enumerate(ONES)}
_SIZES |= {word: 10 * k for k, word in enumerate(TENS, start=2)}
_ORDINALS = [
    "zeroth", "first", "second", "third", "fourth", "fifth", "sixth", "seventh",
    "eighth", "ninth", "tenth", "eleventh", "twelfth",
]  # fmt: skip
_PARTS = {"half": 2, "halve": 2, "quarter": 4}
# From a third on: a second is a unit of time, or a rank.
_PARTS |= {word: size for size, word in enumerate(_ORDINALS) if size > 2}
_PARTS |= {"hundredth": 100, "thousandth": 1000, "millionth": 10**6}
_POWERS = {"hundred": 2, "thousand": 3, "lakh": 5, "million": 6, "crore": 7,
           "billion": 9, "trillion": 12}  # fmt: skip
_WORD = rf"(?:{'|'.join([*_SIZES, *_POWERS])})"
# Words that may turn what a sentence says into something else.
REVERSING = {
    "not", "no", "never", "neither", "nor", "without", "if", "than", "unless",
    "except", "but", "instead",
}  # fmt: skip
_GROUP = r"\{(?:[^{}]|\{[^{}]*\})*\}"
# A number, letter, bracket or command with its groups; then a power or `!` of it.
_TERM = (
    r"(?:\d+(?:\.\d+)?|(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])|\([^()]*\)|\|[^|]*\|"
    rf"|\\(?!text|%)[A-Za-z]+(?:_\w|\[\w\])?\s?(?:{_GROUP})*)"
    rf"(?:\s?\\cdot\s?10)?(?:\^(?:\w|{_GROUP})|!)*°?"
)
_X = rf"(-?{_TERM}+)"
# By the first two letters: integers, reals, rationals, naturals, complex numbers.
_NUMBER_SETS = {"in": "Z", "re": "R", "ra": "Q", "na": "N", "co": "C"}
_FUNCTIONS = {"sine": "sin", "cosine": "cos", "tangent": "tan", "cotangent": "cot"}


def _cardinal(match: re.Match) -> str:
    """`one hundred and five` as 105; words that make no number as they stand."""
    # whole: what thousands and millions have closed; part: what is below them.
    whole, part, last = 0, 0, None
    for word in re.findall(_WORD, match[0]):
        power = _POWERS.get(word)
        size = _SIZES.get(word)
        if power is None:
            # 'five six' is no number: more follows tens, hundreds and thousands only.
            if last is not None and not (last > 9 > size > 0 or last in _RAISED):
                return match[0]
            part += size
            last = size if size > 19 else 9 if last in _RAISED else 1
        elif power == 2:
            part, last = (part or 1) * 100, 100
        else:
            whole, part, last = whole + (part or 1) * 10**power, 0, 1000
    return str(whole + part)


_RAISED = (100, 1000)


def _power_of_ten(match: re.Match) -> str:
    return rf"\cdot 10^{{{_POWERS[match[1]]}}}"


def _part(match: re.Match) -> str:
    # '7 and a half' is 7 + 1/2, '2 thirds' is 2/3; without a count it is one part.
    whole, top, low = match[1], match[2], _PARTS[match[3] or "half"]
    fraction = rf"\frac{{{top if top and top.isdigit() else 1}}}{{{low}}}"
    return rf"({whole}+{fraction})" if whole else fraction


def _ordinal(match: re.Match) -> str:
    return f"{_ORDINALS.index(match[1])}th{match[2]}"


# In this order, again and again: what is written first binds closest.
_PHRASES: list[tuple[re.Pattern, str | Callable[[re.Match], str]]] = [
    (re.compile(rf"(?<![A-Za-z\\]){old}(?![A-Za-z])"), new)
    for old, new in [
        (rf"(?<=\d) ?({'|'.join(_POWERS)})", _power_of_ten),
        # `housand`, since all that a look-behind looks for must have one width.
        (rf"{_WORD}(?:[ -]{_WORD}|(?<=hundred|housand|million) and {_WORD})*",
         _cardinal),
        (rf"(?:(\d+) and )?(?:(\d+|an?)[ -]({'|'.join(_PARTS)})s?|half)"
         r"(?! root| power)", _part),
        (rf"({'|'.join(_ORDINALS)})( root| power)", _ordinal),
        (r"(?<=\d) dozen", r"\\cdot 12"),
        (r"(?:an? )?dozen", "12"),
        (r"(\d+) point (\d+)", r"\1.\2"),
        (rf"{_X} squared|square of {_X}", r"(\1\2)^{2}"),
        (rf"{_X} cubed|cube of {_X}", r"(\1\2)^{3}"),
        (rf"{_X} factorial|factorial of {_X}", r"(\1\2)!"),
        (rf"cube root of {_X}", r"\\sqrt[3]{\1}"),
        (rf"(\d+)(?:th|rd|nd)? root of {_X}", r"\\sqrt[\1]{\2}"),
        (rf"(?:positive |principal )?(?:square )?root of {_X}", r"\\sqrt{\1}"),
        (rf"(?:reciprocal|multiplicative inverse) of {_X}", r"\\frac{1}{\1}"),
        (rf"(?:opposite|negative|additive inverse) of {_X}", r"(-\1)"),
        (rf"absolute value of {_X}", r"|\1|"),
        (rf"\\?log(?:arithm)?(?: to the)? base {_X} of {_X}", r"\\log_{\1} (\2)"),
        (rf"natural (?:\\?log|logarithm) of {_X}", r"\\ln (\1)"),
        (rf"({'|'.join(_FUNCTIONS)}) of {_X}",
         lambda m: rf"\{_FUNCTIONS[m[1]]} ({m[2]})"),
        (rf"{_X} choose {_X}", r"\\binom{\1}{\2}"),
        (rf"{_X}(?: raised)? to the (?:power (?:of )?)?{_X}(?:th|rd|nd)?(?: power)?",
         r"(\1)^{\2}"),
        (rf"(\\frac\{{\d+\}}\{{\d+\}}) (?:of )?{_X}", r"(\1\\cdot \2)"),
        (rf"{_X} ?\\% of {_X}", r"(\\frac{\1}{100}\\cdot \2)"),
        (rf"(?:twice|double) {_X}", r"(2\\cdot \1)"),
        (rf"(?:thrice|triple) {_X}", r"(3\\cdot \1)"),
        (rf"product of {_X} and {_X}", r"(\1)\\cdot(\2)"),
        (rf"sum of {_X} and {_X}", r"(\1+\2)"),
        (rf"difference (?:of|between) {_X} and {_X}", r"(\1-(\2))"),
        (rf"(?:quotient|ratio) of {_X} (?:and|to) {_X}", r"\\frac{\1}{\2}"),
        (rf"{_X} (?:over|divided by) {_X}", r"\\frac{\1}{\2}"),
        (rf"{_X} (?:times|multiplied by) {_X}", r"\1\\cdot \2"),
        (rf"{_X} plus {_X}", r"\1+\2"),
        (rf"{_X} minus {_X}", r"\1-\2"),
        (rf"^(?:negative|minus) {_X}", r"-\1"),
        (r"(?:equals|is equal to)", "="),
        (r"(?:set of all|all|set of) (integers|real numbers|reals|rational numbers"
         r"|natural numbers|complex numbers)",
         lambda m: rf"\mathbb{{{_NUMBER_SETS[m[1][:2]]}}}"),
    ]
]  # fmt: skip
_LEFT = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_THE = re.compile(r"(?<!to )\b[Tt]he (?=\w|\\)")


def as_formula(text: str) -> str:
    """A cleaned text with its phrases as formulas, where these are all that it says."""
    text = _chinese(text)
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    # No phrase is longer, and all patterns below are tried up to six times.
    if not _LEFT.search(plain) or len(plain) > 200:
        return text
    plain = sentence = " ".join(_THE.sub("", plain).split())
    if sentence in _ORDINALS:
        return str(_ORDINALS.index(sentence))
    plain = plain[:1].lower() + plain[1:]
    for _ in range(6):  # phrases within phrases; deeper ones stay words
        before = plain
        for pattern, new in _PHRASES:
            plain = pattern.sub(new, plain)
        if plain == before:
            break
    # A word that is left may make it another number, as 'multiples' does.
    left = [w for w in _LEFT.findall(plain) if w not in ("and", "or")]
    if plain.lower() == sentence.lower() or (
        left and not units.only_units_and_nouns(" ".join(left))
    ):
        return text
    return plain


_DIGITS = {c: k for k, c in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
# The exponent of ten that each stands for.
_TEN_TO = {"十": 1, "百": 2, "千": 3, "万": 4, "萬": 4, "亿": 8, "億": 8}
_NUMERAL = rf"[{''.join([*_DIGITS, *_TEN_TO])}]+"
_CHINESE = re.compile(
    rf"(?P<sign>负?)(?:(?P<whole>{_NUMERAL})又)?(?P<first>{_NUMERAL})"
    rf"(?:分之(?P<top>{_NUMERAL}|\d+)|点(?P<places>{_NUMERAL}))?"
)
# `3千克` is 3 kg: there 千 is a part of the unit.
_AFTER_DIGITS = re.compile(rf"(?<=\d)\s*([{''.join(_TEN_TO)}]+)(?!克|米|瓦|卡|升|分)")


def _chinese(text: str) -> str:
    """三十五 as 35, 三分之二 as 2/3, 百分之二十 as 20 %, `3万` as 30,000."""
    text = _AFTER_DIGITS.sub(
        lambda m: rf"\cdot 10^{{{sum(_TEN_TO[mark] for mark in m[1])}}}", text
    )
    numeral = _CHINESE.match(text)
    if not numeral:
        return text
    sign, rest = numeral["sign"].replace("负", "-"), text[numeral.end() :]
    first = _chinese_number(numeral["first"])
    if numeral["places"]:
        first = f"{first}." + "".join(
            str(_DIGITS.get(c, "")) for c in numeral["places"]
        )
    # 三分之二: the denominator stands first.
    if numeral["top"]:
        top = (
            numeral["top"]
            if numeral["top"].isdigit()
            else _chinese_number(numeral["top"])
        )
        whole = _chinese_number(numeral["whole"]) if numeral["whole"] else ""
        percent = numeral["first"] == "百" and not whole
        first = rf"{top}\%" if percent else rf"{whole}\frac{{{top}}}{{{first}}}"
    return f"{sign}{first}{rest}"


def _chinese_number(marks: str) -> int:
    # total: closed by 万 or 亿; part: by 十, 百 or 千; digit: waits for its power.
    total = part = digit = 0
    for mark in marks:
        power = _TEN_TO.get(mark)
        if power is None:
            digit = _DIGITS[mark]
        elif power < 4:
            part, digit = part + (digit or 1) * 10**power, 0  # 十 alone is 10
        else:
            total, part, digit = (total + part + digit) * 10**power, 0, 0
    return total + part + digit
