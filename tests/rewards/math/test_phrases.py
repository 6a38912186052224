"""Numbers in words: what is read is the number that is said, or nothing is."""

import itertools
import random
import re

import pytest

from limr_jax.rewards.math import compare, extract, normalise, phrases

ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen",
    "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = [
    "", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty",
    "ninety",
]  # fmt: skip
LARGE = [(10**9, "billion"), (10**6, "million"), (1000, "thousand")]


def spoken(number: int, joint: str = "", hyphen: str = " ") -> str:
    """The number as it is said; joint: 'and ' between hundreds and what follows."""
    words = []
    for size, name in LARGE:
        if number >= size:
            words.append(f"{spoken(number // size, joint, hyphen)} {name}")
            number %= size
    if number >= 100:
        words.append(f"{ONES[number // 100]} hundred")
    low = number % 100
    # 'One thousand and five': the last part has its 'and' without hundreds, too.
    before = joint if words else ""
    if low > 19:
        last = hyphen + ONES[low % 10] if low % 10 else ""
        words.append(before + TENS[low // 10] + last)
    elif low or not words:
        words.append(before + ONES[low])
    return " ".join(words)


def read(words: str) -> str:
    return phrases.as_formula(normalise.clean(rf"\text{{{words}}}"))


def value_read(words: str) -> int | None:
    formula = read(words)
    return int(formula) if formula.isdigit() else None


SAID = [("", " "), ("", "-"), ("and ", " "), ("and ", "-")]


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.soak), 97])
def test_every_number_below_a_million(every):
    """The words alone: `as_formula` would take minutes."""
    for number in range(0, 10**6, every):
        for how in SAID:
            words = spoken(number, *how).replace(" and ", " ").replace("-", " ")
            assert phrases.spoken_number(words.split()) == number


@pytest.mark.parametrize("joint, hyphen", SAID)
def test_numbers_up_to_billions(joint, hyphen):
    draw = random.Random(7)
    numbers = [
        *range(130),
        *range(130, 1100, 7),
        *(draw.randrange(10**k) for k in range(4, 13) for _ in "9" * 40),
    ]
    for number in numbers:
        assert value_read(spoken(number, joint, hyphen)) == number


TWO_DIGITS = {spoken(k): k for k in range(99, 9, -1)}
HUNDREDS = re.compile(rf"\b({'|'.join(TWO_DIGITS)}) hundred\b")


def in_full(words: str) -> str:
    """`hundred` as 'one hundred', `twelve hundred` as 'one thousand two hundred'."""
    words = re.sub(r"^(?=hundred|thousand|million)", "one ", words)

    def thousands(match):
        tens, ones = divmod(TWO_DIGITS[match[1]], 10)
        return f"{ONES[tens]} thousand" + f" {ONES[ones]} hundred" * bool(ones)

    return HUNDREDS.sub(thousands, words)


def test_words_in_any_order_are_no_other_number():
    """Every row of up to three words, many of more: what is read says just that."""
    words = [*ONES, *TENS[2:], "hundred", "thousand", "million"]
    rows = [row for n in (1, 2, 3) for row in itertools.product(words, repeat=n)]
    draw = random.Random(7)
    rows += [draw.choices(words, k=draw.randint(4, 7)) for _ in range(20_000)]
    values = [phrases.spoken_number(list(row)) for row in rows]
    for row, value in zip(rows, values):
        assert value is None or spoken(value) == in_full(" ".join(row))
    assert sum(value is not None for value in values) > 3_000


UNREAD = [  # two numbers, an ordinal, a part of another word, or anybody's guess
    "twenty eleven", "ten one", "five six", "two-seventy", "nineteen eighty-four",
    "one hundred and two hundred", "two thousand million", "twenty-fourth", "ten zero",
    "sixty-second", "twenty-first", "five-year", "one twenty-fifth", "ten-thousandths",
    "three hundred thousandths", "two hundred and fifty thousandths", "sixty fourth",
    "one hundred and twenty fourths", "a million and a half", "five2", "2five",
    "2 thousand 5 hundred", "5 twenty", "twenty 5", "three.5", "2.5 thirds", "six-pack",
]  # fmt: skip


@pytest.mark.parametrize("words", UNREAD)
def test_what_is_no_one_number_stays_words(words):
    text = normalise.clean(words)
    assert phrases.as_formula(text) == text


SAME = [  # (reference, prediction)
    ("29", r"\text{twenty-nine}"), ("60", r"\text{sixty}"), ("90", "ninety"),
    ("14", r"\text{fourteen}"), ("99", r"\text{Ninety-nine}"), ("100", "a hundred"),
    ("105", r"\text{a hundred and five}"), ("2500", "twenty-five hundred"),
    ("500000", "half a million"), ("1500000", "one and a half million"),
    (r"100\frac{2}{3}", r"\text{one hundred and two thirds}"), ("0.025",
    "twenty-five thousandths"), (r"\frac{22}{7}", "twenty-two sevenths"),
    ("105", "one-hundred-and-five"), ("500000", "5 hundred thousand"),
    ("10^{12}", "1 million million"),
    ("2500000", "two point five million"), ("2250", "two point twenty-five thousand"),
]  # fmt: skip

DIFFERENT = [
    ("6", r"\text{sixty}"), ("7", r"\text{seventy}"), ("8", r"\text{eighty}"),
    ("9", r"\text{ninety}"), ("4", r"\text{fourteen}"), ("6", r"\text{sixteen}"),
    ("20", r"\text{twenty-nine}"), ("5", r"\text{twenty-fourth}"),
    ("15", "sixty-fourth"), ("20", "twenty-second"), 
    ("10200", "one hundred and two hundred"), ("52", "five2"), ("100a", "a hundred"),
    ("100.5", "two hundred and one half"), ("1002000", "two thousand million"),
    ("2.5", "two point five million"), ("0.5", "zero point five thousand"),
    ("1000000.5", "a million and a half"), ("1000000", "5 thousand 2 hundred"),
]  # fmt: skip


def test_a_number_in_prose_keeps_its_words():
    text = "Therefore the total comes to about 3 million in all of them"
    assert extract.bare_answers(text)[0] == "3 million"
    text = "Therefore the total comes to about 3 millions in all of them"
    assert extract.bare_answers(text)[0] == "3 millions"


@pytest.mark.parametrize("reference, prediction", SAME)
def test_same(reference, prediction):
    assert compare.same_answer(reference, prediction)


@pytest.mark.parametrize("reference, prediction", DIFFERENT)
def test_different(reference, prediction):
    assert compare.same_answer(reference, prediction) is None
