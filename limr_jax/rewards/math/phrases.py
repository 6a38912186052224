r"""Mathematics in words: `\text{cube root of } 125`, `twenty-one`, `5 million`.

A table of phrases and the formula that each stands for, applied from the inside out. A
text in which words are left that are no units and no nouns stays as it was.
"""

import re
from collections.abc import Callable

from limr_jax.rewards.math import chinese, units

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
_POWER = rf"(?:{'|'.join(_POWERS)})(?![A-Za-z])"
# Whole words only, as `six` begins `sixty`.
_WORD = rf"(?:{'|'.join([*_SIZES, *_POWERS])})(?![A-Za-z])"
_SMALL = rf"(?:{'|'.join(_SIZES)})(?![A-Za-z])"
# All that a look-behind looks for must have one width: `housand`, `rillion`.
_AND = (
    r"(?:(?<=hundred|housand|million|billion|rillion)|(?<=lakh)|(?<=crore))"
    r"[ -]and[ -]"
)
_PART = rf"(?:{'|'.join(_PARTS)})s?(?![A-Za-z])"
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


def spoken_number(words: list[str]) -> int | None:
    """`one`, `hundred`, `five`, the words of a number without its 'and', as 105.

    None for words that make no one number, as five six, or twenty eleven.
    """
    # whole: what thousands and millions have closed; part: what is below them.
    whole, part, closed = 0, 0, 10**15
    room = 100  # what the next of the small words has to be below
    for k, word in enumerate(words):
        power, size = _POWERS.get(word), _SIZES.get(word)
        # `hundred` alone is one hundred, but only where the number begins.
        if power is not None and k and not part:
            return None
        if power is None:
            if not 0 < size < room and words != ["zero"]:
                return None
            # One more may follow tens, as in twenty-one, and none the others.
            part, room = part + size, 10 if size > 19 else 0
        elif power == 2:
            if part > 99:
                return None
            part, room = (part or 1) * 100, 100
        else:
            # Thousands behind millions, never before them.
            grown = (part or 1) * 10**power
            if part > 999 or grown >= closed:
                return None
            whole, part, closed, room = whole + grown, 0, 10**power, 100
    return whole + part if part < closed else None


# `five2`, `2 five`, `3.five`: one number of both, and nobody knows which.
_DIGIT_BEFORE = re.compile(r"\d\.?[ -]?$")
# `twenty-second`, `five-year`: a part of another word. `two-thirds` is not.
_MORE_AFTER = re.compile(rf"[ -]?\.?\d|-(?!{_PART})[A-Za-z]")
_PART_AFTER = re.compile(rf"([ -])(?:(hundred|thousand|million)th|{_PART})")


def _cardinal(match: re.Match) -> str:
    """`one hundred and five` as 105; words that make no number as they stand."""
    before, after = match.string[: match.start()], match.string[match.end() :]
    if _DIGIT_BEFORE.search(before[-3:]) or _MORE_AFTER.match(after):
        return match[0]
    part = _PART_AFTER.match(after)
    # `one hundred and two thirds` is 100 + 2/3, and not 102/3.
    whole, _, rest = match[0].rpartition("and") if part else ("", "", match[0])
    words = re.findall(_WORD, rest)
    numbers = [spoken_number(w) for w in (re.findall(_WORD, whole), words) if w]
    if None in numbers:
        return match[0]
    # `twenty-fourth` is an ordinal, `ten thousandths` may be parts of ten thousand,
    # and `two hundred and fifty thousandths` 0.25 or 200.05.
    if part and (
        (part[1] == "-" and numbers[-1] > 19)
        or (part[2] and (whole or words[-1] in ("ten", *_POWERS)))
    ):
        return match[0]
    return " and ".join(map(str, numbers))


def _power_of_ten(match: re.Match) -> str:
    exponent = sum(_POWERS[word] for word in re.findall(_POWER, match[1]))
    return rf"\cdot 10^{{{exponent}}}"


def _part(match: re.Match) -> str:
    # '7 and a half' is 7 + 1/2, '2 thirds' is 2/3; without a count it is one part.
    whole, top, low = match[1], match[2], _PARTS[match[3] or "half"]
    counted = bool(top) and top.isdigit()
    count = int(top) if counted else 1
    # 24 third may be the 24th and a third; 'a million and a half' is 1.5 million.
    if (count > 9 and not match[4]) or (
        whole and (count >= low or (not counted and whole.endswith("000")))
    ):
        return match[0]
    fraction = rf"\frac{{{count}}}{{{low}}}"
    return rf"({whole}+{fraction})" if whole else fraction


def _ordinal(match: re.Match) -> str:
    return f"{_ORDINALS.index(match[1])}th{match[2]}"


# In this order, again and again: what is written first binds closest.
_PHRASES: list[tuple[re.Pattern, str | Callable[[re.Match], str]]] = [
    (re.compile(rf"(?<![A-Za-z\\]){old}(?![A-Za-z])"), new)
    for old, new in [
        # `2 thousand 5 hundred` is one number, and no product.
        (rf"(?<=\d) ?({_POWER}(?>(?:[ -]{_POWER})*))(?![ -](?:\d|{_WORD}))",
         _power_of_ten),
        # `two point five million` is 2.5 million, and not 2.5000000.
        (rf"(?<=point ){_SMALL}(?>(?:[ -]{_SMALL})*)(?=[ -]{_POWER})", _cardinal),
        (rf"(?:an? (?={_POWER}))?{_WORD}(?>(?:(?:[ -]|{_AND}){_WORD})*)", _cardinal),
        (rf"(?<![\d.])(?:(\d+) and )?(?:(\d+|an?)[ -]({'|'.join(_PARTS)})(s?)|half)"
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
    text = chinese.as_formula(text)
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
