"""Chinese numerals: what is read is the number that is said, or nothing is."""

import itertools
import random
import re

import pytest

from limr_jax.rewards.math import chinese, compare, extract, normalise, phrases

DIGITS = "零一二三四五六七八九"
PLACES = [(10**8, "亿"), (10**4, "万"), (1000, "千"), (100, "百"), (10, "十")]
NEXT = {"百": "十", "千": "百", "万": "千", "亿": "千万"}


def said(number: int) -> str:
    """The number as it is written in full: 一千零一十."""
    if number < 10:
        return DIGITS[number]
    size, name = next((size, name) for size, name in PLACES if number >= size)
    above, below = divmod(number, size)
    # 零 stands for places that are left out.
    gap = "零" * (0 < below < size // 10)
    return said(above) + name + gap + (said(below) if below else "")


def read(text: str) -> str:
    return phrases.as_formula(normalise.clean(text))


NUMBERS = [*range(1200), *range(1200, 120_000, 83)]
NUMBERS += [random.Random(k).randrange(10 ** (5 + k % 8)) for k in range(500)]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: text.removeprefix("一") if text[:2] == "一十" else text,
        lambda text: re.sub("(?<![十零])二(?=[百千万亿])", "两", text),
        lambda text: text.replace("零", "〇"),
        lambda text: text.replace("万", "萬").replace("亿", "億"),
    ],
)
def test_every_number_in_each_spelling(change):
    for number in NUMBERS:
        assert read(change(said(number))) == str(number)


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.soak), 97])
def test_every_number_below_a_million(every):
    for number in range(0, 10**6, every):
        assert chinese.number_of(said(number)) == number


def in_full(text: str) -> str:
    """With the last place, 三百五 as 三百五十, without 零, and 十 for 一十."""
    last = re.search(rf"([百千万亿])[{DIGITS[1:]}]$", text.replace("两", "二"))
    text = text.replace("两", "二") + (NEXT[last[1]] if last else "")
    text = re.sub("^(?=[百千万亿])", "一", text.replace("零", ""))
    return text.replace("一十", "十")


def test_marks_in_any_order_are_no_other_number():
    """Every row of up to five marks: what is read says just that, or digits."""
    marks = "零一三两十百千万亿"
    rows = [row for n in range(2, 6) for row in itertools.product(marks, repeat=n)]
    right = 0
    for row in map("".join, rows):
        value = chinese.number_of(row)
        if value is not None and not {*row} <= {*DIGITS}:
            assert in_full(said(value)) == in_full(row)
            right += 1
    assert right > 500


UNREAD = [  # two numbers, a time of day, a unit, or anybody's guess
    "三五", "三四", "一百两", "三百五万", "一亿五千", "一亿五千零三", "万万", "千百",
    "二十零五", "十十", "三又五", "二又二分之三", "三点十五", "三点五十", "十点五分",
    "十二点三十分", "三5", "三万5000", "千米", "3万5", "3万50", "3.5万5千", "3亿万",
    "十5", "三分之", "一百零",
]  # fmt: skip


@pytest.mark.parametrize("text", UNREAD)
def test_what_is_no_one_number_stays_as_it_is(text):
    assert read(text) == text


SAME = [  # (reference, prediction)
    ("130000000", "一亿三千万"), ("350", "三百五"), ("12000", "一万二"),
    ("115", "一百十五"), ("35000", "3万5千"), ("35000", "三点五万"), ("3", "3千克"),
    ("130000000", "1亿3千万"), ("2024", "二〇二四"), ("123456", "12万3456"),
    ("130000000", "1亿3000万"), ("0.125", "百分之十二点五"), ("1", "百分之百"),
    ("-1200", "负一千二百"), ("10^{12}", "一万亿"), ("3000000", "3百万"),
    (r"3\frac12", "三又二分之一"),
]  # fmt: skip

DIFFERENT = [
    (r"(10^8+3000)\cdot 10^4", "一亿三千万"), ("305", "三百五"), ("10002", "一万二"),
    ("150000000", "3万5千"), ("5", "三五"), ("3.5", "三点五万"), ("5", "三又五"),
    ("35", "三5"), ("105", "十5"), ("102", "一百两"), ("12.3", "十二点三十分"),
    ("12", "百分之十二点五"), ("3.5", "三点五十"), ("1000", "千米"), ("8", "一百零八"),
]  # fmt: skip


@pytest.mark.parametrize(
    "text, answer",
    [
        ("那么所以一共有3万5千人左右的样子", "3万5千"),
        ("那么所以一共有3万人左右的样子", "3万"),
        ("那么所以一共有3千克左右的样子", "3"),
        ("那么所以一共有35个苹果左右", "35"),
    ],
)
def test_a_number_in_prose_keeps_its_marks(text, answer):
    assert extract.bare_answers(text)[0] == answer


@pytest.mark.parametrize("reference, prediction", SAME)
def test_same(reference, prediction):
    assert compare.same_answer(reference, prediction)


@pytest.mark.parametrize("reference, prediction", DIFFERENT)
def test_different(reference, prediction):
    assert compare.same_answer(reference, prediction) is None
